"""Random checkpoints of tiny transformers under the names and in the layouts of other libraries."""

from types import SimpleNamespace

import numpy as np
import pytest

WIDTH, DEPTH, HEADS, MLP = 16, 2, 2, 24
SIZES = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp": MLP}
PATCH, CHANNELS, SIDE, CLASSES = 4, 3, 2, 5  # images of 8 x 8
VOCABULARY, LENGTH, TYPES = 11, 7, 2


def _draw(shapes):
    """Values of a size at which all parts of the network matter: weights about 0.3, norms' scales about 1."""
    rng = np.random.default_rng(7)
    made = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = ("norm", "norm1", "norm2", "LayerNorm", "ln_1", "ln_2", "ln_f", "layernorm_before", "layernorm_after")
    return {n: x + 1 if n.endswith(".weight") and n.split(".")[-2] in norms else x for n, x in made.items()}


def _linear(name, features_out, features_in):
    return {f"{name}.weight": (features_out, features_in), f"{name}.bias": (features_out,)}


def _norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def timm_vit():
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, SIDE * SIDE + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        at = f"blocks.{i}"
        shapes |= _norm(f"{at}.norm1") | _linear(f"{at}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= _linear(f"{at}.attn.proj", WIDTH, WIDTH) | _norm(f"{at}.norm2")
        shapes |= _linear(f"{at}.mlp.fc1", MLP, WIDTH) | _linear(f"{at}.mlp.fc2", WIDTH, MLP)
    return _draw(shapes | _norm("norm") | _linear("head", CLASSES, WIDTH))


def bert():
    shapes = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "bert.embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (TYPES, WIDTH),
    } | _norm("bert.embeddings.LayerNorm")
    for i in range(DEPTH):
        at = f"bert.encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{at}.{name}", WIDTH, WIDTH)
        shapes |= _norm(f"{at}.attention.output.LayerNorm") | _norm(f"{at}.output.LayerNorm")
        shapes |= _linear(f"{at}.intermediate.dense", MLP, WIDTH) | _linear(f"{at}.output.dense", WIDTH, MLP)
    return _draw(shapes | _linear("bert.pooler.dense", WIDTH, WIDTH) | _linear("classifier", CLASSES, WIDTH))


def gpt2():
    """GPT-2's layers hold `[in, out]`."""
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (LENGTH, WIDTH)}
    for i in range(DEPTH):
        layers = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH)}
        layers |= {"mlp.c_fc": (WIDTH, MLP), "mlp.c_proj": (MLP, WIDTH)}
        for name, shape in layers.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        shapes |= _norm(f"h.{i}.ln_1") | _norm(f"h.{i}.ln_2")
    return _draw(shapes | _norm("ln_f"))


@pytest.fixture(scope="session")
def checkpoints():
    """Functions that make a checkpoint, `{name: array}`, and the settings of the models that these fit."""
    image = {"patch_size": PATCH, "image_size": PATCH * SIDE, "num_classes": CLASSES, **SIZES}
    text = {"vocabulary_size": VOCABULARY, "max_length": LENGTH, "num_classes": CLASSES, **SIZES}
    return SimpleNamespace(
        timm_vit=timm_vit,
        bert=bert,
        gpt2=gpt2,
        vit_settings=image,
        encoder_settings=text,
        gpt_settings={"vocabulary": VOCABULARY, "max_length": LENGTH, **SIZES},
        heads=HEADS,
        depth=DEPTH,
        vocabulary=VOCABULARY,
        length=LENGTH,
    )
