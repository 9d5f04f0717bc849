"""Measures of skew: distance of each client's label distribution to the global one, and client sizes.

With p the label distribution of a client, g that of all clients' rows pooled, and m = (p + g) / 2,

    js(p, g)        = (KL(p || m) + KL(g || m)) / 2     in bits, between 0 and 1
    hellinger(p, g) = ||sqrt(p) - sqrt(g)||_2 / sqrt(2)        between 0 and 1

(Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37(1), 1991.) Both are 0 for a
client that mirrors the whole and near 1 for a client whose classes are rare elsewhere.

Small clients look skewed even when they are not: with n rows drawn from g, n well above classes, js is about
(classes - 1) / (8 n ln 2) bits on average. Compare with an IID split of the same sizes.
"""

from typing import NamedTuple

import numpy as np

from fedjax8.data.federated import FederatedData

_CLIENTS_AT_ONCE = 1 << 16  # bounds the float64 temporaries to a few hundred MB for 100 classes and any K


class LabelSkew(NamedTuple):
    """Per-client skew, NaN for a client without rows, and the client sizes."""

    js: np.ndarray  # [K] float64, bits
    hellinger: np.ndarray  # [K] float64
    sizes: np.ndarray  # [K] int32, rows

    def summary(self) -> dict[str, float]:
        """Means over clients with rows, and the spread of sizes, as plain floats to log beside results."""
        filled = self.sizes > 0
        return {
            "js_mean": float(self.js[filled].mean()) if filled.any() else 0.0,
            "js_max": float(self.js[filled].max()) if filled.any() else 0.0,
            "hellinger_mean": float(self.hellinger[filled].mean()) if filled.any() else 0.0,
            "hellinger_max": float(self.hellinger[filled].max()) if filled.any() else 0.0,
            "size_min": float(self.sizes.min()),
            "size_median": float(np.median(self.sizes)),
            "size_mean": float(self.sizes.mean()),
            "size_max": float(self.sizes.max()),
            "size_std": float(self.sizes.std()),
        }


def label_skew(data: FederatedData, num_classes: int) -> LabelSkew:
    """Jensen-Shannon divergence (bits) and Hellinger distance of every client's labels to the pooled labels.

    Args:
        data: needs an integer label column `y`, one label a row.
        num_classes: labels lie in [0, num_classes).
    """
    counts = data.label_counts(num_classes)
    pooled = counts.sum(axis=0, dtype=np.float64)
    pooled /= max(pooled.sum(), 1.0)
    js, hellinger = (np.full(data.num_clients, np.nan) for _ in range(2))
    for start in range(0, data.num_clients, _CLIENTS_AT_ONCE):
        block = slice(start, start + _CLIENTS_AT_ONCE)
        filled = data.sizes[block] > 0
        own = counts[block][filled].astype(np.float64)
        own /= own.sum(axis=1, keepdims=True)
        middle = (own + pooled) / 2
        js[block][filled] = (_kl_bits(own, middle) + _kl_bits(np.broadcast_to(pooled, own.shape), middle)) / 2
        hellinger[block][filled] = np.sqrt(((np.sqrt(own) - np.sqrt(pooled)) ** 2).sum(axis=1) / 2)
    return LabelSkew(js, hellinger, data.sizes)


def _kl_bits(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    ratio = np.divide(p, q, out=np.ones_like(q), where=p > 0)  # 0 log 0 = 0
    return (p * np.log2(ratio)).sum(axis=1)
