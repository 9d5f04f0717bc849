"""Wherever a run was cut short, by a kill, a power cut or a full disk, it goes on and ends as if nothing had been."""

import functools
import json
import os
import re
import shutil
import stat
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax8.algorithms.scaffold import scaffold
from fedjax8.callbacks import Callback, Decision
from fedjax8.engine.states.client_states import DiskStates
from fedjax8.errors import UserError
from fedjax8.running import checkpoints
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule
from fedjax8.running.workdir import METRICS

ROUNDS = 8
SCHEDULE = Schedule(rounds=ROUNDS, eval_every=4, checkpoint_every=2)
TEST = {"a": np.float32([1, 2]), "b": np.float32([0, 1])}


RECORD = {
    "config": {"seed": 0, "model": {"hidden": [4]}},
    "data": {"train.x": "uint8 [6, 3] 0a", "train.f": "float32 [6, 3] 0b"},
    "versions": {"jax": "1"},
    "devices": ["cpu:cpu", "cpu:cpu"],
    "machine": "one",
}


@pytest.fixture(scope="module")
def sim(toys):
    """Clients that remember, three of six a round. It is a function of states, so that all tests share what it
    compiled."""
    data = toys.clients([1.0, 4.0, 2.0, 3.0, 0.5, 1.5], [0.0, 1.0, -1.0, 2.0, 3.0, 1.0])
    return toys.build(functools.partial(scaffold, learning_rate=toys.LEARNING_RATE), data, cohort_size=3, steps=2)


def shrinking(memory, moment):
    """Asks for smaller steps on every line; it is heard at the evaluation of round 4."""
    return Decision({"lines": memory["lines"] + 1}, step_scale=1 / (memory["lines"] + 2))


def go(sim, folder, rounds=ROUNDS, record=None):
    callbacks = (("shrinking", Callback(shrinking, {"lines": 0}, scales=True)),)
    return run(sim, TEST, SCHEDULE._replace(rounds=rounds), workdir=folder, record=record, callbacks=callbacks)


def left(outcome, folder):
    """What a run leaves, without its seconds."""
    state = outcome.state
    arrays = [np.asarray(x) for x in jax.tree.leaves((state.server, state.clients.read(np.arange(6))))]
    return [x.tobytes() for x in arrays], state.ledger, lines(folder)


def lines(folder):
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in read]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The tests cut the power themselves: nothing has to reach a real disk."""

    def fsync(handle):
        assert os.fstat(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def on_disk(monkeypatch):
    """States of clients lie on disk."""
    defaults = {"folder": None, "limit_bytes": 0}
    monkeypatch.setattr("fedjax8.engine.states.client_states.client_states.__kwdefaults__", defaults)


@pytest.fixture(scope="module")
def unbroken(sim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return left(go(sim, folder), folder)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def whole(outcome, unbroken, folder):
    """Asserts that a run is as if nothing had been, and that no half of a file is left."""
    assert isinstance(outcome.state.clients, DiskStates)
    assert left(outcome, folder) == unbroken
    names = {path.name for path in folder.rglob("*")}
    assert not [name for name in names if ".part" in name or "tmp" in name]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {str(ROUNDS - 2), str(ROUNDS)}
    assert {path.name for path in (folder / "client_states").glob("undo-*")} == {f"undo-{ROUNDS - 2}", f"undo-{ROUNDS}"}


class Journal:
    """What would be found below `root` if it ended at any call that changes names or syncs: three images for each.

    killed      what files hold now
    power       what was synced, of files and of names
    names       the names of now, files as they were synced last, and empty if never: a power cut where names are kept
                in a journal of their own
    """

    def __init__(self, monkeypatch, root):
        self.root, self.synced, self.entries, self.held = root, {}, {}, []
        self.lock = threading.RLock()  # checkpoints are written by a thread
        self.images = {"killed": [], "power": [], "names": []}
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "mkdir"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name), name))

    def watched(self, real, name):
        def call(*args, **kwargs):
            with self.lock:
                self.take()
                if name == "fsync":
                    self.sync(args[0])
                    return None
                return real(*args, **kwargs)

        return call

    def sync(self, handle):
        self.held.append(os.dup(handle))  # or its number could become another file's
        found, place = os.fstat(handle), f"/proc/self/fd/{handle}"
        if stat.S_ISDIR(found.st_mode):
            inside = {name: os.lstat(f"{place}/{name}") for name in os.listdir(place)}
            self.entries[found.st_ino] = {name: (x.st_ino, stat.S_ISDIR(x.st_mode)) for name, x in inside.items()}
        elif stat.S_ISREG(found.st_mode):
            self.synced[found.st_ino] = Path(place).read_bytes()

    def take(self):
        now, names = {}, {}
        for path in sorted(self.root.rglob("*")):
            try:
                name, found = str(path.relative_to(self.root)), path.lstat()
                now[name] = None if path.is_dir() else path.read_bytes()
            except FileNotFoundError:
                continue  # another thread's, that goes
            names[name] = None if path.is_dir() else self.synced.get(found.st_ino, b"")
        durable = self.durable(self.root.stat().st_ino, "")
        for kind, image in (("killed", now), ("power", durable), ("names", names)):
            if not self.images[kind] or self.images[kind][-1] != image:
                self.images[kind].append(image)

    def durable(self, number, above):
        found = {}
        for name, (inner, folder) in self.entries.get(number, {}).items():
            found[above + name] = None if folder else self.synced.get(inner, b"")
            found |= self.durable(inner, f"{above}{name}/") if folder else {}
        return found

    def close(self):
        while self.held:
            os.close(self.held.pop())


def write_image(image, folder):
    """A directory as an image of a `Journal` has it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sorted(image.items()):
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def journal(sim, tmp_path_factory):
    """What a run of all rounds would leave wherever it ended, and after how many images each checkpoint counted."""
    root, counted = tmp_path_factory.mktemp("journal"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fedjax8.engine.states.client_states.client_states.__kwdefaults__", {"folder": None, "limit_bytes": 0}
        )
        record, write = Journal(patch, root), checkpoints.Checkpoints._write

        def counting_write(self, round_number, *more):
            answer = write(self, round_number, *more)
            with record.lock:
                record.take()
                counted.append((round_number, {kind: len(images) for kind, images in record.images.items()}))
            return answer

        patch.setattr(checkpoints.Checkpoints, "_write", counting_write)
        go(sim, root / "run")
        record.take()
        record.close()
    return record.images, counted


@pytest.mark.parametrize("kind", ["killed", "power", "names"])
def test_a_run_goes_on_from_wherever_it_was_killed_or_the_power_was_cut(
    sim, unbroken, on_disk, journal, tmp_path, kind, capsys
):
    images, counted = journal[0][kind], [(number, at[kind]) for number, at in journal[1]]
    assert [number for number, _ in counted] == [2, 4, 6, 8] and len(images) > 40
    for number, at in counted:  # once a checkpoint counts, it is on disk, whole
        final = images[at - 1]
        inside = {name: content for name, content in final.items() if name.startswith(f"run/checkpoints/{number}/")}
        now = {name: content for name, content in journal[0]["killed"][-1].items() if name in inside}
        assert len(inside) > 10 and (number < ROUNDS - 2 or inside == now)
        assert all(f"run/checkpoints/{number}" in i or f"run/checkpoints/{number + 4}" in i for i in images[at - 1 :])
    some = np.random.default_rng(3).choice(len(images), 5, replace=False)
    for at in [*some.tolist(), len(images) - 1]:
        write_image(images[at], tmp_path)
        capsys.readouterr()
        whole(go(sim, tmp_path / "run"), unbroken, tmp_path / "run")
        reached = max([number for number, end in counted if end <= at + 1], default=0)
        begun = re.findall(r"going on after round (\d+)", said(capsys))
        assert int((begun or ["0"])[0]) >= reached


@pytest.mark.parametrize("runs", [1, 3])
def test_a_disk_that_stays_full_loses_no_clients_state(sim, unbroken, on_disk, tmp_path, monkeypatch, runs):
    """More failed checkpoints in a row than there are marks of good ones, of one run or several."""
    write, full = checkpoints.Checkpoints._write, {"problem": "cannot save: no space"}
    for _ in range(runs):
        with monkeypatch.context() as patch:
            only_first = lambda self, number, *more: write(self, number, *more) if number == 2 else full
            patch.setattr(checkpoints.Checkpoints, "_write", only_first)
            with pytest.raises(UserError, match="no space"):
                go(sim, tmp_path)
        assert {path.name for path in (tmp_path / "client_states").glob("undo-*")} == {
            f"undo-{n}" for n in (2, 4, 6, 8)
        }
    whole(go(sim, tmp_path), unbroken, tmp_path)


class Full:
    """Lets the `fuse`-th call that takes room fail, and all after it."""

    def __init__(self, monkeypatch, fuse):
        self.fuse = fuse
        for name in ("fsync", "pwrite", "replace", "mkdir", "rename"):
            monkeypatch.setattr(os, name, self.limited(getattr(os, name)))

    def limited(self, real):
        def call(*args, **kwargs):
            self.fuse -= 1
            if self.fuse <= 0:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call


def test_wherever_a_disk_is_full_the_last_checkpoint_stays_and_nothing_half_written(
    sim, unbroken, on_disk, tmp_path, capsys
):
    go(sim, tmp_path / "begun", rounds=4)
    fuse, ended = 1, False
    while not ended:
        folder = tmp_path / str(fuse)
        shutil.copytree(tmp_path / "begun", folder)
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, fuse)
            try:
                go(sim, folder)
                ended = True
            except UserError as error:
                assert "No space left" in str(error) and "\n" not in str(error), fuse
        assert all(line.count("No space left") <= 1 for line in capsys.readouterr().out.splitlines())
        left_there = {path.name for path in (folder / "checkpoints").iterdir()}
        assert left_there in ({"2", "4"}, {"4", "6"}, {"6", "8"}, {"2", "4", "6"}, {"4", "6", "8"}), fuse
        whole(go(sim, folder), unbroken, folder)
        fuse += 13
    assert fuse > 60


def test_what_others_left_in_the_folder_of_checkpoints_stays_and_what_was_half_written_goes(
    sim, unbroken, on_disk, tmp_path
):
    go(sim, tmp_path, rounds=4)
    folder = tmp_path / "checkpoints"
    for name in ("notes.txt", "0007", "7"):
        (folder / name).write_text("mine")
    for name in ("mine", "07", "6.orbax-checkpoint-tmp-1234", "2.part", "writing.part"):
        (folder / name / "arrays").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert left(go(sim, tmp_path), tmp_path) == unbroken
    assert {path.name for path in folder.iterdir()} == {"6", "8", "notes.txt", "0007", "7", "mine", "07", "link"}


def test_checkpoints_may_lie_behind_a_link(sim, unbroken, on_disk, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    go(sim, tmp_path / "run", rounds=4)
    assert left(go(sim, tmp_path / "run"), tmp_path / "run") == unbroken
    assert {path.name for path in (tmp_path / "scratch").iterdir()} == {"6", "8"}


@pytest.mark.parametrize("damage", ["gone", "garbage", "folder"])
def test_damaged_metrics_keep_no_run_from_going_on(sim, unbroken, tmp_path, damage, capsys):
    go(sim, tmp_path, rounds=4)
    path = tmp_path / METRICS
    texts = path.read_bytes().splitlines(keepends=True)
    lost = [1, 2, 3, 4]
    if damage == "garbage":
        path.write_bytes(texts[0] + b"\0\xff\n" + texts[2] + texts[3][:20])
        lost = [2, 4]
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    capsys.readouterr()
    outcome = go(sim, tmp_path)
    arrays, ledger, written = left(outcome, tmp_path)
    assert (arrays, ledger) == unbroken[:2]
    assert written == [line for line in unbroken[2] if line["round"] not in lost]
    names = "2, 4" if damage == "garbage" else "1-4"
    text = said(capsys)
    assert f"metrics.jsonl has no line for {len(lost)} of the 4 rounds before the checkpoint ({names})" in text
    assert (
        (tmp_path / "unreadable-metrics.jsonl").exists() == (damage != "gone") == ("metrics.jsonl is damaged" in text)
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds_without_line"] == len(lost) and summary["rounds"] == ROUNDS
    assert go(sim, tmp_path).summary["rounds_without_line"] == len(lost)  # also when it is asked again


def test_a_run_whose_last_line_is_lost_is_evaluated_again(sim, unbroken, tmp_path):
    expected = go(sim, tmp_path).summary
    (tmp_path / METRICS).unlink()
    again = go(sim, tmp_path).summary
    assert again["test_loss"] == expected["test_loss"] and again["rounds_without_line"] == ROUNDS


def test_a_run_without_its_config_file_still_knows_config_and_data(sim, unbroken, tmp_path):
    go(sim, tmp_path, 4, RECORD)
    (tmp_path / "config.json").unlink()
    before = sorted(path for path in tmp_path.rglob("*") if path.name != ".lock")
    with pytest.raises(
        UserError, match=r"checkpoints/4 holds a run of another config \(model.hidden: \[4\] -> \[5\]\)"
    ):
        go(sim, tmp_path, record=RECORD | {"config": {"seed": 0, "model": {"hidden": [5]}}})
    (tmp_path / "config.json").unlink()
    other = RECORD | {"data": RECORD["data"] | {"train.x": "uint8 [6, 3] 0c"}}
    with pytest.raises(UserError, match=r"checkpoints/4 holds a run on other data \(train.x: .*put back the data"):
        go(sim, tmp_path, record=other)
    (tmp_path / "config.json").unlink()
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before
    assert left(go(sim, tmp_path, record=RECORD), tmp_path) == unbroken


def test_other_devices_and_versions_are_said_and_noted(sim, unbroken, tmp_path, capsys):
    go(sim, tmp_path, 4, RECORD)
    capsys.readouterr()
    other = RECORD | {"devices": ["cpu:cpu"], "versions": {"jax": "2"}}
    other["data"] = RECORD["data"] | {"train.f": "float32 [6, 3] 0d"}  # computed by another version
    assert left(go(sim, tmp_path, record=other), tmp_path) == unbroken
    changed = [
        "devices: 2 cpu:cpu -> 1 cpu:cpu",
        "versions.jax: 1 -> 2",
        "train.f: float32 [6, 3] 0b -> float32 [6, 3] 0d",
    ]
    assert f"are not those of the checkpoint ({'; '.join(changed)}): the rounds are the same, but float32" in said(
        capsys
    )
    of = lambda record, start: {"after_round": start} | {k: record[k] for k in ("versions", "devices", "machine")}
    parts = [of(RECORD, 0), of(other, 4) | {"changed": changed}]
    assert json.loads((tmp_path / "config.json").read_text()) == other | {"parts": parts}
    go(sim, tmp_path, record=other)
    assert "devices or versions" not in said(capsys)
    same_versions = RECORD | {"data": other["data"]}
    with pytest.raises(UserError, match=r"other data .train.f"):
        go(
            sim,
            tmp_path,
            record=same_versions | {k: other[k] for k in ("devices", "versions")} | {"data": RECORD["data"]},
        )
