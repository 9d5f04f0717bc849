"""Layers of a model in order, for algorithms that treat them one by one or by their depth."""

import re

from flax.traverse_util import flatten_dict

from fedjax8.types import PyTree


def layers_of(params: PyTree) -> list[list[tuple]]:
    """Paths of the leaves of each layer. A layer is the parameters of one path: a kernel, its bias, their clips.

    Layers come in the order of their names, numbers in them by value, since a tree of dicts keeps no other order: for
    models whose layers are numbered by depth this is the depth. A layer `head` of the model comes last.

    >>> [paths[0][0] for paths in layers_of({"dense_10": {"bias": 0}, "dense_9": {"bias": 0}})]
    ['dense_9', 'dense_10']
    """
    layers: dict[tuple, list[tuple]] = {}
    for path in sorted(flatten_dict(params)):
        layers.setdefault(path[:-1], []).append(path)
    return [layers[layer] for layer in sorted(layers, key=_position)]


def _position(layer: tuple) -> tuple[bool, list[list[tuple[bool, int, str]]]]:
    """What sorts `block_2` before `block_10`, and `head` behind both."""
    return layer[:1] == ("head",), [
        [(not piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in re.split(r"(\d+)", str(step))]
        for step in layer
    ]
