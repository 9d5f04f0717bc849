"""Quantization by rules: each layer in the format of the first pattern that matches it, as a model and as a message."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate, trees
from fedjax8.algorithms.refinements import uq_plus
from fedjax8.build import build
from fedjax8.codecs import wire
from fedjax8.config import base_config, override
from fedjax8.errors import UserError

RULES = {"first": "float32", "second": "e5m2"}
KEY = jax.random.key(0)


class Three(nn.Module):
    """Three dense layers, 4 to 5 to 3 to 2."""

    @nn.compact
    def __call__(self, x):
        for name, width in (("first", 5), ("second", 3), ("third", 2)):
            x = nn.tanh(nn.Dense(width, name=name)(x.reshape(len(x), -1)))
        return x


def three():
    return models.from_linen(Three())


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)
    return {"x": x, "y": jnp.asarray([0, 1, 1, 0, 1, 0]), "mask": jnp.ones(6)}


def on_grid(x, alpha, name):
    """NumPy reference: nearest value of the grid stretched to alpha."""
    dtype = getattr(ml_dtypes, f"float8_{name}")
    largest = float(ml_dtypes.finfo(dtype).max)
    scaled = np.clip(np.asarray(x, np.float64), -alpha, alpha) * (largest / alpha)
    return scaled.astype(np.float32).astype(dtype).astype(np.float64) * (alpha / largest)


def seen(model, variables, batch):
    """Input, kernel and output of each layer, and the gradient of its kernel for ones from above."""
    found = {}

    def remember(path, product, x, kernel):
        y, back = jax.vjp(lambda kernel: product.forward(x, kernel), kernel)
        spread = jnp.linspace(0.3, 1.0, y.size, dtype=jnp.float32).reshape(y.shape)
        found[path] = [np.asarray(v) for v in (x, kernel, y, back(spread)[0], spread)]
        return y

    model.apply(variables, batch, multiply=remember)
    return found


def test_each_layer_runs_on_the_grid_of_its_rule_and_one_in_float32_as_it_is(batch):
    model = adapters.qat(three(), rules=RULES)
    variables = model.init(KEY, batch)
    assert set(variables.params["first"]) == {"kernel", "bias"}
    assert (
        set(variables.params["second"])
        == set(variables.params["third"])
        == {"kernel", "bias", "kernel_clip", "input_clip"}
    )
    for path, (x, kernel, y, dkernel, dy) in seen(model, variables, batch).items():
        node, name = variables.params[path], {"first": None, "second": "e5m2", "third": "e4m3fn"}[path]
        values = [x, kernel]
        if name:
            values = [on_grid(x, float(node["input_clip"]), name), on_grid(kernel, float(node["kernel_clip"]), name)]
        # float32: sums of at most five products
        np.testing.assert_allclose(y, values[0] @ values[1], atol=1e-6)
        exact = values[0].T @ dy
        off = np.abs(dkernel - exact).max() / np.abs(exact).max()
        assert off < 1e-6 if name is None else off > 1e-3  # elsewhere dy is rounded to e5m2


def test_the_float32_view_and_the_clips_in_reports_leave_out_what_is_not_there(batch):
    base, model = three(), adapters.qat(three(), rules=RULES)
    variables, plain = model.init(KEY, batch), base.init(KEY, batch)
    np.testing.assert_array_equal(model.views["float32"](variables, batch)[0], base.apply(plain, batch)[0])
    assert set(model.report(variables.params)) == {
        f"clip/{n}/{k}" for n in ("second", "third") for k in ("kernel", "input")
    }


def test_8_bit_operands_are_for_the_layers_that_have_8_bit_formats(batch):
    with pytest.raises(UserError, match=r"compute='emulated' needs weights and activations in e4m3fn.*format='e5m2'"):
        adapters.qat(three(), compute="emulated", rules=RULES)
    emulated, simulated = (
        adapters.qat(three(), compute=compute, rules={"first": "float32"}) for compute in ("emulated", "simulated")
    )
    variables = emulated.init(KEY, batch)
    found, wanted = (seen(model, variables, batch) for model in (emulated, simulated))
    np.testing.assert_array_equal(found["first"][2], wanted["first"][2])
    np.testing.assert_allclose(found["third"][2], wanted["third"][2], rtol=1e-5, atol=1e-6)  # the order of sums


@pytest.mark.parametrize("adapter", [adapters.qat, adapters.ptq])
def test_a_pattern_that_matches_no_layer_names_the_layers_and_the_nearest(adapter, batch):
    with pytest.raises(
        UserError, match=r"rules: pattern 'frist' matches none of first, second, third; did you mean 'fir"
    ):
        adapter(three(), rules={"frist": "float32"}).init(KEY, batch)


def test_a_model_of_which_nothing_is_quantized_is_refused(batch):
    with pytest.raises(UserError, match="rules leave every layer in float32; use adapter none"):
        adapters.qat(three(), rules={"*": "float32"}).init(KEY, batch)


def test_ptq_evaluates_each_layer_on_its_own_grid(batch):
    model = adapters.ptq(three(), rules=RULES)
    variables = model.init(KEY, batch)
    for path, (x, kernel, y, *_) in seen(model, variables, batch).items():
        name = {"first": None, "second": "e5m2", "third": "e4m3fn"}[path]
        if name:
            x, kernel = (on_grid(v, float(np.abs(v).max()), name) for v in (x, kernel))
        np.testing.assert_allclose(y, x @ kernel, atol=1e-6)


def test_a_message_has_each_layer_in_its_format_and_bytes_as_counted_by_hand(batch):
    """Kernels of 20, 15 and 6 numbers: 4 bytes a number in float32, 1 otherwise; 10 biases; 4 clips."""
    params = adapters.qat(three(), rules=RULES).init(KEY, batch).params
    codec, tree = codecs.fp8(rules=RULES), {"params": params}
    message, _ = codec.encode(KEY, codec.init(tree), tree)
    assert trees.num_bytes(message) == 4 * 20 + 15 + 6 + 4 * 10 + 4 * 4
    kernels = {name: message["params"][name]["kernel"] for name in params}
    np.testing.assert_array_equal(kernels["first"], params["first"]["kernel"])
    assert kernels["second"].codes.dtype == ml_dtypes.float8_e5m2
    assert kernels["third"].codes.dtype == ml_dtypes.float8_e4m3fn
    decoded = codec.decode((), wire.unpack(wire.pack(message), jax.eval_shape(lambda: message)))
    for name, fmt in (("second", "e5m2"), ("third", "e4m3fn")):
        kernel, alpha = np.asarray(params[name]["kernel"]), float(params[name]["kernel_clip"])
        got = np.asarray(decoded["params"][name]["kernel"])
        np.testing.assert_allclose(got, on_grid(got, alpha, fmt), rtol=1e-6)  # it lies on the layer's grid,
        assert np.all(np.abs(got - kernel) <= np.asarray(codec.error_bound(tree)["params"][name]["kernel"]) + 1e-7)


def test_a_message_of_updates_or_with_the_largest_value_as_clip_follows_the_rules_too(batch):
    params = three().init(KEY, batch).params
    for tree, codec in (
        ({"update": params}, codecs.fp8(rules=RULES)),
        ({"params": params}, codecs.fp8(rules=RULES, clip="max")),
    ):
        message, _ = codec.encode(KEY, (), tree)
        assert trees.num_bytes(message) == 4 * 20 + (15 + 4) + (6 + 4) + 4 * 10
        (entry,) = message.values()
        np.testing.assert_array_equal(entry["first"]["kernel"], params["first"]["kernel"])


def run_of(model, uplink, downlink, refine=None, **settings):
    rows = data.synthetic(shape=(4,), num_examples=20, num_test=2, num_classes=2)
    clients = data.federate(rows, data.iid(), num_clients=2)
    local = local_training(adapters.inputs(model, (0.0,), (1.0,)), optax.sgd(0.1), data.batch_plan(5, epochs=1))
    return simulate(
        algorithms.fedavg(local, refine=refine), clients, cohort_size=2, uplink=uplink, downlink=downlink, **settings
    )


def test_a_run_whose_parts_have_the_same_rules_counts_their_bytes():
    fp8 = codecs.fp8(rules=RULES)
    run = run_of(adapters.qat(three(), rules=RULES), fp8, fp8, uq_plus(points=2, rules=RULES))
    for found in run.discover():
        assert found.channel.message_bytes == 4 * 20 + 15 + 6 + 4 * 10 + 4 * 4
        assert found.channel.float32_bytes == 4 * (20 + 15 + 6 + 10)


def test_parts_with_other_rules_are_refused_unless_the_mix_is_asked_for():
    parts = adapters.qat(three(), rules=RULES), codecs.fp8(), codecs.none()
    with pytest.raises(UserError, match=r"adapter qat e4m3fn \(first=float32, second=e5m2\), codec fp8 e4m3fn"):
        run_of(*parts).init()
    assert run_of(*parts, mixed_formats=True).init().round == 0


def test_a_rule_of_a_codec_alone_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="pattern 'head' matches none of first, second, third"):
        run_of(three(), codecs.fp8(rules={"head": "float32"}), codecs.none()).init()


def test_a_rule_for_a_layer_that_is_frozen_is_no_mistake():
    rules = {"first": "float32"}
    model = adapters.subset(adapters.qat(three(), rules=rules), "third/*")
    fp8 = codecs.fp8(rules=rules)
    (up,) = [d for d in run_of(model, fp8, fp8).discover() if d.channel.direction == "up"]
    assert up.channel.message_bytes == 6 + 4 * 2 + 4 * 2


def test_a_rule_for_a_layer_holds_for_the_factors_beside_it():
    rules = {"first": "float32"}
    model = adapters.lora(adapters.qat(three(), rules=rules), rank=1, targets=("first", "second"), train=())
    fp8 = codecs.fp8(rules=rules)
    (up,) = [d for d in run_of(model, fp8, fp8).discover() if d.channel.direction == "up"]
    assert up.channel.message_bytes == 4 * (4 + 5) + (5 + 4) + (3 + 4)


def test_uq_plus_chooses_the_clip_of_each_tensor_on_its_own_grid():
    rng = np.random.default_rng(5)
    kernels = {name: jnp.asarray(rng.standard_normal((7, 6)), jnp.float32) for name in ("a", "b")}
    params = {name: {"kernel": k, "kernel_clip": jnp.max(jnp.abs(k))} for name, k in kernels.items()}
    low, high = ({f"{n}/kernel_clip": f * p["kernel_clip"] for n, p in params.items()} for f in (0.5, 1.0))

    def clips(refine):
        new, _ = refine.step(KEY, params, low, high)
        return {name: float(node["kernel_clip"]) for name, node in new.items()}

    found = clips(uq_plus(points=9, rules={"a": "e5m2"}))
    assert found["a"] == clips(uq_plus(points=9, format="e5m2"))["a"] != clips(uq_plus(points=9))["a"]
    assert found["b"] == clips(uq_plus(points=9))["b"]
    kept = clips(uq_plus(points=9, rules={"a": "float32"}))["a"]
    assert kept == float(params["a"]["kernel_clip"])


# By a config and by flags.


def configured(*assignments):
    config = base_config()
    override(config, list(assignments))
    return config


def test_what_travels_beside_the_parameters_has_their_formats_wherever_it_lies():
    """A control variate and a momentum, as scaffold and mime send them down: those of `first` come as they are."""
    kernel = np.linspace(-1.03, 1.0, 12, dtype=np.float32).reshape(3, 4)
    params = {name: {"kernel": kernel} for name in ("first", "second", "third")}
    tree = {"params": params, "extra": {"control": params, "optimizer": ({"trace": params},)}}
    codec = codecs.fp8(rules=RULES, rounding="nearest")
    message, _ = codec.encode(KEY, (), tree)
    decoded = codec.decode((), message)
    scale = lambda fmt: np.float32(1.03) / np.float32(ml_dtypes.finfo(fmt).max)
    of_format = lambda fmt: (kernel / scale(fmt)).astype(fmt).astype(np.float32) * scale(fmt)
    expected = {
        "first": kernel,
        "second": of_format(ml_dtypes.float8_e5m2),
        "third": of_format(ml_dtypes.float8_e4m3fn),
    }
    for one in (decoded["params"], decoded["extra"]["control"], decoded["extra"]["optimizer"][0]["trace"]):
        for name, wanted in expected.items():
            np.testing.assert_allclose(one[name]["kernel"], wanted, rtol=1e-6 * (name != "first"), err_msg=name)


def test_one_flag_keeps_a_layer_of_the_default_job_in_float32_in_model_and_messages():
    run = build(configured(("format_rules", "Dense_1=float32"))).simulation
    for found in run.discover():
        assert found.channel.message_bytes == 64 * 128 + 4 * 128 * 10 + 4 * (128 + 10) + 4 * 2


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([("format_rules", "Dense_9=float32")], "qat: rules: pattern 'Dense_9' matches none of Dense_0, Dense_1"),
        ([("format_rules", "Dense_1=flot32")], r"config\.format_rules: unknown number format 'flot32'"),
        ([("format_rules", "Dense_1")], r"config\.format_rules takes PATTERN=FORMAT"),
        (
            [
                ("format_rules", "Dense_1=float32"),
                ("format", "mixed"),
                ("adapter.name", "none"),
                ("uplink.name", "none"),
            ],
            r"config\.format is mixed, so each part names its own rules",
        ),
        (
            [("adapter.rules", "{'Dense_1': 'float32'}")],
            r"config\.adapter\.rules is Dense_1=float32, but config\.format_rules, .* is empty; set",
        ),
        (
            [
                ("format_rules", "Dense_1=e5m2"),
                ("adapter.name", "none"),
                ("uplink.name", "none"),
                ("downlink.name", "none"),
            ],
            r"config\.format_rules=Dense_1=e5m2 changes nothing",
        ),
    ],
)
def test_rules_that_cannot_work_are_one_sentence(assignments, message):
    config = configured(*assignments)
    with pytest.raises(UserError, match=message) as error:
        build(config)
    assert len(error.value.mistakes) == 1
