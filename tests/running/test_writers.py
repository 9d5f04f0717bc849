"""Metrics in other places than metrics.jsonl: they get every line, and cost no round when they fail."""

import json
import struct
import sys
import types

import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError
from fedjax8.results.runs import read_run
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule
from fedjax8.running.writers import Writer, Writing, find_writers, numbers

LINE = {"round": 3, "test_accuracy": 0.5, "clients": 10, "note": "text", "missing": None, "flag": True}


class Notes:
    """A writer that keeps what it was told, and what `metrics.jsonl` held at the time."""

    def __init__(self):
        self.told, self.on_disk = [], []

    def writer(self):
        return Writer(self.open, self.write, self.close)

    def open(self, folder, record, done):
        self.told.append(("open", folder, record, done))
        return folder

    def write(self, folder, line):
        self.told.append(("write", line["round"]))
        self.on_disk.append(read_run(folder).rounds.tolist())

    def close(self, folder, summary):
        self.told.append(("close", summary.get("finished")))


def failing(when):
    def fail(*_):
        raise RuntimeError(f"no {when} today,\nsorry")

    parts = {"open": lambda *_: "handle", "write": lambda *_: None, "close": lambda *_: None}
    return Writer(**parts | {when: fail})


def test_a_writer_gets_every_line_after_it_can_be_read_from_the_file_and_goes_on_after_the_checkpoint(toys, tmp_path):
    sim, data, notes = toys.build(fedavg, toys.q2(), epochs=1), toys.q2(), Notes()
    record = {"config": {"seed": 0}}
    about = {"split": {"clients": 2}}
    first = run(
        sim, data.columns, Schedule(3, 1, 1), workdir=tmp_path, record=record, writers={"notes": notes.writer()},
        about=lambda: about,
    )  # fmt: skip
    assert first.summary["finished"]
    assert notes.told == [("open", tmp_path, record, 0), *(("write", r) for r in (1, 2, 3)), ("close", True)]
    assert notes.on_disk == [[1], [1, 2], [1, 2, 3]]
    assert json.loads((tmp_path / "about.json").read_text()) == about
    again = Notes()
    writers = {"bad": failing("write"), "notes": again.writer()}
    second = run(sim, data.columns, Schedule(5, 1, 1), workdir=tmp_path, record=record, writers=writers)
    assert second.state.round == 5
    assert again.told == [("open", tmp_path, record, 3), ("write", 4), ("write", 5), ("close", True)]


@pytest.mark.parametrize("when", ["open", "write", "close"])
def test_a_writer_that_fails_is_left_out_with_one_line_and_the_others_go_on(when, tmp_path, capsys):
    notes = Notes()
    notes.write = lambda handle, line: notes.told.append(("write", line["round"]))
    writing = Writing({"bad": failing(when), "notes": Writer(notes.open, notes.write, notes.close)})
    writing.open(tmp_path, {}, 0)
    for number in (1, 2):
        writing.write({"round": number})
    writing.close({"finished": True})
    writing.close()
    assert [told[0] for told in notes.told] == ["open", "write", "write", "close"]
    assert capsys.readouterr().err == f"warning: bad failed and is left out: RuntimeError: no {when} today, sorry\n"


def test_only_numbers_are_written():
    assert numbers(LINE) == {"test_accuracy": 0.5, "clients": 10}


def test_an_unknown_writer_and_one_of_another_kind_are_user_errors():
    with pytest.raises(UserError, match=r"no 'tensorbord' in writers: allowed are .*did you mean 'tensorboard'"):
        find_writers(["tensorbord"])
    with pytest.raises(UserError, match="--writers: json:JSONDecoder gives a JSONDecoder, but a Writer is needed"):
        find_writers(["json:JSONDecoder"])


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_library_is_a_user_error_that_says_how_to_get_it(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"pip install 'fedjax8\[{name}\]'"):
        find_writers([name])


def test_tensorboard_gets_a_scalar_for_each_number_at_its_round(tmp_path):
    pytest.importorskip("tensorboardX", reason="TensorBoard's files are written by tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    writing = Writing(find_writers(["tensorboard"]))
    writing.open(tmp_path, {"config": {"seed": 7}}, 0)
    writing.write(LINE)
    writing.close({})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # records of TensorFlow: length (8 bytes), its checksum (4), the event, its checksum (4)
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    scalars = {(v.tag, v.simple_value, e.step) for e in events for v in e.summary.value if v.HasField("simple_value")}
    assert scalars == {("test_accuracy", 0.5, 3), ("clients", 10.0, 3)}
    texts = [v.tensor.string_val[0].decode() for e in events for v in e.summary.value if v.HasField("tensor")]
    assert len(texts) == 1 and '"seed": 7' in texts[0]


def test_weights_and_biases_gets_config_lines_and_summary_and_keeps_its_id(tmp_path, monkeypatch):
    begun = []

    class FakeRun:
        def __init__(self, **settings):
            self.settings, self.logged, self.summary, self.status = settings, [], {}, None
            begun.append(self)

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self, exit_code):
            self.status = exit_code

    fake = types.ModuleType("wandb")
    fake.init = FakeRun
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    folder = tmp_path / "fp8" / "seed-0"
    folder.mkdir(parents=True)
    for done in (0, 3):
        writing = Writing(find_writers(["wandb"]))
        writing.open(folder, {"config": {"seed": 0}}, done)
        writing.write(LINE)
        writing.close({"test_accuracy": 0.5} if done else None)
    first, second = begun
    assert first.settings["project"] == "fedjax8" and first.settings["name"] == "fp8/seed-0"
    assert first.settings["config"] == {"config": {"seed": 0}}
    assert first.settings["id"] == second.settings["id"] and second.settings["resume"] == "allow"
    assert first.logged == [(3, {"test_accuracy": 0.5, "clients": 10})]
    assert (first.status, second.status) == (1, 0)
    assert (first.summary, second.summary) == ({}, {"test_accuracy": 0.5})
