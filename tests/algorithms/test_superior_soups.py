"""Pools of models on vectors: by NumPy with given weights, half-way averages, the simplex, volumes by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import codecs, executors
from fedjax8.algorithms import superior_soups as module
from fedjax8.algorithms.superior_soups import direction, on_simplex, superior_soups, volume
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.types import Model, StepGradient, Variables

START, TARGETS, RATE = np.array([0.5, -1.0, 2.0]), np.array([[2.0, 0.0, 1.0], [-1.0, 3.0, 0.0]]), 0.1
FLOAT32 = 5e-6


def build(make, steps=3, gradient=None, rate=RATE):
    """Two clients with f(x) = 1/2 ||x - b||^2."""
    model = Model(
        init=lambda key, batch: Variables({"x": jnp.float32(START)}, {}),
        apply=lambda v, batch, **_: (v.params["x"], v.state),
        loss=lambda x, batch: 0.5 * jnp.sum((x - batch["b"]) ** 2, axis=-1),
        metrics=lambda x, batch: {},
    )
    local = local_training(model, optax.sgd(rate), batch_plan(1, steps=steps), gradient)
    data = FederatedData.from_owners({"b": np.float32(TARGETS)}, np.arange(2), 2)
    how = {"cohort_size": 2, "uplink": codecs.none(), "downlink": codecs.none(), "executor": executors.loop()}
    return simulate(make(local), data, **how)


def ended(make, steps=3, rounds=1):
    sim = build(make, steps)
    return np.asarray(sim.variables(sim.run_rounds(sim.init(), rounds)[0]).params["x"])


def given(last):
    """Weights in which the newest member has `last`, and the others share the rest."""

    def weights(key, there):
        place = jnp.sum(there) - 1
        others = jnp.where(there, (1 - last) / jnp.maximum(place, 1), 0.0)
        return others.at[place].set(last)

    return weights


def unit(x):
    return x / np.linalg.norm(x) if np.linalg.norm(x) else 0 * x


def test_the_papers_form_by_numpy(monkeypatch):
    last, affinity, diversity, models = 0.6, 0.3, 0.2, 3
    monkeypatch.setattr(module, "on_simplex", given(last))
    soups = []
    for b in TARGETS:
        pool = [START]
        for _ in range(models):
            f = np.mean(pool, axis=0)
            for _ in range(3):
                mixed = last * f + (1 - last) * np.mean(pool, axis=0)
                gradient = last * (mixed - b) + affinity * unit(f - START)
                gradient -= diversity * np.mean([unit(f - p) for p in pool], axis=0)
                f = f - RATE * gradient
            pool.append(f)
        soups.append(np.mean(pool, axis=0))
    make = functools.partial(superior_soups, models=models, affinity=affinity, diversity=diversity)
    np.testing.assert_allclose(ended(make), np.mean(soups, axis=0), atol=FLOAT32)


def test_the_codes_form_by_numpy(monkeypatch):
    """Two members: the first takes 16 steps near the start, the second 2 with the area of a triangle."""
    last, affinity, diversity = 0.5, 0.1, 0.4
    monkeypatch.setattr(module, "on_simplex", given(last))

    def area(f, first):
        u, v = first - START, f - START
        return 0.5 * np.sqrt(max((u @ u) * (v @ v) - (u @ v) ** 2, 0))

    soups = []
    for b in TARGETS:
        pool = [START]
        for member, steps in enumerate((16, 2)):
            f = np.mean(pool, axis=0)
            for _ in range(steps):
                mixed = last * f + (1 - last) * np.mean(pool, axis=0)
                gradient = last * (mixed - b) + 2 * affinity * (f - START)
                if member and area(f, pool[1]) > 1e-6:
                    ends = [(area(f + h, pool[1]) - area(f - h, pool[1])) / 2e-6 for h in 1e-6 * np.eye(3)]
                    gradient -= diversity * np.array(ends)
                f = f - RATE * gradient
            pool.append(f)
        soups.append(np.mean(pool, axis=0))
    make = functools.partial(superior_soups, models=2, form="code", affinity=affinity, diversity=diversity)
    np.testing.assert_allclose(ended(make, steps=16), np.mean(soups, axis=0), atol=2e-4)  # differences of 1e-6


def test_one_member_alone_gives_the_half_way_average(monkeypatch):
    monkeypatch.setattr(module, "on_simplex", given(1.0))
    make = functools.partial(superior_soups, models=1, affinity=0.0, diversity=0.0)
    trained = TARGETS + (START - TARGETS) * (1 - RATE) ** 3
    np.testing.assert_allclose(ended(make), ((START + trained) / 2).mean(axis=0), atol=FLOAT32)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_rate_of_zero_leaves_the_model_as_it_was(form):
    sim = build(functools.partial(superior_soups, models=3, form=form), rate=0.0)
    state, _ = sim.run_round(sim.init())
    np.testing.assert_allclose(sim.variables(state).params["x"], START, rtol=2e-7)  # a mean of four equal numbers


def test_weights_are_uniform_on_the_simplex():
    """Of n members: sum 1, mean 1/n, variance (n - 1) / (n^2 (n + 1))."""
    n, draws = 4, 20_000
    there = jnp.arange(6) < n
    found = np.asarray(jax.vmap(lambda k: on_simplex(k, there))(jax.random.split(jax.random.key(0), draws)), float)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    assert not found[:, n:].any()
    variance = (n - 1) / (n**2 * (n + 1))
    assert np.abs(found[:, :n].mean(axis=0) - 1 / n).max() < 5 * math.sqrt(variance / draws)
    assert np.abs(found[:, :n].var(axis=0) / variance - 1).max() < 0.1


def test_volumes_by_hand_and_their_gradients_at_zero():
    """A right triangle with legs 3 and 4, a segment of 5; and a point that is one of the others."""
    pool = {"x": jnp.array([[0.0, 0.0], [3.0, 0.0], [9.0, 9.0]])}
    assert float(volume({"x": jnp.array([0.0, 4.0])}, pool, jnp.int32(2))) == pytest.approx(6.0, rel=1e-6)
    assert float(volume({"x": jnp.array([3.0, 4.0])}, pool, jnp.int32(1))) == pytest.approx(5.0, rel=1e-6)
    many = {"x": jnp.concatenate([jnp.zeros((1, 16)), jnp.eye(16)])}
    for size in (1e-6, 1e6):  # 16 edges at right angles: size^16 / 16!, beyond float32 by its square
        long = {"x": size * many["x"]}
        found = volume({"x": long["x"][16]}, long, jnp.int32(16))
        slope = jax.grad(volume)({"x": long["x"][16]}, long, jnp.int32(16))["x"]
        assert np.isfinite(found) and np.all(np.isfinite(slope))
    flat = {"x": jnp.float32([[0, 0, 0], [0.1, 0.2, 0.3], [0.7, 1.4, 2.1]])}
    np.testing.assert_array_equal(jax.grad(volume)({"x": jnp.float32([0.3, 0.6, 0.9])}, flat, jnp.int32(2))["x"], 0.0)
    for place in (1, 2):
        flat = jax.grad(volume)({"x": jnp.array([0.0, 0.0])}, pool, jnp.int32(place))
        np.testing.assert_array_equal(flat["x"], [0.0, 0.0])
    np.testing.assert_array_equal(direction({"x": jnp.ones(2)}, {"x": jnp.ones(2)})["x"], [0.0, 0.0])


def test_settings_out_of_range_and_accounted_gradients_are_refused():
    for settings in ({"models": 0}, {"models": 17}, {"affinity": -1.0}, {"diversity": float("nan")}, {"form": "both"}):
        with pytest.raises(ValueError, match=r"must be"):
            build(functools.partial(superior_soups, **settings))
    with pytest.raises(ValueError, match="changes nothing"):
        build(functools.partial(superior_soups, models=1, form="code", diversity=0.1))
    with pytest.raises(UserError, match="accounting of private gradients"):
        _ = build(superior_soups, gradient=StepGradient(accounted=True))._traced
