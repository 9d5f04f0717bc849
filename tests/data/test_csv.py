"""The source `csv`: tables become what they say, or are refused with the column and the row at fault."""

import logging
import uuid

import numpy as np
import pytest

from fedjax8 import tasks
from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.data.federated import federate
from fedjax8.data.names import unpacked
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources._streams import write_mapped
from fedjax8.data.sources.csv import csv
from fedjax8.data.sources.mapped import mapped
from fedjax8.errors import UserError
from fedjax8.normalization import normalization

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'fedjax8[csv]'")
ROWS = """age,dose,city,outcome,hospital
30,0.5,Rome,sick,b
41,1.5,Oslo,well,a
25,2.5,Rome,well,b
60,0.0,Oslo,dead,a
33,1.0,Rome,sick,c
52,4.0,Rome,well,c
"""


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)


def table(tmp_path, text=ROWS, name="visits.csv", **settings):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return csv(str(tmp_path), name, **({"target": "outcome"} | settings))


def whole(dataset, column):
    """Values of both parts, sorted by the first feature so that the draw does not matter."""
    x, values = (np.concatenate([part[c] for part in (dataset.train, dataset.test)]) for c in ("x", column))
    return values[np.argsort(x[:, 0])]


def test_text_labels_become_classes_in_sorted_order_and_clients_keep_their_names(tmp_path):
    data = table(tmp_path, features=("age", "dose"), client="hospital", seed=4)
    assert (data.num_classes, data.class_names) == (3, ("dead", "sick", "well"))
    assert whole(data, "y").tolist() == [2, 1, 1, 2, 2, 0]  # by age: 25 30 33 41 52 60
    np.testing.assert_array_equal(whole(data, "x")[:, 1], np.float32([2.5, 0.5, 1.0, 1.5, 4.0, 0.0]))
    assert unpacked(data.client_names) == ["a", "b", "c"] and len(data.test["x"]) == 1
    x = data.train["x"].astype(np.float64)
    np.testing.assert_allclose(data.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, x.std(axis=0), rtol=1e-6)
    clients = federate(data, by_key(), data.num_natural_clients)
    names = dict(zip([30, 41, 25, 60, 33, 52], "babacc", strict=True)) | {25: "b", 60: "a"}
    for number, name in enumerate(clients.named(np.arange(clients.num_clients))):
        assert {names[int(age)] for age in clients.client(number)["x"][:, 0]} == {name}


def test_categories_become_columns_in_sorted_order(tmp_path):
    data = table(tmp_path, features=("age", "city"), categorical=("city",))
    np.testing.assert_array_equal(
        whole(data, "x"), np.float32([[25, 0, 1], [30, 0, 1], [33, 0, 1], [41, 1, 0], [52, 0, 1], [60, 1, 0]])
    )


def test_values_of_categories_are_read_off_private_rows_and_refused_there_unless_they_are_columns_already(tmp_path):
    settings = {"classes": ("dead", "sick", "well"), "seed": 4, "target": "outcome"}
    data = table(tmp_path, features=("age", "city"), categorical=("city",), **settings)
    assert data.feature_names == ("age", "city=Oslo", "city=Rome")
    with pytest.raises(UserError, match="values of column 'city' of visits were read off its training rows"):
        normalization(data, (0.0,), (1.0,), private=True)
    assert normalization(data, (0.0,), (1.0,), private=False) == ((0.0,), (1.0,))
    write_mapped(data, tmp_path / "folder")  # does not make them public
    assert mapped(str(tmp_path), "folder").learned == data.learned
    columns = table(tmp_path, features=("age", "dose"), **settings)
    assert normalization(columns, (0.0,), (1.0,), private=True) == ((0.0,), (1.0,))


def test_numbers_are_regression_and_need_no_classes(tmp_path):
    data = table(tmp_path, target="dose", features=("age",))
    assert data.num_classes is None and data.train["y"].dtype == np.float32 and data.class_names == ("dose",)
    assert whole(data, "y").tolist() == [2.5, 0.5, 1.0, 1.5, 4.0, 0.0]
    both = table(tmp_path, target=("dose", "age"), features=("x1",), text="x1,dose,age\n1,2,3\n2,3,4\n5,6,8\n")
    assert both.train["y"].dtype == np.float32 and whole(both, "y").tolist() == [[2, 3], [3, 4], [6, 8]]
    years = table(tmp_path, "x1,y\n1,10\n2,20\n3,15\n", target="y", target_kind="regression")
    assert years.train["y"].dtype == np.float32


def test_whole_numbers_with_a_point_are_classes_where_that_is_said(tmp_path):
    text = "x1,y\n1,1.0\n2,0.0\n3,1.0\n4,0.0\n"
    assert table(tmp_path, text, target="y").num_classes is None  # measured, unless it is said
    data = table(tmp_path, text, target="y", target_kind="classification")
    assert whole(data, "y").tolist() == [1, 0, 1, 0] and data.class_names == ("0", "1")


def test_one_class_alone_is_no_task(tmp_path):
    data = table(tmp_path, "x1,y\n1,a\n2,a\n3,a\n", target="y")
    for task in (tasks.classification(), tasks.binary(), tasks.language_model()):
        with pytest.raises(UserError, match="all targets of visits are one class, so that any model is right"):
            task.num_outputs(data)


def test_several_columns_of_zeros_and_ones_are_labels(tmp_path):
    text = "x1,red,round\n1,0,1\n2,1,1\n3,0,0\n4,1,0\n"
    data = table(tmp_path, text, target=("red", "round"))
    assert data.train["y"].dtype == np.uint8 and data.class_names == ("red", "round") and data.num_classes is None
    assert whole(data, "y").tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    with pytest.raises(UserError, match="labels are 0 or 1"):
        table(tmp_path, text.replace("4,1,0", "4,2,0"), target=("red", "round"), target_kind="multilabel")


def test_whole_numbers_are_classes_numbered_anew_which_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = table(tmp_path, "x1,y\n1,30\n2,7\n3,30\n4,9\n", target="y")
    assert whole(data, "y").tolist() == [2, 0, 2, 1] and data.class_names == ("7", "9", "30")
    assert "7, 9, 30" in caplog.text
    many = "x1,y\n" + "".join(f"{i},{1000 + i}\n" for i in range(40))
    with pytest.raises(UserError, match="40 different whole numbers in 40 rows; say which"):
        table(tmp_path, many, target="y")


def test_classes_that_are_known_are_numbered_as_they_are_listed(tmp_path):
    data = table(tmp_path, features=("age",), classes=("well", "sick", "dead", "unborn"))
    assert whole(data, "y").tolist() == [0, 1, 1, 0, 0, 2] and data.num_classes == 4  # 25 30 33 41 52 60
    assert "num_classes" in data.constants and "num_classes" not in table(tmp_path, features=("age",)).constants
    with pytest.raises(UserError, match=r"'outcome', row 5 .*'dead', none of the classes well, sick"):
        table(tmp_path, features=("age",), classes=("well", "sick"))


def test_test_rows_come_from_a_column_a_file_or_a_draw(tmp_path):
    text = "x1,y,part\n1,a,train\n2,b,TEST\n3,b,train\n4,a,train\n"
    data = table(tmp_path, text, target="y", test_column="part")
    assert data.test["x"].tolist() == [[2.0]] and data.train["x"].ravel().tolist() == [1.0, 3.0, 4.0]
    (tmp_path / "late.csv").write_text("y,x1\nb,8\nc,9\n")  # another order of columns, and a class of its own
    data = table(tmp_path, "x1,y\n1,a\n2,b\n", target="y", test_file="late.csv")
    assert data.test["x"].ravel().tolist() == [8.0, 9.0] and data.test["y"].tolist() == [1, 2]
    drawn = [
        table(tmp_path, seed=s, features=("age",), test_fraction=0.5).test["x"].ravel().tolist() for s in (0, 0, 1)
    ]
    assert len(drawn[0]) == 3 and drawn[0] == drawn[1] != drawn[2]


def test_parquet_columns_keep_their_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = [uuid.UUID(int=i) for i in (9, 4, 9, 5)]
    columns = {
        "x1": pa.array([1.0, 2.0, 3.0, 4.0]),
        "flag": pa.array([True, False, True, False]),
        "y": pa.array(["u", "v", "u", "v"]).dictionary_encode(),
        "who": pa.array([i.bytes for i in ids], pa.binary(16)),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = csv(str(tmp_path), "t.parquet", target="y", client="who")
    assert data.class_names == ("u", "v") and whole(data, "x")[:, 1].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert unpacked(data.client_names) == [uuid.UUID(int=i).hex for i in (4, 5, 9)]


@pytest.mark.parametrize(
    ("ids", "names"),
    [(("10", "9", "10"), ["9", "10"]), (("007", "7", "7"), ["007", "7"]), (("-3", "x", "x"), ["-3", "x"])],
)
def test_clients_that_are_numbers_come_in_their_order_and_others_as_texts(tmp_path, ids, names):
    text = "x1,y,u\n" + "".join(f"{i},{'ab'[i % 2]},{u}\n" for i, u in enumerate(ids))
    assert unpacked(table(tmp_path, text, target="y", client="u").client_names) == names


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        (ROWS.replace("25,2.5", "25,"), {}, r"column 'dose', row 4 \(the header is row 1\) has no value"),
        (ROWS.replace("25,2.5", "25,high"), {"features": ("age", "dose")}, r"'dose', row 4 .*'high', which is no num"),
        (ROWS.replace("25,2.5", "25,nan"), {"features": ("age", "dose")}, r"'dose', row 4 .* is nan, a missing value"),
        (ROWS, {}, r"'city', row 2 .*'Rome', which is no number; if its values are names, add it to categorical"),
        (ROWS.replace("age,dose", "age,age"), {}, "names column 'age' twice"),
        (ROWS.replace("age,dose", "age,"), {}, "leaves column 2 without a name"),
        ("x1,k,y\n1,5,a\n2,5,b\n3,5,a\n", {"target": "y"}, "'k', row [234] .* one value; a constant column"),
        (ROWS, {"target": "age,dose"}, r"no column 'age,dose'.*; several columns are written \('age', 'dose'\)"),
        (ROWS, {"target": "outcom"}, "no column 'outcom'.*did you mean 'outcome'"),
        (ROWS.replace(",", ";"), {}, "no column 'outcome'.*is the delimiter another"),
        (ROWS.replace("33,1.0,Rome,sick,c", "33,1.0,Rome,sick,"), {"client": "hospital", "features": ("age",)},
         "column 'hospital', row 6.* has no value"),
        (ROWS.replace("33,1.0", "33,1.0,9"), {}, "cannot be read as a table"),
        (ROWS, {"client": "outcome"}, "'outcome' has two roles"),
        (ROWS, {"features": ("age",), "categorical": ("city",)}, "'city' is not among the features"),
        (ROWS, {"test_column": "city", "features": ("age",)}, "'city', row 2.* must say train or test"),
        (ROWS, {"target": "dose", "target_kind": "classification", "features": ("age",)}, "no class; use .*regression"),
        (b"\xff\xfe\x00", {}, "cannot be read as a table"),
        ("", {}, "without a name"),
        ("x1,outcome\n", {}, "no rows below"),
        (ROWS, {"test_fraction": 0.99}, "no row is for training"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, text, settings, says):
    with pytest.raises(UserError, match=says):
        table(tmp_path, text, **settings)


def test_a_value_that_only_test_rows_have_is_refused(tmp_path):
    text = "x1,c,y,part\n1,u,a,train\n2,v,b,train\n3,w,a,test\n"
    with pytest.raises(UserError, match=r"'c', row 4 .*'w', a value that no training row has"):
        table(tmp_path, text, target="y", categorical=("c",), test_column="part")


def test_damaged_parquet_is_refused(tmp_path):
    for content in (b"", b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1"):
        with pytest.raises(UserError, match="cannot be read as a table"):
            table(tmp_path, content, name="t.parquet")


def test_a_run_is_described_by_flags_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i},{i % 7 + i % 3 / 2},{'yes' if i % 3 else 'no'},u{i % 4}" for i in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["a,b,label,user", *rows]))
    config = base_config()
    pairs = {
        "data.name": "csv", "data.file": "own.csv", "data.target": "label", "data.client": "user",
        "partition.name": "by_key", "num_clients": "0", "cohort_size": "2",
    }  # fmt: skip
    override(config, list(pairs.items()))
    made = build(config)
    assert made.simulation.num_clients == 4 and made.simulation.data.named(np.arange(4)) == ["u0", "u1", "u2", "u3"]
    assert made.dataset.class_names == ("no", "yes")
