"""Callbacks in a run: stopped runs, resumed runs, seeds side by side, steps scaled without compiling again.

The model is one number: x goes to x + rate * scale * (0.5 - x) a round, so every loss and every decision is known.
"""

import json

import numpy as np
import pytest
from jax import monitoring

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.build import build
from fedjax8.callbacks import Callback, Decision, best_checkpoint, early_stopping, plateau, read_best, target
from fedjax8.callbacks.best_checkpoint import FILE
from fedjax8.config import base_config, component, from_plain, override, plain
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.errors import UserError
from fedjax8.executors import chunked
from fedjax8.hosts import Hosts
from fedjax8.running.deciding import Deciding
from fedjax8.running.recording import Run
from fedjax8.running.runner import run, run_all
from fedjax8.running.schedule import Schedule

TEST = {"a": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}


@pytest.fixture(scope="module")
def sim(toys):
    return toys.build(fedavg, toys.clients([1.0, 1.0], [0.0, 1.0]), epochs=1)


def lines_of(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def by_hand(rate, scales):
    """x after each round with these scales."""
    x, xs = 0.0, []
    for scale in scales:
        x += rate * scale * (0.5 - x)
        xs.append(x)
    return xs


def stop_at(limit):
    """Says stop on the first line of round `limit`, whether it is evaluated or not; remembers all it saw."""

    def step(memory, moment):
        assert moment.round == memory.get("seen", 0) + 1 and (moment.model or not moment.evaluated)
        return Decision({"seen": moment.round}, "enough" if moment.round == limit else "")

    return Callback(step)


def test_a_run_that_a_callback_ends_says_so_and_the_same_command_does_not_go_on(sim, tmp_path, capsys):
    """x grows towards 0.5, so the loss on b = 0 grows: round 2 is the best, 4 and 6 are worse."""
    given = {"workdir": tmp_path / "a", "callbacks": (("early_stopping", early_stopping(2, "test_loss")),)}
    first = run(sim, TEST, Schedule(20, 2, 3), **given)
    by = {"callback": "early_stopping", "round": 6}
    assert first.state.round == 6 and first.summary["finished"] and first.summary["stopped_by"].items() >= by.items()
    assert first.summary["stopped_by"]["reason"].startswith("test_loss has not been better for 2 evaluations; its best")
    said = capsys.readouterr().out
    assert said.count("goes by test rows, since there is no validation part") == 1
    assert "stopped after round 6 of 20 by early_stopping: test_loss has not" in said
    again = run(sim, TEST, Schedule(20, 2, 3), **given)
    assert again.state.round == 6 and len(lines_of(tmp_path / "a")) == 6
    assert again.summary["stopped_by"] == first.summary["stopped_by"]
    assert "going on after round" not in capsys.readouterr().out


def test_decisions_are_taken_at_evaluations_however_many_rounds_a_call_has(sim, tmp_path):
    """Stop is said at round 4, and taken at the evaluation of round 6; every line is shown once."""
    for per_call in (1, None):
        folder = tmp_path / str(per_call)
        paced = sim if per_call is None else _replaced(sim, per_call)
        done = run(paced, TEST, Schedule(20, 3, 20), workdir=folder, callbacks=(("mine", stop_at(4)),))
        assert done.state.round == 6 and done.summary["stopped_by"]["reason"] == "enough"


def test_which_models_are_shown_does_not_depend_on_how_many_rounds_a_call_has(sim, tmp_path, monkeypatch):
    """The loss that every round logs is best in round 1, of which nothing is evaluated; clients' own come at 4, 8."""
    for per_call in (1, None):
        folder, paced = tmp_path / str(per_call), _replaced(sim, per_call)
        seen = []
        mine = Callback(
            lambda memory, moment, seen=seen: (
                Decision({}, "")
                if not moment.model
                else (seen.append((moment.round, float(moment.model().params["x"]))) or Decision({}, ""))
            )
        )
        best = ("best_checkpoint", best_checkpoint("train_loss"))
        run(paced, TEST, Schedule(9, 3, 20, clients_every=4), workdir=folder, callbacks=(best, ("mine", mine)))
        xs = by_hand(0.1, [1.0] * 9)
        assert seen == [(n, pytest.approx(xs[n - 1], rel=1e-6)) for n in (3, 4, 6, 8, 9)]
        assert read_best(folder / FILE, sim.variables(sim.init()))[1]["round"] == 9  # it falls from round to round


def test_a_metric_that_comes_later_than_the_first_evaluation_is_waited_for(sim):
    """Clients' own models are evaluated every 4 rounds, the test rows every 2."""
    clients = lambda state: {"personal_accuracy": -state.round / 10}
    stalls = (("early_stopping", early_stopping(1, "personal_accuracy")),)
    done = run(sim, TEST, Schedule(20, 2, 20, clients_every=4), callbacks=stalls, clients=clients)
    assert done.state.round == 8
    with pytest.raises(UserError, match="no 'personal_accuracy' up to the evaluation of round 2"):
        run(sim, TEST, Schedule(20, 2, 20), callbacks=stalls)


def _replaced(sim, per_call):
    import dataclasses

    return dataclasses.replace(sim, rounds_per_call=per_call)


def test_a_resumed_run_decides_as_an_unbroken_one(sim, tmp_path, monkeypatch):
    """Broken off after the checkpoint of round 4, with two lowerings before and some after."""
    schedule = Schedule(10, 1, 2)
    make = lambda: (("plateau", plateau(1, 0.5, "test_loss")), ("best_checkpoint", best_checkpoint("test_loss")))
    whole = run(sim, TEST, schedule, workdir=tmp_path / "whole", callbacks=make())

    class Broken(Exception):
        pass

    measured = []

    def evaluate(self, state, columns):
        measured.append(state.round)
        if len(measured) == 6:
            raise Broken
        return original(self, state, columns)

    original = type(sim).evaluate
    with monkeypatch.context() as patched:
        patched.setattr(type(sim), "evaluate", evaluate)
        with pytest.raises(Broken):
            run(sim, TEST, schedule, workdir=tmp_path / "broken", callbacks=make())
    resumed = run(sim, TEST, schedule, workdir=tmp_path / "broken", callbacks=make())
    drop = lambda lines: [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]
    assert drop(lines_of(tmp_path / "broken")) == drop(lines_of(tmp_path / "whole"))
    assert float(resumed.state.server.variables.params["x"]) == float(whole.state.server.variables.params["x"])
    # The loss is best at once, and then worse at every evaluation: a lowering after each from the second on.
    scales = [1.0, 1.0, *(0.5**k for k in range(1, 9))]
    scales = [max(scale, 0.01) for scale in scales]
    assert [line["step_scale"] for line in lines_of(tmp_path / "whole")] == scales
    x = by_hand(0.1, scales)
    assert float(whole.state.server.variables.params["x"]) == pytest.approx(x[-1], rel=1e-6)
    best, about = read_best(tmp_path / "broken" / FILE, sim.variables(whole.state))
    assert about["round"] == 1 and float(best.params["x"]) == pytest.approx(x[0], rel=1e-6)


@pytest.fixture
def compilations():
    """A function that gives how many programs were compiled since."""
    found = []

    def note(name, seconds, **_):
        found.extend([name] * ("backend_compile" in name))

    monitoring.register_event_duration_secs_listener(note)
    yield lambda: len(found)
    monitoring.unregister_event_duration_listener(note)


def test_a_new_scale_compiles_nothing(toys, compilations):
    sim = toys.build(fedavg, toys.clients([1.0, 1.0], [0.0, 1.0]), epochs=1)
    state, _ = sim.run_rounds(sim.init()._replace(step_scale=1.0), 1)
    before = compilations()
    for scale in (0.5, 0.25):
        state, _ = sim.run_rounds(state._replace(step_scale=scale), 1)
    assert compilations() == before > 0
    assert float(sim.variables(state).params["x"]) == pytest.approx(by_hand(0.1, [1, 0.5, 0.25])[-1], rel=1e-6)


def test_scaffold_divides_by_the_scaled_step(toys):
    """One client, one step at scale s: the step is rate s g, and the new variate c = (x0 - x1) / (rate s) is g."""
    one = toys.build(lambda local: scaffold(local, 0.1), toys.clients([1.0], [2.0]), epochs=1)
    state, _ = one.run_rounds(one.init()._replace(step_scale=0.25), 1)
    assert float(one.variables(state).params["x"]) == pytest.approx(0.1 * 0.25 * 2.0, rel=1e-6)
    assert float(state.server.memory["x"]) == pytest.approx(-2.0, rel=1e-6)


def test_on_several_hosts_process_0_decides_and_the_others_are_told(sim):
    """What process 0 spreads over the network is played back to process 1, whose own callback must not be asked."""

    def never(memory, moment):
        raise AssertionError("only process 0 calls callbacks")

    def decided(number, step, spread):
        hosts = Hosts(number, lambda word: word[None], spread)
        deciding = Deciding((("mine", Callback(step, scales=True)),), sim, None, hosts)
        state = deciding.resume({}, sim.init())
        return deciding.see([{"round": 1, "test_loss": 1.0}], state._replace(round=1), Schedule(9, 1, 1)), deciding

    sent = []
    state, first = decided(
        0, lambda memory, moment: Decision({"n": 1}, "enough", 0.5), lambda x: (sent.append(x), x)[1]
    )
    played = iter(sent)
    other_state, other = decided(1, never, lambda x: next(played))
    assert state.step_scale == other_state.step_scale == 0.5
    assert other.saved() == first.saved() and other.stopped_by == {"callback": "mine", "round": 1, "reason": "enough"}


def test_of_seeds_side_by_side_each_is_stopped_by_its_own_callbacks(toys, tmp_path):
    data = toys.clients([1.0, 1.0], [0.0, 1.0])
    one = toys.build(fedavg, data, epochs=1, executor=chunked(1))
    two = toys.build(fedavg, data, epochs=1, executor=chunked(1), beside=one, seed=1)
    reach = by_hand(0.1, [1] * 5)[3] ** 2 / 2  # the loss of round 4
    own = (("target", target(reach * 0.999, "test_loss", direction="higher")),)
    runs = [Run(one, tmp_path / "0", label="seed 0", callbacks=own), Run(two, tmp_path / "1", label="seed 1")]
    first, second = run_all(runs, side_by_side([one, two]), TEST, Schedule(7, 2, 7))
    assert (first.state.round, second.state.round) == (4, 7)
    assert first.summary["stopped_by"]["callback"] == "target" and "stopped_by" not in second.summary
    assert len(lines_of(tmp_path / "0")) == 4 and len(lines_of(tmp_path / "1")) == 7


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (best_checkpoint("test_loss"), "best_checkpoint writes files and needs a --workdir"),
        (Callback(lambda memory, moment: Decision({"x": {1, 2}})), "its memory must be JSON types"),
        (Callback(lambda memory, moment: Decision({}, step_scale=0.0), scales=True), "step_scale must be above 0"),
        (
            Callback(lambda memory, moment: Decision({}, step_scale=0.5)),
            "but says scales=False; make it with",
        ),
    ],
)
def test_a_callback_that_cannot_work_in_a_run_is_named(sim, callback, message):
    with pytest.raises(UserError, match=message):
        run(sim, TEST, Schedule(1, 1, 1), callbacks=(("best_checkpoint" if callback.writes else "mine", callback),))


# By a config and by flags.


def configured(*assignments):
    config = base_config()
    override(config, list(assignments))
    return config


def test_callbacks_are_named_by_one_flag_and_set_by_others_in_any_order():
    names = ("callbacks", "early_stopping,best_checkpoint")
    config = configured(("callbacks.0.patience", "2"), names, ("validation", "0.1"))
    assert plain(config.callbacks) == [{"name": "early_stopping", "patience": 2}, {"name": "best_checkpoint"}]
    assert plain(from_plain(plain(config))) == plain(config)
    names, callbacks = zip(*build(config).callbacks, strict=True)
    assert names == ("early_stopping", "best_checkpoint")
    assert {callback.reads for callback in callbacks} == {("validation_accuracy",)}
    override(config, [("callbacks.1.name", "target"), ("callbacks.1.value", "0.9")])
    assert config.callbacks[1].to_dict() == {"name": "target", "value": 0.9}
    override(config, [("callbacks", "()")])
    assert config.callbacks == () and build(config).callbacks == ()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            [("callbacks", "early_stoping")],
            r"config\.callbacks\.0\.name: no 'early_stoping' in callbacks: .*did you mean 'ea",
        ),
        ([("callbacks.0.patience", "3")], r"config\.callbacks is empty, .*; set --config\.callbacks=NAME,NAME first"),
        (
            [("callbacks", "plateau"), ("callbacks.1.patience", "3")],
            r"config\.callbacks has 1 components, numbered from 0",
        ),
        ([("callbacks", "3")], r"config\.callbacks takes names of components"),
        ([("callbacks", "plateau,,target")], r"config\.callbacks has an empty name"),
        ([("callbacks", "target")], r"config\.callbacks\.0: target needs value; set --config\.callbacks\.0\.value"),
        (
            [("callbacks", "plateau"), ("callbacks.0.part", "test")],
            r"config\.callbacks\.0: plateau has no setting 'part'",
        ),
        ([("callbacks", "fedjax8.codecs.fp8:fp8")], r"gives a Codec, but a Callback is needed"),
        ([("callbacks", "plateau"), ("callbacks.0.factor", "2.0")], r"config\.callbacks\.0: factor and least must be"),
    ],
)
def test_callbacks_that_cannot_be_are_one_sentence(assignments, message):
    with pytest.raises(UserError, match=message) as error:
        build(configured(*assignments))
    assert len(error.value.mistakes) == 1
    config = base_config()
    config.callbacks = ("plateau",)
    with pytest.raises(UserError, match=r"config\.callbacks must be a tuple of component"):
        build(config)


def test_where_an_epsilon_is_stated_nothing_is_decided_by_training_rows():
    private = ("privacy.name", "dp_sgd"), ("privacy.noise_multiplier", "1.0"), ("privacy.delta", "1e-3")
    private += ("input_mean", "0.5"), ("input_std", "0.5"), ("adapter.name", "none")
    by_training = ("callbacks", "early_stopping"), ("callbacks.0.metric", "train_loss")
    with pytest.raises(UserError, match="early_stopping would decide by train_loss, a metric of private rows"):
        build(configured(*private, *by_training))
    config = configured(*private, ("validation", "0.1"))
    config.callbacks = (component("early_stopping"),)
    assert build(config).callbacks[0][1].reads == ("validation_accuracy",)
