"""Bottleneck adapters: a small residual network behind modules of a frozen model.

    z <- z + gelu(z D + c) U + b          D [d, width], U [width, d]

Houlsby et al., arXiv 1902.00751, in the place that FedPEFT (Sun et al., arXiv 2210.01708) gives it: behind the output z
of a transformer block's MLP, before the residual sum. One of its own for every module, as is usual, or with
`shared` one for all, as in the authors' code.

U and b start at zero, so that the model's outputs at first are unchanged, bit for bit, and D is random. In the authors'
code D and c start at zero as well (`paper_code`): then no gradient reaches D and U, and only b ever learns.

The file of the model, of flax linen, is not touched: its modules are intercepted by path. The leaves are
`bottleneck/<path>/down/kernel` and so on, without a path if shared.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax8 import paths
from fedjax8.adapters import _modules
from fedjax8.adapters._extended import extended
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Array, Key, Model

NODE = "bottleneck"
DEVIATION = 0.02
"""Standard deviation of D at first: this project's choice."""


def _start(key: Key, d: int, width: int, paper_code: bool) -> dict[str, dict[str, Array]]:
    """D and c, U and b at first."""
    shape = (d, width)
    down = jnp.zeros(shape) if paper_code else DEVIATION * jax.random.normal(key, shape)
    return {
        "down": {"kernel": down, "bias": jnp.zeros(width)},
        "up": {"kernel": jnp.zeros((width, d)), "bias": jnp.zeros(d)},
    }


def _residual(node: dict[str, dict[str, Array]], z: Array) -> Array:
    """gelu(z D + c) U + b."""
    down, up = node["down"], node["up"]
    inner = jax.nn.gelu(z @ down["kernel"] + down["bias"], approximate=False)
    return inner @ up["kernel"] + up["bias"]


@checked
def bottleneck(
    model: Model,
    at: Sequence[str] | str = "*/mlp",
    width: int = 96,
    *,
    shared: bool = False,
    train: Sequence[str] | str = "head",
    paper_code: bool = False,
    train_mode: bool = False,
) -> Model:
    """`model` of which adapters behind some modules are trained, and a few leaves in full.

    Args:
      model: a model of flax linen.
      at: shell-style patterns on module paths; what lies inside another match is left out. Each module has to return
        one array `[..., d]`.
      width: features between D and U.
      shared: one adapter for all modules, which must then be equally wide.
      train: leaves of the model itself that are trained in full, as in `subset`; `()` for none.
      paper_code: all of the adapter starts at zero.
      train_mode: see `subset`.

    Raises:
      UserError: when the model is initialized, if a pattern matches no module (names the nearest path) or the modules
        do not fit.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    at, train = paths.as_patterns(at), paths.as_patterns(train)
    if not at:
        raise ValueError("at names no module")

    def added(key, variables, batch):
        found = _modules.modules_at(at, model, variables, batch, NODE)
        features: dict[str, Any] = {path: seen.y[-1] if seen.y else None for path, seen in found.items()}
        odd = next((path for path, d in features.items() if d is None), None)
        if odd is not None:
            raise UserError(f"bottleneck: module {odd!r} does not return one array")
        if shared and len(set(features.values())) > 1:
            raise UserError(f"bottleneck: a shared adapter needs modules of one width; these have {features}")
        if shared:
            features = {"": next(iter(features.values()))}
        keys = [jax.random.fold_in(key, 1 + i) for i in range(len(features))]
        starts = {
            path: _start(own, d, width, paper_code) for own, (path, d) in zip(keys, features.items(), strict=True)
        }
        return paths.nested(((NODE, *(path.split("/") if path else ())), node) for path, node in starts.items())

    def around(params, key, train_now, multiply):
        nodes = params[NODE]

        def change(path, call, args, kwargs):
            z = call(*args, **kwargs)
            return z + _residual(nodes if shared else paths.node_at(nodes, path), z)

        return _modules.changed(at, change), multiply

    def is_added(name: str) -> bool:
        return name.startswith(f"{NODE}/")

    return extended(model, added, is_added, around, train, lambda name: True, train_mode=train_mode, what=NODE)


EXAMPLES = ({"width": 4}, {"width": 4, "shared": True, "train": ()})
