"""The table of a comparison for other programs and for papers, worked out by hand."""

import csv
import io

import pytest

from fedjax8.results.comparison import compare_runs
from fedjax8.results.tables import as_csv, as_latex, latex_text

TASK = {"task": {"metric": "mae", "directions": {"mae": "lower"}}}


@pytest.fixture
def found(tmp_path, write_run):
    """Absolute errors: at 2, 8 bits need 200 B and 600 B where float32 needs 800 B and 800 B."""
    full = {"metric": "mae", "document": TASK | {"labels": {"name": "full_&_slow", "tags": ["paper", "32"]}}}
    eight = {"metric": "mae", "document": TASK}
    folders = [
        write_run(tmp_path / "a0", [4.0, 2.0, 1.0], (300, 100), seed=0, bits=32, **full),
        write_run(tmp_path / "a1", [3.0, 2.0, 1.0], (300, 100), seed=1, bits=32, **full),
        write_run(tmp_path / "b0", [3.0, 2.0, 1.0], (75, 25), seed=0, bits=8, **eight),
        write_run(tmp_path / "b1", [9.0, 3.0, 1.5], (150, 50), seed=1, bits=8, **eight),
    ]
    return compare_runs(folders, target=2.0, margin=0.5)


def test_csv_has_fields_and_numbers_in_full_means_and_deviations_apart(found):
    first, second = csv.DictReader(io.StringIO(as_csv(found).text))
    assert list(first)[:6] == ["setting", "name", "tags", "bits", "seeds", "target_mae"]
    assert (first["setting"], first["name"], first["tags"]) == ("full_&_slow", "full_&_slow", "paper; 32")
    assert (first["bits"], second["bits"], second["name"], second["seeds"]) == ("32", "8", "", "2")
    # 8 bits: round 2 of 100 B, and round 3 of 200 B; sample deviation of 200 and 600 is 400 / sqrt(2)
    assert (second["rounds_to_target"], second["bytes_to_target"]) == ("2.5", "400")
    assert float(second["bytes_to_target_std"]) == pytest.approx(400 / 2**0.5, rel=1e-12)
    # gains 800 / 200 = 4 and 800 / 600 = 4/3: mean 8/3, deviation (8/3) / sqrt(2)
    assert float(second["gain_in_bytes"]) == pytest.approx(8 / 3, rel=1e-12)
    assert float(second["gain_in_bytes_std"]) == pytest.approx(8 / 3 / 2**0.5, rel=1e-12)
    assert (second["best_mae"], first["best_mae"], first["best_mae_std"]) == ("1.25", "1", "0")
    assert (first["uplink_bytes"], first["downlink_bytes"], first["seconds_of_compiling"]) == ("900", "300", "")


def test_no_two_columns_of_csv_have_one_name(tmp_path, write_run):
    runs = [write_run(tmp_path / f"{n}", [0.5] * n, rounds=n, bits=n) for n in (1, 2)]
    (heading, *lines) = csv.reader(io.StringIO(as_csv(compare_runs(runs)).text))
    assert len(set(heading)) == len(heading)
    for name in ("config.rounds", "bits", "rounds"):
        assert [line[heading.index(name)] for line in lines] == ["1", "2"]


def test_latex_is_a_tabular_of_what_differs_with_text_escaped(found):
    assert as_latex(found).text == (
        "% Needs \\usepackage{booktabs}.\n"
        "% Reference: full_&_slow.\n"
        "% The same for all: seeds 2.\n"
        "% Mean and sample standard deviation over seeds.\n"
        "\\begin{tabular}{llrrrrrr}\n"
        "\\toprule\n"
        "setting & bits & target MAE & rounds to target & bytes to target & gain in bytes & best MAE & final MAE \\\\\n"
        "\\midrule\n"
        "full\\_\\&\\_slow & 32 & 2.000 & 2 & 800 B & 1.00$\\times$ & 1.000 & 1.000 \\\\\n"
        "bits=8 & 8 & 2.000 & 2.5 $\\pm$ 0.7 & 400 $\\pm$ 283 B & 2.67 $\\pm$ 1.89$\\times$ & 1.250 $\\pm$ 0.354 & "
        "1.250 $\\pm$ 0.354 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_a_setting_without_names_is_its_fields_and_percent_signs_are_escaped(tmp_path, write_run):
    folders = [write_run(tmp_path / f"{bits}", [0.5, 0.75], (bits, 0), bits=bits) for bits in (32, 8)]
    text = as_latex(compare_runs(folders)).text
    assert "\nbits & target accuracy & bytes to target & gain in bytes & best accuracy \\\\\n" in text
    assert "\n8 & 75.00\\% & 16 B & 4.00$\\times$ & 75.00\\% \\\\\n" in text
    one = as_latex(compare_runs(folders[:1])).text
    assert "\nsetting & seeds & target accuracy & " in one


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b^c~{d}", "a\\_b\\textasciicircum{}c\\textasciitilde{}\\{d\\}"),
        ("\\cmd $x$ #1", "\\textbackslash{}cmd \\$x\\$ \\#1"),
        ("4x", "4$\\times$"),
        ("4xx", "4xx"),
        ("<none>", "$<$none$>$"),
    ],
)
def test_text_is_set_as_it_is(text, latex):
    assert latex_text(text) == latex


def test_a_cell_with_commas_and_quotes_stays_one_cell(tmp_path, write_run):
    labels = {"labels": {"note": 'a, "b"\nc'}}
    text = as_csv(compare_runs([write_run(tmp_path / "a", [0.5], document=labels)])).text
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["note"] == 'a, "b" c' and row["best_accuracy_std"] == ""


def test_simulated_seconds_are_columns_of_both_where_all_runs_have_a_clock(tmp_path, write_run):
    folders = [
        write_run(tmp_path / f"{bits}", [0.5, 0.75], (bits, 0), bits=bits, simulated=seconds)
        for bits, seconds in ((32, 600.0), (8, 150.0))
    ]
    found = compare_runs(folders)
    _, second = csv.DictReader(io.StringIO(as_csv(found).text))
    names = ("simulated_seconds_to_target", "reference_simulated_seconds", "gain_in_simulated_seconds")
    assert [second[name] for name in names] == ["300", "1200", "4"]
    assert (second["simulated_seconds"], second["waiting_share"]) == ("300", "0.375")
    assert (second["peak_rate"], second["wasted_bytes"]) == ("2000", "1")
    text = as_latex(found).text
    assert "& gain in bytes & time to target & gain in time &" in text
    assert "& 5.00 min & 4.00$\\times$ &" in text
    without = as_csv(compare_runs([*folders, write_run(tmp_path / "4", [0.5, 0.75], bits=4)])).text
    assert "simulated_seconds_to_target" not in without and ",waiting_share," in without
    assert "simulated" not in as_csv(compare_runs([tmp_path / "4"])).text
