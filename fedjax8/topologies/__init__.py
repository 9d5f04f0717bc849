"""Topologies: who is connected with whom, where workers send to their neighbors instead of a server. One file each.

    complete      everyone with everyone
    ring          the next ones on a circle
    torus         a grid whose edges are glued together
    exponential   workers 1, 2, 4, 8, ... further, all of them or one a round
    regular       a random graph in which all have as many neighbors
    matching      random pairs, new in every round
    star          one worker in the middle
    file          edges from a table

A topology gives the neighbors and weights of a round's mixing matrix W; see `base.Graph` and `Link.mix`. Random ones
have a seed of their own, so that runs of several seeds have the same graph.
"""

from fedjax8.topologies.base import disagreement, matrix
from fedjax8.topologies.complete import complete
from fedjax8.topologies.exponential import exponential
from fedjax8.topologies.file import file
from fedjax8.topologies.matching import matching
from fedjax8.topologies.regular import regular
from fedjax8.topologies.ring import ring
from fedjax8.topologies.star import star
from fedjax8.topologies.torus import torus
from fedjax8.types import Graph, Topology

__all__ = [
    "Graph",
    "Topology",
    "complete",
    "disagreement",
    "exponential",
    "file",
    "matching",
    "matrix",
    "regular",
    "ring",
    "star",
    "torus",
]
