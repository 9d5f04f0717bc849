"""Rounds of DP-FedAvg: bounds, noise and the path of the clip, by hand."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import trees
from fedjax8.algorithms.dp_fedavg import INSIDE, clipping, dp_fedavg, update_multiplier
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.attacks import attacked, sign_flip
from fedjax8.codecs.none import none
from fedjax8.codecs.randomk import randomk
from fedjax8.data.batches import batch_plan
from fedjax8.dropouts import with_dropout
from fedjax8.dropouts.base import Dropout
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.auto import auto
from fedjax8.executors.loop import loop
from fedjax8.local import local_training
from fedjax8.lookup import component_names
from fedjax8.privacy.accounting import Facts, cohort, epsilon
from fedjax8.types import Attack, Model, Variables

FLOAT32 = 2e-6
D = 50_000
ETA = 0.1


def private(clip=1.0, noise_multiplier=0.0, **settings):
    return functools.partial(dp_fedavg, clip=clip, noise_multiplier=noise_multiplier, **settings)


def vector() -> Model:
    """D parameters at zero. A row with columns a and b asks for the update -a b on all of them, of a step of size 1."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        return jnp.sum(variables.params["w"]) * batch["a"] * batch["b"], variables.state

    return Model(
        init=lambda key, batch: Variables({"w": jnp.zeros(D)}, {}),
        apply=apply,
        loss=lambda outputs, batch: outputs,
        metrics=lambda outputs, batch: {},
    )


def simulation(toys, a, make, uplink=None):
    """One client for each entry of `a`, that all take part in a round."""
    local = local_training(vector(), optax.sgd(1.0), batch_plan(1, epochs=1))
    return simulate(
        make(local),
        toys.clients(a, np.ones(len(a))),
        cohort_size=len(a),
        uplink=uplink or none(),
        downlink=none(),
        executor=loop(),
    )


def ends(sim, rounds=1):
    """`(w [D], metrics)` after that many rounds, from zeros."""
    state, metrics = sim.run_round(sim.init())
    for _ in range(rounds - 1):
        state, metrics = sim.run_round(state)
    return np.asarray(sim.variables(state).params["w"]), metrics


def after_a_round(toys, a, make, uplink=None, rounds=1):
    """`(w [D], metrics)` after a round, or some, of one client for each entry of `a`, from zeros."""
    return ends(simulation(toys, a, make, uplink), rounds)


def test_without_noise_and_bound_it_is_unweighted_fedavg(toys):
    averaged = toys.build(functools.partial(fedavg, payload="update", weighting="uniform"), toys.q3(), epochs=1)
    np.testing.assert_allclose(
        toys.trajectory(toys.build(private(clip=math.inf), toys.q3(), epochs=1), 5),
        toys.trajectory(averaged, 5),
        atol=FLOAT32,
    )


def test_a_client_moves_the_mean_by_the_bound_over_the_number_of_clients_at_most(toys):
    """Update 0.1 b of every client: 0.02, 0.05 and 100, of which only the last is clipped."""
    data = toys.clients([1.0] * 3, [0.2, 0.5, 1000.0])
    x = toys.trajectory(toys.build(private(clip=0.3), data, steps=1), 1)[0]
    assert x == pytest.approx((0.02 + 0.05 + 0.3) / 3, abs=FLOAT32)


def test_any_optimizer_steps_with_the_clipped_mean(toys):
    data = toys.clients([1.0] * 2, [0.2, 1000.0])
    make = private(clip=0.3, server_optimizer=optax.sgd(0.5, momentum=0.9))
    first, second = toys.trajectory(toys.build(make, data, steps=1), 2)
    mean = (0.02 + 0.3) / 2
    assert first == pytest.approx(0.5 * mean, abs=FLOAT32)
    again = (0.1 * (0.2 - first) + 0.3) / 2
    assert second == pytest.approx(first + 0.5 * (0.9 * mean + again), abs=FLOAT32)


@pytest.mark.parametrize("noise", ["server", "clients"])
def test_the_mean_has_noise_of_deviation_z_s_over_m(toys, noise):
    """Of 50 000 values: the standard error of a deviation is 0.32 %."""
    w, metrics = after_a_round(toys, [0.0] * 4, private(2.0, 1.5, noise=noise))
    assert w.std() == pytest.approx(1.5 * 2.0 / 4, rel=0.016)
    assert metrics["excluded"] == 0


LOST = set()
"""The clients that drop out, asked for while a round runs, so that one program serves all choices."""


@functools.cache
def losing(toys, noise, make_attack=None):
    """A simulation with noise of deviation 1.5 * 2 on the sum, of 8 clients of which those in LOST drop out."""

    def gone(key, ids):
        asked = lambda ids: np.isin(ids, list(LOST))
        return jax.pure_callback(asked, jax.ShapeDtypeStruct(ids.shape, bool), ids)

    def make(local):
        algorithm = with_dropout(private(2.0, 1.5, noise=noise)(local), Dropout(gone))
        return attacked(algorithm, make_attack) if make_attack else algorithm

    return simulation(toys, [0.0] * 8, make)


def after_losses(toys, lost, noise="clients", make_attack=None):
    """As `after_a_round` of the simulation above, some clients of which are lost."""
    sim = losing(toys, noise, make_attack)
    LOST.clear()
    LOST.update(lost)
    return ends(sim)


@pytest.mark.parametrize("lost", [(), (3,), (0, 2, 4, 6), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("noise", ["server", "clients"])
def test_noise_is_whole_whoever_is_lost(toys, lost, noise):
    """Of 50 000 values: the standard error of a deviation is 0.32 %."""
    w, metrics = after_losses(toys, lost, noise)
    assert w.std() == pytest.approx(1.5 * 2.0 / 8, rel=0.016)
    assert metrics["dropped"] == len(lost) and metrics["clients"] == 8 - len(lost)
    if noise == "clients":
        assert metrics["noise_made_up"] == pytest.approx(len(lost) / 8)


def test_noise_is_whole_where_clients_are_left_out(toys):
    """What two of the eight send does not arrive as finite numbers; a codec without loss stands for the line."""
    broken = none()._replace(
        decode=lambda state, m: jax.tree.map(lambda x: jnp.where(m["update"]["w"][0] > 0.4, jnp.inf, x), m)
    )
    w, metrics = after_a_round(toys, [0.0] * 8, private(2.0, 1.5, noise="clients"), broken)
    assert 0 < metrics["excluded"] < 8
    assert metrics["noise_made_up"] == pytest.approx(metrics["excluded"] / 8)
    assert w[1:].std() == pytest.approx(1.5 * 2.0 / 8, rel=0.016)


def test_a_round_in_which_everyone_is_lost_changes_nothing(toys):
    w, metrics = after_losses(toys, range(8))
    assert not w.any() and metrics["clients"] == 0


def test_attackers_without_noise_are_refused_where_clients_add_it(toys):
    with pytest.raises(UserError, match="noise=server"):
        after_losses(toys, (), make_attack=sign_flip(0.25))
    w, _ = after_losses(toys, (), "server", sign_flip(0.25))
    assert w.std() == pytest.approx(1.5 * 2.0 / 8, rel=0.016)
    w, _ = after_losses(toys, (), "clients", Attack(lambda ids, k: ids < 2, batch=lambda batch: batch))
    assert w.std() == pytest.approx(1.5 * 2.0 / 8, rel=0.016)


def test_an_update_too_long_for_a_float32_norm_adds_its_direction(toys):
    """Each of 50 000 values is 1e37, and so the norm 2.2e39; it counted as zeros."""
    w, metrics = after_a_round(toys, [-1e37, 0.0], private(1.0))
    np.testing.assert_allclose(w, 0.5 / np.sqrt(D), rtol=1e-5)
    assert metrics["unusable_updates"] == 0 and metrics["clipped_updates"] == 1


def test_the_bit_of_an_attacker_counts_as_one_bit(toys):
    """A bit of 255 would have moved the bound as 255 clients do."""
    attack = Attack(lambda ids, k: ids < 1, send=lambda key, change, known: trees.scale(-200.0, change))
    make = private(1.0, quantile=0.5)
    _, metrics = after_a_round(toys, [-1e-3] * 4, lambda local: attacked(make(local), attack), rounds=2)
    assert metrics["clip_norm"] == pytest.approx(math.exp(-0.2 * (0.75 - 0.5)), rel=1e-5)


def test_a_client_that_is_not_finite_is_zeros_and_noise_is_added_all_the_same(toys):
    alone, metrics = after_a_round(toys, [np.nan], private(2.0, 1.5))
    assert alone.std() == pytest.approx(1.5 * 2.0, rel=0.016)
    assert metrics["unusable_updates"] == 1 and metrics["clients"] == 1 and metrics["excluded"] == 0
    for bad in (np.nan, np.inf):
        w, _ = after_a_round(toys, [bad, -1e-3], private(1.0))
        np.testing.assert_allclose(w, 1e-3 / 2, rtol=1e-5)


def test_what_a_codec_lengthens_is_clipped_again(toys):
    """`randomk` of a tenth of the values is unbiased and makes an update 10^(1/2) times as long."""
    w, metrics = after_a_round(toys, [-1.0], private(0.5), randomk(0.1))
    assert np.linalg.norm(w) == pytest.approx(0.5, rel=1e-5)
    assert np.mean(w != 0) == pytest.approx(0.1, abs=1e-3)
    assert metrics["clipped_updates"] == 1


@pytest.mark.parametrize("name", component_names("fedjax8.codecs"))
def test_every_codec_carries_private_updates(name):
    """Traced, not run: the message is the codec's and a byte for the bit, and comes back as the tree that was sent."""
    module = importlib.import_module(f"fedjax8.codecs.{name}")
    update = {"update": {"layer": {"kernel": jnp.ones((16, 5)), "bias": jnp.ones(5)}}}
    for settings in module.EXAMPLES:
        codec = getattr(module, name)(**settings)
        private_codec = clipping(codec, 1.0)

        def there_and_back(key, codec=private_codec):
            tree = update | {INSIDE: jnp.float32(1)}
            message, state = codec.encode(key, codec.init(tree), tree)
            return message, state, codec.decode(codec.init(tree), message)

        message, state, decoded = jax.eval_shape(there_and_back, jax.random.key(0))
        plain, plain_state = jax.eval_shape(
            lambda key, c=codec: c.encode(key, c.init(update), update), jax.random.key(0)
        )
        assert trees.num_bytes(message) == trees.num_bytes(plain) + 1
        assert trees.shapes(state) == trees.shapes(plain_state)
        assert decoded == trees.shapes(update | {INSIDE: jnp.float32(1)})


def test_clients_add_noise_only_before_a_codec_without_loss(toys):
    with pytest.raises(UserError, match="noise"):
        after_a_round(toys, [0.0], private(1.0, 1.0, noise="clients"), randomk(0.1))


def test_a_bit_costs_a_byte_and_the_bound_four(toys):
    sizes = {}
    for name, settings in (("fixed", {}), ("adaptive", {"quantile": 0.5})):
        found = toys.build(private(**settings), toys.q2(), steps=1).discover()
        sizes[name] = {d.channel.direction: d.channel.message_bytes for d in found}
    assert sizes == {"fixed": {"up": 4, "down": 4}, "adaptive": {"up": 5, "down": 8}}


@pytest.mark.parametrize(("b", "factor"), [([0.1, 0.2], 0.904837), ([100.0, 200.0], 1.105171)])
def test_the_bound_shrinks_when_nobody_is_clipped_and_grows_when_all_are(toys, b, factor):
    make = private(clip=1.0, quantile=0.5, server_optimizer=optax.sgd(0.0))
    sim = toys.build(make, toys.clients([1.0, 1.0], b), steps=1)
    state, clips = sim.init(), []
    for _ in range(3):
        state, metrics = sim.run_round(state)
        clips.append(metrics["clip_norm"])
    np.testing.assert_allclose(clips, factor ** np.arange(3), rtol=1e-5)


def test_the_bound_settles_near_the_median_of_the_norms_also_with_noisy_bits(toys):
    """Norms log-normal with median 0.1; after 60 of 200 rounds it is there, and stays within a tenth in the mean."""
    norms = 0.1 * np.exp(np.random.default_rng(0).normal(size=100))
    make = private(clip=0.01, noise_multiplier=0.01, quantile=0.5, bit_noise=5.0, server_optimizer=optax.sgd(0.0))
    sim = toys.build(make, toys.clients(np.ones(100), norms / ETA), steps=1, cohort_size=50)
    state, clips = sim.init(), []
    while state.round < 200:
        state, lines = sim.run_rounds(state, 200 - state.round)
        clips += [line["clip_norm"] for line in lines]
    assert clips[0] == pytest.approx(0.01)
    assert np.mean(clips[60:]) == pytest.approx(np.median(norms), rel=0.1)


def test_bits_take_their_share_of_the_noise():
    assert update_multiplier(1.0, 5.0) == pytest.approx(1.0050378, abs=1e-7)
    assert update_multiplier(0.0, None) == 0
    with pytest.raises(ValueError, match="bit_noise"):
        update_multiplier(1.0, 0.5)


def test_devices_do_not_matter(toys):
    make = private(clip=0.05, noise_multiplier=0.3, quantile=0.5, bit_noise=1.0)
    data = toys.clients([1.0] * 5, [0.1, 0.4, 0.7, -2.0, 3.0])
    one, many = (toys.build(make, data, steps=1, cohort_size=3, executor=e) for e in (loop(), auto()))
    np.testing.assert_allclose(toys.trajectory(one, 4), toys.trajectory(many, 4), atol=FLOAT32)


def test_the_log_tells_epsilon_and_a_target_is_met_in_the_last_round(toys):
    data, plan = toys.clients([1.0] * 40, np.zeros(40)), batch_plan(1, steps=1)
    facts = Facts(data, 2, 3, 0, plan)
    sim = toys.build(private(noise_multiplier=4.0, facts=facts), data, steps=1, cohort_size=2)
    _, lines = sim.run_rounds(sim.init(), 3)
    wanted = [epsilon(4.0, 1e-5, steps=r, sampling=cohort(2, 40)) for r in (1, 2, 3)]
    assert [line["epsilon"] for line in lines] == wanted
    local = local_training(toys.quadratic(), optax.sgd(0.1), plan)
    aimed = dp_fedavg(local, target_epsilon=1.5, facts=facts._replace(cohort_size=40)).privacy
    assert 1.49 < aimed(3)["epsilon"] <= 1.5
    assert dp_fedavg(local, noise_multiplier=0.0, facts=facts).privacy(3) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": None},
        {"target_epsilon": 1.0},
        {"noise_multiplier": None, "target_epsilon": 1.0},
        {"delta": 0.0},
        {"noise": "both"},
        {"model_state": "average"},
        {"quantile": 1.5},
        {"quantile": 0.5, "noise": "clients"},
        {"quantile": 0.5, "noise_multiplier": 1.0},
        {"quantile": 0.5, "noise_multiplier": 1.0, "bit_noise": 0.4},
    ],
)
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match=r"must|give|needs"):
        toys.build(private(**settings), toys.q2(), steps=1)
