"""Runs with files on scikit-learn's digits, as small as they can be, started as `train` starts them."""

import json

from fedjax8.build import build
from fedjax8.config import base_config, component, plain
from fedjax8.launch import run_of, schedule_of
from fedjax8.running.identity import MAY_CHANGE
from fedjax8.running.runner import run_one

ROUNDS = 4


def config(**fields):
    """The config of four rounds on 6 clients, evaluated and saved every two."""
    made = base_config()
    settings = {"rounds": ROUNDS, "eval_every": 2, "checkpoint_every": 2, "num_clients": 6, "cohort_size": 3} | fields
    made.model = component("mlp", hidden=(8,))
    made.executor = component("loop")
    made.client.epochs, made.client.batch_size = 1, 50
    for name, value in settings.items():
        del made[name]
        made[name] = value
    return made


_built = {}


def built(config):
    """The experiment of a config; those that differ in what changes no round share what they compiled."""
    same = {name: value for name, value in plain(config).items() if name not in MAY_CHANGE}
    experiment = _built.setdefault(json.dumps(same), None) or build(config)
    _built[json.dumps(same)] = experiment
    return experiment._replace(config=config)


def run(config, folder, **schedule):
    """The result of a run that is written to a folder."""
    experiment = built(config)
    return run_one(run_of(experiment, folder), experiment.dataset.test, schedule_of(config)._replace(**schedule))


def lines(folder):
    """The metrics of a run, without the seconds, which no two runs share."""
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("round_seconds", "compile_seconds")} for line in read]


def content(folder):
    """Bytes of all files by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
