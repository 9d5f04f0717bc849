"""The look of pictures: their colors, and the same for figures of one's own."""

from typing import Any

from fedjax8.errors import UserError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
"""Okabe and Ito's palette, which color-blind readers can distinguish, without its yellow: too pale for lines."""
GRID = "#e4e4e4"
"""Color of the lines behind curves."""
LINES = "#888888"
"""Color of axes, ticks and guides."""


def require_matplotlib() -> None:
    """Raises `UserError` with the command that installs matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'fedjax8[plot]'") from error


def use_style() -> None:
    """From here on every figure of matplotlib looks like those of `plot_runs`: `COLORS`, a pale grid, open axes.

    Sets matplotlib's `rcParams`. Raises `UserError` if matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib
    from cycler import cycler

    parameters: Any = matplotlib.rcParams
    look = {
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": LINES,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": LINES,
        "ytick.color": LINES,
        "xtick.labelcolor": "black",
        "ytick.labelcolor": "black",
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "axes.titlesize": 11,
        "legend.edgecolor": "none",
        "legend.fontsize": 8.5,
        "figure.constrained_layout.use": True,
    }
    parameters.update(look)
