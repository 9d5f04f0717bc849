"""The command line: files, exit statuses, resuming, being killed. Each test runs the program as a user would."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.running.signals import STOPPING

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "jax"
SMALL = ["--config.rounds=40", "--config.eval_every=4", "--config.checkpoint_every=3", "--config.model.hidden=(16,)"]


def command(*flags):
    return [sys.executable, "-m", "fedjax8.train", *flags]


def environment():
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return os.environ | compiled | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def train(*flags, **settings):
    return subprocess.run(
        command(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, **settings
    )


def lines(workdir, timed=False):
    """The metrics of a run, without the seconds, which no two runs share."""
    read = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return read if timed else [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in read]


def final_model(workdir):
    """The arrays of the newest checkpoint, read without the program."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))
        return manager.latest_step(), found.arrays


def same_tree(a, b):
    import jax

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole small run, shared by the tests that compare with it."""
    workdir = tmp_path_factory.mktemp("unbroken")
    done = train(*SMALL, f"--workdir={workdir}", "--name=small", "--tag=a,b", "--note=a note")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_leaves_the_agreed_files(unbroken):
    workdir, done = unbroken
    assert done.stderr == ""
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["versions"]["jax"]
    assert record["devices"]
    assert record["labels"] == {"name": "small", "tags": ["a", "b"], "note": "a note"}
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary) >= {
        "rounds", "test_accuracy", "test_loss", "uplink_bytes", "downlink_bytes", "float32_bytes", "saving", "seconds",
        "finished", "diverged",
    }  # fmt: skip
    assert (summary["rounds"], summary["finished"], summary["diverged"]) == (40, True, False)
    read = lines(workdir, timed=True)
    assert [line["round"] for line in read] == list(range(1, 41))
    assert [line["round"] for line in read if "test_accuracy" in line] == list(range(4, 41, 4))
    assert list(read[3])[:8] == [
        "round", "test_accuracy", "test_loss", "train_loss", "uplink_bytes", "downlink_bytes", "clients",
        "round_seconds",
    ]  # fmt: skip
    assert read[-1]["test_accuracy"] == summary["test_accuracy"]


def test_a_run_says_what_its_clients_hold_and_what_its_messages_consist_of(unbroken):
    about = json.loads((unbroken[0] / "about.json").read_text())
    assert len(about["split"]["sizes"]) == about["split"]["clients"] == len(about["split"]["labels"]["counts"])
    assert sum(about["split"]["sizes"]) == about["split"]["rows"] == sum(map(sum, about["split"]["labels"]["counts"]))
    summary = json.loads((unbroken[0] / "summary.json").read_text())
    for message in about["messages"]:
        assert 400 * message["message_bytes"] == summary[f"{message['direction']}link_bytes"]
        assert message["leaves"]["params/Dense_0/kernel"] == 64 * 16  # one byte a weight


def test_bytes_follow_from_the_message_layout(unbroken):
    """One byte a weight, 4 a bias, 4 a clip: kernels and inputs of a 64-16-10 network, 10 clients, 40 rounds."""
    summary = json.loads((unbroken[0] / "summary.json").read_text())
    weights, biases, clips = 64 * 16 + 16 * 10, 16 + 10, 4
    assert summary["uplink_bytes"] == summary["downlink_bytes"] == 400 * (weights + 4 * biases + 4 * clips)
    assert summary["float32_bytes"] == 2 * 400 * 4 * (weights + biases)
    sent = summary["uplink_bytes"] + summary["downlink_bytes"]
    assert summary["saving"] == pytest.approx(summary["float32_bytes"] / sent)


def test_a_dry_run_foretells_the_bytes_of_the_run_and_writes_nothing(unbroken, tmp_path):
    done = train(*SMALL, "--dry_run=fast", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((unbroken[0] / "summary.json").read_text())
    up, down = summary["uplink_bytes"], summary["downlink_bytes"]
    assert f"40 rounds up {up:,}, down {down:,}" in done.stdout
    assert f"{summary['saving']:.2f}x against float32" in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_output_ends_with_accuracy_bytes_and_saving(unbroken):
    out = unbroken[1].stdout
    weights_and_biases = 64 * 16 + 16 + 16 * 10 + 10
    assert f"fedavg on digits: mlp with {weights_and_biases:,} parameters" in out
    for words in ("test accuracy", "bytes up", "bytes down", "saving"):
        assert words in out.splitlines()[-4:][["test accuracy", "bytes up", "bytes down", "saving"].index(words)]


def test_the_same_command_again_only_reports(unbroken):
    workdir, _ = unbroken
    before = (workdir / "metrics.jsonl").read_text()
    done = train(*SMALL, f"--workdir={workdir}")
    assert done.returncode == 0
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "bytes up" in done.stdout


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(unbroken, tmp_path):
    rng, workdir, kills = np.random.default_rng(7), tmp_path / "killed", 0
    for attempt in range(12):
        process = subprocess.Popen(
            command(*SMALL, f"--workdir={workdir}"), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
        )
        if attempt < 3:  # strike once it has begun to write rounds, at a random moment within some checkpoints
            while process.poll() is None and not rounds_since(workdir, kills):
                time.sleep(0.005)
            time.sleep(float(rng.uniform(0.0, 0.4)))
            process.kill()
        status = process.wait()
        kills += status == -signal.SIGKILL
        if status == 0:
            break
    assert status == 0
    assert kills >= 2
    assert lines(workdir) == lines(unbroken[0])
    (step, model), (expected_step, expected) = final_model(workdir), final_model(unbroken[0])
    assert step == expected_step == 40
    assert same_tree(model, expected)


def rounds_since(workdir, kills, seen={}):  # noqa: B006  (remembers the file's size at the last strike)
    """Whether the run has written metrics since the last strike."""
    path = workdir / "metrics.jsonl"
    size = path.stat().st_mtime_ns if path.exists() else 0
    if seen.get("kills") != kills:
        seen.update(kills=kills, size=size)
        return False
    return size != seen["size"]


@pytest.mark.slow
def test_a_signal_ends_the_run_after_its_round_and_the_same_command_goes_on(tmp_path):
    """One before the first round is over, another after some rounds, then to the end."""
    most, rounds = 120, []  # so many that the second signal is not late
    small = [*SMALL, f"--config.rounds={most}"]
    flags, unbroken = [*small, f"--workdir={tmp_path / 'run'}"], [*small, f"--workdir={tmp_path / 'unbroken'}"]
    for number, status, least in ((signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 1)):
        process = subprocess.Popen(
            command(*flags), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        path = tmp_path / "run" / "metrics.jsonl"
        least += sum(rounds)
        while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= least):
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (status, STOPPING.decode())
        assert "goes on from there" in out
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["finished"] is False
        assert len(lines(tmp_path / "run")) == summary["rounds"] >= least
        rounds.append(summary["rounds"])
    assert rounds[0] < rounds[1] < most
    assert train(*flags).returncode == train(*unbroken).returncode == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_second_signal_of_another_kind_does_not_wait_for_the_rounds(tmp_path):
    """A round of many minutes."""
    flags = [*SMALL, "--config.client.epochs=200000", f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command(*flags), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # what runs is said before the first round
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "fedjax8: interrupted")


def test_another_config_in_the_same_workdir_is_refused_and_names_the_fields(unbroken):
    done = train(*SMALL, "--config.seed=3", "--config.format=e5m2", f"--workdir={unbroken[0]}")
    assert done.returncode == 2
    assert "seed: 0 -> 3" in done.stderr
    assert "format: e4m3fn -> e5m2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


MISTAKES = [
    (["--config.rond=3"], "did you mean 'rounds'"),
    (["--confg=x"], "confg"),
    (["--config=nowhere.py"], "no file 'nowhere.py'"),
    (["somewhere"], "unexpected argument 'somewhere'"),
    (["--config.rounds"], "needs a value"),
    (["--config.data.name=mnist", "--data_dir=/nowhere"], "python -m fedjax8.fetch mnist"),
    (["--workdir=/proc/nowhere/x"], "--workdir: cannot write"),
    (["--dry_run", "--seeds=0,1"], "--dry_run is of one run"),
    (["--writers=tensorboard"], "--writers needs a --workdir"),
    (["--name=small"], "--name needs a --workdir"),
]
SEEDS = ("0,0", "-1", "one")
IN_TURN = """
import json, os, pathlib, sys
from fedjax8 import build, cli, launch, train

folder, results = pathlib.Path(sys.argv[1]), []
for flags in json.loads(sys.argv[2]):
    process = os.fork()
    if not process:
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["train", *flags]
        cli.run(train.main, train.parse_flags)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    results.append([status, (folder / "stdout").read_text(), (folder / "stderr").read_text()])
print(json.dumps(results))
"""
"""Runs the program once for each list of flags, each time in a process of its own that has what this imported."""


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """(status, stdout, stderr) of each of MISTAKES and SEEDS, and the folder that the latter were to write."""
    folder = tmp_path_factory.mktemp("mistaken")
    cases = [flags for flags, _ in MISTAKES]
    cases += [[f"--seeds={seeds}", f"--workdir={folder / 'run'}"] for seeds in SEEDS]
    program = [sys.executable, "-c", IN_TURN, str(folder), json.dumps(cases)]
    done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    keys = [message for _, message in MISTAKES] + list(SEEDS)
    return dict(zip(keys, json.loads(done.stdout), strict=True)), folder


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_a_users_mistake_is_one_line_and_status_2(flags, message, mistaken):
    status, stdout, stderr = mistaken[0][message]
    assert status == 2
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("fedjax8: ")
    assert message in stderr


def test_several_mistakes_are_told_at_once_and_leave_no_file_behind(tmp_path):
    mistaken = ["--config.rond=3", "--config.rounds=x", "--config.model.hiden=(8,)", "--config.uplink.name=fp9"]
    done = train(*mistaken, f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (2, "")
    heading, *listed = done.stderr.splitlines()
    assert heading == "fedjax8: 4 mistakes; nothing was run"
    assert [line.split(". ")[0].strip() for line in listed] == ["1", "2", "3", "4"]
    for line, word in zip(listed, ("rounds", "'x'", "'hidden'", "'fp8'"), strict=True):
        assert word in line
    assert not (tmp_path / "run").exists()


def test_a_refused_config_leaves_no_file_behind(tmp_path):
    done = train("--config.cohort_size=99", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_a_pattern_that_matches_nothing_leaves_no_file_behind(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from fedjax8.config import base_config, component\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.uplink = component('per_path', rules={'kernal': component('none')}, default=component('fp8'))\n"
        "    return config\n"
    )
    done = train(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pattern 'kernal' matches none" in done.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_outside_the_rounds_is_one_line_and_130():
    code = "from fedjax8 import cli\ndef main(argv):\n    raise KeyboardInterrupt\ncli.run(main)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "fedjax8: interrupted\n")


def test_help_names_every_field():
    from fedjax8.config import FIELDS

    done = train("--help")
    assert done.returncode == 0
    assert "python -m fedjax8.train" in done.stdout
    joined = " ".join(done.stdout.split())
    for name in FIELDS:
        assert f"{name}: " in joined


def test_a_dry_run_needs_no_value():
    from fedjax8 import train as program

    assert program.parse_flags(["train", "--dry_run", "--config.seed=3"]) == ["train", "--config.seed=3"]
    assert program.flags.FLAGS.dry_run == "measured"
    program.parse_flags(["train"])
    assert program.flags.FLAGS.dry_run is None


def test_overrides_may_be_given_with_a_space():
    from fedjax8.train import split_overrides

    rest, pairs = split_overrides(["train", "--config.seed", "3", "-config.rounds=5", "--workdir=x"])
    assert rest == ["train", "--workdir=x"]
    assert pairs == [("seed", "3"), ("rounds", "5")]


@pytest.mark.slow
def test_seeds_at_once_leave_the_folders_of_runs_one_by_one(tmp_path):
    few = [*SMALL, "--config.rounds=4"]
    others = (f"--profile={tmp_path / 'profile'}", "--client_accuracy=5")
    together = train(*few, "--seeds=3,1", f"--workdir={tmp_path}", *others)
    assert together.returncode == 0
    ends = [json.loads((tmp_path / f"seed-{seed}" / "summary.json").read_text())["test_accuracy"] for seed in (3, 1)]
    over = json.loads((tmp_path / "seeds.json").read_text())
    assert over["seeds"] == [3, 1] and over["test_accuracy"]["mean"] == pytest.approx(sum(ends) / 2)
    assert f"mean over 2 seeds: test accuracy {sum(ends) / 2:.4f} (deviation" in together.stdout
    alone = [*few, "--config.seed=1", "--config.executor.name=chunked", "--config.executor.chunk=1"]
    assert train(*alone, f"--workdir={tmp_path / 'alone'}").returncode == 0
    assert lines(tmp_path / "seed-1") == lines(tmp_path / "alone") != lines(tmp_path / "seed-3")
    assert same_tree(final_model(tmp_path / "seed-1"), final_model(tmp_path / "alone"))
    configs = [json.loads((tmp_path / name / "config.json").read_text())["config"] for name in ("seed-1", "alone")]
    assert configs[0] == configs[1]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for name in ("seed-1", "seed-3"):
        accuracies = json.loads((tmp_path / name / "clients.json").read_text())["accuracy"]
        assert len(accuracies) == 5 and all(0 <= accuracy <= 1 for accuracy in accuracies)


@pytest.mark.parametrize("seeds", SEEDS)
def test_impossible_seeds_are_a_user_error(seeds, mistaken):
    results, folder = mistaken
    status, _, stderr = results[seeds]
    assert status == 2 and "--seeds" in stderr
    assert not (folder / "run").exists()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, and flags as they were."""
    from absl import flags

    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    flags.FLAGS.unparse_flags()


def test_a_process_runs_several_times_after_jax_has_started_and_a_step_too_large_is_called_one(home, capsys):
    from fedjax8.train import main

    few = [
        "train",
        "--config.rounds=2",
        "--config.eval_every=1",
        "--config.model.hidden=(4,)",
        "--config.num_clients=4",
    ]
    few += ["--config.cohort_size=2", "--config.client.optimizer.learning_rate=1e6"]
    floats = [f"--config.{part}.name=none" for part in ("adapter", "uplink", "downlink")]
    assert main([*few, *floats, "--workdir=~/first"]) == 0
    said = capsys.readouterr().out
    summary = json.loads((home / "first" / "summary.json").read_text())
    assert (summary["finished"], summary["diverged"]) == (True, True)
    *_, last = said.splitlines()
    assert last.startswith("diverged: ") and last.endswith("learning_rate (it is 1e+06).")
    heading, *rows = (line for line in said.splitlines() if line.startswith((" round", "     1", "     2")))
    assert len(rows) == 2 and {len(row) for row in rows} == {len(heading)}
    assert main([*few, *floats]) == 0  # without the workdir of the first
    assert [path.name for path in home.iterdir()] == ["first"]
    with pytest.raises(UserError, match="confg"):
        main(["train", "--confg=x"])


BROKEN = {
    "optimized": ("exec {run} {flags} --workdir={folder}", {"PYTHONOPTIMIZE": "1"}, 0),
    "other keys": ("exec {run} {flags} --workdir={folder}", {"JAX_DEFAULT_PRNG_IMPL": "rbg"}, 0),
    "other hashes": ("exec {run} {flags} --workdir={folder}", {"PYTHONHASHSEED": "1", "JAX_ENABLE_X64": "1"}, 0),
    "reader gone": ("{run} {flags} --workdir={folder} | true", {}, 0),
    "disk full": ("exec {run} {flags} --workdir={folder} > /dev/full", {}, 0),
    "all closed": ("exec {run} {flags} --workdir={folder} <&- >&- 2>&-", {}, 0),
    "no home": ("exec {run} {flags} --workdir={folder}", {"HOME": "/nowhere", "COLUMNS": "0", "TERM": "dumb"}, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_whatever_surrounds_a_run_it_ends_with_the_same_model(unbroken, tmp_path, case):
    line, variables, status = BROKEN[case]
    run, flags = shlex.join(command()), shlex.join(SMALL)
    shell = line.format(run=run, flags=flags, folder=shlex.quote(str(tmp_path / "run")))
    done = subprocess.run(
        ["sh", "-c", shell], cwd=ROOT, env=environment() | variables, capture_output=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    assert lines(tmp_path / "run") == lines(unbroken[0])
    assert same_tree(final_model(tmp_path / "run")[1], final_model(unbroken[0])[1])


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_saves_the_run_unless_it_was_told_to_be_ignored(tmp_path, ignored):
    flags = [*SMALL, "--config.rounds=400", f"--workdir={tmp_path / 'run'}"]
    ignore = "trap '' HUP; " if ignored else ""
    process = subprocess.Popen(
        ["sh", "-c", f"{ignore}exec {shlex.join(command(*flags))}"],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text()):
        time.sleep(0.005)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if ignored:
        assert (process.returncode, summary["finished"], err) == (0, True, "")
        return
    assert (process.returncode, summary["finished"], err) == (128 + signal.SIGHUP, False, STOPPING.decode())
    assert final_model(tmp_path / "run")[0] == summary["rounds"] == len(lines(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PLATFORMS": "unknown"}, "JAX_PLATFORMS is 'unknown', and JAX finds no device"),
        ({"JAX_DISABLE_JIT": "1"}, "JAX_DISABLE_JIT is True, but rounds are compiled"),
        ({"JAX_NUMPY_RANK_PROMOTION": "raise"}, "JAX_NUMPY_RANK_PROMOTION is raise"),
        ({"JAX_TRANSFER_GUARD": "disallow"}, "JAX_TRANSFER_GUARD"),
    ],
)
def test_settings_of_jax_that_cannot_be_are_one_line(variables, message):
    done = subprocess.run(
        command(*SMALL), cwd=ROOT, env=environment() | variables, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("fedjax8: ") and message in done.stderr
