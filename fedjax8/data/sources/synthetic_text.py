"""Made-up text of many clients of very unequal size: what Shakespeare's plays are to a simulator, without a file.

A Markov chain of order two over `vocabulary` symbols. After the symbols a, b comes one of `_SUCCESSORS` different
symbols, the k-th with a probability proportional to 2**-k; which symbol is the likeliest (probability 1/2, nearly)
depends on b alone, the others on a as well:

    s[t + 1] = successor[s[t - 1], s[t], k],       P(k) ~ 2**-k,   k = 1 .. 8

so a model that looks back one symbol can be right half of the time, and none can do better. All clients speak alike;
they differ in how much they say: client c has max(1, round(median * exp(sigma * normal))) sequences.

The default sizes are like those of Shakespeare's roles: of the 715 roles with the longest texts (as many as TensorFlow
Federated's set has), the median is 32 sequences of 80 characters, the deviation of its logarithm 0.99, the largest 616.
Made for tests and benchmarks, not for conclusions.
"""

import math

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset

_SUCCESSORS = 8
_CHANCES = 0.5 ** np.arange(1, _SUCCESSORS + 1) / (1 - 0.5**_SUCCESSORS)


def synthetic_text(
    num_clients: int = 715,
    vocabulary: int = 90,
    *,
    sequence_length: int = 80,
    median: float = 32.0,
    sigma: float = 1.0,
    num_test: int = 4_000,
    seed: int = 0,
) -> Dataset:
    """Sequences x int32 [N, sequence_length] with the next symbols as y; the `by_key` split gives the clients.

    Args:
        num_clients: natural clients, each with at least one sequence.
        vocabulary: symbols, at least 8.
        sequence_length: symbols in a row, at least 2.
        median: of the number of sequences of a client.
        sigma: spread of its logarithm, 0 or more.
        num_test: test sequences, dealt to the clients in proportion to their size.
        seed: same seed and settings, same bytes.
    """
    lowest = {"num_clients": 1, "vocabulary": _SUCCESSORS, "sequence_length": 2, "median": 1, "sigma": 0, "num_test": 1}
    given = (num_clients, vocabulary, sequence_length, median, sigma, num_test)
    for (name, low), value in zip(lowest.items(), given, strict=True):
        if not (value >= low and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be finite and at least {low}")
    rng = np.random.default_rng(seed)
    successors = _successors(rng, vocabulary)
    sizes = np.maximum(np.rint(median * np.exp(sigma * rng.standard_normal(num_clients))), 1).astype(np.int64)
    owners = {
        "train": np.repeat(np.arange(num_clients, dtype=np.int32), sizes),
        "test": np.sort(rng.choice(num_clients, num_test, p=sizes / sizes.sum())).astype(np.int32),
    }
    arrays = {}
    for part, owner in owners.items():
        text = _chains(rng, successors, len(owner), sequence_length + 1)
        x, y = (np.ascontiguousarray(text[places].T) for places in (slice(None, -1), slice(1, None)))
        arrays |= {f"x_{part}": x, f"y_{part}": y, f"client_{part}": owner}
    return build_dataset("synthetic_text", "synthetic_text", arrays, num_classes=vocabulary)


def _successors(rng: np.random.Generator, vocabulary: int) -> np.ndarray:
    """[vocabulary, vocabulary, 8] int32: different symbols, the first of them a function of the second index."""
    order = rng.random((vocabulary, vocabulary, vocabulary), dtype=np.float32)
    order[:, np.arange(vocabulary), rng.permutation(vocabulary)] = -1.0
    return np.argsort(order, axis=2)[..., :_SUCCESSORS].astype(np.int32)


def _chains(rng: np.random.Generator, successors: np.ndarray, rows: int, length: int) -> np.ndarray:
    """[length, rows] int32: independent chains, all advanced by one symbol at a time."""
    vocabulary = len(successors)
    text = np.empty((length, rows), np.int32)
    text[:2] = rng.integers(vocabulary, size=(2, rows))
    for t in range(2, length):
        rank = np.searchsorted(np.cumsum(_CHANCES)[:-1], rng.random(rows, dtype=np.float32), side="right")
        text[t] = successors[text[t - 2], text[t - 1], rank]
    return text


EXAMPLES = (
    {"num_clients": 20, "vocabulary": 12, "sequence_length": 9, "median": 5.0, "num_test": 30},
    {"num_clients": 3, "vocabulary": 8, "sequence_length": 2, "median": 40.0, "sigma": 0.0, "num_test": 10, "seed": 1},
)
