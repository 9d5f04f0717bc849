"""Parameter files: what comes out of them, what is refused, and how much memory it takes."""

import os
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8 import adapters, models, trees
from fedjax8.build import build
from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError
from fedjax8.models import pretrained
from fedjax8.models.linen import from_linen
from fedjax8.types import Variables

pytest.importorskip("safetensors")


def write(file, weights):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, file)
    return file


def shapes_of(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), {"x": x}).params


def same(a, b):
    a, b = trees.named_leaves(a), trees.named_leaves(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


PIXELS = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
WORDS = jax.ShapeDtypeStruct((1, 5), jnp.int32)


@pytest.fixture(scope="module")
def vit_like(checkpoints):
    return shapes_of(models.vit(**checkpoints.vit_settings), PIXELS)


@pytest.fixture(scope="module")
def encoder_like(checkpoints):
    return shapes_of(models.text_encoder(**checkpoints.encoder_settings), WORDS)


@pytest.fixture(scope="module")
def gpt_like(checkpoints):
    return shapes_of(models.gpt(**checkpoints.gpt_settings), WORDS)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.safetensors"


# Other names for the same numbers. That the numbers are right: test_transformers.py.

HF_VIT = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "blocks.": "vit.encoder.layer.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    "head.": "classifier.",
}


def as_hf_vit(timm):
    made = {}
    for name, value in timm.items():
        for theirs, hf in HF_VIT.items():
            name = name.replace(theirs, hf)
        name = f"vit.layernorm{name.removeprefix('norm')}" if name.startswith("norm.") else name
        if ".attn.qkv." not in name:
            made[name] = value
            continue
        for part, word in zip(np.split(value, 3), ("query", "key", "value"), strict=True):
            made[name.replace(".attn.qkv.", f".attention.attention.{word}.")] = part
    return made


def test_timms_and_hugging_faces_names_give_the_same_vit(checkpoints, vit_like, tmp_path):
    timm = checkpoints.timm_vit()
    hf = as_hf_vit(timm)
    assert "vit.encoder.layer.1.attention.attention.key.bias" in hf
    bare = {name.removeprefix("vit."): value for name, value in hf.items()} | {"pooler.dense.weight": np.ones(2)}
    params = [
        models.load_pretrained(write(tmp_path / f"{i}.safetensors", weights), vit_like, names)
        for i, (weights, names) in enumerate([(timm, "timm_vit"), (hf, "hf_vit"), (bare, "hf_vit")])
    ]
    same(params[0], params[1])
    same(params[0], params[2])
    key = timm["blocks.1.attn.qkv.weight"][16:32].T  # the second third, [out, in] turned around
    np.testing.assert_array_equal(params[0]["block_1"]["attention"]["key"]["kernel"], key)


def test_older_names_of_norms_and_the_heads_of_pretraining_are_known(checkpoints, encoder_like, tmp_path):
    bert = checkpoints.bert()
    older = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
             for n, x in bert.items()}  # fmt: skip
    older |= {"cls.predictions.bias": np.ones(3, np.float32), "bert.embeddings.position_ids": np.arange(7)}
    params = [
        models.load_pretrained(write(tmp_path / f"{i}.safetensors", weights), encoder_like, "bert")
        for i, weights in enumerate((bert, older))
    ]
    assert older.keys() != bert.keys()
    same(*params)


def test_robertas_positions_start_at_the_third_row_and_its_pooler_belongs_to_the_head(checkpoints, encoder_like, file):
    bert = checkpoints.bert()
    rename = {"bert.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj", "bert.": "roberta."}
    roberta = {}
    for name, value in bert.items():
        old = next(old for old in rename if name.startswith(old))
        roberta[rename[old] + name.removeprefix(old)] = value
    at = "roberta.embeddings.position_embeddings.weight"
    unused = np.full((2, 16), 99, np.float32)
    roberta[at] = np.concatenate([unused, roberta[at]])
    roberta["lm_head.bias"] = unused
    expected = models.load_pretrained(write(file, bert), encoder_like, "bert")
    same(models.load_pretrained(write(file, roberta), encoder_like, "roberta"), expected)
    base = {name: value for name, value in roberta.items() if not name.startswith("classifier")}
    like = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), encoder_like)
    params = models.load_pretrained(write(file, base), like, "roberta", head="new")
    same(params, expected | {"head": like["head"], "pooler": like["pooler"]})


def test_what_gpt2s_files_hold_beside_parameters_is_left_out(checkpoints, gpt_like, file):
    gpt2 = checkpoints.gpt2()
    expected = models.load_pretrained(write(file, gpt2), gpt_like, "gpt2")
    more = {f"transformer.{name}": value for name, value in gpt2.items()} | {"lm_head.weight": gpt2["wte.weight"]}
    more |= {f"transformer.h.1.attn.{name}": np.ones((1, 1, 7, 7), np.float32) for name in ("bias", "masked_bias")}
    same(models.load_pretrained(write(file, more), gpt_like, "gpt2"), expected)
    value = gpt2["h.0.attn.c_attn.weight"][:, 32:]  # the last third, [in, out] as here
    np.testing.assert_array_equal(expected["block_0"]["attention"]["value"]["kernel"], value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32_without_loss(checkpoints, gpt_like, file, dtype):
    half = {name: value.astype(dtype) for name, value in checkpoints.gpt2().items()}
    wide = {name: value.astype(np.float32) for name, value in half.items()}
    params = models.load_pretrained(write(file, half), gpt_like, "gpt2")
    same(params, models.load_pretrained(write(file, wide), gpt_like, "gpt2"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_new_head_is_the_one_given_whatever_the_file_has(checkpoints, vit_like, file):
    weights = checkpoints.timm_vit()
    kept = models.load_pretrained(write(file, weights), vit_like, "timm_vit")
    mine = {"kernel": jnp.ones((16, 3)), "bias": jnp.zeros(3)}
    headless = {name: value for name, value in weights.items() if not name.startswith("head.")}
    for given in (weights, headless, headless | {"pre_logits.fc.weight": np.ones(2, np.float32)}):
        params = models.load_pretrained(write(file, given), vit_like | {"head": mine}, "timm_vit", head="new")
        same(params, kept | {"head": mine})
    with pytest.raises(ValueError, match="head='new' keeps head/bias of like_params, but that has no values there"):
        models.load_pretrained(file, vit_like, "timm_vit", head="new")


def test_positions_of_another_grid_are_refused_or_resized_as_jax_does(checkpoints, vit_like, file, rng):
    for before in (5, 1):  # fewer places, for which antialiasing matters, and more
        weights = checkpoints.timm_vit() | {"pos_embed": rng.normal(0, 1, (1, before**2 + 1, 16)).astype(np.float32)}
        with pytest.raises(UserError, match="positions='resize' interpolates"):
            models.load_pretrained(write(file, weights), vit_like, "timm_vit")
        position = models.load_pretrained(file, vit_like, "timm_vit", positions="resize")["position"]
        token, grid = weights["pos_embed"][0, 0], weights["pos_embed"][0, 1:].reshape(before, before, 16)
        np.testing.assert_array_equal(position[0], token)
        expected = jax.image.resize(grid, (2, 2, 16), "bicubic", antialias=True).reshape(4, 16)
        np.testing.assert_allclose(position[1:], expected, atol=1e-5)  # float32 sums of 25 values of order one


def test_of_the_positions_of_a_longer_text_the_first_are_taken(checkpoints, gpt_like, file):
    weights = checkpoints.gpt2()
    weights["wpe.weight"] = np.concatenate([weights["wpe.weight"], np.ones((2, 16), np.float32)])
    with pytest.raises(UserError, match=r"'wpe.weight' is \(9, 16\).*set max_length=9 or positions='resize'"):
        models.load_pretrained(write(file, weights), gpt_like, "gpt2")
    params = models.load_pretrained(file, gpt_like, "gpt2", positions="resize")
    np.testing.assert_array_equal(params["position"], weights["wpe.weight"][:7])
    weights["wpe.weight"] = weights["wpe.weight"][:6]
    with pytest.raises(UserError, match=r"set max_length=6$"):
        models.load_pretrained(write(file, weights), gpt_like, "gpt2", positions="resize")


def without(*names):
    return lambda w: {name: value for name, value in w.items() if name not in names}


def having(**more):
    return lambda w: w | {name.replace("__", "."): value for name, value in more.items()}


ones = lambda *shape: np.ones(shape, np.float32)
BROKEN = {
    "a missing tensor": (
        without("blocks.0.norm1.weight", "cls_token"),
        r"has no tensor 'blocks.0.norm1.weight', 'cls_token': it has 'blocks.0.attn.proj.bias'.*names='timm_vit'",
    ),
    "no head": (without("head.weight", "head.bias"), r"has no tensor 'head.bias', 'head.weight': use head='new'"),
    "another block": (
        having(blocks__2__norm1__weight=ones(16), fc_norm__bias=ones(16)),
        r"no place in the model: 'blocks.2.norm1.weight', 'fc_norm.bias'; is it another size",
    ),
    "another width": (
        having(norm__weight=ones(17)),
        r"'norm.weight' is \(17,\), but norm/scale \(16,\) needs \(16,\)$",
    ),
    "a kernel not turned around": (
        having(blocks__1__mlp__fc1__weight=ones(16, 24)),
        r"'blocks.1.mlp.fc1.weight' is \(16, 24\), but block_1/mlp/first/kernel \(16, 24\) needs \(24, 16\)$",
    ),
    "a fused layer of another size": (
        having(blocks__0__attn__qkv__weight=ones(16, 16)),
        r"qkv.weight' is \(16, 16\), but block_0/attention/\w+/kernel \(16, 16\) needs \(48, 16\)$",
    ),
    "other classes": (
        having(head__weight=ones(9, 16), head__bias=ones(9)),
        r"is \(9,\), but head/bias \(5,\) needs \(5,\): another number of classes; use head='new'",
    ),
    "another patch size": (
        having(patch_embed__proj__weight=ones(16, 3, 8, 8)),
        r"needs \(16, any, any, any\) with 48 numbers in a patch; set patch_size",
    ),
    "positions of no grid": (having(pos_embed=ones(1, 7, 16)), r"'pos_embed' is \(1, 7, 16\).*needs \(1, 5, 16\)$"),
    "integers": (having(cls_token=np.ones((1, 1, 16), np.int8)), r"'cls_token' is I8; allowed are F32, F16, BF16"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_does_not_fit_is_refused_by_name(checkpoints, vit_like, file, change, message):
    with pytest.raises(UserError, match=message):
        models.load_pretrained(write(file, change(checkpoints.timm_vit())), vit_like, "timm_vit")


def test_a_file_of_another_architecture_is_refused(checkpoints, vit_like, gpt_like, file):
    write(file, checkpoints.timm_vit())
    with pytest.raises(UserError, match="names='bert' has nothing for 'class_token', 'norm/bias', 'norm/scale'"):
        models.load_pretrained(file, vit_like, "bert")
    with pytest.raises(UserError, match=r"has no tensor 'h\.0\.attn\.c_attn\.bias'"):
        models.load_pretrained(file, gpt_like, "gpt2")
    with pytest.raises(UserError, match=r"head='new' leaves out the leaves below head/; the model has no such leaf"):
        models.load_pretrained(file, gpt_like, "fedjax8", head="new")


def test_a_setting_that_is_not_allowed_is_named(file, vit_like):
    for settings, message in (
        (
            {"names": "timm"},
            "names is 'timm'; allowed are fedjax8, timm_vit, hf_vit, bert, roberta, gpt2; did you mean",
        ),
        ({"head": "old"}, "head is 'old'; allowed are keep, new"),
        ({"positions": "cut"}, "positions is 'cut'; allowed are same, resize"),
    ):
        with pytest.raises(ValueError, match=message):
            models.load_pretrained(file, vit_like, **settings)


def test_what_is_no_safetensors_file_is_refused(tmp_path, vit_like):
    with pytest.raises(UserError, match=r"no file .*model\.safetensors'"):
        models.load_pretrained(tmp_path, vit_like)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"PK\x03\x04 a zip of pickles")
    with pytest.raises(UserError, match=r"is no complete safetensors file \(.*save their tensors with safetensors"):
        models.load_pretrained(tmp_path, vit_like)


def test_a_file_that_was_cut_short_is_refused(checkpoints, vit_like, file):
    write(file, checkpoints.timm_vit())
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="is no complete safetensors file"):
        models.load_pretrained(file, vit_like, "timm_vit")


# Our own files.


def test_what_is_saved_comes_back_bit_for_bit_under_its_paths(file, rng):
    kernel = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    params = {
        "a": {"kernel": kernel, "kernel_clip": jnp.float32(2.5)},
        "b": kernel.T,
        "half": kernel.astype("bfloat16"),
    }
    models.save_params(file, params)
    back = models.load_params(file)
    same(back, params | {"half": params["half"].astype(jnp.float32)})
    same(models.load_pretrained(file, trees.shapes(back)), back)
    assert os.listdir(file.parent) == [file.name]
    from safetensors import safe_open

    with safe_open(str(file), framework="numpy") as opened:
        assert sorted(opened.keys()) == ["a/kernel", "a/kernel_clip", "b", "half"]
        assert opened.metadata() == {"format": "fedjax8"}


# Memory. tracemalloc sees what the library and NumPy hold; what JAX holds it does not.

LAYERS, SIDE = 12, 256
LEAF = 4 * SIDE * SIDE


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_tensor_at_a_time_is_read(file, monkeypatch):
    params = {f"layer_{i}": {"kernel": np.full((SIDE, SIDE), i, np.float32)} for i in range(LAYERS)}
    models.save_params(file, params)
    monkeypatch.setattr(pretrained.jnp, "asarray", lambda x: float(x[0, 0]))  # nothing is kept
    loaded = []
    peak = peak_of(lambda: loaded.append(models.load_pretrained(file, trees.shapes(params))))
    assert [loaded[0][f"layer_{i}"]["kernel"] for i in range(LAYERS)] == list(range(LAYERS))
    assert LEAF < peak < 2.5 * LEAF  # of 12


def test_of_a_fused_tensor_one_third_is_read(checkpoints, file):
    model = models.gpt(8, width=SIDE, depth=1, heads=1, mlp=8, max_length=8)
    like = shapes_of(model, WORDS)
    weights = {n: np.zeros(x.shape, np.float32) for n, x in trees.named_leaves(like).items()}
    names = {"norm_1": "ln_1", "norm_2": "ln_2", "output": "c_proj", "first": "c_fc", "second": "c_proj"}
    theirs = {"wte.weight": weights["token_embedding/embedding"], "wpe.weight": weights["position"]}
    theirs |= {f"ln_f.{n}": ones(SIDE) for n in ("weight", "bias")}
    theirs |= {"h.0.attn.c_attn.weight": ones(SIDE, 3 * SIDE), "h.0.attn.c_attn.bias": ones(3 * SIDE)}
    for name, value in weights.items():
        block, *path = name.split("/")
        if block == "block_0" and path[-2] in names:
            word = {"scale": "weight", "kernel": "weight"}.get(path[-1], path[-1])
            folder = {"attention": "attn.", "mlp": "mlp."}.get(path[0], "")
            theirs[f"h.0.{folder}{names[path[-2]]}.{word}"] = value
    read = pretrained.readers(write(file, theirs), like, "gpt2", head="keep", positions="same")
    for part in ("query", "key", "value"):
        assert LEAF <= peak_of(read[f"block_0/attention/{part}/kernel"]) < 1.5 * LEAF


# The adapter.


@pytest.fixture(scope="module")
def small():
    """A model with a head, its batch, and a run of its `init`."""
    from flax import linen as nn

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.Dense(4, name="body")(x))

    batch = {"x": jnp.ones((2, 5))}
    model = from_linen(Small())
    return model, batch, jax.jit(model.init)(jax.random.key(3), batch).params


@pytest.mark.parametrize("head", ["keep", "new"])
def test_a_pretrained_model_starts_from_the_file_and_is_otherwise_the_model(small, file, head):
    model, batch, fresh = small
    saved = jax.tree.map(lambda x: x + 1, fresh)
    models.save_params(file, saved)
    made = adapters.pretrained(model, str(file), head=head)
    expected = saved if head == "keep" else saved | {"head": fresh["head"]}
    for init in (made.init, jax.jit(made.init)):
        variables = init(jax.random.key(3), batch)
        same(variables.params, expected)
        assert variables.state == {}
    np.testing.assert_array_equal(made.apply(variables, batch)[0], model.apply(variables, batch)[0])


def test_shapes_are_known_and_errors_raised_without_reading_values(small, file, monkeypatch):
    model, batch, fresh = small
    models.save_params(file, fresh)

    def read(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr(pretrained, "_read", read)
    made = adapters.pretrained(model, str(file))
    shapes = jax.eval_shape(made.init, jax.random.key(0), batch)
    assert trees.shapes(fresh) == shapes.params
    models.save_params(file, fresh | {"other": fresh["head"]})
    with pytest.raises(UserError, match="no place in the model: 'other/bias', 'other/kernel'"):
        jax.eval_shape(adapters.pretrained(model, str(file)).init, jax.random.key(0), batch)
    with pytest.raises(UserError, match="no file"):
        adapters.pretrained(model, str(file) + "x")


def test_a_model_with_batch_statistics_is_refused(small, file):
    model, batch, fresh = small
    models.save_params(file, fresh)
    with_state = model._replace(init=lambda key, batch: Variables(model.init(key, batch).params, {"mean": jnp.ones(2)}))
    with pytest.raises(UserError, match="has a state"):
        adapters.pretrained(with_state, str(file)).init(jax.random.key(0), batch)


def test_a_run_starts_from_the_file(file, rng):
    config = in_float32(base_config())
    config.model = component("logistic")
    params = {"Dense_0": {"kernel": rng.standard_normal((64, 10)), "bias": rng.standard_normal(10)}}
    params = jax.tree.map(np.float32, params)
    models.save_params(file, params)
    config.adapter = component("pretrained", file=str(file))
    state = build(config).simulation.init()
    found = trees.named_leaves(state.server)
    for name, value in trees.named_leaves(params).items():
        (leaf,) = (x for path, x in found.items() if path.endswith(name))
        np.testing.assert_array_equal(leaf, value)
