"""Monitors of the variance among workers: an example by hand, their order, and the moment at which each would speak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.algorithms import monitors
from fedjax8.algorithms.monitors._direction import direction_of, first_direction
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.types import Reduced

FLOAT32 = 1e-5  # relative, of sums of some hundred squares


def reduced(monitor, drifts, direction=(), threshold=0.0):
    """What the server has of workers' drifts (leaves `[workers, ...]`), all of weight 1."""
    sent = jax.vmap(lambda drift: monitor.sends(drift, direction, jnp.float32(threshold)))(drifts)
    seen = jax.vmap(monitor.watch)(sent)
    workers = jax.tree.leaves(drifts)[0].shape[0]
    pick = lambda f, tree: jax.tree.map(lambda x: f(x.astype(jnp.float32), axis=0), tree)
    counts = jnp.float32(workers), jnp.int32(workers)
    return Reduced(pick(jnp.mean, sent), *counts, {}, pick(jnp.min, seen), pick(jnp.max, seen))


def h_of(monitor, drifts, direction=(), threshold=0.0):
    return float(monitor.estimate(reduced(monitor, drifts, direction, threshold), jnp.int32(1)))


def variance(drifts):
    """Three forms of it, in float64, of drifts `[workers, d]`."""
    u = np.float64(drifts)
    to_mean = np.mean(np.sum((u - u.mean(axis=0)) ** 2, axis=1))
    base = np.linspace(-1, 1, u.shape[1])
    models = base + u
    of_models = np.mean(np.sum((models - models.mean(axis=0)) ** 2, axis=1))
    return of_models, to_mean, np.mean(np.sum(u**2, axis=1)) - np.sum(u.mean(axis=0) ** 2)


HAND = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("direction", "h"), [((0.5**0.5, 0.5**0.5, 0, 0), 4 / 9), ((1, 0, 0, 0), 8 / 9), ((0, 0, 1, 0), 4 / 3)]
)
def test_linear_on_three_workers_by_hand(direction, h):
    for sign in (1, -1):
        assert h_of(monitors.linear(), HAND, sign * np.float32(direction)) == pytest.approx(h, rel=1e-6)


def test_exact_naive_and_gm_on_three_workers_by_hand():
    assert variance(HAND) == pytest.approx([4 / 9] * 3, rel=1e-12)
    assert h_of(monitors.exact(), HAND) == pytest.approx(4 / 9, rel=1e-6)
    assert h_of(monitors.naive(), HAND) == pytest.approx(4 / 3, rel=1e-6)
    # The largest squared drift is 2, and the comparison is strict.
    assert [h_of(monitors.gm(), HAND, threshold=t) for t in (1.99, 2.0, 2.01)] == [np.inf, -np.inf, -np.inf]
    # Four elements in a table of 250 columns are one block and never collide: M2 is exact, 8/9.
    assert h_of(monitors.sketch(eps=0.0), HAND) == pytest.approx(4 / 9, rel=1e-6)
    assert h_of(monitors.sketch(eps=1.0), HAND) == pytest.approx(8 / 9, rel=1e-6)


def test_forms_and_invariances_of_the_variance(rng):
    u = rng.normal(size=(5, 300))
    first, *others = variance(u)
    assert others == pytest.approx([first] * 2, rel=1e-5)
    exact = lambda x: h_of(monitors.exact(), np.float32(x))
    assert exact(u) == pytest.approx(first, rel=FLOAT32)
    assert exact(u + rng.normal(size=300)) == pytest.approx(first, rel=FLOAT32)
    assert exact(3 * u) == pytest.approx(9 * first, rel=FLOAT32)
    assert exact(u[::-1]) == pytest.approx(first, rel=FLOAT32)
    assert exact(np.tile(u[:1], (5, 1))) == pytest.approx(0, abs=FLOAT32 * np.sum(u[0] ** 2))


def tree_of(flat):
    """Drifts `[workers, 1000]` as a tree."""
    return {"a": flat[:, :600].reshape(-1, 20, 30), "b": flat[:, 600:999], "c": flat[:, 999]}


@pytest.mark.parametrize("together", [0.0, 1.0, 10.0])
def test_every_monitor_is_safe_and_they_are_ordered(rng, together):
    flat = np.float32(rng.normal(size=(6, 1000)) + together * rng.normal(size=1000))
    drifts, xi = tree_of(flat), first_direction(jax.tree.map(lambda x: x[0], tree_of(flat)))
    room = FLOAT32 * float(np.mean(np.sum(flat**2, axis=1)))
    var, largest = variance(flat)[0], np.max(np.sum(np.float64(flat) ** 2, axis=1))
    naive, linear = h_of(monitors.naive(), drifts), h_of(monitors.linear(), drifts, xi)
    assert h_of(monitors.exact(), drifts) == pytest.approx(var, abs=room)
    assert var - room <= linear <= naive + room
    assert naive <= largest + room
    assert h_of(monitors.sketch(rows=2), drifts) <= naive
    assert h_of(monitors.gm(), drifts, threshold=largest * 0.999) == np.inf
    assert h_of(monitors.gm(), drifts, threshold=largest * 1.001) == -np.inf


def test_linear_is_exact_along_the_mean_drift_and_naive_across_it(rng):
    u = np.float32(rng.normal(size=(4, 100)) + 2 * rng.normal(size=100))
    mean = np.float64(u).mean(axis=0)
    across = rng.normal(size=100)
    across -= mean * (across @ mean) / (mean @ mean)
    along, across = (np.float32(x / np.linalg.norm(x)) for x in (mean, across))
    room = FLOAT32 * float(np.mean(np.sum(u**2, axis=1)))
    assert h_of(monitors.linear(), u, along) == pytest.approx(variance(u)[0], abs=room)
    assert h_of(monitors.linear(), u, across) == pytest.approx(h_of(monitors.naive(), u), abs=room)


def test_the_sketch_is_safe_as_often_as_the_chi_square_distribution_has_it(rng):
    """1000 seeds of (5, 250): safe in 0.91 of draws with eps 1/sqrt(250), in 0.997 with 0.1342, as the docstring says.

    H >= Var where M2 of the mean drift is at most (1 + eps) times its squared length.
    """
    from fedjax8.numerics.sketch import second_moment, sketch

    mean = np.float32(rng.normal(size=20_000))
    tables = jax.jit(
        lambda x: jax.lax.map(lambda s: second_moment(sketch(x, 5, 250, s)), jnp.arange(1000, dtype="uint32"))
    )
    overshoot = np.asarray(tables(mean)) / np.sum(np.float64(mean) ** 2)
    assert 0.88 <= np.mean(overshoot <= 1 + 250**-0.5) <= 0.95
    assert np.mean(overshoot <= 1.1342) > 0.99


def test_workers_that_drift_together_are_told_from_workers_that_drift_apart(rng):
    """The sketch sees the common part that naive does not; within 6 standard deviations of M2, sqrt(2 / 250)."""
    flat = np.float32(0.1 * rng.normal(size=(6, 1000)) + rng.normal(size=1000))
    drifts, var, naive = tree_of(flat), variance(flat)[0], np.mean(np.sum(flat**2, axis=1))
    assert var < 0.02 * naive
    assert abs(h_of(monitors.sketch(eps=0.0), drifts)) < 6 * (2 / 250) ** 0.5 * naive


@pytest.mark.parametrize("seed", range(3))
def test_on_one_recorded_path_more_careful_monitors_speak_first(seed):
    """60 steps of 4 workers that drift in part together, without any synchronization."""
    rng = np.random.default_rng(seed)
    steps = 0.6 * rng.normal(size=(60, 1, 1000)) + rng.normal(size=(60, 4, 1000)) + 0.2 * rng.normal(size=1000)
    path = np.cumsum(steps, axis=0).astype(np.float32)
    threshold, xi = 20_000.0, np.float32(path[5].mean(axis=0) / np.linalg.norm(path[5].mean(axis=0)))
    first = {}
    for name in ("gm", "naive", "linear", "sketch", "exact"):
        monitor = getattr(monitors, name)()
        value = jax.jit(lambda u, m=monitor: m.estimate(reduced(m, u, xi, threshold), jnp.int32(1)))
        first[name] = next(t for t, u in enumerate(path) if float(value(u)) > threshold)
    assert 5 < first["gm"] <= first["naive"] <= first["linear"] <= first["exact"]
    assert first["naive"] < first["exact"]
    assert first["naive"] <= first["sketch"]
    # Up to the sketch's chance to miss: M2 too large by 3 deviations, 0.27 of ||mean u||^2, which is below 2 Var here.
    assert first["sketch"] <= 1.6 * first["exact"]


SIZES = [("exact", 4 * 1001), ("sketch", 5004), ("linear", 8), ("naive", 4), ("gm", 1)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_bytes_of_what_is_sent(name, size):
    monitor = getattr(monitors, name)()
    drift = jax.tree.map(lambda x: x[0], tree_of(np.zeros((1, 1000), np.float32)))
    sent = jax.eval_shape(monitor.sends, drift, drift, jnp.float32(1))
    assert trees.num_bytes(sent) == size
    assert monitor.compat_bytes == (0.125 if name == "gm" else None)


def test_monitors_without_messages_answer_by_the_step_alone():
    steps = jnp.arange(1, 7)
    silent = {m: getattr(monitors, m)(*a) for m, a in (("synchronous", ()), ("never", ()), ("periodic", (3,)))}
    answers = {name: [float(m.estimate(None, t)) for t in steps] for name, m in silent.items()}
    inf = np.inf
    assert answers == {
        "synchronous": [inf] * 6,
        "never": [-inf] * 6,
        "periodic": [-inf, -inf, inf, -inf, -inf, inf],
    }
    assert all(m.sends is None and m.estimate(None, steps[0]).dtype == np.float32 for m in silent.values())


@pytest.mark.parametrize("name", ["exact", "sketch", "linear", "naive", "gm"])
def test_without_drift_nothing_speaks(name):
    monitor, zeros = getattr(monitors, name)(), np.zeros((3, 40), np.float32)
    xi = first_direction(zeros[0])
    assert not h_of(monitor, zeros, xi, 0.0) > 0.0
    assert isinstance(monitor, Monitor)
    assert (monitor.exact, monitor.directed) == (name == "exact", name == "linear")


def test_directions_are_unit_vectors_over_the_whole_tree(rng):
    old = jax.tree.map(lambda x: x[0], tree_of(rng.normal(size=(1, 1000)).astype(np.float32)))
    first = first_direction(old)
    flat = lambda tree: np.concatenate([np.ravel(np.float64(x)) for x in jax.tree.leaves(tree)])
    assert np.linalg.norm(flat(first)) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(flat(first), flat(first_direction(trees.zeros_like(old))))
    for size in (1.0, 1e-30, 1e25):  # squares of the last two leave float32
        new = trees.scale(jnp.float32(size), old)
        got = flat(direction_of(new, trees.zeros_like(old), first))
        np.testing.assert_allclose(got, flat(old) / np.linalg.norm(flat(old)), atol=1e-6)
    np.testing.assert_array_equal(flat(direction_of(old, old, first)), flat(first))
    np.testing.assert_array_equal(flat(direction_of(trees.scale(np.float32(np.nan), old), old, first)), flat(first))


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (monitors.sketch, {"rows": 0}, "rows <= 32.*got 0"),
        (monitors.sketch, {"columns": 0}, "columns >= 1.*got 5, 0"),
        (monitors.sketch, {"eps": -0.1}, "eps must be.*-0.1"),
        (monitors.sketch, {"eps": float("nan")}, "eps must be.*nan"),
        (monitors.sketch, {"seed": -1}, "seed.*-1"),
        (monitors.periodic, {"period": 0}, "period must be.*0"),
        (monitors.periodic, {"period": 2.5}, "period must be.*2.5"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(factory, settings, message):
    with pytest.raises(ValueError, match=message):
        factory(**settings)
