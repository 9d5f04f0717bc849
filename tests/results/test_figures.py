import io
import json
import sys

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.results.comparison import compare_runs
from fedjax8.results.figures import (
    check_picture_name,
    draw_comparison,
    draw_gain,
    log_ticks,
    plot_runs,
    save_picture,
    write_whole,
)


@pytest.fixture
def folders(tmp_path, write_run):
    return [
        write_run(tmp_path / "a0", [0.2, 0.4], (1000, 0), timed=False, seed=0, bits=32),
        write_run(tmp_path / "a1", [0.4, 0.8], (1000, 0), timed=False, seed=1, bits=32),
        write_run(tmp_path / "b0", [0.1, 0.5], (250, 0), timed=False, seed=0, bits=8),
    ]


def drawn_text(ax):
    """What matplotlib writes into a picture, as text."""
    import matplotlib

    image = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        ax.figure.savefig(image, format="svg")
    return image.getvalue()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_each_setting_is_one_line_of_means_with_a_band(folders):
    ax = plot_runs(folders)
    assert labels(ax) == ["bits=32", "bits=8"]
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_xdata(), [1000, 2000])
    np.testing.assert_allclose(first.get_ydata(), [0.3, 0.6], rtol=1e-12)
    np.testing.assert_array_equal(second.get_xdata(), [250, 500])
    # seeds 0.2 and 0.4 apart have sample deviations 0.2 / sqrt(2) and 0.4 / sqrt(2): the band to each side
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.3 - 0.2 / np.sqrt(2), rel=1e-9)
    assert band[:, 1].max() == pytest.approx(0.6 + 0.4 / np.sqrt(2), rel=1e-9)
    assert first.get_color() != second.get_color()


def test_the_byte_axis_is_in_decimal_units_and_logarithmic_only_for_large_ratios(folders, tmp_path, write_run):
    ax = plot_runs(folders)
    assert ax.get_xscale() == "linear"
    assert ax.xaxis.get_major_formatter()(1_500_000) == "1.5 MB"
    far = write_run(tmp_path / "far", [0.1, 0.2], (100_000, 0), bits=1)
    assert plot_runs([*folders, far]).get_xscale() == "log"
    assert plot_runs([*folders, far], logx=False).get_xscale() == "linear"
    assert plot_runs([*folders, far], x="rounds").get_xscale() == "linear"


def test_points_at_zero_bytes_are_left_out_of_a_logarithmic_axis(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.1, 0.2], (100, 0))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"round": r, "uplink_bytes": 100 * r, "downlink_bytes": 0, "test_accuracy": 0.1}) + "\n"
            for r in range(3)
        )
    )
    (line,) = plot_runs(folder, logx=True).get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [100, 200])


def test_given_axes_are_drawn_on_and_returned(folders):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert plot_runs(folders, "rounds", ax) is ax
    assert ax.get_xlabel() == "rounds" and ax.get_ylabel() == "test accuracy"


def test_labels_with_dollars_and_underscores_are_shown_as_they_are(tmp_path, write_run):
    a = write_run(tmp_path / "_$a$b^", [0.1, 0.2], (10, 0), seed=0)
    b = write_run(tmp_path / "_other", [0.1, 0.2], (10, 0), seed=0)
    ax = plot_runs([a, b])
    assert labels(ax) == ["_$a$b^", "_other"]
    assert "_$a$b^" in drawn_text(ax)


def test_twenty_settings_are_told_apart_by_color_or_dashes(tmp_path, write_run):
    many = [write_run(tmp_path / f"r{i}", [0.1, 0.2], (10, 0), bits=i) for i in range(20)]
    lines = plot_runs(many).get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_the_gain_is_drawn_in_steps_with_the_reference_at_one(tmp_path, write_run):
    full = [write_run(tmp_path / f"a{s}", [0.2, 0.4, 0.6], (100, 0), seed=s, bits=32) for s in (0, 1)]
    eight = [
        write_run(tmp_path / "b0", [0.3, 0.5, 0.7], (50, 0), seed=0, bits=8),
        write_run(tmp_path / "b1", [0.2, 0.4, 0.6], (50, 0), seed=1, bits=8),
    ]
    ax = draw_gain(compare_runs([*full, *eight]))
    assert labels(ax) == ["bits=32", "bits=8"]
    one, line = ax.get_lines()
    assert set(one.get_ydata()) == {1.0}
    # worked out in test_gain.py
    np.testing.assert_array_equal(line.get_xdata(), [0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_allclose(line.get_ydata(), [2.0, 3.0, 2.0, 2.5, 2.0], rtol=1e-12)
    assert line.get_drawstyle() == "steps-pre"
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(3.0 + np.sqrt(2), rel=1e-9)
    assert (ax.get_yscale(), ax.yaxis.get_major_formatter()(2.0)) == ("linear", "2x")


def test_very_different_gains_are_drawn_on_a_logarithmic_axis(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.2, 0.4], (1000, 0), bits=32)
    b = write_run(tmp_path / "b", [0.2, 0.4], (10, 0), bits=1)
    assert draw_gain(compare_runs([a, b])).get_yscale() == "log"


def test_of_long_runs_the_gain_is_drawn_from_the_accuracy_on_that_takes_four_evaluations(tmp_path, write_run):
    accuracies = [r / 100 for r in range(1, 41)]
    a = write_run(tmp_path / "a", accuracies, (10, 0), bits=32)
    b = write_run(tmp_path / "b", accuracies, (5, 0), bits=8)
    _, line = draw_gain(compare_runs([a, b])).get_lines()
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0.05, 0.4)


def test_a_comparison_is_two_panels_with_one_legend_and_the_target_in_both(folders):
    left = draw_comparison(compare_runs(folders[::2], target=0.3))
    first, right = left.figure.axes
    assert first is left and left.get_legend() is None and right.get_legend() is None
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bits=32", "bits=8", "target 30.00%"]
    assert left.get_xlabel() == "bytes sent, up and down"
    assert (right.get_xlabel(), right.get_ylabel()) == ("test accuracy", "gain in bytes over bits=32")
    assert list(left.get_lines()[-1].get_ydata()) == list(right.get_lines()[-1].get_xdata()) == [0.3, 0.3]
    assert [line.get_color() for line in left.get_lines()] == [line.get_color() for line in right.get_lines()]


def test_a_comparison_of_one_setting_is_one_panel_and_no_gain(folders):
    found = compare_runs(folders[:2])
    assert len(draw_comparison(found).figure.axes) == 1
    with pytest.raises(UserError, match="nothing to compare 'a' with"):
        draw_gain(found)


def test_settings_beyond_the_margin_have_no_curve_of_gain_and_stand_in_the_title(tmp_path, write_run):
    good = write_run(tmp_path / "good", [0.4, 0.978], (10_000, 0), bits=32)
    eight = write_run(tmp_path / "eight", [0.4, 0.97], (2_500, 0), bits=8)
    poor = write_run(tmp_path / "poor", [0.3, 0.418], (10, 0), bits=1)
    ax = draw_gain(compare_runs([good, poor, eight]))
    assert labels(ax) == ["bits=32", "bits=8"] and ax.get_title() == "not reached: bits=1"
    assert max(ax.get_lines()[1].get_ydata()) == 4.0
    none = compare_runs([good, poor])
    assert len(draw_comparison(none).figure.axes) == 1
    with pytest.raises(UserError, match="bits=1 not within 1 point of the best accuracy of 'bits=32'"):
        draw_gain(none)


def test_what_cannot_be_drawn_is_an_error_that_names_what_can(folders):
    with pytest.raises(UserError, match=r"'test_acuracy'.*logged are .*test_accuracy"):
        plot_runs(folders, y="test_acuracy")
    with pytest.raises(UserError, match="allowed: bytes, rounds, seconds"):
        plot_runs(folders, x="epochs")
    with pytest.raises(UserError, match="against seconds"):  # these runs have no round_seconds
        plot_runs(folders, x="seconds")
    with pytest.raises(UserError, match="smooth=0"):
        plot_runs(folders, smooth=0)


def test_without_matplotlib_the_error_says_how_to_get_it(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'fedjax8\[plot\]'"):
        plot_runs(folders)


def test_a_png_is_written_whole_and_leaves_no_other_file(folders, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    save_picture(plot_runs(folders), out / "a.png", dpi=50)
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in out.iterdir()] == ["a.png"]


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_the_old_one(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "absent" / "a.png", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "folder", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


TASK = {"task": {"metric": "mae", "directions": {"mae": "lower"}}}


@pytest.fixture
def regressions(tmp_path, write_run):
    made = {"metric": "mae", "document": TASK, "timed": False}
    return [
        write_run(tmp_path / "full", [4.0, 2.0, 1.0], (400, 0), bits=32, **made),
        write_run(tmp_path / "eight", [3.0, 1.5, 1.005], (100, 0), bits=8, **made),
    ]


def test_by_default_the_first_metric_of_the_task_is_drawn_and_a_metric_can_be_named_without_its_rows(regressions):
    ax = plot_runs(regressions, "rounds")
    assert ax.get_ylabel() == "test MAE"
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [4.0, 2.0, 1.0])
    assert plot_runs(regressions, "rounds", y="loss").get_ylabel() == "test loss"


def test_the_gain_of_an_error_is_drawn_from_worse_to_better(regressions):
    ax = draw_gain(compare_runs(regressions))
    low, high = ax.get_xlim()
    assert low > high and ax.get_xlabel() == "test MAE"
    assert list(ax.get_lines()[1].get_xdata()) == [4.0, 3.0, 2.0, 1.5, 1.005]


@pytest.mark.parametrize("limits", [(0.1, 0.13), (2, 9), (1, 1000), (3.0, 8e11), (5e2, 2e4), (1e-4, 0.5)])
def test_a_logarithmic_axis_has_few_labels_at_round_numbers(limits):
    ticks = log_ticks(*limits)
    assert len(ticks) <= 6 and all(limits[0] <= tick <= limits[1] for tick in ticks)
    assert all(f"{tick:.1g}" == f"{tick:.6g}" or f"{tick:.0e}" == f"{tick:.5e}".replace(".00000", "") for tick in ticks)
    if limits[1] >= 4 * limits[0]:
        assert len(ticks) >= 3


@pytest.mark.parametrize("per_round", [1, 12, 271, 14_667, 3_330_000, 866_666_667])
def test_a_byte_axis_has_at_most_six_labels_each_with_its_unit(tmp_path, per_round, write_run):
    ax = plot_runs(write_run(tmp_path / "a", [0.1, 0.2, 0.9], (per_round, 0)))
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    labels = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    shown = [text.get_text() for tick, text in labels if low <= tick <= high]
    assert 2 <= len(shown) <= 6 and len(set(shown)) == len(shown)
    assert all(text.endswith("B") for text in shown)


def test_accuracies_are_drawn_in_percent(folders):
    ax = plot_runs(folders)
    assert ax.yaxis.get_major_formatter()(0.5).startswith("50")
    assert draw_comparison(compare_runs(folders)).figure.axes[1].xaxis.get_major_formatter()(0.25).endswith("%")


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")])
def test_pictures_are_png_svg_or_pdf_by_their_name_and_the_same_again(folders, tmp_path, name, begins):
    out = tmp_path / "out"
    out.mkdir()
    for folder in (out / name, tmp_path / name):
        save_picture(plot_runs(folders), folder, dpi=50)
    assert (out / name).read_bytes().startswith(begins)
    assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    if name == "a.svg":
        assert ">test accuracy<" in (out / name).read_text()
    with pytest.raises(UserError, match=r"cannot write 'a\.eps': pictures are PNG, SVG or PDF"):
        check_picture_name("a.eps")


def test_simulated_time_is_an_axis_and_a_gain_where_all_runs_have_a_clock(tmp_path, write_run):
    folders = [
        write_run(tmp_path / f"{bits}", [0.2, 0.5, 0.8], (bits, 0), bits=bits, simulated=seconds)
        for bits, seconds in ((32, 2400.0), (8, 600.0))
    ]
    ax = plot_runs(folders, x="simulated_seconds")
    np.testing.assert_array_equal(ax.get_lines()[1].get_xdata(), [600, 1200, 1800])
    text = drawn_text(ax)
    assert ">simulated time<" in text and ">30 min<" in text and ">120 min<" in text
    axes = draw_comparison(compare_runs(folders)).figure.axes
    assert [ax.get_xlabel() for ax in axes] == ["bytes sent, up and down", "simulated time", *["test accuracy"] * 2]
    assert [ax.get_ylabel()[:13] for ax in axes[2:]] == ["gain in bytes", "gain in time "]
    untimed = write_run(tmp_path / "4", [0.2, 0.8], (4, 0), bits=4)
    assert len(draw_comparison(compare_runs([*folders, untimed])).figure.axes) == 2
