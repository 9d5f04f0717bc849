"""Facts about a run's clients and messages: `about.json`, written once, for `compare`, `plot` and the page.

    {"split": {"clients", "rows", "classes", "sizes", "labels", "skew"}, "messages": [{"direction", "name", ...}],
     "timeline": [{"round", "seconds", "clients", "received", ...}]}    the last with a clock, see `timeline`

A resumed run does not need it. Clients are shown evenly spaced by number where they are many, so that the
file stays small and ten million clients stay unread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.data.checks import check_classes
from fedjax8.data.federated import FederatedData
from fedjax8.data.heterogeneity import label_skew
from fedjax8.engine.simulation import Simulation
from fedjax8.exchange.discovery import Discovery
from fedjax8.keys import random_key
from fedjax8.running.graphs import graph_facts
from fedjax8.running.timeline import timeline

SIZES = 1000
"""Most clients whose size is written."""
LABELED = 100
"""Most clients whose labels are counted, and most labels that are counted at all."""
SKEW_POSITIONS = 1 << 22
"""Most rows over all clients for which the skew of labels is measured: about a second."""


def about(simulation: Simulation, num_classes: int | None, private: bool = False) -> dict[str, Any]:
    """The contents of `about.json`, ready for JSON; with `private`, nothing that is counted on rows, and nobody who
    takes part in a round is named."""
    found: dict[str, Any] = {"split": split_facts(simulation.data, num_classes, private)}
    found |= {"messages": message_facts(simulation.discover())}
    rounds = [] if private else timeline(simulation)
    graph = graph_facts(simulation, private)
    return found | ({"timeline": rounds} if rounds else {}) | ({"graph": graph} if graph else {})


def evenly(count: int, most: int) -> np.ndarray:
    """int64 `[min(count, most)]`: numbers from 0 to count - 1, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def split_facts(clients: FederatedData, num_classes: int | None, private: bool = False) -> dict[str, Any]:
    """Sizes of clients in rows, rows of each label by client, and measures of skew.

    `labels` and `skew` are None where a row has no single class, labels or rows are too many, or rows are `private`.
    """
    number = num_classes or 0
    countable = not private and np.ndim(clients.columns["y"]) == 1 and 0 < number <= LABELED
    shown = evenly(clients.num_clients, LABELED)

    def count(client: int) -> list[int]:
        labels = np.asarray(clients.columns["y"][clients.rows(client)])
        check_classes(labels, number, f"client {clients.named(np.array([client]))[0]}:")  # on disk may be anything
        return np.bincount(labels, minlength=number).tolist()

    labels = {
        "clients": shown.tolist(),
        "counts": [count(int(c)) for c in shown] if countable else [],
    }
    measured = countable and clients.num_positions <= SKEW_POSITIONS
    return {
        "clients": clients.num_clients,
        "rows": clients.num_examples,
        "classes": num_classes,
        "sizes": clients.windows(evenly(clients.num_clients, SIZES))[1].tolist(),
        "labels": labels if countable else None,
        "skew": label_skew(clients, number).summary() if measured else None,
    }


def message_facts(found: Sequence[Discovery]) -> list[dict[str, Any]]:
    """Each kind of message: its bytes, those in float32, and its bytes by leaf of the tree that is sent.

    Arrays of a message that belong to no leaf of the tree go by their own path. With optional sections
    (`types.Sections`) these are the bytes of all of them.
    """
    kinds = {found_.channel[:2]: found_ for found_ in found if not found_.channel.part}
    return [
        {
            "direction": direction,
            "name": name,
            "message_bytes": sum(leaves.values()),
            "float32_bytes": kind.channel.float32_bytes,
            "leaves": leaves,
        }
        for (direction, name), kind in kinds.items()
        for leaves in [leaf_bytes(kind)]
    ]


def leaf_bytes(kind: Discovery) -> dict[str, int]:
    """Bytes of one message by leaf of the tree that is sent, read off the shapes of the encoded message."""
    key, codec = random_key(0), kind.codec
    message = jax.eval_shape(lambda tree: codec.encode(key, codec.init(tree), tree)[0], kind.tree)
    names, total = trees.named_leaves(kind.tree), {}
    for path, leaf in trees.named_leaves(message).items():
        owner = _owner(path, names)
        total[owner] = total.get(owner, 0) + trees.num_bytes(leaf)
    return total


def _owner(path: str, names: Mapping[str, Any]) -> str:
    """The leaf of the tree that a path in the message leads through; the path itself if there is none."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in names), path)
