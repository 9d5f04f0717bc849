"""A codec in one file of one's own: found by the conformance tests, and named `package.module:factory` in a run."""

import importlib
import importlib.util
import pathlib
import sys
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.build import build
from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError

FILE = '''"""Halves: float16 in place of float32."""

import jax
import jax.numpy as jnp

from fedjax8.codecs._leaves import leafwise
from flax import struct


@struct.dataclass
class Half:
    """A leaf on the wire."""

    values: jax.Array


def halves(min_ndim=2):
    """Codec that rounds to float16."""
    encode = lambda key, x: Half(x.astype(jnp.float16))
    decode = lambda message: message.values.astype(jnp.float32)
    return leafwise(encode, decode, Half, min_ndim=min_ndim, min_size=0, unbiased=False)


EXAMPLES = ({}, {"min_ndim": 1})
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package on the path that holds halves.py and nothing else."""
    name = f"their_codecs_{uuid.uuid4().hex}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "halves.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield name
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


@pytest.fixture
def conformance():
    """The module of the conformance tests, by itself."""
    path = pathlib.Path(__file__).with_name("test_conformance.py")
    spec = importlib.util.spec_from_file_location("fedjax8_conformance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_conformance_tests_find_it_with_its_examples_and_it_passes_them(package, conformance, monkeypatch):
    found = dict(conformance.cases(package))
    assert list(found) == ["halves-0", "halves-1"]
    monkeypatch.setattr(conformance, "CODECS", found)
    for name in found:
        conformance.test_message_shapes_are_known_without_encoding(name)
        conformance.test_the_state_keeps_its_structure(found[name])
        conformance.test_leaves_that_are_not_float32_pass_through(name)
        for which in ("normal", "zero", "tiny"):
            conformance.test_decoding_gives_back_the_structure_shapes_and_dtypes(name, which)
            conformance.test_what_is_decoded_is_finite(name, which)
            conformance.test_the_message_on_the_wire_has_the_counted_length(name, which)
    conformance.test_vmap_equals_a_loop_over_clients("halves-1")
    # float16 ends at 65504, which these tests tell
    with pytest.raises(AssertionError):
        conformance.test_what_is_decoded_is_finite("halves-0", "huge")


def config(uplink):
    made = in_float32(base_config())
    made.data = component("synthetic", shape=(6,), num_examples=40, num_test=10)
    made.model = component("logistic")
    made.num_clients, made.cohort_size, made.client.batch_size, made.client.epochs = 4, 2, 5, 1
    made.partition, made.executor = component("iid"), component("loop")
    made.uplink = uplink
    return made


def test_a_round_of_fedavg_sends_it(package):
    experiment = build(config(component(f"{package}.halves:halves", min_ndim=1)))
    simulation = experiment.simulation
    state = simulation.init()
    sizes = [x.size for x in jax.tree.leaves(simulation.variables(state).params)]
    state, line = simulation.run_round(state)
    assert line["uplink_bytes"] == 2 * 2 * sum(sizes)  # two clients, two bytes a value
    assert line["downlink_bytes"] == 2 * 4 * sum(sizes)
    assert bool(trees.all_finite(simulation.variables(state).params)) and np.isfinite(line["train_loss"])
    assert 0 < line["uplink_quantization_error"] < 2.0**-20  # squares of half a unit in the last of 11 bits


def test_a_module_or_a_factory_that_is_not_there_is_named(package):
    for name in (f"{package}.halves:halfs", f"{package}.thirds:thirds"):
        with pytest.raises(UserError, match=name.split(":")[1]):
            build(config(component(name)))


def test_its_bytes_are_float16(package):
    halves = importlib.import_module(f"{package}.halves").halves
    message, _ = halves().encode(jax.random.key(0), (), {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
    assert trees.num_bytes(message) == 2 * 12 + 4 * 4
