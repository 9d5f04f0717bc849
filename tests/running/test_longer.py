"""More rounds and other periods in the same workdir, and checkpoints by time."""

import functools
import json
import threading

import jax
import numpy as np
import pytest

from fedjax8.algorithms.scaffold import scaffold
from fedjax8.callbacks import Callback, Decision
from fedjax8.config_fields import FIELDS
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.hosts import ALONE
from fedjax8.privacy.accounting import WatchedFacts
from fedjax8.running import checkpoints, identity, runner
from fedjax8.running.runner import run
from fedjax8.running.schedule import Pace, Schedule

TEST = {"a": np.float32([1, 2]), "b": np.float32([0, 1])}
SCHEDULE = Schedule(rounds=8, eval_every=2, checkpoint_every=3)


@pytest.fixture(scope="module")
def sim(toys):
    data = toys.clients([1.0, 4.0, 2.0, 3.0], [0.0, 1.0, -1.0, 2.0])
    return toys.build(functools.partial(scaffold, learning_rate=toys.LEARNING_RATE), data, cohort_size=2, steps=2)


def go(sim, folder, rounds, eval_every=2, checkpoint_every=3, fixed=None, callbacks=(), **config):
    schedule = SCHEDULE._replace(rounds=rounds, eval_every=eval_every, checkpoint_every=checkpoint_every)
    fields = {"rounds": rounds, "eval_every": eval_every, "checkpoint_every": checkpoint_every, "seed": 0} | config
    record = {"config": fields}
    return run(sim, TEST, schedule, workdir=folder, record=record, fixed=fixed, callbacks=callbacks)


def left(outcome, folder):
    """What a run leaves, without its seconds."""
    state = outcome.state
    arrays = [np.asarray(x).tobytes() for x in jax.tree.leaves((state.server, state.clients.read(np.arange(4))))]
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        arrays,
        state.ledger,
        [{k: v for k, v in line.items() if k not in ("round_seconds", "compile_seconds")} for line in lines],
    )


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def test_more_rounds_in_the_same_folder_are_those_of_a_longer_run(sim, tmp_path):
    whole = left(go(sim, tmp_path / "whole", 8), tmp_path / "whole")
    go(sim, tmp_path / "a", 4)
    assert left(go(sim, tmp_path / "a", 8), tmp_path / "a") == whole
    assert json.loads((tmp_path / "a" / "config.json").read_text())["config"]["rounds"] == 8
    # Also with other periods for a while, and in the order in which evaluations were asked for.
    go(sim, tmp_path / "b", 5, checkpoint_every=1)
    arrays, ledger, lines = left(go(sim, tmp_path / "b", 8, checkpoint_every=0), tmp_path / "b")
    assert (arrays, ledger) == whole[:2] and saved(tmp_path / "b") == [5, 8]
    assert "test_loss" in lines[4] and "test_loss" not in whole[2][4]  # round 5 was an end, and stays evaluated
    lines[4].pop("test_loss")
    assert lines == whole[2]


def test_fewer_rounds_than_are_done_are_refused_and_nothing_is_lost(sim, tmp_path):
    whole = left(go(sim, tmp_path, 6), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"has done 6 rounds, more than config\.rounds=4; nothing is lost: ask for 6"):
        go(sim, tmp_path, 4)
    assert (tmp_path / "config.json").read_bytes() == before and saved(tmp_path) == [3, 6]
    assert left(go(sim, tmp_path, 6), tmp_path) == whole


def test_fields_that_decide_a_round_must_not_change(sim, tmp_path):
    go(sim, tmp_path, 2)
    with pytest.raises(UserError, match=r"a run of another config \(seed: 0 -> 1\)"):
        go(sim, tmp_path, 4, seed=1)
    fixed = identity.fixed_fields(callbacks=False, calibrated=True)
    message = r"\(rounds: 2 -> 4, but the noise is calibrated for the number of rounds\)"
    with pytest.raises(UserError, match=message):
        go(sim, tmp_path, 4, fixed=fixed)
    (tmp_path / "config.json").unlink()  # checkpoints know it too
    with pytest.raises(UserError, match=message):
        go(sim, tmp_path, 4, fixed=fixed)
    (tmp_path / "config.json").unlink()
    assert go(sim, tmp_path, 2, fixed=fixed).state.round == 2


def test_evaluations_that_callbacks_decide_by_must_not_change(sim, tmp_path):
    seen = (("mine", Callback(lambda memory, moment: Decision({"n": memory["n"] + moment.evaluated}), {"n": 0})),)
    fixed = identity.fixed_fields(callbacks=True, calibrated=False)
    go(sim, tmp_path, 3, fixed=fixed, callbacks=seen)
    with pytest.raises(UserError, match=r"eval_every: 2 -> 4, but callbacks decide by evaluations"):
        go(sim, tmp_path, 8, eval_every=4, fixed=fixed, callbacks=seen)
    with pytest.raises(UserError, match=r"ended after round 3, and its callbacks decided by the evaluation there"):
        go(sim, tmp_path, 8, fixed=fixed, callbacks=seen)
    go(sim, tmp_path / "even", 4, fixed=fixed, callbacks=seen)
    assert go(sim, tmp_path / "even", 8, fixed=fixed, callbacks=seen).state.round == 8


def test_a_run_that_a_callback_ended_stays_ended(sim, tmp_path, capsys):
    stop = (("mine", Callback(lambda memory, moment: Decision(memory, stop="enough" * (moment.round == 2)), {})),)
    assert go(sim, tmp_path, 4, callbacks=stop).state.round == 2
    capsys.readouterr()
    assert go(sim, tmp_path, 8, callbacks=stop).summary["stopped_by"]["round"] == 2
    assert "stopped after round 2 of 8 by mine: enough" in " ".join(capsys.readouterr().out.split())


def test_every_field_that_may_change_is_a_field():
    assert set(identity.MAY_CHANGE) <= set(FIELDS) and set(identity.DECIDING) <= set(identity.MAY_CHANGE)
    assert all(identity.MAY_CHANGE.values())


def test_noise_that_is_calibrated_for_the_rounds_is_noticed(toys):
    pytest.importorskip("dp_accounting")
    from fedjax8.algorithms.dp_fedavg import dp_fedavg

    data = toys.clients([1.0] * 4, [0.0] * 4)
    read = []
    for noise in ({"noise_multiplier": 1.0}, {"target_epsilon": 8.0}):
        facts = WatchedFacts(data, 2, 5, 0, batch_plan(1, epochs=1))
        assert facts.cohort_size == 2
        toys.build(lambda local, f=facts, n=noise: dp_fedavg(local, facts=f, clip=1.0, delta=0.1, **n), data,
                   cohort_size=2, steps=1)  # fmt: skip
        read.append(facts.read)
    assert read == [False, True]


class Clock:
    """Seconds that pass by themselves: so many at every look."""

    def __init__(self, step):
        self.step, self.now = step, 0.0

    def monotonic(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize(("step", "expected"), [(1.0, {8}), (30.0, {1, 2, 3, 4, 5, 6, 7, 8})])
def test_a_checkpoint_comes_when_its_time_has_come_and_at_the_end(sim, tmp_path, monkeypatch, step, expected):
    monkeypatch.setattr(runner, "time", Clock(step))
    written, write = set(), checkpoints.Checkpoints._write

    def noted(self, number, *more):
        written.add(number)
        return write(self, number, *more)

    monkeypatch.setattr(checkpoints.Checkpoints, "_write", noted)
    monkeypatch.setattr(checkpoints.Checkpoints, "busy", False)  # whichever thread is faster
    monkeypatch.setattr(Pace, "count", lambda self, done: min(1, 8 - done))
    run(sim, TEST, Schedule(8, 4, 0, checkpoint_seconds=60.0), workdir=tmp_path)
    assert written == expected and saved(tmp_path) == sorted(expected)[-2:]


def test_rounds_go_on_while_a_checkpoint_is_written_and_one_at_a_time(sim, tmp_path, monkeypatch):
    whole = left(go(sim, tmp_path / "whole", 8), tmp_path / "whole")
    seen, write = [], checkpoints.Checkpoints._write
    may_write = threading.Event()

    def slow(self, number, *more):
        assert may_write.wait(60)
        seen.append((number, len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())))
        return write(self, number, *more)

    append = runner.Recording.write

    def noted(self, metrics):
        append(self, metrics)
        if metrics["round"] == 6:
            may_write.set()

    monkeypatch.setattr(checkpoints.Checkpoints, "_write", slow)
    monkeypatch.setattr(runner.Recording, "write", noted)
    assert left(go(sim, tmp_path / "run", 8), tmp_path / "run") == whole
    assert [number for number, _ in seen] == [3, 6, 8] and seen[0][1] >= 6
    assert saved(tmp_path / "run") == [6, 8]


def test_a_checkpoint_is_of_the_state_at_its_round_though_later_rounds_overwrite_it(sim, tmp_path):
    """Later rounds give up the arrays of the clients' states."""
    state = sim.init()
    with checkpoints.open_checkpoints(tmp_path) as saves:
        state, _ = sim.run_rounds(state, 2, donate=True)
        expected = [np.array(x) for x in jax.tree.leaves((state.server, state.clients.arrays()))]
        blocked = threading.Event()
        saves._thread.submit(blocked.wait, 60)
        saves.begin(state, 1.0)
        assert saves.busy
        state, _ = sim.run_rounds(state, 2, donate=True)
        blocked.set()
        assert saves.end() and not saves.end() and not saves.busy
        found = saves.restore(sim.init())[0]
    for a, b in zip(jax.tree.leaves((found.server, found.clients.arrays())), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_process_0_says_what_is_due():
    assert ALONE.agree(1.5, True, None) == (1.5, True, None)
    assert ALONE.agree(0.5, False, 15) == (0.5, False, 15)
    assert Schedule(9, 1, 0).save_due(9) is False and Schedule(9, 1, 3).save_due(6)
    assert Pace(Schedule(9, 4, 0)).count(0) == 1
