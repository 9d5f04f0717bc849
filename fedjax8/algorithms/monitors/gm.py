"""The local condition of geometric monitoring: everyone synchronizes as soon as one worker has drifted too far.

    S_k = [||u_k||^2 > Theta],      synchronize if any is 1: as if H = max_k ||u_k||^2 >= Var      always

In the code of FDA's authors, who credit it to Kamp et al. ("Efficient decentralized deep learning by dynamic model
averaging", arXiv 1807.03210); not in the paper's v1. Of H only the side of Theta is known, so the estimate is +inf or
-inf. Message: one byte; the authors' formula counts the one bit it needs.
"""

import jax.numpy as jnp

from fedjax8.algorithms.monitors._direction import norm2
from fedjax8.algorithms.monitors.base import Monitor


def gm() -> Monitor:
    """The monitor that sends whether a worker's own drift is above the threshold."""

    def sends(drift, direction, threshold):
        return {"above": (norm2(drift) > threshold).astype(jnp.uint8)}

    def watch(sent):
        return {"above": sent["above"].astype(jnp.float32)}

    def estimate(reduced, step):
        return jnp.where(reduced.highest["above"] > 0, jnp.float32(jnp.inf), -jnp.inf)

    return Monitor(estimate, sends, watch, compat_bytes=0.125)


EXAMPLES = ({},)
