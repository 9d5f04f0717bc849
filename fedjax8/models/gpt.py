"""The next token from those before: a decoder as GPT-2 (Radford et al., "Language models are unsupervised multitask
learners", 2019).

Embeddings of token and position are summed, pre-norm blocks with causal attention follow (`_transformer.py`), and after
a last norm the logits are products with the token embedding itself (tied). GELU by tanh, LayerNorm epsilon 1e-5 as in
the published weights; the kernels that end a branch start smaller by sqrt(2 depth), section 2.3 there. Where the
published code fuses queries, keys and values in one layer they are three here.

With width D, depth L, vocabulary V and N positions

    (V + N) D + L (12 D D + 13 D) + 2 D        parameters: 124,439,808 for `gpt2` with V = 50,257 and N = 1,024

`nano`, `micro` and `mini` are the sizes of those names in the public code minGPT, for small texts; `gpt2` and
`gpt2_medium` are the published ones. Paths: `token_embedding`, `position`, `block_0` and so on, `norm`. The product
with the tied embedding is no layer: `multiply` does not see it.
"""

import math
from typing import Any

from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models._transformer import DEVIATION, Block, Size, check_tokens, choose_size, initial, norm
from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model

SIZES = {
    "nano": (48, 3, 3),
    "micro": (128, 4, 4),
    "mini": (192, 6, 6),
    "gpt2": (768, 12, 12),
    "gpt2_medium": (1024, 24, 16),
}
"""Width, depth, heads."""


class GPT(nn.Module):
    """Tokens int `[B, T]` to logits of the token after each, `[B, T, vocabulary]`."""

    size: Size
    vocabulary: int
    max_length: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits at each position, which depend on it and those before."""
        check_tokens("gpt", x, self.max_length)
        width, depth, heads, mlp = self.size
        embedding = nn.Embed(self.vocabulary, width, embedding_init=initial, name="token_embedding")
        y = embedding(x) + self.param("position", initial, (self.max_length, width))[: x.shape[1]]
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        settings: dict[str, Any] = {
            "causal": True,
            "tanh_gelu": True,
            "dropout": self.dropout,
            "output_deviation": DEVIATION / math.sqrt(2 * depth),
        }
        for i in range(depth):
            y = Block(heads, mlp, 1e-5, **settings, name=f"block_{i}")(y, train=train)
        return embedding.attend(norm(1e-5, "norm")(y)).astype(jnp.float32)


def gpt(
    vocabulary: int = 50_257,
    size: str = "micro",
    *,
    max_length: int = 128,
    width: int = 0,
    depth: int = 0,
    heads: int = 0,
    mlp: int = 0,
    dropout: float = 0.0,
) -> Model:
    """`GPT` as a `Model`; a row's loss and accuracy are means over its targets, as for `char_lstm`.

    Padding in x needs no mask where it comes last, as no position looks ahead; in y it is `data.NO_TARGET`.

    Args:
      vocabulary: number of tokens, of the input and to predict; the data set's in a config that does not say.
      size: `nano`, `micro`, `mini`, `gpt2` or `gpt2_medium`.
      max_length: number of positions; rows may be shorter.
      width, depth, heads, mlp: features of a token, blocks, heads of attention, and features inside the MLP, where
        they differ from those of `size`; 0 for those, and for an `mlp` of 4 widths.
      dropout: share of features dropped in training: of the embedded tokens, and of each branch before it is added.

    Raises:
      ValueError: unknown size, or numbers that do not go together; when run, for rows that are no tokens or too long.
    """
    for name, value in (("vocabulary", vocabulary), ("max_length", max_length)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    chosen = choose_size(size, SIZES, width, depth, heads, mlp)
    return from_linen(GPT(chosen, vocabulary, max_length, dropout), train_argument="train")


EXAMPLES = ({"vocabulary": 9, "max_length": 6, "width": 8, "depth": 1, "heads": 2, "mlp": 16, "dropout": 0.1},)
