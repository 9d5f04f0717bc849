"""Federated algorithms, one file each, written like the papers they come from."""

from fedjax8.algorithms.agnostic import agnostic
from fedjax8.algorithms.centralized import centralized
from fedjax8.algorithms.curriculum import curriculum
from fedjax8.algorithms.delayed import delayed
from fedjax8.algorithms.diloco import diloco
from fedjax8.algorithms.dp_fedavg import dp_fedavg
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fda_opt import fda_opt
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedcode import fedcode
from fedjax8.algorithms.feddyn import feddyn
from fedjax8.algorithms.fedecado import fedecado
from fedjax8.algorithms.fedgate import fedgate
from fedjax8.algorithms.fedlora import fedlora
from fedjax8.algorithms.fednova import fednova
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.fedper import fedper
from fedjax8.algorithms.fedprox import fedprox
from fedjax8.algorithms.fedrep import fedrep
from fedjax8.algorithms.hetlora import hetlora
from fedjax8.algorithms.local_only import local_only
from fedjax8.algorithms.mime import mime
from fedjax8.algorithms.mimelite import mimelite
from fedjax8.algorithms.moon import moon
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, from_parts
from fedjax8.algorithms.pr_fl import pr_fl
from fedjax8.algorithms.qfedavg import qfedavg
from fedjax8.algorithms.rolora import rolora
from fedjax8.algorithms.salf import salf
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.algorithms.streaming_diloco import streaming_diloco

__all__ = [
    "Aggregate",
    "ClientOutput",
    "ServerOutput",
    "ServerState",
    "agnostic",
    "centralized",
    "curriculum",
    "delayed",
    "diloco",
    "dp_fedavg",
    "fda",
    "fda_opt",
    "fedavg",
    "fedcode",
    "feddyn",
    "fedecado",
    "fedgate",
    "fedlora",
    "fednova",
    "fedopt",
    "fedper",
    "fedprox",
    "fedrep",
    "from_parts",
    "hetlora",
    "local_only",
    "mime",
    "mimelite",
    "moon",
    "pr_fl",
    "qfedavg",
    "rolora",
    "salf",
    "scaffold",
    "streaming_diloco",
]
