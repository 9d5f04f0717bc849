"""Figures of one's own after `use_style` beside the one that `plot_runs` draws."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgba

from fedjax8.results.figures import plot_runs
from fedjax8.results.look import COLORS, use_style


@pytest.fixture
def drawn(tmp_path, write_folder):
    """Axes with two curves by `plot_runs`, and likewise by `pyplot` in its style."""
    for name in ("a", "b"):
        lines = [
            {"round": r, "uplink_bytes": r, "downlink_bytes": r, "test_accuracy": r / 10, "test_loss": 1.0}
            for r in range(1, 6)
        ]
        write_folder(tmp_path / name, {"seed": 0, "uplink": {"name": name}}, lines)
    by_us = plot_runs([tmp_path / "a", tmp_path / "b"], "rounds")
    with matplotlib.rc_context():
        use_style()
        figure, own = plt.subplots()
        for name in ("a", "b"):
            own.plot([1, 2], [3, 4], label=name)
        own.legend()
        figure.canvas.draw()
        yield by_us, own
        plt.close(figure)


LOOKS = {
    "colors of lines": lambda ax: [to_rgba(line.get_color()) for line in ax.lines],
    "spines": lambda ax: [(ax.spines[s].get_visible(), s) for s in ("left", "right", "top", "bottom")],
    "color of the axes": lambda ax: to_rgba(ax.spines["left"].get_edgecolor()),
    "grid": lambda ax: [(to_rgba(g.get_color()), g.get_linewidth(), g.get_visible()) for g in ax.get_xgridlines()[:2]],
    "grid below": lambda ax: ax.get_axisbelow(),
    "ticks": lambda ax: [
        (to_rgba(t.tick1line.get_color()), t.tick1line.get_markersize()) for t in ax.xaxis.get_major_ticks()[:2]
    ],
    "labels of ticks": lambda ax: [(to_rgba(t.get_color()), t.get_fontsize()) for t in ax.get_xticklabels()[:2]],
    "titles of axes": lambda ax: ax.xaxis.label.get_fontsize(),
    "legend": lambda ax: [t.get_fontsize() for t in ax.get_legend().get_texts()],
    "frame of the legend": lambda ax: (
        ax.get_legend().get_frame().get_edgecolor()[3],
        ax.get_legend().get_frame().get_alpha(),
    ),
    "layout": lambda ax: type(ax.figure.get_layout_engine()),
}


def test_own_figures_look_like_those_of_plot_runs(drawn):
    by_us, own = drawn
    assert {name: look(own) for name, look in LOOKS.items()} == {name: look(by_us) for name, look in LOOKS.items()}


def test_colors_follow_the_palette_to_its_end():
    with matplotlib.rc_context():
        use_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS)
