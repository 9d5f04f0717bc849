"""Where parameters lie that never change: `Variables.state` is `{"frozen": ..., "model": state of the model}`.

`Variables.params` then holds what is trained and nothing else, so that gradients, optimizers, codecs and messages see
no more than that. Adapters may freeze more of what an adapter below has left to train; there is one `frozen` entry all
the same, at the top.
"""

import re
from collections.abc import Callable

from fedjax8 import trees
from fedjax8.adapters import _paths
from fedjax8.types import Array, PyTree, Variables

FROZEN, MODEL = "frozen", "model"
OWN, BELOW = "own", "below"


def is_held(state: PyTree) -> bool:
    """Whether a state carries frozen parameters."""
    return isinstance(state, dict) and state.keys() == {FROZEN, MODEL}


def hold(frozen: PyTree, state: PyTree) -> dict:
    """The state that carries `frozen` beside a model's `state`."""
    if is_held(state):
        return {FROZEN: {OWN: frozen, BELOW: state[FROZEN]}, MODEL: state[MODEL]}
    return {FROZEN: {OWN: frozen}, MODEL: state}


def release(state: PyTree) -> tuple[PyTree, PyTree]:
    """(frozen, state) that `hold` was given."""
    held = state[FROZEN]
    return held[OWN], {FROZEN: held[BELOW], MODEL: state[MODEL]} if BELOW in held else state[MODEL]


def change(f: Callable[[str, Array], Array], state: PyTree) -> PyTree:
    """The state in which every frozen leaf is `f(its path in the model, the leaf)`."""

    def changed(name: str, leaf: Array) -> Array:
        return f(re.sub(rf"^({BELOW}/)*{OWN}/", "", name), leaf)

    return {**state, FROZEN: trees.map_named(changed, state[FROZEN])}


def with_frozen(variables: Variables) -> Variables:
    """The variables of the model whose parts were frozen: what is trained and what is frozen in one tree."""
    params, state = variables
    while is_held(state):
        frozen, state = release(state)
        params = _paths.join(params, frozen)
    return Variables(params, state)
