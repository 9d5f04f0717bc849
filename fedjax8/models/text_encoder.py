"""Text encoder with a classifier on its first token, as BERT (Devlin et al., NAACL 2019, arXiv 1810.04805).

Embeddings of token, position and token type are summed and normed, and post-norm blocks follow (`_transformer.py`);
a dense layer with tanh, the pooler, maps the first token (`[CLS]`) to the input of a last dense layer, which
classifies. Exact GELU. RoBERTa (Liu et al., 2019, arXiv 1907.11692) is the same network with `token_types=1`,
`padding=1`, `epsilon=1e-5` and another vocabulary; where Hugging Face's code numbers its positions from 2, ours start
at 0 and those two are left out.

With width D, depth L, vocabulary V, N positions, K token types and C classes

    (V + N + K) D + 2 D + L (12 D D + 13 D) + (D + 1) D   +   (D + 1) C        parameters, the last term being the head

which is 109,482,240 without head for `base` and 4,385,920 for `tiny`. `base` and `large` are BERT's, the sizes between
those of Turc et al., "Well-read students learn better", 2019 (arXiv 1908.08962). Paths: `token_embedding`, `position`,
`token_type`, `embedding_norm`, `block_0` and so on, `pooler`, `head`.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models._transformer import Block, Size, check_tokens, choose_size, initial, norm
from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model

SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, depth, heads."""


class TextEncoder(nn.Module):
    """Tokens int `[B, T]`, or `[B, T, 2]` with token types beside them, to logits `[B, num_classes]`.

    A token equal to `padding` is not looked at. Token types are 0 where x does not give them.
    """

    size: Size
    num_classes: int
    vocabulary_size: int
    max_length: int
    token_types: int
    padding: int
    epsilon: float
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of texts."""
        tokens, types = (x[..., 0], x[..., 1]) if x.ndim == 3 and x.shape[2] == 2 else (x, jnp.zeros_like(x))
        check_tokens("text_encoder", tokens, self.max_length)
        width = self.size.width

        def dropped(x):
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        y = nn.Embed(self.vocabulary_size, width, embedding_init=initial, name="token_embedding")(tokens)
        y = y + self.param("position", initial, (self.max_length, width))[: tokens.shape[1]]
        if self.token_types:
            y = y + nn.Embed(self.token_types, width, embedding_init=initial, name="token_type")(types)
        y = dropped(norm(self.epsilon, "embedding_norm")(y))
        settings: dict[str, Any] = {"post_norm": True, "dropout": self.dropout}
        for i in range(self.size.depth):
            block = Block(self.size.heads, self.size.mlp, self.epsilon, **settings, name=f"block_{i}")
            y = block(y, tokens != self.padding, train)
        pooled = jnp.tanh(nn.Dense(width, kernel_init=initial, name="pooler")(y[:, 0]))
        return nn.Dense(self.num_classes, kernel_init=initial, name="head")(dropped(pooled))


def text_encoder(
    num_classes: int = 2,
    size: str = "tiny",
    *,
    vocabulary_size: int = 30_522,
    max_length: int = 512,
    token_types: int = 2,
    padding: int = 0,
    width: int = 0,
    depth: int = 0,
    heads: int = 0,
    mlp: int = 0,
    epsilon: float = 1e-12,
    dropout: float = 0.0,
) -> Model:
    """`TextEncoder` as a `Model` for classification of texts, one label a row.

    Args:
      num_classes: number of logits.
      size: `tiny`, `mini`, `small`, `medium`, `base` or `large`.
      vocabulary_size: number of different tokens; 30,522 for BERT (uncased), 50,265 for RoBERTa. Not called
        `vocabulary`, which the program fills in with the number of classes.
      max_length: number of positions; rows may be shorter.
      token_types: number of token types: 2 for BERT, 1 for RoBERTa, 0 for no such embedding.
      padding: the token that is not looked at: 0 for BERT, 1 for RoBERTa.
      width, depth, heads, mlp: features of a token, blocks, heads of attention, and features inside the MLP, where
        they differ from those of `size`; 0 for those, and for an `mlp` of 4 widths.
      epsilon: of the norms: 1e-12 for BERT, 1e-5 for RoBERTa.
      dropout: share of features dropped in training: of the embedded tokens, of each branch before it is added, and of
        the pooled token.

    Raises:
      ValueError: unknown size, or numbers that do not go together; when run, for rows that are no tokens or too long.
    """
    for name, value, least in (
        ("vocabulary_size", vocabulary_size, 1),
        ("max_length", max_length, 1),
        ("token_types", token_types, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    chosen = choose_size(size, SIZES, width, depth, heads, mlp)
    module = TextEncoder(chosen, num_classes, vocabulary_size, max_length, token_types, padding, epsilon, dropout)
    return from_linen(module, train_argument="train")


_SMALL = {"vocabulary_size": 9, "max_length": 6, "width": 8, "depth": 1, "heads": 2, "mlp": 16}
EXAMPLES = ({"num_classes": 3, "token_types": 0, "padding": 1, "epsilon": 1e-5, "dropout": 0.1, **_SMALL},)
