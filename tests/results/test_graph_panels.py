"""The graph in about.json and on the page: edges and numbers by hand."""

import json

import pytest

from fedjax8 import topologies
from fedjax8.algorithms.dfedavg import dfedavg
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.results.graph_panels import graphs
from fedjax8.results.runs import Setting
from fedjax8.running.graphs import graph_facts


def simulation(toys, topology, n=4):
    return toys.build(lambda local: dfedavg(local, topology), toys.clients([1.0] * n, [1.0] * n), steps=1)


def test_facts_of_a_ring_by_hand(toys):
    facts = json.loads(json.dumps(graph_facts(simulation(toys, topologies.ring()))))
    assert facts["edges"] == [[0, 1], [0, 3], [1, 0], [1, 2], [2, 1], [2, 3], [3, 0], [3, 2]]
    assert (facts["workers"], facts["messages"], facts["degree"], facts["changes"]) == (4, 8, 2, False)
    assert facts["disagreement"] == pytest.approx(1 / 3, abs=1e-4)


def test_facts_of_what_changes_is_private_or_no_graph(toys):
    changing = graph_facts(simulation(toys, topologies.matching()))
    assert changing["changes"] and changing["messages"] == 4 and changing["disagreement"] == 1
    assert "edges" not in graph_facts(simulation(toys, topologies.ring()), private=True)
    assert graph_facts(toys.build(fedavg, toys.q2(), steps=1)) == {}


class Run:
    def __init__(self, facts):
        self.about = {"graph": facts} if facts else {}


def panel_of(facts):
    return graphs([Setting("plain", {}, (Run(None),)), Setting("on a graph", {}, (Run(facts),))])


def test_edges_are_drawn_once_both_ways_or_one_way(toys):
    directed = panel_of(graph_facts(simulation(toys, topologies.exponential(), 5)))
    figure = directed.figures["on a graph"]
    assert [trace["name"] for trace in figure["data"]] == ["both ways", "one way", "workers"]
    both, one, nodes = figure["data"]
    # i hears i - 1, i - 2 and i - 4 = i + 1 of five: neighbors hear each other, those two apart one way
    assert both["x"].count(None) == 5 and one["x"].count(None) == 5 and len(nodes["x"]) == 5
    assert nodes["customdata"][0] == ["worker 0 hears 3, is heard by 3"]
    assert "5 workers, 15 messages a round, up to 3 neighbors" in figure["layout"]["meta"]


def test_graphs_that_are_not_drawn_are_told(toys):
    assert graphs([Setting("plain", {}, (Run(None),))]) is None
    facts = graph_facts(simulation(toys, topologies.ring()))
    del facts["edges"]
    panel = panel_of(facts)
    assert panel.figures == {} and "4 workers, 8 messages a round" in panel.absent
