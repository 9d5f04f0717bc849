"""Bytes of one FP8 message and of the same message in float32, for the models of FP8 federated learning, as integers.

FP8:      1 per number in a kernel, 4 per other number, 4 per clip: two clips for every kernel, its own and its input's
float32:  4 per number, without the clips
"""

import jax
import jax.numpy as jnp
import pytest

from fedjax8 import adapters, codecs, models, trees

IMAGE, MATCHBOXNET_CLIP, KWT_CLIP = (32, 32, 3), (128, 64), (98, 40)
# model, one example's shape, float32 bytes, FP8 bytes
MESSAGES = {
    "cnn, 10 classes": (models.cnn(10), IMAGE, 3_191_848, 800_144),
    "cnn, 100 classes": (models.cnn(100), IMAGE, 3_261_328, 817_784),
    "resnet18, 7x7 stem, 10 classes": (models.resnet18(10, stem="7x7"), IMAGE, 44_726_568, 11_210_640),
    "resnet18, 3x3 stem, 100 classes": (models.resnet18(100), IMAGE, 44_880_528, 11_249_400),
    "matchboxnet, 35 classes": (models.matchboxnet(35), MATCHBOXNET_CLIP, 311_436, 82_692),
    "kwt1, 35 classes": (models.kwt1(35), KWT_CLIP, 2_435_212, 651_740),
}


@pytest.mark.parametrize(("model", "example", "float32", "fp8"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_has_exactly_the_bytes_of_its_kernels_its_other_numbers_and_its_clips(model, example, float32, fp8):
    key, batch = jax.random.key(0), {"x": jax.ShapeDtypeStruct((1, *example), jnp.float32)}
    tree = {"params": jax.eval_shape(adapters.qat(model).init, key, batch).params}
    codec = codecs.fp8()
    message, _ = jax.eval_shape(codec.encode, key, codec.init(tree), tree)
    assert (trees.float32_bytes(tree), trees.num_bytes(message)) == (float32, fp8)
    assert float32 < 4 * fp8
