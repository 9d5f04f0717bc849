"""The list of faults: every text stands where it is said to, and what runs them tells noticed from not noticed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "adapters", "aggregators", "algorithms", "attacks", "callbacks", "codecs", "config", "data", "dropouts", "engine",
    "exchange", "executors", "loading", "models",
    "monitors", "numerics", "participation", "privacy", "refinements", "results", "running", "topologies",
}  # fmt: skip


@pytest.fixture
def mutate(load_script):
    return load_script("mutate")


def test_every_text_stands_in_its_file_exactly_once_and_every_test_is_there(mutate):
    faults = mutate.read_faults()
    assert len(faults) >= 60 and {fault.room for fault in faults} == ROOMS
    assert len({fault.name for fault in faults}) == len(faults)
    for fault in faults:
        assert mutate.faulty((ROOT / fault.file).read_text(), fault).count(fault.new) >= bool(fault.new)
        assert fault.tests
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test


SOUND = "def double(x):\n    return 2 * x\n"
TEST = "from fedjax8.sums import double\n\n\ndef test_double():\n    assert double({}) == {}\n"


def repository(folder, faults):
    """A package of one function and a test of it for 3 and of another for 0."""
    (folder / "fedjax8").mkdir()
    (folder / "fedjax8" / "__init__.py").write_text("")
    (folder / "fedjax8" / "sums.py").write_text(SOUND)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_three.py").write_text(TEST.format(3, 6))
    (folder / "tests" / "test_zero.py").write_text(TEST.format(0, 0))
    keys = ("room", "name", "file", "old", "new", "tests")
    tables = ["[[fault]]\n" + "\n".join(f"{k} = {v!r}" for k, v in zip(keys, f, strict=True)) for f in faults]
    (folder / "faults.toml").write_text("\n".join(tables))
    return folder


def fault(name="triples", old="2 * x", new="3 * x", test="tests/test_three.py"):
    return ("numerics", name, "fedjax8/sums.py", old, new, [test])


def test_what_fails_is_noticed_and_what_passes_is_not_and_the_repository_stays(mutate, tmp_path, capsys):
    root = repository(tmp_path, [fault(), fault("triples too", test="tests/test_zero.py")])
    assert mutate.main([], root, root / "faults.toml") == 1
    told = capsys.readouterr().out
    assert re.search(r"^noticed +numerics +triples$", told, re.MULTILINE)
    assert re.search(r"^NOT NOTICED +numerics +triples too$", told, re.MULTILINE)
    assert told.endswith("1 of 2 faults noticed, 50.0%\n")
    assert (root / "fedjax8" / "sums.py").read_text() == SOUND
    assert mutate.main(["--list"], root, root / "faults.toml") == 0
    assert "2 faults" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "said"),
    [(fault(old="4 * x"), "stands 0 times"), (fault(old=" "), "stands"), (fault(new="2 * x"), "stands 1")],
)
def test_a_stale_text_is_an_error(mutate, tmp_path, capsys, one, said):
    root = repository(tmp_path, [one])
    assert mutate.main([], root, root / "faults.toml") == 2
    assert said in capsys.readouterr().err


def test_a_test_that_cannot_be_collected_is_an_error_and_no_notice(mutate, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mutate, "run_tests", lambda folder, tests: 2)
    root = repository(tmp_path, [fault()])
    assert mutate.main([], root, root / "faults.toml") == 2
    assert "pytest ended with status 2" in capsys.readouterr().out


def test_an_unknown_room_is_named(mutate, tmp_path, capsys):
    with pytest.raises(SystemExit):
        mutate.main(["--room=nowhere"])
    assert "'nowhere'; there are adapters" in capsys.readouterr().err
