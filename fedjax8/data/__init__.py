"""Data: sources of rows, their split over clients, measures of unequal splits.

Everything here is NumPy except `augment` and `batches`, which run on the device.
"""

from fedjax8.data.arrays import from_arrays
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import Dataset, FederatedData, Windows, federate, match_test_owners
from fedjax8.data.held_out import held_out
from fedjax8.data.heterogeneity import label_skew
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.partitions.dirichlet import dirichlet
from fedjax8.data.partitions.iid import iid
from fedjax8.data.partitions.label_first import label_first
from fedjax8.data.partitions.quantity_skew import quantity_skew
from fedjax8.data.partitions.shards import shards
from fedjax8.data.partitions.sorted_share import sorted_share
from fedjax8.data.partitions.windows import windows
from fedjax8.data.sources.cifar10 import cifar10
from fedjax8.data.sources.cifar100 import cifar100
from fedjax8.data.sources.csv import csv
from fedjax8.data.sources.digits import digits
from fedjax8.data.sources.fashion_mnist import fashion_mnist
from fedjax8.data.sources.hf import hf
from fedjax8.data.sources.image_folder import image_folder
from fedjax8.data.sources.leaf import leaf
from fedjax8.data.sources.mapped import mapped
from fedjax8.data.sources.mnist import mnist
from fedjax8.data.sources.npz import npz
from fedjax8.data.sources.part import part
from fedjax8.data.sources.pcam import pcam
from fedjax8.data.sources.shakespeare import shakespeare
from fedjax8.data.sources.speech_commands import speech_commands
from fedjax8.data.sources.synthetic import synthetic, synthetic_clients
from fedjax8.data.sources.synthetic_text import synthetic_text
from fedjax8.data.sources.tff_h5 import tff_h5
from fedjax8.data.storage import open_federated, save_clients, save_federated
from fedjax8.data.validation import validation_part

__all__ = [
    "Dataset",
    "FederatedData",
    "Windows",
    "batch_plan",
    "by_key",
    "cifar10",
    "cifar100",
    "csv",
    "digits",
    "dirichlet",
    "fashion_mnist",
    "federate",
    "from_arrays",
    "held_out",
    "hf",
    "iid",
    "image_folder",
    "label_first",
    "label_skew",
    "leaf",
    "mapped",
    "match_test_owners",
    "mnist",
    "npz",
    "open_federated",
    "part",
    "pcam",
    "quantity_skew",
    "save_clients",
    "save_federated",
    "shakespeare",
    "shards",
    "sorted_share",
    "speech_commands",
    "synthetic",
    "synthetic_clients",
    "synthetic_text",
    "tff_h5",
    "validation_part",
    "windows",
]
