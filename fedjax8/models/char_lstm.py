"""The next character from those before: an embedding of 8, two LSTM layers of 256 units, and a dense layer.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017, section 3, and
the Shakespeare model of LEAF (Caldas et al., arXiv:1812.01097). Here it predicts at every position of a sequence, as in
TensorFlow Federated. With V symbols, embedding E and H units

    V E + 4 H (E + H + 1) + 4 H (2 H + 1) + (H + 1) V          820,522 parameters with V = 90, E = 8, H = 256

which counts one bias for each gate (`_lstm.py`).

In 8 bits (`qat`): the dense layers, those into each LSTM and the last one, see rounded inputs and kernels. A recurrent
kernel is rounded too, once a batch (as is its gradient, with `gradients`), and travels in 8 bits; the hidden state
that it is multiplied with stays float32, and so do that product and the embedding.
"""

from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models._lstm import LSTM
from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model


class CharLSTM(nn.Module):
    """Symbols int `[B, T]` to logits of the symbol after each, `[B, T, vocabulary]`."""

    vocabulary: int = 90
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits at each position, which depend on it and those before."""
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"char_lstm takes integers [B, T], the numbers of symbols; got {x.dtype} {x.shape}")
        x = nn.Embed(self.vocabulary, self.embedding)(x.T)  # time first, as a scan wants it
        for _ in range(self.layers):
            x = LSTM(self.hidden)(x)
        return nn.Dense(self.vocabulary)(x).swapaxes(0, 1)


def char_lstm(vocabulary: int = 90, embedding: int = 8, *, hidden: int = 256, layers: int = 2) -> Model:
    """`CharLSTM` as a `Model`; a row's loss and accuracy are means over its targets.

    Args:
      vocabulary: number of symbols, of the input and to predict; the data set's in a config that does not say.
      embedding: features of a symbol.
      hidden: units of each LSTM layer.
      layers: number of LSTM layers, at least 1.
    """
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden, "layers": layers}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    return from_linen(CharLSTM(vocabulary, embedding, hidden, layers))


EXAMPLES = ({"vocabulary": 9, "hidden": 8}, {"vocabulary": 5, "embedding": 3, "hidden": 6, "layers": 1})
