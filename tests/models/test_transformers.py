"""Transformers: sizes as published, and outputs that NumPy gives from the same checkpoint under its own names."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import models, trees
from fedjax8.build import build
from fedjax8.config import base_config, component, in_float32
from fedjax8.models import _transformer as transformer
from fedjax8.models.vit import SIZES, ViT
from fedjax8.types import Variables

IMAGE, TOKENS = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 8), jnp.int32)

# Model, input, all parameters, those of the head. Totals: section 2.1 of FedPEFT's byte accounts for B/16; timm's and
# Hugging Face's published totals for the others (RoBERTa without the two positions that it never uses).
COUNTS = {
    "B/16": (models.vit("base"), IMAGE, 85_798_656 + 769_000, 769_000),
    "B/16, 100 classes": (models.vit("base", num_classes=100), IMAGE, 85_875_556, 76_900),
    "S/16": (models.vit("small"), IMAGE, 22_050_664, 385_000),
    "Ti/16": (models.vit("tiny"), IMAGE, 5_717_416, 193_000),
    "BERT base": (models.text_encoder(size="base"), TOKENS, 109_482_240 + 2 * 769, 2 * 769),
    "BERT tiny": (models.text_encoder(), TOKENS, 4_385_920 + 2 * 129, 2 * 129),
    "RoBERTa base": (
        models.text_encoder(size="base", vocabulary_size=50_265, token_types=1),
        TOKENS,
        124_645_632 - 2 * 768 + 2 * 769,
        2 * 769,
    ),
    "GPT-2": (models.gpt(size="gpt2", max_length=1024), TOKENS, 124_439_808, 0),
}


@pytest.mark.parametrize(("model", "x", "total", "head"), COUNTS.values(), ids=COUNTS)
def test_parameters_are_counted_exactly(model, x, total, head):
    shapes = trees.named_leaves(jax.eval_shape(model.init, jax.random.key(0), {"x": x}).params)
    assert sum(leaf.size for leaf in shapes.values()) == total
    assert sum(leaf.size for name, leaf in shapes.items() if name.startswith("head/")) == head
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype("float32")}


def test_the_biases_of_vit_b_16_are_those_that_fedpeft_trains():
    shapes = trees.named_leaves(jax.eval_shape(models.vit("base").init, jax.random.key(0), {"x": IMAGE}).params)
    biases = {name: leaf.size for name, leaf in shapes.items() if name.endswith("/bias") and name != "head/bias"}
    assert sum(biases.values()) == 102_912  # 12 blocks of 8,448, the patch embedding's 768 and the last norm's 768


# NumPy, in float64, from the definitions of the networks.


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv1d(w, name, x):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(w, name, x, epsilon):
    centered = x - x.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon)
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q, k, v, heads, causal=False):
    """`[T, D]` each, head by head, token by token."""
    out, size = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        for t in range(len(q)):
            seen = slice(0, t + 1) if causal else slice(None)
            weights = np.exp(k[seen, at] @ q[t, at] / math.sqrt(size))
            out[t, at] = weights @ v[seen, at] / weights.sum()
    return out


def numpy_vit(w, image, heads, depth):
    """timm's VisionTransformer on one image `[H, W, channels]`."""
    kernel = w["patch_embed.proj.weight"]
    patch = kernel.shape[2]
    tokens = [w["cls_token"][0, 0]]
    for i in range(0, image.shape[0], patch):
        for j in range(0, image.shape[1], patch):
            pixels = image[i : i + patch, j : j + patch]
            tokens.append(np.einsum("hwc,dchw->d", pixels, kernel) + w["patch_embed.proj.bias"])
    x = np.stack(tokens) + w["pos_embed"][0]
    for i in range(depth):
        y = layer_norm(w, f"blocks.{i}.norm1", x, 1e-6)
        q, k, v = np.split(linear(w, f"blocks.{i}.attn.qkv", y), 3, axis=-1)
        x = x + linear(w, f"blocks.{i}.attn.proj", attention(q, k, v, heads))
        y = gelu(linear(w, f"blocks.{i}.mlp.fc1", layer_norm(w, f"blocks.{i}.norm2", x, 1e-6)))
        x = x + linear(w, f"blocks.{i}.mlp.fc2", y)
    return linear(w, "head", layer_norm(w, "norm", x, 1e-6)[0])


def numpy_bert(w, tokens, types, heads, depth):
    """Hugging Face's BertForSequenceClassification on one text without padding."""
    x = w["bert.embeddings.word_embeddings.weight"][tokens]
    x = x + w["bert.embeddings.position_embeddings.weight"][: len(tokens)]
    x = x + w["bert.embeddings.token_type_embeddings.weight"][types]
    x = layer_norm(w, "bert.embeddings.LayerNorm", x, 1e-12)
    for i in range(depth):
        at = f"bert.encoder.layer.{i}"
        q, k, v = (linear(w, f"{at}.attention.self.{name}", x) for name in ("query", "key", "value"))
        y = linear(w, f"{at}.attention.output.dense", attention(q, k, v, heads))
        x = layer_norm(w, f"{at}.attention.output.LayerNorm", x + y, 1e-12)
        y = linear(w, f"{at}.output.dense", gelu(linear(w, f"{at}.intermediate.dense", x)))
        x = layer_norm(w, f"{at}.output.LayerNorm", x + y, 1e-12)
    return linear(w, "classifier", np.tanh(linear(w, "bert.pooler.dense", x[0])))


def numpy_gpt2(w, tokens, heads, depth):
    """Hugging Face's GPT2LMHeadModel on one text."""
    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for i in range(depth):
        y = conv1d(w, f"h.{i}.attn.c_attn", layer_norm(w, f"h.{i}.ln_1", x, 1e-5))
        x = x + conv1d(w, f"h.{i}.attn.c_proj", attention(*np.split(y, 3, axis=-1), heads, causal=True))
        y = gelu_tanh(conv1d(w, f"h.{i}.mlp.c_fc", layer_norm(w, f"h.{i}.ln_2", x, 1e-5)))
        x = x + conv1d(w, f"h.{i}.mlp.c_proj", y)
    return layer_norm(w, "ln_f", x, 1e-5) @ w["wte.weight"].T


def loaded(model, x, weights, names, folder):
    """The model, with a function of x that runs it on the weights, which go through a file."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file(weights, folder / "model.safetensors")
    like = jax.eval_shape(model.init, jax.random.key(0), {"x": x}).params
    variables = Variables(models.load_pretrained(folder, like, names), {})
    return jax.jit(lambda x: model.apply(variables, {"x": x})[0])


# Outputs of order one, sums of at most a few hundred float32 products in a chain of two blocks.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def test_a_vit_gives_what_numpy_gives_from_timms_weights(checkpoints, tmp_path, rng):
    weights, x = checkpoints.timm_vit(), rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    run = loaded(models.vit(**checkpoints.vit_settings), x, weights, "timm_vit", tmp_path)
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    expected = [numpy_vit(exact, image, checkpoints.heads, checkpoints.depth) for image in x]
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(run(x), expected, **CLOSE)


def test_a_text_encoder_gives_what_numpy_gives_from_berts_weights_on_the_text_without_padding(
    checkpoints, tmp_path, rng
):
    weights = checkpoints.bert()
    tokens = rng.integers(1, checkpoints.vocabulary, (4, checkpoints.length - 1))
    types = rng.integers(0, 2, tokens.shape)
    lengths = (6, 3, 1, 0)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    x = np.stack([tokens, types], axis=-1).astype(np.int32)
    run = loaded(models.text_encoder(**checkpoints.encoder_settings), x, weights, "bert", tmp_path)
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    got = run(x)
    for row, length in enumerate(lengths[:3]):
        text = tokens[row, :length], types[row, :length]
        np.testing.assert_allclose(got[row], numpy_bert(exact, *text, checkpoints.heads, checkpoints.depth), **CLOSE)
    assert np.all(np.isfinite(got[3]))  # nothing but padding, as in a batch that is filled up
    x[..., 1] = 0
    np.testing.assert_allclose(run(x[..., 0]), run(x), atol=1e-6)  # token types that are not given are 0


def test_a_gpt_gives_what_numpy_gives_from_gpt2s_weights_and_never_looks_ahead(checkpoints, tmp_path, rng):
    weights = checkpoints.gpt2()
    x = rng.integers(0, checkpoints.vocabulary, (3, checkpoints.length)).astype(np.int32)
    run = loaded(models.gpt(**checkpoints.gpt_settings), x, weights, "gpt2", tmp_path)
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    expected = [numpy_gpt2(exact, row, checkpoints.heads, checkpoints.depth) for row in x]
    logits = np.asarray(run(x))
    np.testing.assert_allclose(logits, expected, **CLOSE)
    for t in range(1, checkpoints.length):
        other = x.copy()
        other[:, t] = (x[:, t] + 1) % checkpoints.vocabulary
        changed = np.asarray(run(other)) != logits
        assert not changed[:, :t].any()  # to the last bit: what is masked is multiplied by 0
        assert changed[:, t].any(axis=-1).all()


def attended(block_bytes, monkeypatch):
    """A fresh function, so that JAX traces it again."""
    monkeypatch.setattr(transformer, "BLOCK_BYTES", block_bytes)

    def value(arrays, mask):
        out = transformer._attend(*arrays, mask, True)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    return lambda arrays, mask: jax.value_and_grad(value, has_aux=True)(arrays, mask)


def test_attention_in_blocks_of_rows_equals_attention_at_once(monkeypatch, rng):
    arrays = tuple(jnp.asarray(rng.standard_normal((6, 5, 2, 4)), jnp.float32) for _ in range(3))
    mask = jnp.asarray(rng.random((6, 1, 1, 5)) < 0.7)
    two_rows = 2 * 4 * 2 * 5 * 5
    results = {}
    for size, loops in ((2**20, 0), (two_rows, 2)):  # forward and backward
        run = attended(size, monkeypatch)
        assert str(jax.make_jaxpr(run)(arrays, mask)).count("scan[") == loops
        results[loops] = jax.jit(run)(arrays, mask)
    for a, b in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums in another order


def test_the_hook_sees_every_dense_layer_under_its_path(checkpoints):
    inner = ["attention/query", "attention/key", "attention/value", "attention/output", "mlp/first", "mlp/second"]
    blocks = [f"block_{i}/{name}" for i in range(checkpoints.depth) for name in inner]
    image, tokens = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1, 5), jnp.int32)
    for model, x, paths in (
        (models.vit(**checkpoints.vit_settings), image, ["patch_embedding", *blocks, "head"]),
        (models.text_encoder(**checkpoints.encoder_settings), tokens, [*blocks, "pooler", "head"]),
        (models.gpt(**checkpoints.gpt_settings), tokens, blocks),
    ):
        seen = []

        def record(path, product, x, kernel, seen=seen):
            seen.append(path)
            return product.forward(x, kernel)

        def run(key, x, model=model, record=record):
            return model.apply(model.init(key, {"x": x}), {"x": x}, multiply=record)

        jax.eval_shape(run, jax.random.key(0), x)
        assert seen == paths


def test_images_of_another_size_are_refused_or_resized_between_pixel_centers():
    x = jnp.broadcast_to(jnp.arange(4.0)[:, None], (1, 4, 4, 1))  # a ramp along a row
    size = transformer.choose_size("tiny", SIZES, 8, 1, 2, 0)
    with pytest.raises(ValueError, match=r"image_size 8 .* got \(1, 4, 4, 1\); set image_size to theirs, or resize"):
        ViT(size, 8, 8, 2)._patches(x)
    row = ViT(size, 8, 8, 2, resize=True)._patches(x).reshape(8, 8)
    expected = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(row, np.tile(expected, (8, 1)), atol=1e-6)


REFUSED = {
    "size is 'huge'; allowed are tiny, small, base": lambda: models.vit("huge"),
    "size is 'gpt-2'.*did you mean 'gpt2'": lambda: models.gpt(size="gpt-2"),
    "heads must divide the width; got 5 heads and width 192": lambda: models.vit(heads=5),
    "depth is -1; it must be positive, or 0 for that of size 'tiny'": lambda: models.vit(depth=-1),
    "patch_size must divide image_size; got patch_size 16 and image_size 28": lambda: models.vit(image_size=28),
    "token_types is -1": lambda: models.text_encoder(token_types=-1),
    "max_length is 0": lambda: models.gpt(max_length=0),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_work_is_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("model", [models.text_encoder(max_length=4), models.gpt(9, max_length=4)])
def test_rows_that_are_no_tokens_or_too_long_are_refused(model):
    for x, message in (
        (jnp.zeros((1, 3)), "takes integers"),
        (jnp.zeros((1, 5), int), "max_length 4, but rows have 5"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), {"x": x})


def test_a_config_gets_the_outputs_that_its_data_need():
    config = in_float32(base_config())
    config.model = component("vit", image_size=8, patch_size=4, width=8, depth=1, heads=2)
    experiment = build(config)
    shapes = jax.eval_shape(
        experiment.simulation.model.init, jax.random.key(0), {"x": experiment.dataset.train["x"][:1]}
    )
    assert shapes.params["head"]["kernel"].shape == (8, 10)
    config.data = component("synthetic_text", vocabulary=12, num_clients=3, sequence_length=5, num_test=4)
    config.model = component("gpt", width=8, depth=1, heads=2, max_length=5)
    config.partition, config.num_clients, config.cohort_size = component("by_key"), 0, 2
    experiment = build(config)
    shapes = jax.eval_shape(
        experiment.simulation.model.init, jax.random.key(0), {"x": experiment.dataset.train["x"][:1]}
    )
    assert shapes.params["token_embedding"]["embedding"].shape == (12, 8)
