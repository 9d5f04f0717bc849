"""KWT-1, the smallest Keyword Transformer (Berg, O'Connor, Cruz, Interspeech 2021, arXiv 2104.00769, section 3).

Every time frame is projected to `width` features, a class token goes before them, and a learned position is added to
each. Then 12 layers with the norm after each sum,

    h = norm(x + dense(attention(x)))
    x = norm(h + dense(gelu(dense(h))))

and a dense layer on the class token alone. Width 64, MLP 256, one head, exact GELU, no norm at the end. With 98 frames
of 40 features and 35 classes: 594,624 parameters in 50 kernels and 14,179 others.

Sizes, initial values (normal of deviation 0.02, cut at two deviations), LayerNorm epsilon 1e-6 and a dropout of 0 are
those of the flags and code shipped with ARM-software/keyword-transformer. There, queries, keys and values are three
dense layers without bias; here they are one, which gives one kernel (and one scale in 8-bit messages) instead of three:
this project's choice. The two products inside attention are no layers and are not quantized by the `qat` adapter.
"""

import functools

import jax
from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model

_initial = nn.initializers.truncated_normal(0.02)
_dense = functools.partial(nn.Dense, kernel_init=_initial)


class TransformerLayer(nn.Module):
    """Tokens `[B, tokens, width]` to the same shape."""

    mlp: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The tokens, attended to and transformed."""
        width = x.shape[-1]
        dropout = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        qkv = _dense(3 * width, use_bias=False)(x).reshape(*x.shape[:2], 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
        x = nn.LayerNorm(epsilon=1e-6)(x + dropout()(_dense(width)(attended)))
        y = nn.gelu(_dense(self.mlp)(x), approximate=False)
        return nn.LayerNorm(epsilon=1e-6)(x + dropout()(_dense(width)(y)))


class KWT(nn.Module):
    """Frames `[B, frames, features]` or `[B, frames, features, 1]` to logits `[B, num_classes]`."""

    num_classes: int = 35
    layers: int = 12
    width: int = 64
    mlp: int = 256
    heads: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} heads and width {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of clips."""
        x = _dense(self.width)(x.reshape(x.shape[:3]))
        class_token = self.param("class_token", _initial, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, self.width)).astype(x.dtype), x], axis=1)
        x = x + self.param("position", _initial, (1, *x.shape[1:]))
        for _ in range(self.layers):
            x = TransformerLayer(self.mlp, self.heads, self.dropout)(x, train)
        return _dense(self.num_classes)(x[:, 0])


def kwt1(
    num_classes: int = 35, *, layers: int = 12, width: int = 64, mlp: int = 256, heads: int = 1, dropout: float = 0.0
) -> Model:
    """`KWT` as a `Model` for classification of clips `[B, 98, 40]`.

    Args:
      num_classes: number of logits.
      layers: number of transformer layers.
      width: features of a token; must be a multiple of `heads`.
      mlp: features between the two dense layers that follow attention.
      heads: of attention.
      dropout: share of features dropped in training, before each sum.
    """
    return from_linen(KWT(num_classes, layers, width, mlp, heads, dropout), train_argument="train")


EXAMPLES = ({"layers": 1, "width": 8, "mlp": 16}, {"layers": 1, "width": 8, "mlp": 16, "heads": 2, "dropout": 0.1})
