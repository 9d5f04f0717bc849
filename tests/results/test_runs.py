import json

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.results.runs import flatten, read_run, read_settings


def line(number, **more):
    return {"round": number, "uplink_bytes": 10 * number, "downlink_bytes": 7 * number, **more}


def labels(*folders):
    return [setting.label for setting in read_settings(folders)[0]]


def test_a_run_is_read_back_with_its_lines_config_and_seed(tmp_path, write_folder):
    lines = [line(1, round_seconds=0.5), line(2, round_seconds=0.25, test_accuracy=0.75)]
    config = {"seed": 3, "rounds": 2, "uplink": {"name": "fp8", "bits": 8}}
    run = read_run(write_folder(tmp_path / "a", config, lines, versions={"jax": "0.10.2"}, devices=["cpu:0"]))
    assert run.seed == 3
    assert run.config == {"rounds": 2, "uplink.name": "fp8", "uplink.bits": 8}
    assert run.origin == {"versions.jax": "0.10.2", "devices": ["cpu:0"]}
    assert run.rounds.tolist() == [1, 2]
    assert (run.uplink_bytes, run.downlink_bytes) == ((10, 20), (7, 14))
    np.testing.assert_array_equal(run.metrics["test_accuracy"], [np.nan, 0.75])
    assert run.elapsed_seconds.tolist() == [0.5, 0.75]
    assert run.notes == ()


def test_seconds_of_one_round_are_counted_for_every_round_since_the_line_before(tmp_path, write_folder):
    lines = [line(2, round_seconds=0.5), line(5, round_seconds=1.0)]
    assert read_run(write_folder(tmp_path / "a", {}, lines)).elapsed_seconds.tolist() == [1.0, 4.0]


def test_totals_of_bytes_that_fall_are_damage(tmp_path, write_folder):
    folder = write_folder(tmp_path / "a", {}, [line(1), line(2, downlink_bytes=3)])
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: downlink_bytes falls from 7 to 3, but is a total"):
        read_run(folder)


def test_lines_that_are_fewer_than_the_rounds_of_the_summary_are_said_to_be_lost(tmp_path, write_folder):
    run = read_run(write_folder(tmp_path / "a", {}, [line(1)], {"rounds": 4, "finished": True}))
    assert run.notes == (f"{tmp_path / 'a'}: metrics.jsonl ends at round 1 of 4: later lines were lost",)


def test_the_last_value_is_that_of_the_last_line_that_has_the_metric(tmp_path, write_folder):
    lines = [line(1, test_a=0.5, test_b=0.5, test_c=0.5), line(2, test_b=None, test_c=True), line(3)]
    run = read_run(write_folder(tmp_path / "a", {}, lines))
    assert run.last("test_a") == 0.5 and run.last("test_d") is None
    assert np.isnan(run.last("test_b")) and np.isnan(run.last("test_c"))


def test_byte_totals_beyond_32_and_53_bits_stay_exact(tmp_path, write_folder):
    run = read_run(write_folder(tmp_path / "a", {}, [line(1, uplink_bytes=2**60 + 1)]))
    assert run.uplink_bytes == (2**60 + 1,)


def test_a_null_metric_reads_as_missing(tmp_path, write_folder):
    run = read_run(write_folder(tmp_path / "a", {}, [line(1, test_loss=None, test_accuracy=0.5)]))
    assert np.isnan(run.metrics["test_loss"]).all()


def test_a_half_written_last_line_is_ignored_and_reported(tmp_path, write_folder):
    folder = write_folder(tmp_path / "a", {"seed": 0}, [line(1), line(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "uplink_by')
    run = read_run(folder)
    assert run.rounds.tolist() == [1, 2]
    assert [note for note in run.notes if "half written" in note and str(folder) in note]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"round": 2, "upl', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"round": 2, "downlink_bytes": 0}', "uplink_bytes must be a whole number"),
        ('{"round": "2", "uplink_bytes": 0, "downlink_bytes": 0}', "round must be a whole number"),
        ('{"round": 2, "uplink_bytes": -1, "downlink_bytes": 0}', "uplink_bytes must be a whole number"),
    ],
)
def test_a_malformed_line_in_the_middle_is_an_error_that_names_file_and_line(tmp_path, bad, reason, write_folder):
    folder = write_folder(tmp_path / "a", {}, [line(1)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(bad + "\n" + json.dumps(line(3)) + "\n")
    with pytest.raises(UserError, match=reason) as caught:
        read_run(folder)
    assert f"{folder / 'metrics.jsonl'}, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_logged_again_after_a_resume_replace_the_earlier_ones(tmp_path, write_folder):
    lines = [line(1, train_loss=1.0), line(2, train_loss=2.0), line(3, train_loss=3.0)]
    again = [line(2, train_loss=20.0), line(3, train_loss=30.0)]
    run = read_run(write_folder(tmp_path / "a", {}, lines + again))
    assert run.rounds.tolist() == [1, 2, 3]
    assert run.metrics["train_loss"].tolist() == [1.0, 20.0, 30.0]
    assert "2 line(s)" in run.notes[0]


@pytest.mark.parametrize("summary", [(), {"rounds": 1, "finished": False}, {"rounds": 1, "finished": True}])
def test_an_unfinished_run_is_reported(tmp_path, summary, write_folder):
    # The third summary is older than the last line: the run has gone on since.
    run = read_run(write_folder(tmp_path / "a", {"seed": 0}, [line(1), line(2)], summary))
    assert run.notes == (f"{tmp_path / 'a'}: the run is unfinished, read up to round 2",)


def test_a_missing_folder_or_missing_metrics_is_an_error_that_says_what_to_give(tmp_path, write_folder):
    with pytest.raises(UserError, match="no such run folder"):
        read_run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        read_run(tmp_path / "empty")
    write_folder(tmp_path / "outer" / "inner" / "seed-0")
    with pytest.raises(UserError, match=r"its subfolders do: give .*outer/\*"):
        read_settings([tmp_path / "outer"])
    write_folder(tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="not logged a round yet"):
        read_run(tmp_path / "begun")


def test_an_unreadable_config_is_tolerated_and_keeps_the_run_apart(tmp_path, write_folder):
    a = write_folder(tmp_path / "a")
    b = write_folder(tmp_path / "b", {"seed": 0})
    (b / "config.json").write_text("{")
    c = write_folder(tmp_path / "c", {"seed": 0, "rounds": 1})
    settings, warnings = read_settings([a, b, c])
    assert [len(setting.runs) for setting in settings] == [1, 1, 1]
    assert sum("setting of its own" in w for w in warnings) == 2
    assert any("not a JSON object" in w and str(b / "config.json") in w for w in warnings)


def test_flattening_names_leaves_by_dotted_path_and_keeps_plain_lists_whole():
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}, {"e": 3}], "f": {}, "g": None}
    assert flatten(tree) == {"a.b": 1, "a.c": [1, 2], "d.0.e": 2, "d.1.e": 3, "f": {}, "g": None}


def test_runs_that_differ_in_seed_alone_are_one_setting_in_the_order_given(tmp_path, write_folder):
    folders = [
        write_folder(tmp_path / name, {"seed": seed, "bits": bits, "workdir": name})
        for name, seed, bits in [("b0", 0, 8), ("a0", 0, 4), ("b1", 1, 8), ("a1", 1, 4), ("b2", 2, 8)]
    ]
    settings, warnings = read_settings(folders)
    assert [s.label for s in settings] == ["bits=8", "bits=4"]
    assert [[r.seed for r in s.runs] for s in settings] == [[0, 1, 2], [0, 1]]
    assert [s.fields for s in settings] == [{"bits": "8"}, {"bits": "4"}]
    assert warnings == []


def test_a_label_names_components_shortly_and_more_fully_where_that_is_ambiguous(tmp_path, write_folder):
    def config(up, down, rate):
        return {"uplink": {"name": up}, "downlink": {"name": down}, "client": {"optimizer": {"rate": rate}}}

    a = write_folder(tmp_path / "a", config("fp8", "fp8", 0.1))
    b = write_folder(tmp_path / "b", config("fp8", "none", 0.2))
    assert labels(a, b) == ["downlink=fp8, rate=0.1", "downlink=none, rate=0.2"]

    c = write_folder(tmp_path / "c", {"uplink": {"bits": 4}, "downlink": {"bits": 4}})
    d = write_folder(tmp_path / "d", {"uplink": {"bits": 8}, "downlink": {"bits": 2}})
    assert labels(c, d) == ["uplink.bits=4, downlink.bits=4", "uplink.bits=8, downlink.bits=2"]

    e = write_folder(tmp_path / "e", {"uplink": {"codecs": [{"name": "topk"}]}})
    f = write_folder(tmp_path / "f", {"uplink": {"codecs": [{"name": "sign"}]}})
    assert labels(e, f) == ["codecs.0=topk", "codecs.0=sign"]


def test_a_component_that_is_none_in_one_setting_is_one_field_with_its_name_in_another(tmp_path, write_folder):
    a = write_folder(tmp_path / "a", {"algorithm": {"name": "fedavg", "refine": None}})
    b = write_folder(tmp_path / "b", {"algorithm": {"name": "fedavg", "refine": {"name": "clips", "points": 50}}})
    assert labels(a, b) == ["refine=none", "refine=clips"]
    assert [s.fields for s in read_settings([a, b])[0]] == [
        {"algorithm.refine.name": "none", "algorithm.refine.points": "-"},
        {"algorithm.refine.name": "clips", "algorithm.refine.points": "50"},
    ]


def test_fields_that_only_some_settings_have_enter_the_label_only_if_needed(tmp_path, write_folder):
    a = write_folder(tmp_path / "a", {"uplink": {"name": "fp8", "grid": "e4m3fn"}})
    b = write_folder(tmp_path / "b", {"uplink": {"name": "topk", "fraction": 0.01}})
    assert labels(a, b) == ["uplink=fp8", "uplink=topk"]
    c = write_folder(tmp_path / "c", {"rounds": 1})
    d = write_folder(tmp_path / "d", {"rounds": 1, "epsilon": None})
    assert labels(c, d) == ["epsilon=-", "epsilon=none"]
    assert [s.fields for s in read_settings([c, d])[0]] == [{"epsilon": "-"}, {"epsilon": "none"}]


def test_when_checkpoints_come_makes_no_other_setting(tmp_path, write_folder):
    first = write_folder(tmp_path / "a", {"seed": 0, "rounds": 1, "checkpoint_every": 10})
    second = write_folder(tmp_path / "b", {"seed": 1, "rounds": 1, "checkpoint_every": 0, "checkpoint_seconds": 60.0})
    settings, warnings = read_settings([first, second])
    assert [len(setting.runs) for setting in settings] == [2] and warnings == []


def test_long_differences_are_labeled_by_directory_without_the_seed(tmp_path, write_folder):
    fields = [f"setting_number_{i}" for i in range(5)]
    folders = [
        write_folder(tmp_path / name / f"seed{seed}", {"seed": seed, **dict.fromkeys(fields, value)})
        for value, name in enumerate(["fp8-e4m3", "float32"])
        for seed in (10, 11)
    ]
    assert labels(*folders) == ["fp8-e4m3", "float32"]
    assert labels(folders[0]) == ["seed10"]
    assert labels(folders[0], folders[1]) == ["fp8-e4m3"]


def test_directories_of_a_study_give_labels_without_the_seed_also_where_a_setting_has_one(tmp_path, write_folder):
    fields = [f"setting_number_{i}" for i in range(5)]

    def write(name, seed):
        config = {"seed": seed, **dict.fromkeys(fields, name)}
        return write_folder(tmp_path / "runs" / f"{name}-seed{seed}", config)

    iid = [write(name, seed) for name in ("iid-float32", "iid-uq", "iid-uq_plus") for seed in (0, 1, 10)]
    assert labels(*iid) == ["iid-float32", "iid-uq", "iid-uq_plus"]
    assert labels(*iid, write("dirichlet-uq_plus", 2)) == ["iid-float32", "iid-uq", "iid-uq_plus", "dirichlet-uq_plus"]
    # a name that another setting has is not shortened to
    other = write_folder(tmp_path / "runs" / "iid-uq-seed7", {"seed": 7, **dict.fromkeys(fields, "other")})
    assert labels(*iid[:6], other) == ["iid-float32", "iid-uq", "iid-uq-seed7"]


def test_rules_in_another_order_are_another_setting(tmp_path, write_folder):
    rules = {"Dense_0": "float32", "Dense_*": "e5m2"}
    a = write_folder(tmp_path / "a", {"seed": 0, "adapter": {"name": "qat", "rules": rules}})
    b = write_folder(tmp_path / "b", {"seed": 1, "adapter": {"name": "qat", "rules": dict(reversed(rules.items()))}})
    assert labels(a, b) == ["a", "b"]


def test_equal_configs_and_seeds_are_told_apart_by_directory_with_a_warning(tmp_path, write_folder):
    a = write_folder(tmp_path / "before", {"seed": 0})
    b = write_folder(tmp_path / "after", {"seed": 0})
    settings, warnings = read_settings([a, b])
    assert [s.label for s in settings] == ["before", "after"]
    assert [s.fields for s in settings] == [{}, {}]
    assert len(warnings) == 1 and "a seed in common" in warnings[0]


def test_files_and_folders_given_twice_are_left_out_with_a_warning(tmp_path, write_folder):
    a = write_folder(tmp_path / "a", {"seed": 0})
    (tmp_path / "notes.txt").write_text("x")
    settings, warnings = read_settings([a, tmp_path / "notes.txt", tmp_path / "." / "a"])
    assert [len(s.runs) for s in settings] == [1]
    assert [w.split(": ")[1] for w in warnings] == [
        "a file, not a run folder; left out",
        "given twice; counted once",
    ]
    with pytest.raises(UserError, match="no run folder given"):
        read_settings([tmp_path / "notes.txt"])


def test_runs_on_different_versions_or_devices_are_reported(tmp_path, write_folder):
    a = write_folder(tmp_path / "a", {"seed": 0}, versions={"jax": "0.10.2", "flax": "1"}, devices=["cpu"])
    b = write_folder(tmp_path / "b", {"seed": 1}, versions={"jax": "0.11.0", "flax": "1"}, devices=["gpu"])
    assert read_settings([a, b])[1] == [
        "the runs were made with different versions.jax, devices: seconds may not compare"
    ]


def test_a_folder_of_runs_stands_for_those_that_have_begun_in_natural_order(tmp_path, write_folder):
    for seed in (10, 2, 0):
        write_folder(tmp_path / "many" / f"seed-{seed}", {"seed": seed})
    waiting = write_folder(tmp_path / "many" / "seed-3", {"seed": 3})
    (waiting / "metrics.jsonl").write_text('{"round": 1, "upl')
    (setting,), warnings = read_settings([tmp_path / "many"])
    assert [run.seed for run in setting.runs] == [0, 2, 10]
    assert warnings == [f"{waiting}: not logged a round yet, left out"]


def test_what_a_run_says_about_its_split_and_clients_is_read_where_it_is(tmp_path, write_folder):
    folder = write_folder(tmp_path / "a", {"seed": 0})
    assert (read_run(folder).about, read_run(folder).clients) == ({}, {})
    (folder / "about.json").write_text('{"split": {"clients": 3}}')
    (folder / "clients.json").write_text('{"accuracy": [0.5]}')
    run = read_run(folder)
    assert (run.about, run.clients) == ({"split": {"clients": 3}}, {"accuracy": [0.5]})
    assert run.notes == ()


def test_rounds_without_a_line_are_counted_unless_lines_were_written_now_and_then(write_folder, tmp_path):
    def of(name, rounds):
        lines = [{"round": r, "uplink_bytes": 8 * r, "downlink_bytes": 8 * r} for r in rounds]
        return [n for n in read_run(write_folder(tmp_path / name, {"seed": 0}, lines)).notes if "no line" in n]

    assert of("whole", range(1, 11)) == [] and of("every fifth", range(5, 31, 5)) == []
    assert of("lost", [1, 2, 5, 6, 7, 8]) == [f"{tmp_path / 'lost'}: 2 of 8 rounds have no line: they were lost"]
    assert of("lost at the start", [4, 5, 6]) == [
        f"{tmp_path / 'lost at the start'}: 3 of 6 rounds have no line: they were lost"
    ]
