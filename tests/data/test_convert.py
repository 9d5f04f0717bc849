"""Any source becomes a folder that `mapped` reads: the same rows, clients by name, classes; nothing half written."""

import json

import numpy as np
import pytest
from absl import flags

from fedjax8 import convert as command
from fedjax8.convert import convert
from fedjax8.data.federated import Dataset, federate
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources._streams import Stream, gathered, write_mapped
from fedjax8.data.sources.leaf import leaf
from fedjax8.data.sources.mapped import mapped
from fedjax8.errors import UserError
from fedjax8.types import MARKS, VALUES


def write_leaf(folder):
    rows = {"f2": ([[0.5, 1.0], [2.0, 4.0]], [1, 0]), "f1": ([[8.0, 9.0]], [1])}
    for part in ("train", "test"):
        (folder / "toy" / part).mkdir(parents=True)
        document = {
            "users": list(rows),
            "num_samples": [len(y) for _, y in rows.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in rows.items()},
        }
        (folder / "toy" / part / "a.json").write_text(json.dumps(document))


def test_a_stream_becomes_a_folder_with_the_same_clients(tmp_path):
    write_leaf(tmp_path)
    convert([("data.name", "leaf"), ("data.folder", "toy")], tmp_path / "out" / "toy", str(tmp_path))
    direct, folder = leaf(str(tmp_path), "toy"), mapped(str(tmp_path / "out"), "toy")
    assert folder.mean == pytest.approx(direct.mean) and folder.num_classes == direct.num_classes == 2
    one, two = federate(direct, by_key(), 2), federate(folder, by_key(), 2)
    assert isinstance(two.columns["x"], np.memmap)
    by_name = {name: one.client(i) for i, name in enumerate(one.named(np.arange(2)))}
    for number, name in enumerate(two.named(np.arange(2))):
        for column in "xy":
            np.testing.assert_array_equal(two.client(number)[column], by_name[name][column])
    with pytest.raises(UserError, match="exists; choose another"):
        convert([("data.name", "leaf"), ("data.folder", "toy")], tmp_path / "out" / "toy", str(tmp_path))


def test_a_source_without_clients_becomes_one(tmp_path):
    convert([("data.name", "digits")], tmp_path / "digits")
    folder = mapped(str(tmp_path), "digits")
    assert folder.num_natural_clients == 1 and folder.num_classes == 10 and folder.train["x"].dtype == np.uint8
    assert "num_classes" in folder.constants


def clients(rows):
    return lambda: iter([(name, {"x": np.float32([[i]] * 2), "y": y}) for i, (name, y) in enumerate(rows.items())])


@pytest.mark.parametrize(
    ("targets", "y"),
    [(VALUES, np.float32([0.5, 1.5])), (MARKS, np.uint8([[0, 1], [1, 1]]))],
)
def test_other_targets_and_names_of_labels_are_kept(tmp_path, targets, y):
    settings = {"targets": targets, "class_names": ("p", "q")}
    toy = Stream("toy", "toy", clients({"b": y, "a": y}), clients({"a": y}), settings)
    write_mapped(toy, tmp_path / "toy")
    folder, whole = mapped(str(tmp_path), "toy"), gathered(toy)
    for made in (folder, whole):
        assert made.num_classes is None and made.class_names == ("p", "q") and made.train["y"].dtype == y.dtype
    np.testing.assert_array_equal(folder.train["y"], np.concatenate([y, y]))
    assert whole.train["x"].ravel().tolist() == [0, 0, 1, 1] and whole.owners.tolist() == [1, 1, 0, 0]


def test_clients_of_a_data_set_in_memory_keep_their_names_and_test_rows_theirs(tmp_path):
    rows = {"x": np.float32([[0], [1], [2]]), "y": np.int32([0, 1, 0])}
    toy = Dataset(rows, rows, 2, (0.0,), (1.0,), "toy", np.int32([7, 3, 7]), np.int32([3, 3, 7]))
    write_mapped(toy, tmp_path / "toy")
    folder = mapped(str(tmp_path), "toy")
    split = federate(folder, by_key(), 2)
    assert split.named(np.arange(2)) == ["3", "7"] and split.client(1)["x"].ravel().tolist() == [0.0, 2.0]


def test_a_failure_leaves_no_folder(tmp_path):
    def fails():
        yield "a", {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}
        raise UserError("the file ends here")

    with pytest.raises(UserError, match="ends here"):
        write_mapped(Stream("toy", "toy", fails, fails), tmp_path / "toy")
    assert not list(tmp_path.iterdir())
    twice = clients({"a": np.zeros(2, np.int32)})
    with pytest.raises(UserError, match="is there twice"):
        write_mapped(Stream("toy", "toy", lambda: iter([*twice(), *twice()]), twice), tmp_path / "toy")


@pytest.mark.parametrize("content", ["[", '{"num_classes": 0}', '{"num_classes": "x"}', '{"class_names": [3]}'])
def test_damaged_names_of_classes_are_refused(tmp_path, content):
    convert([("data.name", "synthetic"), ("data.num_examples", "20"), ("data.num_test", "20")], tmp_path / "s")
    (tmp_path / "s" / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json is damaged"):
        mapped(str(tmp_path), "s")


@pytest.fixture
def values(monkeypatch):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    flags.DEFINE_string("out", None, "", flag_values=own)
    flags.DEFINE_string("data_dir", None, "", flag_values=own)
    return own


def test_the_command_line_writes_a_folder_and_says_how_to_read_it(tmp_path, values, capsys):
    write_leaf(tmp_path)
    source = ["convert", "--out=o", "--config.data.name=leaf"]
    line = ["convert", f"--out={tmp_path}/o", *source[2:], "--config.data.folder=toy", f"--data_dir={tmp_path}"]
    assert command.main(command.parse_flags(line)) == 0
    assert "--config.data.name=mapped --config.data.folder=o" in capsys.readouterr().out
    assert mapped(str(tmp_path), "o").num_natural_clients == 2
    for line, says in (
        (["convert"], "add --out"),
        (["convert", "x"], "unexpected argument 'x'"),
        (["convert", "--out=o", "--config.data.name=leef"], "did you mean 'leaf'"),
        ([*source, "--config.data.standardize=none"], "rows are written as they are"),
        ([*source, "--config.data.foldr=a"], "foldr"),
    ):
        values.unparse_flags()
        values["out"].unparse()
        with pytest.raises(UserError, match=says):
            command.main(command.parse_flags(line))
