"""Topologies: weights that sum to 1 both ways, degrees, eigenvalues in closed form, and what is refused."""

import importlib

import numpy as np
import pytest

from fedjax8 import topologies
from fedjax8.errors import UserError
from fedjax8.lookup import component_names
from fedjax8.topologies import disagreement, matrix
from fedjax8.topologies.base import LARGEST, metropolis, out_degrees

EXAMPLES = [
    (name, settings)
    for name in component_names("fedjax8.topologies")
    for settings in importlib.import_module(f"fedjax8.topologies.{name}").EXAMPLES
]


@pytest.mark.parametrize("n", [5, 6, 12, 33])
@pytest.mark.parametrize(("name", "settings"), EXAMPLES)
def test_rows_and_columns_sum_to_one_with_nothing_negative(name, settings, n):
    topology = getattr(topologies, name)(**settings)
    try:
        graphs = [topology.graph(number, n) for number in range(4)]
    except UserError:
        assert name == "torus" and (n == 5 or n % settings.get("rows", 1))
        return
    for graph in graphs:
        whole = matrix(graph)
        np.testing.assert_allclose(whole.sum(axis=1), 1.0, atol=1e-6)  # float32 of at most 33 terms
        np.testing.assert_allclose(whole.sum(axis=0), 1.0, atol=1e-6)
        assert whole.min() >= 0 and np.asarray(graph.neighbors).max() < n
        heard = np.count_nonzero(whole - np.diag(np.diag(whole)), axis=0)
        np.testing.assert_array_equal(np.asarray(out_degrees(graph)), heard)
    assert topology.doubly_stochastic
    assert topology.changes == any(not np.array_equal(matrix(graphs[0]), matrix(graph)) for graph in graphs[1:])


def test_the_disagreement_of_a_ring_is_that_of_its_eigenvalues():
    """1/3 + 2/3 cos(2 pi k / n) for k = 0, 1, ...: of four workers 1, 1/3, -1/3, 1/3."""
    assert disagreement(topologies.ring().graph(0, 4)) == pytest.approx(1 / 3, abs=1e-6)
    for n in (5, 12, 40):
        values = np.abs(1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(1, n) / n))
        assert disagreement(topologies.ring().graph(0, n)) == pytest.approx(values.max(), abs=1e-6)


def test_a_torus_has_the_eigenvalues_of_its_two_circles():
    """(1 + 2 cos(2 pi a / r) + 2 cos(2 pi b / c)) / 5 on a grid of r rows and c columns."""
    a, b = np.meshgrid(2 * np.pi * np.arange(4) / 4, 2 * np.pi * np.arange(5) / 5)
    values = np.sort(np.abs(1 + 2 * np.cos(a) + 2 * np.cos(b)).reshape(-1) / 5)
    assert disagreement(topologies.torus().graph(0, 20)) == pytest.approx(values[-2], abs=1e-6)


def test_one_peer_a_round_gives_the_exact_mean_of_a_power_of_two():
    product = np.eye(16)
    for number in range(4):
        product = matrix(topologies.exponential(one_peer=True).graph(number, 16)) @ product
    np.testing.assert_array_equal(product, np.full((16, 16), 1 / 16))


@pytest.mark.parametrize(("degree", "n"), [(2, 3), (3, 4), (3, 50), (4, 9), (8, 200), (7, 8)])
def test_random_graphs_are_regular_connected_and_of_their_seed(degree, n):
    graph = topologies.regular(degree, seed=5).graph(0, n)
    adjacent = matrix(graph) > 0
    assert np.all(adjacent.sum(axis=1) == degree + 1) and np.array_equal(adjacent, adjacent.T)
    reach = np.linalg.matrix_power(adjacent.astype(float) / (degree + 1), n) > 0
    assert reach.all()
    same, other = (matrix(topologies.regular(degree, seed=s).graph(0, n)) for s in (5, 6))
    assert np.array_equal(matrix(graph), same)
    assert np.array_equal(same, other) == (degree in (2, n - 1) and n <= 8)


def test_matchings_pair_everyone_but_one_and_any_two_as_often():
    counts = np.zeros((5, 5))
    for number in range(600):
        whole = matrix(topologies.matching(1).graph(number, 5))
        assert np.array_equal(whole, whole.T) and np.sort(np.diag(whole)).tolist() == [0.5] * 4 + [1.0]
        counts += whole == 0.5
    pairs = counts[np.triu_indices(5, 1)]
    # each of ten pairs is one of two in a round: 120 of 600 draws, deviation 9.8
    assert np.abs(pairs - 120).max() < 5 * 9.8


def test_metropolis_weights_by_hand():
    """0 - 1, 1 - 2, 1 - 3: degrees 1, 3, 1, 1; every edge has 1 / (1 + 3). Double edges and loops count once or not."""
    whole = matrix(metropolis(4, np.array([[0, 1], [1, 0], [1, 2], [3, 1], [2, 2]])))
    np.testing.assert_allclose(whole, [[0.75, 0.25, 0, 0], [0.25] * 4, [0, 0.25, 0.75, 0], [0, 0.25, 0, 0.75]])
    np.testing.assert_array_equal(whole, matrix(topologies.star(1).graph(0, 4)))


def test_edges_of_a_table_are_undirected_or_have_weights(tmp_path):
    pytest.importorskip("pyarrow")
    edges, weighted = tmp_path / "edges.csv", tmp_path / "weights.csv"
    edges.write_text("from,to\n0,1\n1,2\n1,3\n")
    weighted.write_text("from,to,weight\n0,1,0.25\n1,0,0.5\n2,2,1\n")
    undirected, directed = topologies.file(str(edges)), topologies.file(str(weighted))
    np.testing.assert_array_equal(matrix(undirected.graph(0, 4)), matrix(topologies.star(1).graph(0, 4)))
    assert undirected.doubly_stochastic and not directed.doubly_stochastic
    np.testing.assert_array_equal(matrix(directed.graph(0, 3)), [[0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1]])
    with pytest.raises(UserError, match="names worker 3, and there are 3"):
        undirected.graph(0, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n0,1\n", "must name the columns from, to"),
        ("from,to\n0,1.5\n", "'to', row 2.* is 1.5"),
        ("from,to\n0,-1\n", "is -1; it must be a worker's number"),
        ("from,to,weight\n0,1,0\n", "is 0; it must be a number above 0"),
        ("from,to,weight\n0,1,nan\n", "row 2"),
        ("from,to,weight\n0,1,0.5\n0,1,0.5\n", "a second time"),
        ("from,to,weight\n0,1,0.75\n2,1,0.5\n", "worker 1 sum to 1.25"),
    ],
)
def test_tables_that_are_no_graph_are_refused(tmp_path, text, says):
    pytest.importorskip("pyarrow")
    path = tmp_path / "edges.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        topologies.file(str(path))


def test_workers_that_a_topology_cannot_connect_are_refused():
    for topology, n, says in (
        (topologies.torus(), 7, "name=ring"),
        (topologies.torus(3), 8, "fill no grid of 3 rows"),
        (topologies.regular(4), 4, "must be below the number"),
        (topologies.regular(3), 5, "one of the two even"),
        (topologies.star(5), 5, "center is 5"),
        (topologies.complete(), int(LARGEST**0.5) + 2, "name=exponential"),
    ):
        with pytest.raises(UserError, match=says):
            topology.graph(0, n)
    for make in (
        lambda: topologies.ring(0),
        lambda: topologies.torus(-1),
        lambda: topologies.regular(1),
        lambda: topologies.star(-1),
        lambda: topologies.matching(-1),
        lambda: topologies.file(),
    ):
        with pytest.raises(ValueError, match=r"must be|needed"):
            make()


@pytest.mark.parametrize("name", sorted({*component_names("fedjax8.topologies")} - {"file", "torus", "regular"}))
def test_one_worker_keeps_its_own(name):
    np.testing.assert_array_equal(matrix(getattr(topologies, name)().graph(0, 1)), [[1.0]])
