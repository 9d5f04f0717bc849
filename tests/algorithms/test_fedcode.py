"""FedCode: its schedule, snapping and the union of codebooks by hand, limits that are FedAvg, and every byte."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import trees
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedcode import fedcode, full_down, full_up, last_full_down
from fedjax8.codecs.codebook import clustering, codebook
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.local import local_training
from fedjax8.models.mlp import mlp
from fedjax8.models.resnet20 import resnet20

pytestmark = pytest.mark.usefixtures("compiled_quickly")

K, ROWS, C = 4, 6, 8


@functools.cache
def rows() -> FederatedData:
    """Four clients of 6 rows of 5 numbers, three classes."""
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(K), ROWS)
    y = ((owners + rng.integers(0, 2, len(owners))) % 3).astype(np.int32)
    x = rng.standard_normal((len(owners), 5)).astype(np.float32) + y[:, None]
    return FederatedData.from_owners({"x": x, "y": y}, owners, K)


def simulation(make=fedcode, *, cohort_size=K, executor=None, spoilt=False, **settings):
    model, plan = mlp(hidden=(6,), num_classes=3), batch_plan(3, epochs=1)
    local = local_training(model, optax.sgd(0.1), plan)
    columns = {name: column.copy() for name, column in rows().columns.items()} if spoilt else rows().columns
    sim = simulate(
        make(local, **settings),
        dataclasses.replace(rows(), columns=columns),
        cohort_size=cohort_size,
        uplink=none(),
        downlink=none(),
        executor=loop() if executor is None else executor,
    )
    if spoilt:  # once they were checked, a row of client 2 becomes NaN
        columns["x"][2 * ROWS] = np.nan
    return sim


def run(sim, rounds):
    """States from the start on, and lines."""
    states, lines = [sim.init()], []
    for _ in range(rounds):
        state, line = sim.run_round(states[-1])
        states.append(state)
        lines.append(line)
    return states, lines


@functools.cache
def published():
    """Two W-rounds, a C/C-round, a round C down and W up, and a round W down and C up."""
    return run(simulation(clusters=C), 5)


def clients(state):
    """What the clients store, leaves `[K, ...]`."""
    return jax.tree.map(np.asarray, state.clients.read(np.arange(K)))["algorithm"]


def flat(tree):
    return np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)])


def each(tree):
    """`[K, P]`."""
    return np.concatenate([np.asarray(x).reshape(K, -1) for x in jax.tree.leaves(tree)], axis=1)


def nearest(x, values):
    """Each x to the nearest of `values`, the lower of two: brute force."""
    values = np.sort(values)
    return values[np.abs(values[None] - x[:, None]).argmin(axis=1)]


def rounds_that(rule, rounds, start, period, offset=0):
    return [r for r in range(1, rounds + 1) if bool(rule(r, start, period, offset))]


def test_the_first_twelve_rounds_are_those_of_the_authors_code():
    down = "".join("W" if full_down(r, 2, 5) else "C" for r in range(1, 13))
    up = "".join("W" if full_up(r, 2, 2) else "C" for r in range(1, 13))
    assert (down, up) == ("WWCCWCCCCWCC", "WWCWCWCWCWCW")


@pytest.mark.parametrize(("rounds", "down", "up"), [(20, 6, 11), (100, 22, 51)])
def test_as_many_messages_are_whole_as_the_periods_say(rounds, down, up):
    assert len(rounds_that(full_down, rounds, 2, 5)) == down
    assert len(rounds_that(full_up, rounds, 2, 2)) == up


def test_with_periods_of_one_every_message_is_whole():
    assert len(rounds_that(full_down, 30, 2, 1)) == len(rounds_that(full_up, 30, 2, 1)) == 30


def test_the_start_round_is_whole_down_but_not_up():
    """r <= r_s on the way down, r < r_s on the way up."""
    assert rounds_that(full_down, 4, 3, 100) == [1, 2, 3] and rounds_that(full_up, 4, 3, 100) == [1, 2]


@pytest.mark.parametrize(("start", "period", "offset"), [(2, 5, 0), (0, 3, 0), (4, 1, 0), (2, 5, 3), (7, 4, 10)])
def test_the_last_whole_message_down_is_the_last_of_the_schedule(start, period, offset):
    for r in range(1, 25):
        before = rounds_that(full_down, r, start, period, offset)
        assert int(last_full_down(r, start, period, offset)) == max(before, default=1)


def test_staggered_clients_are_due_in_turn_and_equally_often():
    due = [rounds_that(full_up, 60, 0, 5, client) for client in range(5)]
    assert sorted(r for rounds in due for r in rounds) == list(range(1, 61))
    assert [len(rounds) for rounds in due] == [12] * 5


def test_snapping_is_a_brute_force_search_idempotent_and_monotone():
    rng = np.random.default_rng(0)
    cluster, x, z = clustering(C), np.sort(3 * rng.standard_normal(500)).astype(np.float32), rng.standard_normal(C)
    z = np.sort(z).astype(np.float32)
    snapped = np.asarray(cluster.snap({"a": x}, (z,))["a"])
    np.testing.assert_array_equal(np.abs(snapped - x), np.abs(nearest(x, z) - x))
    np.testing.assert_array_equal(np.asarray(cluster.snap({"a": snapped}, (z,))["a"]), snapped)
    assert np.all(np.diff(snapped) >= 0)
    assert np.all(snapped[x < z[0]] == z[0]) and np.all(snapped[x > z[-1]] == z[-1])


def test_a_client_stores_its_clustered_model_and_its_codebook():
    stored = clients(published()[0][1])
    for model, book in zip(each(stored.model["params"]), stored.codebooks[0], strict=True):
        assert len(np.unique(model)) <= C
        assert set(np.unique(model)) <= set(book) and np.all(np.diff(book) >= 0)
    np.testing.assert_array_equal(stored.trained, [1] * K)


def test_in_a_whole_round_up_the_server_has_the_mean_of_the_stored_models():
    states, _ = published()
    for r in (1, 2, 4):
        mean = each(clients(states[r]).model["params"]).mean(axis=0)  # equally many rows each
        # a mean of four float32 values below 4, summed in another order
        np.testing.assert_allclose(flat(states[r].server.params), mean, rtol=0, atol=2.0**-21)


def test_in_a_codebook_round_up_every_weight_goes_to_the_nearest_value_of_the_union():
    states, _ = published()
    for r in (3, 5):
        union = clients(states[r]).codebooks[0].reshape(-1)
        assert union.size == K * C
        old, new = flat(states[r - 1].server.params), flat(states[r].server.params)
        assert np.isin(new, union).all()
        np.testing.assert_array_equal(np.abs(new - old), np.abs(nearest(old, union) - old))
        assert np.any(new != old)


def test_weights_that_are_all_in_the_union_do_not_move_and_others_by_half_a_gap_at_most():
    union = np.sort(np.random.default_rng(1).standard_normal(K * C)).astype(np.float32)
    cluster = clustering(C)
    np.testing.assert_array_equal(cluster.snap({"a": union[::3]}, (union,))["a"], union[::3])
    x = np.linspace(union[0], union[-1], 999).astype(np.float32)
    at = np.clip(np.searchsorted(union, x), 1, K * C - 1)
    half = (union[at].astype(np.float64) - union[at - 1]) / 2
    moved = np.abs(np.asarray(cluster.snap({"a": x}, (union,))["a"]).astype(np.float64) - x)
    assert np.all(moved <= half + 1e-7)


def test_a_codebook_down_snaps_a_clients_own_weights_and_not_the_servers():
    """Seen where training changes nothing: a client has what it stored, in the values of the server's codebook."""
    model, plan = mlp(hidden=(6,), num_classes=3), batch_plan(3, epochs=1)
    local = local_training(model, optax.sgd(0.1), plan)
    frozen = local._replace(train=lambda start, rows, key: local.train(start, rows, key)._replace(variables=start))
    sim = simulate(fedcode(frozen, C, up_period=1), rows(), cohort_size=K, uplink=none(), downlink=none(),
        executor=loop(), )  # fmt: skip
    states, _ = run(sim, 3)
    before, after = (each(clients(states[r]).model["params"]) for r in (2, 3))
    tree = {"params": states[2].server.params, "state": states[2].server.state}
    book = np.asarray(clustering(C).codebooks(tree)[0])
    np.testing.assert_array_equal(clients(states[3]).received, [2] * K)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.abs(new - old), np.abs(nearest(old, book) - old))


def test_with_whole_messages_and_enough_clusters_it_is_fedavg():
    """93 weights in 256 clusters: every value is its own cluster, so that messages lose nothing."""
    settings = {"clusters": 256, "down_period": 1, "up_period": 1}
    (coded, _), (averaged, _) = run(simulation(**settings), 4), run(simulation(fedavg), 4)
    assert flat(coded[0].server.params).size <= 256
    for a, b in zip(coded, averaged, strict=True):
        # weights below 4; a mean in another order, through a few rounds of training
        np.testing.assert_allclose(flat(a.server.params), flat(b.server.variables.params), rtol=0, atol=2.0**-18)


def test_several_devices_agree_with_one():
    states, lines = run(simulation(clusters=C, executor=pmap(chunk=1)), 3)
    expected, counted = published()
    # one training differs from the other by roundings alone; a weight at a boundary would be a cluster off
    np.testing.assert_allclose(flat(states[2].server.params), flat(expected[2].server.params), rtol=0, atol=1e-5)
    sizes = ("uplink_bytes", "downlink_bytes", "clients")
    assert [[line[s] for s in sizes] for line in lines] == [[line[s] for s in sizes] for line in counted[:3]]


def test_identical_clients_give_back_their_model_or_snap_to_their_one_codebook():
    owners = np.repeat(np.arange(K), ROWS)
    alike = {n: np.tile(c[:ROWS], (K, *[1] * (c.ndim - 1))) for n, c in rows().columns.items()}
    model, plan = mlp(hidden=(6,), num_classes=3), batch_plan(ROWS, epochs=1)  # the order of rows does not matter
    local = local_training(model, optax.sgd(0.1), plan)
    sim = simulate(fedcode(local, C), FederatedData.from_owners(alike, owners, K), cohort_size=K, uplink=none(),
        downlink=none(), executor=loop(), )  # fmt: skip
    states, _ = run(sim, 3)
    stored = clients(states[1])
    np.testing.assert_allclose(flat(states[1].server.params), each(stored.model["params"])[0], rtol=0, atol=2.0**-21)
    book, old = clients(states[3]).codebooks[0][0], flat(states[2].server.params)
    moved = np.abs(flat(states[3].server.params) - old)
    # codebooks of clients that summed a batch in another order differ by roundings
    np.testing.assert_allclose(moved, np.abs(nearest(old, book) - old), rtol=0, atol=1e-6)


def test_clients_weigh_by_their_rows_in_whole_rounds(toys):
    """Weights 1/4 and 3/4; the one parameter is its own cluster. As in FedAvg: 0 + 0.75 * 0.1."""
    data = toys.clients([1.0, 1.0], [0.0, 1.0], [1, 3])
    sim = toys.build(functools.partial(fedcode, clusters=2), data, start=0.0, batch_size=3, epochs=1)
    assert toys.trajectory(sim, 1)[0] == pytest.approx(0.075, abs=1e-7)


def test_bytes_are_those_of_the_schedule():
    _, lines = published()
    size = 5 * 6 + 6 + 6 * 3 + 3
    whole, code = math.ceil(3 * size / 8) + 4 * C, 4 * C
    line = lines[-1]  # down WWCCW, up WWCWC
    assert line["downlink_model_bytes"] == 3 * K * whole and line["downlink_codebook_bytes"] == 2 * K * code
    assert line["uplink_model_bytes"] == 3 * K * whole and line["uplink_codebook_bytes"] == 2 * K * code
    assert line["uplink_bytes"] == line["downlink_bytes"] == 3 * K * whole + 2 * K * code


def totals(whole, clusters, rounds, start, down, up):
    """Bytes of one client that is always there: (down, up)."""
    whole_rounds = len(rounds_that(full_down, rounds, start, down)), len(rounds_that(full_up, rounds, start, up))
    return [n * whole + (rounds - n) * 4 * clusters for n in whole_rounds]


def resnet20_shapes():
    batch = {"x": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), "y": jax.ShapeDtypeStruct((2,), jnp.int32)}
    batch["mask"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    return jax.eval_shape(resnet20().init, jax.random.key(0), batch).params


def message_bytes(codec, tree):
    return trees.num_bytes(jax.eval_shape(lambda t: codec.encode(jax.random.key(0), (), t)[0], tree))


def test_totals_of_resnet20_are_those_of_the_authors_defaults():
    """269,722 weights, 100 rounds, 64 clusters: 14.56 times less than FedAvg; 24.10 down, 10.43 up."""
    weights = resnet20_shapes()
    assert trees.float32_bytes(weights) == 4 * 269_722
    whole = message_bytes(codebook(64), weights)
    assert whole == 202_548
    down, up = totals(whole, 64, 100, 2, 5, 2)
    fedavg_bytes = 2 * 100 * 4 * 269_722
    assert (down + up, fedavg_bytes) == (14_818_516, 215_777_600)
    found = [fedavg_bytes / (down + up), fedavg_bytes / 2 / down, fedavg_bytes / 2 / up]
    assert [round(f, 2) for f in found] == [14.56, 24.10, 10.43]
    assert fedavg_bytes / sum(totals(whole, 64, 100, 2, 1, 1)) == pytest.approx(5.327, abs=5e-4)


def test_a_client_that_missed_a_whole_message_is_sent_one_and_it_is_counted():
    sim = simulation(clusters=C, cohort_size=2)
    states, lines = run(sim, 9)
    received, whole, code = np.zeros(K, int), 0, 0
    for r in range(1, 10):
        there = np.flatnonzero(clients(states[r]).trained == r)
        due = max(rounds_that(full_down, r, 2, 5))
        fresh = received[there] >= due
        whole, code = whole + np.sum(~fresh), code + np.sum(fresh)
        received[there[~fresh]] = r
        np.testing.assert_array_equal(clients(states[r]).received, received)
        size = math.ceil(3 * 57 / 8) + 4 * C
        assert lines[r - 1]["downlink_model_bytes"] == whole * size
        assert lines[r - 1]["downlink_codebook_bytes"] == code * 4 * C
    assert whole > 2 * 3 and code > 0  # some beyond the schedule's three whole rounds, and some codebooks


def test_a_client_whose_training_is_not_finite_is_left_out_and_counted():
    states, lines = run(simulation(clusters=C, spoilt=True), 3)
    assert [line["excluded"] for line in lines] == [1] * 3 and [line["clients"] for line in lines] == [K - 1] * 3
    assert list(clients(states[3]).trained) == [3, 3, 0, 3]
    kept = [0, 1, 3]
    mean = each(clients(states[2]).model["params"])[kept].mean(axis=0)
    np.testing.assert_allclose(flat(states[2].server.params), mean, rtol=0, atol=2.0**-21)
    union, new = clients(states[3]).codebooks[0][kept].reshape(-1), flat(states[3].server.params)
    assert np.isin(new, union).all() and np.isfinite(new).all()


def test_staggered_rounds_average_whole_models_of_those_who_are_due():
    states, lines = run(simulation(clusters=C, stagger=True, start_round=0, up_period=2, down_period=2), 3)
    for r in (1, 2, 3):
        due = [k for k in range(K) if (r + k) % 2 == 0]
        mean = each(clients(states[r]).model["params"])[due].mean(axis=0)
        np.testing.assert_allclose(flat(states[r].server.params), mean, rtol=0, atol=2.0**-21)
    size = math.ceil(3 * 57 / 8) + 4 * C
    assert lines[-1]["uplink_model_bytes"] == 3 * (K // 2) * size
    assert lines[-1]["uplink_codebook_bytes"] == 3 * (K // 2) * 4 * C


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"down_period": 0}, "down_period must be at least 1, got 0"),
        ({"up_period": -1}, "up_period must be at least 1, got -1"),
        ({"clusters": 1}, "clusters must be 2 to 256; got 1"),
        ({"scope": "layer"}, "scope must be one of model, tensor; got 'layer'"),
        ({"start_round": -1}, "start_round must be at least 0, got -1"),
        ({"weighting": "size"}, "weighting must be one of examples, uniform; got 'size'"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        fedcode(None, **settings)
