"""The record of a run: resolved settings, command, commit, host, date."""

import datetime
import inspect
import json
import shutil
import socket
import subprocess

from fedjax8 import launch
from fedjax8.adapters import qat
from fedjax8.codecs import error_feedback, fp8
from fedjax8.components import resolved
from fedjax8.config import base_config, component, load_config, plain


def defaults(factory):
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_resolved_settings_have_every_default_also_of_components_inside_others():
    config = base_config()
    config.format = "e4m3fnuz"
    config.uplink = component("error_feedback", codec=component("topk", share=0.1))
    config.callbacks = (component("early_stopping", patience=7),)
    config.client.optimizer = component("adam", learning_rate=0.25)
    found = resolved(config)
    assert json.loads(json.dumps(found)) == found and set(found) == set(config)
    assert found["adapter"] == {"name": "qat"} | defaults(qat) | {"format": "e4m3fnuz"}
    assert found["downlink"] == {"name": "fp8"} | defaults(fp8) | {"format": "e4m3fnuz"}
    assert set(found["uplink"]) == {"name", *inspect.signature(error_feedback).parameters}
    assert found["uplink"]["codec"]["share"] == 0.1 and "name" in found["uplink"]["codec"]
    assert found["callbacks"][0]["patience"] == 7 and found["callbacks"][0]["direction"] == "auto"
    optimizer = found["client"]["optimizer"]
    assert (optimizer["learning_rate"], optimizer["b1"], optimizer["eps"]) == (0.25, 0.9, 1e-8)
    assert found["model"] == {"name": "mlp", "hidden": [128]}  # the data decide the rest
    assert found["data"]["test_fraction"] == 0.2 and "data_dir" not in found["data"]


def test_a_record_says_by_which_command_where_and_when(run_folder):
    record = json.loads((run_folder / "config.json").read_text())
    assert record["host"] == socket.gethostname()
    assert record["command"]
    when = datetime.datetime.fromisoformat(record["date"])
    assert when.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - when) < datetime.timedelta(hours=1)
    part = record["parts"][0]
    assert {name: part[name] for name in ("date", "host", "command", "commit", "versions", "devices")} == {
        name: record[name] for name in ("date", "host", "command", "commit", "versions", "devices")
    }
    assert part["after_round"] == 0 and len(record["parts"]) == 1


def test_a_record_is_a_config_to_run_again(run_folder, run_module):
    assert plain(load_config(str(run_folder / "config.json"))) == plain(run_module.config())


def test_the_commit_is_that_of_the_code_and_says_what_git_does_not_know(tmp_path, monkeypatch):
    package = tmp_path / "house" / "fedjax8"
    package.mkdir(parents=True)
    shutil.copy(launch.__file__, package / "launch.py")
    monkeypatch.setattr(launch, "__file__", str(package / "launch.py"))
    assert launch.commit.__wrapped__() == ""
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path / "house"), *words],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert launch.commit.__wrapped__() == commit
    (package / "launch.py").write_text("changed")
    assert launch.commit.__wrapped__() == f"{commit}-dirty"
    monkeypatch.setattr(launch.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError))
    assert launch.commit.__wrapped__() == ""
