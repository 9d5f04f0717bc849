"""Norm bounding: a limit on how far any client can move the model (Sun et al. 2019, "Can You Really Backdoor
Federated Learning?", arXiv 1911.07963, section 4).

    x = sum_i p_i d_i min(1, S / || d_i ||)                         || . || over all entries of a message

Breakdown point 0, but f Byzantine ones of n equal clients move x by at most f S / n each way. With `exclude` a change
longer than S is not shortened but left out, as one that is not finite is: counted in `excluded`, named in
`excluded_clients`. `then` names another aggregator for the bounded changes. Norms are upper bounds, up to 6e-6 above
the true ones; see `privacy.norms`. Memory: one running sum, or that of `then`.
"""

import jax.numpy as jnp

from fedjax8.privacy import norms
from fedjax8.types import Aggregator, Array, PyTree


def norm_bound(bound: float = 1.0, *, exclude: bool = False, then: Aggregator | None = None) -> Aggregator:
    """The aggregator that bounds norms.

    Args:
      bound: S, above 0.
      exclude: excludes clients of longer changes, instead of shortening these.
      then: the aggregator of the bounded changes; the mean by default.

    Reports `bounded_clients`, the number of shortened changes; nothing with `exclude`.
    """
    if not bound > 0:
        raise ValueError(f"bound must be above 0; got {bound}")
    then = Aggregator() if then is None else then

    def admit(change: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
        norm = norms.norm_of(change)
        long = norms.exceeds(norm, bound)
        if exclude:
            return change, ~long, {}
        return norms.clip(change, bound, norm), jnp.array(True), {"bounded_clients": jnp.int32(long)}

    if then.admit is None:
        return then._replace(admit=admit)
    inner = then.admit

    def both(change: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
        change, first, report = admit(change)
        change, second, more = inner(change)
        return change, first & second, report | more

    return then._replace(admit=both)


EXAMPLES = ({}, {"bound": 0.5, "exclude": True})
