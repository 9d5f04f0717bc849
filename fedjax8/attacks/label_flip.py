"""Label flip: attackers train on label c - 1 - y in place of y (Biggio et al. 2012, "Poisoning Attacks against Support
Vector Machines", for two classes; this mapping of c classes as in Fang et al. 2020, arXiv 1911.11815, section 5).

They send an honest update of these labels, so that this works with every algorithm and looks like data.
"""

import jax.numpy as jnp

from fedjax8.attacks._members import members
from fedjax8.errors import UserError
from fedjax8.types import Attack


def label_flip(share: float = 0.2, *, num_classes: int | None, count: int | None = None, seed: int = 0) -> Attack:
    """Attackers whose labels are flipped; `share`, `count` and `seed` as in `sign_flip`.

    Labels are column `y`, integers; negative ones, for rows without a label, stay. The log's training loss includes
    theirs.
    """
    if num_classes is None:
        raise UserError("label_flip exchanges class numbers, and the targets of this task are none; take sign_flip")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; got {num_classes}")

    def batch(columns):
        y = columns["y"]
        return columns | {"y": jnp.where(y < 0, y, num_classes - 1 - y).astype(y.dtype)}

    return Attack(members(share, count, seed), batch=batch)


EXAMPLES = ({"num_classes": 10}, {"num_classes": 10, "count": 1})
