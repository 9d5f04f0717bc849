"""The 8-bit format of a run is set once and inherited; a mix is refused unless it is asked for."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.algorithms.refinements import uq_plus
from fedjax8.build import build
from fedjax8.codecs.fp8 import Quantized
from fedjax8.components import SEAMS, bind
from fedjax8.config import base_config, component, in_float32, override
from fedjax8.errors import UserError
from fedjax8.numerics import formats
from fedjax8.run_format import RunFormat

TREE = {"params": {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)}}


def codes_of(codec):
    """The dtypes of the quantized leaves of a message."""
    message = jax.eval_shape(lambda key, tree: codec.encode(key, codec.init(tree), tree)[0], jax.random.key(0), TREE)
    leaves = jax.tree.leaves(message, is_leaf=lambda x: isinstance(x, Quantized))
    return {leaf.codes.dtype for leaf in leaves if isinstance(leaf, Quantized)}


def bound(field, config, run_format):
    return bind(f"config.{field}", config, SEAMS[field], (), RunFormat(run_format)).make()


FP8 = component("fp8")


@pytest.mark.parametrize(
    "codec",
    [
        FP8,
        component("delta", codec=FP8),
        component("error_feedback", codec=component("fp8", clip="max")),
        component("per_path", rules={"*kernel": FP8}, default=component("none")),
    ],
    ids=lambda codec: codec.name,
)
@pytest.mark.parametrize("name", ["e4m3fnuz", "e5m2"])
def test_a_codec_inherits_the_format_of_the_run_however_deep_it_lies(codec, name):
    assert codes_of(bound("uplink", codec, name)) == {np.dtype(getattr(ml_dtypes, f"float8_{name}"))}


@pytest.mark.parametrize(
    ("field", "config", "where"),
    [
        ("uplink", component("fp8", format="e4m3fnuz"), "config.uplink.format"),
        ("downlink", component("delta", codec=component("fp8", format="e4m3fnuz")), "config.downlink.codec.format"),
        ("refine", component("uq_plus", format="e4m3fnuz"), "config.refine.format"),
    ],
)
def test_another_format_than_the_runs_is_refused_with_both_and_how_to_ask_for_a_mix(field, config, where):
    message = (
        rf"^{where} is e4m3fnuz, but config\.format, which all parts inherit, is e4m3fn; set --config\.format=e4m3fnuz "
        r"for all, or --config\.format=mixed and a format for each part$"
    )
    with pytest.raises(UserError, match=message):
        bound(field, config, "e4m3fn")
    bound(field, config, "e4m3fnuz")
    bound(field, config, "mixed")


def test_in_a_mix_every_part_names_its_format():
    with pytest.raises(UserError, match=r"config\.format is mixed, .*: set --config\.uplink\.codec\.format"):
        bound("uplink", component("delta", codec=FP8), "mixed")


def test_block_formats_are_no_part_of_it():
    """Their scales are their own, and so is the format of each."""
    assert bound("uplink", component("block_fp8", format="e5m2"), "e4m3fn").unbiased


def changed(*assignments, config=None):
    config = base_config() if config is None else config
    override(config, list(assignments))
    return config


def test_a_run_with_several_formats_is_refused_for_every_part_at_once_before_anything_is_compiled():
    parts = ("adapter", "e4m3fnuz"), ("uplink", "e5m2"), ("algorithm.refine", "e4m3fnuz")
    given = [("algorithm.refine.name", "uq_plus")] + [(f"{part}.format", name) for part, name in parts]
    with pytest.raises(UserError) as error:
        build(changed(*given))
    assert [mistake.split(", but")[0] for mistake in error.value.mistakes] == [
        f"config.{part}.format is {name}" for part, name in (parts[0], parts[2], parts[1])
    ]


def test_a_format_that_nothing_takes_is_refused():
    with pytest.raises(UserError, match=r"config\.format=e5m2 changes nothing"):
        build(changed(("format", "e5m2"), config=in_float32(base_config())))


def test_an_unknown_format_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"config\.format is 'e4m3', but must be one of e4m3fn, e4m3fnuz, e5m2, mixed"):
        build(changed(("format", "e4m3")))


def in_python(model, uplink, downlink, refine=None, **settings):
    """A run that Python code put together."""
    rows = data.synthetic(shape=(4,), num_examples=20, num_test=2)
    clients = data.federate(rows, data.iid(), num_clients=2)
    scaled = adapters.inputs(model, (0.0,), (1.0,))
    local = local_training(scaled, optax.sgd(0.1), data.batch_plan(5, epochs=1))
    algorithm = algorithms.fedavg(local, refine=refine)
    return simulate(algorithm, clients, cohort_size=2, uplink=uplink, downlink=downlink, **settings)


def logistic():
    return models.logistic()


def test_in_python_a_mix_is_refused_when_the_run_begins_unless_it_is_asked_for():
    parts = (
        adapters.qat(logistic()),
        codecs.delta(codecs.fp8("e4m3fnuz")),
        codecs.fp8("e5m2"),
        uq_plus(points=2),
    )
    with pytest.raises(UserError, match=r"formats are mixed: .*mixed_formats=True") as error:
        in_python(*parts).init()
    for part in ("codec fp8 e5m2", "adapter qat e4m3fn", "codec fp8 e4m3fnuz", "refinement uq_plus e4m3fn"):
        assert part in str(error.value)
    assert in_python(*parts, mixed_formats=True).init().round == 0
    with pytest.raises(UserError, match="adapter ptq e4m3fn, codec fp8 e5m2"):
        in_python(adapters.ptq(logistic()), codecs.fp8("e5m2"), codecs.none()).init()


def test_in_python_the_defaults_agree():
    assert formats.DEFAULT == "e4m3fn" and formats.GRADIENTS == "e5m2"
    in_python(adapters.qat(logistic()), codecs.fp8(), codecs.fp8(), uq_plus(points=2)).init()
