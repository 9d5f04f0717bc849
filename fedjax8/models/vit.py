"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929), sizes B, S and Ti.

An image is cut into patches, each of which a dense layer turns into a token; a class token goes before them, a learned
position is added to each, and pre-norm blocks follow (`_transformer.py`). The class token, after a last norm, gives the
logits. S and Ti are those of Touvron et al. (DeiT, ICML 2021, arXiv 2012.12877, table 1), without distillation. Exact
GELU, LayerNorm epsilon 1e-6 as in timm, the library whose weights most people load (see `adapters.pretrained`).

With width D, depth L, patches of p x p pixels of c channels, T = (image_size / p)**2 + 1 tokens and C classes

    (p p c + 1) D + D + T D + L (12 D D + 13 D) + 2 D   +   (D + 1) C        parameters, the last term being the head

which is 85,798,656, 21,665,664 and 5,524,416 without head for B, S and Ti with p = 16 on 224 x 224 x 3. Paths:
`patch_embedding`, `class_token`, `position`, `block_0` and so on, `norm`, `head`.
"""

import jax
from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models._transformer import Block, Size, choose_size, initial, norm
from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth, heads."""


class ViT(nn.Module):
    """Images `[B, image_size, image_size, channels]` to logits `[B, num_classes]`."""

    size: Size
    patch_size: int
    image_size: int
    num_classes: int
    epsilon: float = 1e-6
    dropout: float = 0.0
    resize: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of images."""
        width = self.size.width
        x = nn.Dense(width, kernel_init=initial, name="patch_embedding")(self._patches(x))
        class_token = self.param("class_token", initial, (1, width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, width)).astype(x.dtype), x], axis=1)
        x = x + self.param("position", initial, x.shape[1:])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.size.depth):
            x = Block(self.size.heads, self.size.mlp, self.epsilon, dropout=self.dropout, name=f"block_{i}")(
                x, train=train
            )
        x = norm(self.epsilon, "norm")(x)[:, 0]
        return nn.Dense(self.num_classes, kernel_init=initial, name="head")(x)

    def _patches(self, x: Array) -> Array:
        """`[B, patches, patch_size * patch_size * channels]`: row by row, and within a patch row by row too."""
        size, patch = self.image_size, self.patch_size
        if x.ndim == 4 and self.resize:
            x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), "bilinear")
        if x.ndim != 4 or x.shape[1:3] != (size, size):
            raise ValueError(
                f"vit has image_size {size} and takes images [B, {size}, {size}, channels]; got {x.shape}; set "
                "image_size to theirs, or resize=True"
            )
        side = size // patch
        x = x.reshape(len(x), side, patch, side, patch, -1).swapaxes(2, 3)
        return x.reshape(len(x), side * side, -1)


def vit(
    size: str = "tiny",
    patch_size: int = 16,
    *,
    image_size: int = 224,
    num_classes: int = 1000,
    width: int = 0,
    depth: int = 0,
    heads: int = 0,
    mlp: int = 0,
    epsilon: float = 1e-6,
    dropout: float = 0.0,
    resize: bool = False,
) -> Model:
    """`ViT` as a `Model` for classification of square images.

    Args:
      size: `tiny`, `small` or `base`.
      patch_size: pixels along a side of a patch; must divide `image_size`. For images of 32 x 32, 4 is usual.
      image_size: pixels along a side of an image.
      num_classes: number of logits.
      width, depth, heads, mlp: features of a token, blocks, heads of attention, and features inside the MLP, where
        they differ from those of `size`; 0 for those, and for an `mlp` of 4 widths.
      epsilon: of the norms: 1e-6 in timm, 1e-12 in Hugging Face's ViT.
      dropout: share of features dropped in training: of the embedded tokens, and of each branch before it is added.
      resize: bring images of another size to `image_size` first (bilinear), so that small ones can be kept small.

    Raises:
      ValueError: unknown size, or numbers that do not go together; when run, for images of another size.
    """
    if patch_size < 1 or image_size < 1 or image_size % patch_size:
        raise ValueError(f"patch_size must divide image_size; got patch_size {patch_size} and image_size {image_size}")
    chosen = choose_size(size, SIZES, width, depth, heads, mlp)
    module = ViT(chosen, patch_size, image_size, num_classes, epsilon, dropout, resize)
    return from_linen(module, train_argument="train")


_SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp": 16, "num_classes": 10}
EXAMPLES = ({"patch_size": 16, "image_size": 32, "dropout": 0.1, "resize": True, **_SMALL},)
