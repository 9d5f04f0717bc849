"""What a round leaves on the devices, as one line of the log."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax8.exchange.ledger import Ledger
from fedjax8.types import Ratio


def round_line(number: int, ledger: Ledger, report: Mapping[str, Any]) -> dict[str, Any]:
    """One round's metrics: means of the clients' `train_*` sums, cumulative bytes, what algorithm and codecs report.

    A `Ratio` becomes a number; one with nothing to divide by is left out.
    """
    examples = float(report.get("train_examples", 0)) or math.nan  # nobody trained: no mean, and not a loss of 0
    metrics: dict[str, Any] = {"round": number}
    for name, value in sorted(report.items()):
        if isinstance(value, Ratio):
            metrics |= {name: float(value.part) / float(value.whole)} if value.whole else {}
        elif name.startswith("train_") and name != "train_examples":
            metrics[name] = float(value) / examples
        elif name != "train_examples":
            metrics[name] = np.asarray(value).tolist()
    metrics["uplink_bytes"] = ledger.uplink_bytes
    metrics["downlink_bytes"] = ledger.downlink_bytes
    metrics |= ledger.by_name()
    return metrics
