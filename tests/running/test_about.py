"""What a run says about its clients and messages, against what is counted by hand."""

import types

import jax.numpy as jnp
import numpy as np

from fedjax8.codecs.chain import chain
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.topk import topk
from fedjax8.data.federated import FederatedData
from fedjax8.exchange.discovery import Discovery
from fedjax8.running.about import about, leaf_bytes, split_facts
from fedjax8.systems.none import none as no_clock
from fedjax8.types import Channel

TREE = {"params": {"Dense_0": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}}


def stub(**fields):
    """A simulation of which only these fields are known, and that its clients are on no graph."""
    return types.SimpleNamespace(algorithm=types.SimpleNamespace(graph=None), **fields)


def discovery(codec, direction="up", part=""):
    return Discovery(Channel(direction, "model", 0, 60, part), TREE, codec, {})


def owned(owners, labels):
    return FederatedData.from_owners({"x": np.zeros((len(labels), 2)), "y": np.int32(labels)}, np.array(owners), 3)


def test_bytes_of_a_message_are_those_of_each_leaf_as_encoded():
    assert leaf_bytes(discovery(none())) == {"params/Dense_0/bias": 12, "params/Dense_0/kernel": 48}
    # one byte a weight and the float32 clip that goes with it
    assert leaf_bytes(discovery(fp8())) == {"params/Dense_0/bias": 12, "params/Dense_0/kernel": 12 + 4}
    assert leaf_bytes(discovery(chain((fp8(),)))) == leaf_bytes(discovery(fp8()))


def test_what_belongs_to_no_leaf_goes_by_its_own_path():
    """Half of 15 values, rounded up: 8 in float32, and 8 positions of 4 bits."""
    assert leaf_bytes(discovery(topk(0.5))) == {"values/0": 32, "positions/0": 4}


def test_each_kind_of_message_is_there_once_whatever_parts_it_has():
    found = [discovery(none()), discovery(none(), part=":0"), discovery(fp8(), "down")]
    messages = about(stub(data=owned([0, 1, 2], [0, 1, 1]), discover=lambda: found, system=no_clock()), 2)["messages"]
    assert [(m["direction"], m["message_bytes"], m["float32_bytes"]) for m in messages] == [
        ("up", 60, 60),
        ("down", 28, 60),
    ]


def test_a_split_is_told_by_sizes_and_labels_of_its_clients():
    split = split_facts(owned([0, 0, 2, 2, 2, -1], [0, 1, 1, 1, 0, 1]), 2)
    assert (split["clients"], split["rows"], split["classes"], split["sizes"]) == (3, 5, 2, [2, 0, 3])
    assert split["labels"] == {"clients": [0, 1, 2], "counts": [[1, 1], [0, 0], [1, 2]]}
    assert split["skew"]["size_max"] == 3


def test_labels_of_sequences_and_of_too_many_classes_are_left_out():
    sequences = FederatedData.from_owners({"y": np.zeros((4, 7), np.int32)}, np.array([0, 0, 1, 1]), 2)
    assert split_facts(sequences, 2)["labels"] is None and split_facts(sequences, 2)["skew"] is None
    assert split_facts(owned([0, 1], [0, 1]), 101)["labels"] is None


def test_of_many_clients_some_are_shown_evenly_spaced():
    starts, sizes = np.zeros(5000, np.int64), np.arange(5000, dtype=np.int32) % 3
    split = split_facts(FederatedData({"y": np.zeros(2, np.int32)}, None, starts, sizes), 1)
    assert len(split["sizes"]) == 1000 and len(split["labels"]["counts"]) == 100
    assert (split["labels"]["clients"][0], split["labels"]["clients"][-1]) == (0, 4999)
