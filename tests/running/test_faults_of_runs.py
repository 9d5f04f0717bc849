"""Full disks, damaged files, clocks that jump, no memory: a run ends as if nothing had been, or says what to do."""

import concurrent.futures
import functools
import json
import os
import resource
import time

import jax
import numpy as np
import pytest

from fedjax8.algorithms.scaffold import scaffold
from fedjax8.errors import UserError
from fedjax8.hosts import ALONE
from fedjax8.running import checkpoints, workdir
from fedjax8.running.memory import memory_explained
from fedjax8.running.recording import Recording, Run
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule

ROUNDS = 8
SCHEDULE = Schedule(rounds=ROUNDS, eval_every=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def sim(toys):
    """Clients that remember, three of six a round. It is a function of states, so that all tests share what it
    compiled."""
    data = toys.clients([1.0, 4.0, 2.0, 3.0, 0.5, 1.5], [0.0, 1.0, -1.0, 2.0, 3.0, 1.0])
    return toys.build(functools.partial(scaffold, learning_rate=toys.LEARNING_RATE), data, cohort_size=3, steps=2)


TEST = {"a": np.float32([1, 2]), "b": np.float32([0, 1])}


def go(sim, folder, rounds=ROUNDS):
    return run(sim, TEST, SCHEDULE._replace(rounds=rounds), workdir=folder)


def left(outcome, folder):
    """What a run leaves, without its seconds."""
    state = outcome.state
    arrays = [np.asarray(x) for x in jax.tree.leaves((state.server, state.clients.arrays()))]
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in read]
    return [x.tobytes() for x in arrays], state.ledger, lines


@pytest.fixture(scope="module")
def unbroken(sim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return left(go(sim, folder), folder)


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk(fails)`: lets no file grow beyond 100 bytes while the checkpoints are written whose number, from 0,
    `fails` says, and rounds wait for them, since the limit is of the whole process."""

    def strike(fails):
        write, begin, count = checkpoints.Checkpoints._write, checkpoints.Checkpoints.begin, iter(range(100))

        def begin_and_wait(saved, *arguments):
            begin(saved, *arguments)
            concurrent.futures.wait([saved._pending.answer] if saved._pending else [])

        def write_on_full_disk(*arguments):
            if not fails(next(count)):
                return write(*arguments)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                return write(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        monkeypatch.setattr(checkpoints.Checkpoints, "_write", write_on_full_disk)
        monkeypatch.setattr(checkpoints.Checkpoints, "begin", begin_and_wait)

    return strike


def test_a_disk_that_is_full_for_a_while_costs_nothing(sim, unbroken, tmp_path, full_disk, capsys):
    full_disk(lambda number: number in (1, 2))
    assert left(go(sim, tmp_path), tmp_path) == unbroken
    said = " ".join(capsys.readouterr().out.split())
    for number in (4, 6):
        assert f"cannot save round {number} in {tmp_path / 'checkpoints'}: [Errno 27] File too large; make room" in said
    assert "The checkpoint of round 2 is as it was; going on" in said


def test_a_disk_that_stays_full_ends_the_run_and_the_same_command_goes_on(
    sim, unbroken, tmp_path, full_disk, monkeypatch
):
    with monkeypatch.context() as patch:
        full_disk(lambda number: number >= 1)
        with pytest.raises(UserError, match=r"cannot save round 8 in .*/checkpoints: .*round 2 is as it was"):
            go(sim, tmp_path)
        patch.undo()
    monkeypatch.undo()
    assert left(go(sim, tmp_path), tmp_path) == unbroken


def test_the_last_checkpoint_of_a_run_must_be_written(sim, tmp_path, full_disk):
    full_disk(lambda number: number == 1)
    with pytest.raises(UserError, match="cannot save round 3"):
        go(sim, tmp_path, rounds=3)


def test_checkpoints_that_cannot_be_there_are_a_user_error(sim, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot make {tmp_path / 'checkpoints'}: File exists"):
        go(sim, tmp_path)


def content(folder, step):
    """The file of a checkpoint that holds most."""
    files = [path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    """Turns every byte of the file's last third by one bit, such as those of values."""
    whole = bytearray(path.read_bytes())
    for i in range(2 * len(whole) // 3, len(whole)):
        whole[i] ^= 1
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize("damage", [cut, garble, os.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(sim, unbroken, tmp_path, damage, capsys):
    go(sim, tmp_path, rounds=6)
    damage(content(tmp_path, 6))
    capsys.readouterr()
    assert left(go(sim, tmp_path), tmp_path) == unbroken
    said = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path / 'unreadable-checkpoint-6'} cannot be read" in said
    assert "going on after round 4 of 8" in said
    assert (tmp_path / "unreadable-checkpoint-6").is_dir()


def test_values_that_changed_on_the_disk_are_noticed(sim, tmp_path):
    """Also where the storage library reads them without complaint."""
    go(sim, tmp_path, rounds=2)
    with checkpoints.open_checkpoints(tmp_path) as opened:
        found = opened.restore(sim.init())[0]
        arrays = jax.tree.map(np.array, (found.server, found.down_states, found.clients.arrays()))
        host = {"ledger": found.ledger.to_json(), "seconds": 1.5}
        before = checkpoints.checksum(arrays, host)
        for leaf in jax.tree.leaves(arrays):
            leaf.reshape(-1)[0] = np.nextafter(leaf.reshape(-1)[0], np.float32(9))
            assert checkpoints.checksum(arrays, host) != before
        assert checkpoints.checksum(arrays, host | {"seconds": 2.5}) != checkpoints.checksum(arrays, host)


def test_where_no_checkpoint_can_be_read_nothing_is_thrown_away(sim, tmp_path):
    go(sim, tmp_path, rounds=4)
    for step in (2, 4):
        cut(content(tmp_path, step))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(round 4: .*; round 2: .*put back a copy"):
        go(sim, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


TAILS = {
    "half": b'{"round": 5, "train_lo',
    "zeros": b"\0" * 70,
    "no_text": b"\xff\xfe\n",
    "two": b'{"round": 5}\n{"round": 6}\n',
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_what_a_kill_or_a_power_cut_leaves_of_a_line_is_cut_off(sim, unbroken, tmp_path, tail):
    go(sim, tmp_path, rounds=4)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert left(go(sim, tmp_path), tmp_path) == unbroken


def test_a_clock_that_jumps_changes_no_duration(sim, tmp_path, monkeypatch):
    jumps = np.random.default_rng(0)
    real, begun = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + float(jumps.uniform(-1e6, 1e6)))
    outcome = go(sim, tmp_path)
    passed = time.monotonic() - begun
    seconds = [json.loads(text)["round_seconds"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert min(seconds) >= 0 and sum(seconds) <= passed
    assert 0 < outcome.summary["seconds"] <= passed


def test_a_disk_that_is_full_of_metrics_names_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=f"cannot write {tmp_path / 'metrics.jsonl'}: No space left on device; make room"
    ):
        workdir.append_metrics(tmp_path, {"round": 1})
    (tmp_path / "summary.json.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'summary.json'}: No space left"):
        workdir.write_json(tmp_path / "summary.json", {"rounds": 1})
    assert not (tmp_path / "summary.json").exists()


def test_a_second_run_is_told_who_has_the_directory(tmp_path):
    import socket

    with (
        workdir.locked(tmp_path),
        pytest.raises(UserError, match=f"working in {tmp_path}: process {os.getpid()} on {socket.gethostname()};"),
        workdir.locked(tmp_path),
    ):
        pytest.fail("both held the lock")


def test_no_memory_names_the_chunk_and_what_to_try():
    tried = pytest.raises(UserError, match=r"32 clients at once .*allocating 99 bytes.* try --config.executor.chunk=16")
    with tried, memory_explained(32):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
    tried = pytest.raises(UserError, match=r"1 client at once .* try a smaller --config.client.batch_size")
    with tried, memory_explained(1):
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_explained(1):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_device_without_memory_is_explained_in_a_run(sim, tmp_path, monkeypatch):
    def too_large(*arguments, **settings):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(type(sim), "run_rounds", too_large)
    with pytest.raises(UserError, match="out of memory, with 1 client at once"):
        go(sim, tmp_path)


def test_each_client_that_is_left_out_is_named_once(sim):
    recording = Recording(Run(sim), ALONE)
    for number, who in ((1, [3]), (2, [3]), (3, [3, 5])):
        recording.write({"round": number, "excluded": len(who), "excluded_clients": who})
    assert [note[: note.index(",")] for note in recording.notes[:1]] == ["round 1: left out (client 3)"]
    assert len(recording.notes) == 2 and "(clients 3, 5)" in recording.notes[1]
