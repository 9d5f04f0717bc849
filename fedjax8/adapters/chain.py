"""Adapters one after another: each changes the model that the one before it made.

model = adapter_n(... adapter_2(adapter_1(model)))

So a config, which has one adapter, can have several: `pretrained` and `lora` around it, or `qat` below `lora`.
"""

from collections.abc import Callable, Sequence

from fedjax8.adapters.none import none
from fedjax8.types import Model


def chain(model: Model, adapters: Sequence[Callable[[Model], Model]]) -> Model:
    """`model` with all `adapters` around it, the first innermost.

    Example (of a config):
      >>> from fedjax8.config import component
      >>> adapters = component("qat"), component("lora", rank=4)
      >>> adapter = component("chain", adapters=adapters)
    """
    if not adapters:
        raise ValueError("chain needs at least one adapter")
    for adapter in adapters:
        if not callable(adapter):
            raise ValueError(f"an adapter is needed, such as component('lora'); got {adapter!r}")
        model = adapter(model)
    return model


EXAMPLES = ({"adapters": (none,)},)
