"""Visual prompts: learned tokens beside those of a frozen transformer's blocks.

    deep       before block l:   x <- [x, P_l]     behind it:       x <- x without its last p tokens
    shallow    before the first: x <- [x, P]       behind the last: likewise

Jia et al., arXiv 2203.12119. The tokens come behind all others, as in the code of FedPEFT (Sun et al., arXiv
2210.01708), not behind the class token: attention does not see the difference, and the class token stays first. They
start uniform in (-v, v), v = sqrt(6 / (values of a patch + d)). Dropout falls on the prompts of each example while
training.

The file of the model, of flax linen, is not touched: its blocks are intercepted by path. The leaf is `prompt/tokens`,
`[blocks, p, d]` or `[1, p, d]`; with p = 0 there is none, and the model is `subset(model, train)`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax8 import paths
from fedjax8.adapters import _modules
from fedjax8.adapters._extended import extended
from fedjax8.adapters.subset import subset
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Array, Model

NODE = "prompt"


@checked
def prompt(
    model: Model,
    at: Sequence[str] | str = "block_*",
    tokens: int = 10,
    *,
    deep: bool = True,
    dropout: float = 0.1,
    patch_values: int = 768,
    train: Sequence[str] | str = "head",
    train_mode: bool = False,
) -> Model:
    """`model` of which prompts are trained, and a few leaves in full.

    Args:
      model: a model of flax linen with blocks that map tokens `[B, T, d]` to tokens `[B, T, d]`, whatever T is.
      at: shell-style patterns on the paths of the blocks; what lies inside another match is left out. With shallow
        prompts nothing but blocks may stand between blocks.
      tokens: p.
      deep: tokens of their own for every block.
      dropout: share of the prompts' values dropped in training.
      patch_values: numbers in a patch, for v: 768 are 16 x 16 pixels of 3 colors.
      train: leaves of the model itself that are trained in full, as in `subset`.
      train_mode: see `subset`.

    Raises:
      UserError: when the model is initialized, if a pattern matches no module (names the nearest path) or a module
        that is no block.
    """
    if tokens < 0:
        raise ValueError(f"tokens must not be negative, got {tokens}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    at, train = paths.as_patterns(at), paths.as_patterns(train)
    if not at:
        raise ValueError("at names no module")
    if tokens == 0:
        return subset(model, train, train_mode=train_mode)

    def blocks(variables, batch) -> dict[str, _modules.Seen]:
        chosen = _modules.modules_at(at, model, variables, batch, NODE)
        first = next(iter(chosen.values()))
        for path, seen in chosen.items():
            if seen.x is None or len(seen.x) != 3 or seen.y != seen.x or seen.x != first.x:
                raise UserError(
                    f"prompt: module {path!r} maps {seen.x} to {seen.y}, not tokens to as many of one width"
                )
        return chosen

    def added(key, variables, batch):
        chosen = blocks(variables, batch)
        shape_of_all = next(iter(chosen.values())).x
        assert shape_of_all is not None  # `blocks` saw to it
        d = shape_of_all[-1]
        v = math.sqrt(6.0 / (patch_values + d))
        shape = (len(chosen) if deep else 1, tokens, d)
        return {NODE: {"tokens": jax.random.uniform(jax.random.fold_in(key, 1), shape, minval=-v, maxval=v)}}

    def around(params, key, train_now, multiply):
        prompts = list(params[NODE]["tokens"])

        def dropped(values: Array) -> Array:
            if not (train_now and dropout):
                return values
            kept = jax.random.bernoulli(jax.random.fold_in(key, len(prompts)), 1.0 - dropout, values.shape)
            return jnp.where(kept, values / (1.0 - dropout), 0.0)

        def change(path, call, args, kwargs):
            x, *others = args
            own = prompts.pop(0)
            if own.ndim == 2:
                own = dropped(jnp.broadcast_to(own, (len(x), *own.shape)))
            y = call(jnp.concatenate([x, own.astype(x.dtype)], axis=1), *others, **kwargs)
            if not deep:
                prompts.append(y[:, x.shape[1] :])
            return y[:, : x.shape[1]]

        return _modules.changed(at, change), multiply

    def is_added(name: str) -> bool:
        return name.startswith(f"{NODE}/")

    return extended(model, added, is_added, around, train, lambda name: True, train_mode=train_mode, what=NODE)


EXAMPLES = ({"tokens": 2}, {"tokens": 3, "deep": False, "dropout": 0.0}, {"tokens": 0})
