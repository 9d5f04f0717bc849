"""Label skew drawn from a Dirichlet distribution, in the two forms in use.

balanced=True, equal client sizes: client k draws a class prior q_k ~ Dirichlet(concentration *
ones(classes)). Places, sizes equal to within one row, are filled in random order; a place of client k takes
an unused row of a class drawn from q_k, and a class that has run out is left out and q_k renormalized. This
is the split of the FedDyn code (Acar et al., Federated learning based on dynamic regularization, ICLR 2021);
drawing the order of places as one permutation, and falling back on the remaining rows where q_k gives the remaining
classes no mass at all, are project choices.

balanced=False, label-wise: each class is cut over the clients in proportions ~ Dirichlet(concentration *
ones(clients)), drawn again until every client has `min_size` rows (the form of Li et al., Federated learning
on non-IID data silos, ICDE 2022).

Smaller concentration, stronger skew: toward 0 a client holds one class, toward infinity the split is IID.
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, client_ids, even_sizes, num_classes, row_labels, rows_by_class
from fedjax8.errors import UserError

# Label-wise draws before giving up; one takes under a millisecond for 1000 clients and 10 classes.
_MAX_TRIES = 300
# Bounds both the [places, classes] temporaries and the draws repeated when a class runs out.
_PLACES_AT_ONCE = 8192


def dirichlet(concentration: float = 0.3, *, balanced: bool = True, min_size: int = 1) -> Split:
    """A label-skewed split that uses every row.

    Args:
        concentration: of the Dirichlet distribution, above 0.
        balanced: equal client sizes, else label-wise (sizes then vary as well).
        min_size: rows that every client gets at least.
    """
    if not (concentration > 0 and np.isfinite(concentration)):
        raise ValueError(f"concentration is {concentration}; it must be a finite number above 0")
    if min_size < 1:
        raise ValueError(f"min_size is {min_size}; it must be at least 1")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows = checked_rows(dataset, num_clients, min_size)
        labels, number = row_labels(dataset), num_classes(dataset)
        available = np.bincount(labels, minlength=number)
        if balanced:
            priors = rng.dirichlet(np.full(number, concentration), size=num_clients)
            places = rng.permutation(client_ids(even_sizes(rows, num_clients)))
            classes = _fill_places(rng, places, priors, available)
            by_class = places[np.argsort(classes, kind="stable")]
        else:
            counts = _cut_classes(rng, concentration, available, num_clients, min_size)
            by_class = np.repeat(np.tile(np.arange(num_clients, dtype=np.int32), len(available)), counts.ravel())
        owners = np.empty(rows, np.int32)
        owners[rows_by_class(rng, labels)] = by_class
        return owners

    return split


def _fill_places(rng, places, priors, available):
    """[N] class of each place, as if places were filled one after the other; each class is used up exactly.

    A block of places is drawn at once, kept up to the place that uses up a class, and drawn again from there.
    That is the one-by-one process, in about (N / block + classes) steps.
    """
    available, classes, done = available.copy(), np.empty(len(places), np.int32), 0
    while done < len(places):
        drawn = _draw_classes(rng, priors[places[done : done + _PLACES_AT_ONCE]], available)
        counts = np.bincount(drawn, minlength=len(available))
        keep = len(drawn)
        out = np.flatnonzero((counts >= available) & (counts > 0))
        if len(out):
            by_class, firsts = np.argsort(drawn, kind="stable"), np.cumsum(counts) - counts
            keep = int(by_class[firsts[out] + available[out] - 1].min()) + 1
        classes[done : done + keep] = drawn[:keep]
        available -= np.bincount(drawn[:keep], minlength=len(available))
        done += keep
    return classes


def _draw_classes(rng, priors, available):
    """[n] one class for each row of priors [n, classes], among those still available."""
    mass = priors * (available > 0)
    lost = mass.sum(axis=1) == 0.0
    mass[lost] = available
    cumulative = np.cumsum(mass, axis=1)
    total = cumulative[:, -1:]
    # Strictly below the total, so that the first cumulative value above it belongs to a class with mass.
    point = np.minimum(rng.random((len(mass), 1)) * total, np.nextafter(total, 0.0))
    return (cumulative <= point).sum(axis=1)


def _cut_classes(rng, concentration, available, num_clients, min_size):
    """[classes, K] rows of each class for each client."""
    for _ in range(_MAX_TRIES):
        proportions = rng.dirichlet(np.full(num_clients, concentration), size=len(available))
        cuts = np.floor(np.cumsum(proportions, axis=1) * available[:, None]).astype(np.int64)
        cuts = np.minimum(cuts, available[:, None])
        cuts[:, -1] = available
        counts = np.diff(cuts, axis=1, prepend=0)
        if counts.sum(axis=0).min() >= min_size:
            return counts
    raise UserError(
        f"no label-wise Dirichlet split with concentration {concentration} gave each of {num_clients} "
        f"clients {min_size} rows in {_MAX_TRIES} draws; use balanced=True, a larger concentration, fewer "
        "clients or a smaller min_size"
    )


EXAMPLES = (
    {},
    {"concentration": 0.05},
    {"concentration": 100.0, "min_size": 10},
    {"concentration": 1.0, "balanced": False},
    {"concentration": 0.5, "balanced": False, "min_size": 3},
)
