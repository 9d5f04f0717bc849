"""UQ+: the algebra of its objective, its search and its steps, against NumPy in float64 on the ml_dtypes grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.algorithms.refinements.uq_plus import EXAMPLES, OBJECTIVES, objective_function, toward_nearest, uq_plus
from fedjax8.errors import UserError
from fedjax8.numerics import decode, encode, get_format, quantize

PAPER = get_format("e4m3fnuz")
KEY = jax.random.key(5)
FLOAT32 = 1e-5  # a sum of some tens of squares, each off by a few roundings


def grid(alpha, fmt=PAPER):
    """All values of the scaled grid, sorted, float64."""
    codes = np.arange(fmt.max_code + 1, dtype=np.uint8)
    values = codes.view(fmt.dtype).astype(np.float64) * (float(alpha) / fmt.max)
    return np.unique(np.concatenate([-values, values]))


def expected_error(w, alpha, v, fmt=PAPER):
    """sum (clip(w) - v)^2 + (clip(w) - below)(above - clip(w)), the grid values around clip(w)."""
    values, w = grid(alpha, fmt), np.clip(np.asarray(w, np.float64), -float(alpha), float(alpha))
    place = np.clip(np.searchsorted(values, w, side="right"), 1, len(values) - 1)
    variance = (w - values[place - 1]) * (values[place] - w)
    return np.sum((w - np.asarray(v, np.float64)) ** 2 + variance)


def nearest_error(w, alpha, v, fmt=PAPER):
    """sum (Q(w) - v)^2, Q to the nearest grid value."""
    values, w = grid(alpha, fmt), np.asarray(w, np.float64).reshape(-1, 1)
    return np.sum((values[np.argmin(np.abs(values - w), axis=1)] - np.asarray(v, np.float64).reshape(-1)) ** 2)


def three_clients(rng, shape=(6, 5)):
    """float64 weights, decoded kernels and their clips; the kernels lie on the grids of their clips."""
    weights, alphas = np.array([0.5, 0.3, 0.2]), np.float32([0.5, 0.6, 0.97])
    kernels = [rng.normal(scale=0.4, size=shape).astype(np.float32) for _ in alphas]
    return weights, [np.asarray(quantize(k, a, PAPER)) for k, a in zip(kernels, alphas, strict=True)], alphas


def averaged(rng):
    """(params, lowest, highest) as a round gives them to the step: two kernels, and leaves that are not quantized."""
    weights, kernels, alphas = three_clients(rng)
    mean = sum(w * k for w, k in zip(weights, kernels, strict=True)).astype(np.float32)
    node = {"kernel": mean, "kernel_clip": np.float32(weights @ alphas), "input_clip": np.float32(3.7)}
    other = {"kernel": 1.7 * mean.T, "kernel_clip": np.float32(1.7 * weights @ alphas)}
    params = {"a": node | {"bias": np.float32([0.123, -0.7])}, "b": other, "token": mean[:2]}
    clips = ("a/kernel_clip", 1), ("b/kernel_clip", 1.7)
    bounds = [{name: np.float32(c * f(alphas)) for name, c in clips} for f in (np.min, np.max)]
    return jax.tree.map(jnp.asarray, params), *bounds


# The objective.


def test_only_the_error_of_the_mean_depends_on_what_is_sent(rng):
    """sum p_k |q - v_k|^2 = |q - v|^2 + sum p_k |v_k - v|^2 to float64 accuracy, and the program computes |q - v|^2."""
    weights, kernels, alphas = three_clients(rng)
    kernels = np.float64(kernels)
    mean = np.tensordot(weights, kernels, 1)
    spread = weights @ np.sum((kernels - mean) ** 2, axis=(1, 2))
    for alpha in alphas:
        w = np.float32(mean)
        for objective, key in (("det", None), ("rand", KEY)):
            sent = np.float64(decode(encode(w, alpha, PAPER, key), alpha, PAPER))
            direct = weights @ np.sum((sent - kernels) ** 2, axis=(1, 2))
            of_mean = np.sum((sent - mean) ** 2)
            assert of_mean > 1e-4
            assert direct - spread == pytest.approx(of_mean, abs=1e-13 * direct)
            got = objective_function(objective, PAPER)(KEY, w, alpha, np.float32(mean))
            assert float(got) == pytest.approx(direct - spread, rel=FLOAT32)


@pytest.mark.parametrize("name", ["e4m3fnuz", "e4m3fn", "e5m2"])
def test_the_expected_objective_is_the_mean_of_the_random_one(rng, name):
    """4000 draws, 4 standard errors, for weights that are not the mean and some of them beyond the clip."""
    fmt, alpha = get_format(name), np.float32(0.45)
    w, v = rng.normal(scale=0.5, size=(2, 20)).astype(np.float32)
    assert np.any(np.abs(w) > alpha)
    draws = jax.vmap(lambda key: objective_function("rand", fmt)(key, w, alpha, v))(jax.random.split(KEY, 4000))
    draws = np.float64(draws)
    error = draws.std() / np.sqrt(len(draws))
    expected = float(objective_function("expected", fmt)(KEY, w, alpha, v))
    assert expected == pytest.approx(draws.mean(), abs=4 * error)
    assert expected == pytest.approx(expected_error(w, alpha, v, fmt), rel=FLOAT32)


CELLS = [(v, sign) for v in (0.3, 0.6, 101.0, 3e-4) for sign in (1, -1)]


@pytest.mark.parametrize(("v", "sign"), CELLS)
def test_inside_a_cell_the_expected_objective_is_linear_and_least_at_the_nearest_value(v, sign):
    """At alpha = 240 the grid is that of the type itself. All of the cell of v and of those around it."""
    v, alpha, values = sign * v, np.float32(240), grid(240)
    place = np.searchsorted(values, v)
    low, high = values[place - 1], values[place]
    error = jax.vmap(lambda w: objective_function("expected", PAPER)(KEY, w, alpha, np.float32(v)))
    share = np.linspace(0, 1, 33)
    inside = np.float64(error(np.float32(low + share * (high - low))))
    scale = inside.max()
    # A straight line between its ends; the slope is the gradient that steps follow, here by differences.
    np.testing.assert_allclose(inside, inside[0] + share * (inside[-1] - inside[0]), atol=FLOAT32 * scale)
    slope = (inside[-1] - inside[0]) / (high - low)
    assert slope == pytest.approx(low + high - 2 * v, abs=FLOAT32 * (high - low) + 1e-6 * abs(v))
    ends = values[place - 4 : place + 4, None]
    wide = (ends[:-1] + share * np.diff(ends, axis=0)).reshape(-1)
    best = wide[np.argmin(np.float64(error(np.float32(wide))))]
    assert best == values[np.argmin(np.abs(values - v))] == float(quantize(np.float32(v), alpha, PAPER))


# Steps on the weights.


@pytest.mark.parametrize(("v", "sign"), CELLS)
def test_a_step_follows_the_slope_and_repeated_steps_end_at_the_nearest_value(v, sign):
    values = grid(240)
    low, high = values[np.searchsorted(values, v) - 1 :][:2]
    nearest = sign * min(low, high, key=lambda end: abs(end - v))
    slope = sign * ((high - low) - 2 * (v - low))  # s - 2 (v - lo), mirrored for a negative v
    v, size = np.float32(sign * v), 0.05

    @jax.jit
    def step(w):
        return toward_nearest(w, jnp.float32(240), v, PAPER, size)

    w = v
    path = [float(w := step(w)) for _ in range(80)]
    assert abs(size * slope) < abs(nearest - v)  # or the first step would be cut short
    assert path[0] == pytest.approx(float(v) - size * slope, rel=1e-6)
    towards = np.sign(nearest - v)
    assert np.all(np.diff([float(v), *path]) * towards >= 0)
    assert np.all((nearest - np.array(path)) * towards >= 0)
    assert path[-1] == nearest


def test_a_step_leaves_the_grid_ties_and_what_lies_beyond_the_clip():
    """On the grid, halfway between 8 and 9, zero, and beyond 240: there is nothing to gain."""
    v = np.float32([9.0, -9.0, 8.5, -8.5, 0.0, 250.0, -250.0, 240.0])
    for w in (v, toward_nearest(v, jnp.float32(240), v, PAPER, 0.25)):
        np.testing.assert_array_equal(toward_nearest(w, jnp.float32(240), v, PAPER, 0.25), v)


def test_the_slope_is_the_gradient_of_the_expected_objective(rng):
    v = rng.normal(scale=0.4, size=40).astype(np.float32)
    gradient = jax.grad(objective_function("expected", PAPER), argnums=1)(KEY, v, jnp.float32(3.0), v)
    moved = toward_nearest(v, jnp.float32(3.0), v, PAPER, 1e-3)  # too short to reach a grid value from most places
    steps = (v - np.asarray(moved)) / 1e-3
    short = np.abs(np.asarray(quantize(v, 3.0, PAPER)) - v) > 2e-3 * np.abs(gradient)
    assert short.mean() > 0.8
    # v is known to 2^-24 of itself, and the difference is a thousandth of it.
    np.testing.assert_allclose(steps[short], np.asarray(gradient)[short], atol=2e3 * 2.0**-24 * np.abs(v).max())


# The step of the server.


@pytest.mark.parametrize("settings", EXAMPLES, ids=str)
def test_a_step_never_raises_the_error_and_changes_nothing_but_quantized_tensors_and_their_clips(rng, settings):
    params, lowest, highest = averaged(rng)
    new, report = jax.jit(uq_plus(**settings, format=PAPER.name).step)(KEY, params, lowest, highest)
    before, after = report["refine_error_before"], report["refine_error_after"]
    assert 0 < float(after.part) < float(before.part)
    norm = sum(float(np.sum(np.float64(params[layer]["kernel"]) ** 2)) for layer in ("a", "b"))
    for ratio in (before, after):
        assert float(ratio.whole) == pytest.approx(norm, rel=FLOAT32)
    assert trees.shapes(new) == trees.shapes(params)
    for layer in ("a", "b"):
        name = f"{layer}/kernel_clip"
        assert lowest[name] <= float(new[layer]["kernel_clip"]) <= highest[name]
        step = np.asarray(np.abs(params[layer]["kernel"])) / 8 + float(highest[name]) * 2.0**-17
        assert np.all(np.abs(new[layer]["kernel"] - params[layer]["kernel"]) <= step / 2)
        if not settings.get("grad_steps"):
            np.testing.assert_array_equal(new[layer]["kernel"], params[layer]["kernel"])
    for old, kept in (
        (params["a"]["bias"], new["a"]["bias"]),
        (params["a"]["input_clip"], new["a"]["input_clip"]),
        (params["token"], new["token"]),
    ):
        np.testing.assert_array_equal(old, kept)


def test_the_reported_errors_are_those_of_the_model_before_and_after(rng):
    params, lowest, highest = averaged(rng)
    new, report = uq_plus("det", points=9, grad_steps=1, format=PAPER.name).step(KEY, params, lowest, highest)
    for ratio, tree in ((report["refine_error_before"], params), (report["refine_error_after"], new)):
        by_hand = sum(nearest_error(tree[n]["kernel"], tree[n]["kernel_clip"], params[n]["kernel"]) for n in ("a", "b"))
        assert float(ratio.part) == pytest.approx(by_hand, rel=FLOAT32)


@pytest.mark.parametrize(("objective", "error"), [("expected", expected_error), ("det", nearest_error)])
def test_the_clip_is_the_best_of_the_points_between_the_clients_clips(rng, objective, error):
    points = 11
    params, lowest, highest = averaged(rng)
    new, _ = uq_plus(objective, points, format=PAPER.name).step(KEY, params, lowest, highest)
    for layer in ("a", "b"):
        v, name = params[layer]["kernel"], f"{layer}/kernel_clip"
        tried = np.linspace(float(lowest[name]), float(highest[name]), points)
        errors = np.array([error(v, a, v) for a in np.append(tried, float(params[layer]["kernel_clip"]))])
        best, second = np.argsort(errors)[:2]
        assert best < points  # not the average itself
        assert errors[second] > (1 + 100 * FLOAT32) * errors[best]  # so that float32 chooses the same
        assert float(new[layer]["kernel_clip"]) == pytest.approx(tried[best], rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clients_that_agree_on_the_clip_leave_nothing_to_choose(rng, objective):
    params, _, _ = averaged(rng)
    same = {f"{layer}/kernel_clip": params[layer]["kernel_clip"] for layer in ("a", "b")}
    new, report = uq_plus(objective, 4).step(KEY, params, same, same)
    for old, kept in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(old, kept)
    before, after = (float(report[f"refine_error_{when}"].part) for when in ("before", "after"))
    assert after == pytest.approx(before, rel=1e-6)  # the sums of two loops
    assert 0 < after <= before


@pytest.mark.parametrize("settings", EXAMPLES, ids=str)
def test_without_a_usable_client_everything_stays_finite(rng, settings):
    """Extremes over no client are +inf and -inf; the clip then stays as it is."""
    params, lowest, _ = averaged(rng)
    nobody = [{name: np.float32(x) for name in lowest} for x in (np.inf, -np.inf)]
    for start in (params, trees.zeros_like(params)):  # zeros are the mean over no client
        new, report = jax.jit(uq_plus(**settings).step)(KEY, start, *nobody)
        assert bool(trees.all_finite((new, report)))
        assert float(new["a"]["kernel_clip"]) == float(start["a"]["kernel_clip"])


def test_it_watches_the_clips_of_quantized_tensors_and_nothing_else(rng):
    params, lowest, _ = averaged(rng)
    watched = uq_plus().watch(params)
    assert {name: float(x) for name, x in watched.items()} == {
        name: float(params[name[0]]["kernel_clip"]) for name in lowest
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "mean"}, "objective must be one of expected, det, rand; got 'mean'"),
        ({"points": 0}, "points >= 1.*got 0"),
        ({"grad_steps": -1}, "grad_steps >= 0.*-1"),
        ({"alternations": 0}, "alternations >= 1.*0"),
        ({"step_size": 0.0}, "step_size > 0.*0.0"),
        ({"step_size": float("nan")}, "step_size > 0.*nan"),
        ({"format": "e4m3fnu"}, "'e4m3fnu'; known are e4m3fn, e4m3fnuz, e5m2; did you mean 'e4m3fnuz'"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        uq_plus(**settings)


def test_a_model_without_clips_and_a_repeated_search_are_refused():
    with pytest.raises(UserError, match="adapter qat"):
        uq_plus().watch({"dense": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match="alternations=2 repeats"):
        uq_plus(alternations=2)
