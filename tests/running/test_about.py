"""What a run says about its clients and messages, against what is counted by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.codecs.chain import chain
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.topk import topk
from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.errors import UserError
from fedjax8.exchange.discovery import Discovery
from fedjax8.running.about import about, leaf_bytes, split_facts
from fedjax8.running.client_accuracy import client_accuracy
from fedjax8.types import Channel, Variables

TREE = {"params": {"Dense_0": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}}


def stub(**fields):
    """A simulation of which only these fields are known."""
    return types.SimpleNamespace(variables=lambda state: NOTHING, **fields)


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
    messages = about(stub(data=owned([0, 1, 2], [0, 1, 1]), discover=lambda: found), 2)["messages"]
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


def dataset(train_owners=None, test_owners=None):
    """Rows whose x is what the model below says about them; labels are zeros."""
    train = {"x": np.int32([0, 0, 1, 0, 1]), "y": np.zeros(5, np.int32)}
    test = {"x": np.int32([1, 1, 0]), "y": np.zeros(3, np.int32)}
    return Dataset(train, test, 2, (0.0,), (1.0,), "hand made", train_owners, test_owners)


MODEL = types.SimpleNamespace(
    apply=lambda variables, batch: (batch["x"], {}),
    metrics=lambda outputs, batch: {"accuracy": (outputs == batch["y"]).astype(jnp.float32)},
)
NOTHING = Variables({}, {})


def test_accuracy_by_client_is_the_share_of_its_rows_that_are_right():
    data = dataset()
    clients = FederatedData.from_owners(data.train, np.array([0, 0, 0, 2, 2]), 3)
    found = client_accuracy(stub(model=MODEL, data=clients), None, data, most=10)
    assert found["rows"] == "train"
    assert (found["clients"], found["counts"]) == ([0, 2], [3, 2])  # client 1 has no rows
    assert found["accuracy"] == pytest.approx([2 / 3, 1 / 2])


def test_accuracy_by_client_is_on_test_rows_where_the_data_names_their_clients():
    owners = np.int32([0, 0, 1, 1, 1])
    data = dataset(owners, np.int32([0, 1, 1]))
    whole = FederatedData.from_owners(data.train, owners, 2)
    found = client_accuracy(stub(model=MODEL, data=whole), None, data, most=10)
    assert (found["rows"], found["accuracy"]) == ("test", [0.0, 0.5])
    mixed = FederatedData.from_owners(data.train, np.int32([0, 1, 0, 1, 0]), 2)
    assert client_accuracy(stub(model=MODEL, data=mixed), None, data, most=10)["rows"] == "train"


def test_a_model_without_accuracy_cannot_be_asked_for_it():
    data = dataset()
    clients = FederatedData.from_owners(data.train, np.zeros(5, np.int32), 1)
    silent = types.SimpleNamespace(apply=MODEL.apply, metrics=lambda outputs, batch: {})
    with pytest.raises(UserError, match="no metric called accuracy"):
        client_accuracy(stub(model=silent, data=clients), None, data, most=1)
