"""SketchFDA (Theologitis et al. 2024, arXiv 2405.20988): the mean drift's length from a count sketch.

    S_k = (||u_k||^2, sk(u_k)),      H = v - M2(mean sk(u_k)) / (1 + eps)

Sketches are linear: their mean is the sketch of the mean drift, and H >= Var wherever M2 overshoots ||mean u||^2 by no
more than the factor 1 + eps. Message: float32 `norm2`, then the table row by row; 4 (rows columns + 1) bytes, 5004 by
default. The paper gives the sizes as orders of magnitude; 5 rows, 250 columns and eps = 1 / sqrt(columns) are those of
the authors' experiments. The hash family is ours (`numerics.sketch`).

That eps does not make delta small. A row is off by sqrt(2 / columns) = 0.089 in relative terms (one standard
deviation, drifts with many entries) and eps is 0.063, so the median of five overshoots with probability delta = 0.09.
With that table, by the chi-square distribution, eps 0.0894 has delta 0.031, 0.1118 has 0.011, 0.1342 has 0.003 and
0.1789 has 0.0002; the price is to synchronize slightly earlier. H may be negative, as M2 may overshoot.
"""

import math

from fedjax8.algorithms.monitors._direction import norm2
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.numerics.sketch import second_moment
from fedjax8.numerics.sketch import sketch as table_of


def sketch(rows: int = 5, columns: int = 250, *, eps: float | None = None, seed: int = 0) -> Monitor:
    """The monitor that sends a length and a sketch.

    Args:
      rows: of the table, 1 to 32; more make a bad estimate less likely.
      columns: of the table; the error falls with their square root.
      eps: relative overshoot that is allowed for, at least 0; None for 1 / sqrt(columns).
      seed: of the hash, from 0 up below 2**32; one for all workers and the whole run.
    """
    if not 1 <= rows <= 32 or columns < 1 or not 0 <= seed < 1 << 32:
        raise ValueError(f"need 1 <= rows <= 32, columns >= 1, 0 <= seed < 2**32; got {rows}, {columns}, {seed}")
    if eps is not None and not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number from 0 up, or None; got {eps}")
    allowed = 1 + (1 / math.sqrt(columns) if eps is None else eps)

    def sends(drift, direction, threshold):
        return {"norm2": norm2(drift), "table": table_of(drift, rows, columns, seed)}

    def estimate(reduced, step):
        return reduced.mean["norm2"] - second_moment(reduced.mean["table"]) / allowed

    return Monitor(estimate, sends)


EXAMPLES = ({}, {"rows": 3, "columns": 20, "eps": 0.3, "seed": 7})
