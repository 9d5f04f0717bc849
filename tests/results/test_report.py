import json

import pytest

from fedjax8.results.comparison import compare_runs
from fedjax8.results.curves import Statistic
from fedjax8.results.report import _bytes, _plain, columns, explanation, rows, shared_in_words, table

NAN = float("nan")


@pytest.fixture
def found(tmp_path, write_run):
    full, eight = {"name": "<none> & more"}, {"name": "fp8"}
    folders = [
        write_run(tmp_path / "a0", [0.2, 0.5, 0.8], (500_000, 500_000), seed=0, uplink=full),
        write_run(tmp_path / "a1", [0.2, 0.8, 0.9], (500_000, 500_000), seed=1, uplink=full),
        write_run(tmp_path / "b0", [0.1, 0.5, 0.85], (125_000, 125_000), seed=0, uplink=eight),
        write_run(tmp_path / "b1", [0.1, 0.7, 0.8], (125_000, 125_000), seed=1, uplink=eight),
    ]
    return compare_runs(folders, margin=0.05)  # their best accuracies are 0.85 and 0.825


def test_a_row_shows_the_figures_worked_out_by_hand(found):
    first, second = (dict(zip(columns(found), row, strict=True)) for row in rows(found))
    assert first == {
        "setting": "uplink=<none> & more",
        "seeds": "2",
        "target accuracy": "85.00 ± 7.07%",  # the reference is compared with itself: its best, in round 3 of both
        "rounds to target": "3",
        "reference rounds": "3",
        "gain in rounds": "1.00x",
        "bytes to target": "3.00 MB",
        "reference bytes": "3.00 MB",
        "gain in bytes": "1.00x",
        "best accuracy": "85.00 ± 7.07%",
        "final accuracy": "85.00 ± 7.07%",
        "rounds": "3",
        "bytes up": "1.50 MB",
        "bytes down": "1.50 MB",
        "saving": "4.00x",
        "seconds": "9.0",
    }
    # 0.8 with both seeds, in round 3 of 0.25 MB; the reference in rounds 3 and 2 of 1 MB: 3 / 0.75 = 4, 2 / 0.75 = 2.67
    assert list(second.items())[2:9] == [
        ("target accuracy", "80.00%"),
        ("rounds to target", "3"),
        ("reference rounds", "2.5 ± 0.7"),
        ("gain in rounds", "0.83 ± 0.24x"),
        ("bytes to target", "750 kB"),
        ("reference bytes", "2.50 ± 0.71 MB"),
        ("gain in bytes", "3.33 ± 0.94x"),
    ]


def test_a_row_says_what_was_not_reached_and_by_how_many(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.2, 0.9], (10, 10), seed=0)
    b = write_run(tmp_path / "b", [0.2, 0.3], (10, 10), seed=1)
    (row,) = rows(compare_runs([a, b], target=0.5))
    assert row[2:9] == ["50.00%", "2 (1 of 2)", "2", "-", "40 B", "40 B", "-"]
    (row,) = rows(compare_runs([a, b], target=1.0))
    assert row[2:9] == ["100.00%", "not reached", "-", "-", "not reached", "-", "-"]


def test_a_setting_that_has_not_been_evaluated_has_dashes(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.2, 0.9], bits=8)
    b = write_run(tmp_path / "b", [None, None], bits=4)
    assert rows(compare_runs([a, b]))[1][2:11] == ["-"] * 9


@pytest.mark.parametrize(
    ("num_bytes", "spread", "text"),
    [
        (0, NAN, "0 B"),
        (999, NAN, "999 B"),
        (1000, NAN, "1.00 kB"),
        (9994, NAN, "9.99 kB"),
        (9996, NAN, "10.0 kB"),
        (99_960, NAN, "100 kB"),
        (999_600, NAN, "1.00 MB"),
        (12_345_678, 0.0, "12.3 MB"),
        (2.5e9, 3e8, "2.50 ± 0.30 GB"),
        (2.5e9, 3e6, "2.50 GB"),
        (7e18, NAN, "7000 PB"),
    ],
)
def test_bytes_are_shown_with_three_digits_in_decimal_units(num_bytes, spread, text):
    assert _bytes(Statistic(num_bytes, spread, 2)) == text


@pytest.mark.parametrize(
    ("mean", "spread", "digits", "text"),
    [(12.0, NAN, 0, "12"), (12.4, 0.6, 0, "12.4 ± 0.6"), (0.5, 1e-5, 4, "0.5000"), (12.0, 0.01, 0, "12")],
)
def test_a_spread_is_shown_where_it_is_seen_in_the_digits_shown(mean, spread, digits, text):
    assert _plain(Statistic(mean, spread, 2), digits) == text


def test_the_explanation_says_which_accuracy_is_compared_at(found, tmp_path, write_run):
    sentences = explanation(found)
    assert (
        "the lower of the best test accuracy of a run and that of the reference's run with the same seed"
        in (sentences[0])
    )
    assert sentences[1].startswith("Reference: uplink=<none> & more.")
    assert sentences[2:] == ["±: sample standard deviation over seeds."]
    given = compare_runs([write_run(tmp_path / "c", [0.5])], target=0.5, smooth=2)
    assert explanation(given)[0] == "Target accuracy: 50.00%, as given."
    assert explanation(given)[2:] == ["Values of accuracy are means of 2 evaluations."]


def test_the_explanation_names_settings_compared_by_their_means(tmp_path, write_run):
    folders = [write_run(tmp_path / f"{bits}", [0.5, 0.6], bits=bits, seed=bits) for bits in (8, 4)]
    text = explanation(compare_runs(folders))[2]
    assert text.startswith("No seed in common with the reference: bits=4. There the target is the lowest best accuracy")
    text = explanation(compare_runs(folders, target=0.5))[2]
    assert text.startswith("No seed in common with the reference: bits=4. There the gain is a ratio of means")


def test_a_gain_beyond_the_margin_is_not_reached_and_the_explanation_says_why(tmp_path, write_run):
    good = write_run(tmp_path / "good", [0.4, 0.978], (10_000, 0), bits=32)
    poor = write_run(tmp_path / "poor", [0.3, 0.418], (10, 0), bits=1)
    found = compare_runs([good, poor])
    assert rows(found)[0][2:9] == ["97.80%", "2", "2", "1.00x", "20.0 kB", "20.0 kB", "1.00x"]
    assert rows(found)[1][2:9] == ["41.80%", "2", "2", "not reached", "20 B", "20.0 kB", "not reached"]
    (sentence,) = [text for text in explanation(found) if text.startswith("Gain not reached: bits=1.")]
    assert "mean over the seeds compared, comes within 1 point of the reference's" in sentence
    assert rows(compare_runs([good, poor], margin=0.56))[1][8] == "1000.00x"


def test_a_regression_is_told_in_its_own_metric_with_four_digits(tmp_path, write_run):
    made = {"metric": "mae", "document": {"task": {"metric": "mae", "directions": {"mae": "lower"}}}, "loss": False}
    full = write_run(tmp_path / "full", [40.0, 12.5, 10.0], (300, 100), bits=32, **made)
    eight = write_run(tmp_path / "eight", [30.0, 12.0, 10.05], (75, 25), bits=8, **made)
    found = compare_runs([full, eight])
    told = dict(zip(columns(found), rows(found)[1], strict=True))
    assert told["target MAE"] == "10.05" and told["best MAE"] == told["final MAE"] == "10.05"
    assert (told["rounds to target"], told["bytes to target"], told["gain in bytes"]) == ("3", "300 B", "4.00x")
    text = " ".join(explanation(found))
    assert "accuracy" not in text
    assert "Target MAE: the higher of the best test MAE of a run and that of the reference's run" in text
    assert "Lower values of MAE are better." in text
    beyond = " ".join(explanation(compare_runs([full, eight], margin=0.001)))
    assert "A gain counts only where the best MAE, mean over the seeds compared, comes within 0.1% of the ref" in beyond


def test_columns_in_which_all_settings_are_alike_are_told_in_one_sentence(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.5, 0.75], (300, 100), bits=32)
    b = write_run(tmp_path / "b", [0.5, 0.75], (75, 100), bits=8)
    made = table(compare_runs([a, b]))
    # target, gain in bytes and best value stay
    assert made.columns == (
        "setting",
        "target accuracy",
        "bytes to target",
        "gain in bytes",
        "best accuracy",
        "bytes up",
    )
    assert made.rows[1] == ("bits=8", "75.00%", "350 B", "2.29x", "75.00%", "150 B")  # 800 / 350
    assert shared_in_words(made.shared) == (
        "The same for all: seeds 1, rounds to target 2, reference rounds 2, gain in rounds 1.00x, reference bytes "
        "800 B, final accuracy 75.00%, rounds 2, bytes down 200 B, saving 4.00x, seconds 9.0."
    )
    alone = table(compare_runs([a]))
    assert len(alone.columns) == len(columns(compare_runs([a]))) and shared_in_words(alone.shared) == ""


def test_seconds_of_compiling_have_a_column_where_they_are_known(tmp_path, write_run):
    a, b = write_run(tmp_path / "a", [0.5], bits=32), write_run(tmp_path / "b", [0.5], bits=8)
    done = {"rounds": 1, "saving": 4.0, "seconds": 9.0, "compile_seconds": 6.5, "finished": True}
    (b / "summary.json").write_text(json.dumps(done))
    found = compare_runs([a, b])
    assert columns(found)[-3:] == ("seconds", "seconds of training", "seconds of compiling")
    assert [row[-3:] for row in rows(found)] == [["9.0", "-", "-"], ["9.0", "0.5", "6.5"]]
    assert "Seconds of training: those spent in rounds, without those of compiling." in explanation(found)


def test_fields_in_which_named_settings_differ_are_columns_if_they_are_few(tmp_path, write_run):
    def run(name, **config):
        return write_run(tmp_path / name, [0.5], document={"labels": {"name": name}}, **config)

    a, b = (
        run("base", uplink={"name": "none"}, client={"lr": 0.1}),
        run("small", uplink={"name": "fp8"}, client={"lr": 0.2}),
    )
    made = table(compare_runs([a, b]))
    assert made.columns == ("setting", "uplink", "lr", "target accuracy", "gain in bytes", "best accuracy")
    assert [row[:3] for row in made.rows] == [("base", "none", "0.1"), ("small", "fp8", "0.2")]
    # those without names are labeled by the fields already
    plain = [write_run(tmp_path / f"{bits}", [0.5], bits=bits) for bits in (8, 4)]
    assert table(compare_runs(plain)).columns[:2] == ("setting", "target accuracy")
    many = run("many", uplink={"name": "topk", "share": 0.1, "k": 3}, client={"lr": 0.3}, rounds=3)
    assert table(compare_runs([a, many])).columns[:2] == ("setting", "target accuracy")


@pytest.fixture
def timed(tmp_path, write_run):
    """Two seeds each: rounds of 600 s and of 60 s, on 4 kB and on 1 kB."""
    accuracies = {0: [0.2, 0.5, 0.8], 1: [0.2, 0.8, 0.9]}
    folders = [
        write_run(tmp_path / f"{bits}-{seed}", accuracies[seed], per_round, seed=seed, bits=bits, simulated=seconds)
        for bits, per_round, seconds in ((32, (2000, 2000), 600.0), (8, (500, 500), 60.0))
        for seed in accuracies
    ]
    return folders, compare_runs(folders, target=0.8)


def test_time_to_the_target_and_its_gain_are_columns_where_all_runs_have_a_clock(timed):
    """0.8 in rounds 3 and 2: 1800 and 1200 s, sample deviation 600 / sqrt(2) s; 180 and 120 s; ten times less."""
    first, second = (dict(zip(columns(timed[1]), row, strict=True)) for row in rows(timed[1]))
    assert (first["time to target"], second["time to target"]) == ("25.0 ± 7.1 min", "2.50 ± 0.71 min")
    assert (second["reference time"], second["gain in time"]) == ("25.0 ± 7.1 min", "10.00x")
    # three rounds, of which clients wait 1/2, 1/4, 1/4; 1 kB a round, a tenth of it wasted
    assert (second["simulated time"], second["waiting"]) == ("3.00 min", "33.3%")
    assert (second["wasted bytes"], second["peak rate"]) == ("300 B", "3.00 kB/s")
    (sentence,) = [text for text in explanation(timed[1]) if text.startswith("Simulated time")]
    assert sentence.endswith("Time to target, and its gain: as those of bytes.")


def test_settings_without_a_clock_are_named_and_no_time_to_the_target_is_given(timed, tmp_path, write_run):
    found = compare_runs([*timed[0], write_run(tmp_path / "no", [0.2, 0.8], bits=4)], target=0.8)
    assert not {"time to target", "reference time", "gain in time"} & set(columns(found))
    last = dict(zip(columns(found), rows(found)[-1], strict=True))
    assert [last[name] for name in ("simulated time", "waiting", "wasted bytes", "peak rate")] == ["-"] * 4
    assert "No clock, so that time to target and its gain are not given: bits=4." in explanation(found)


def test_without_any_clock_nothing_is_said_of_simulated_time(found):
    assert not [text for text in (*columns(found), *explanation(found)) if "time" in text.lower().split()]
    assert "waiting" not in columns(found)
