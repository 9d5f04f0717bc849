"""A folder in the JSON layout of LEAF, whose users are the clients."""

import json
from pathlib import Path

import fedjax8

users = {f"user{u}": {"x": [[0, 0, 1], [1, u, 0]] * 10, "y": [0, 1] * 10} for u in range(6)}
for part in ("train", "test"):
    Path("mine", part).mkdir(parents=True)
    text = json.dumps({"users": list(users), "num_samples": [20] * 6, "user_data": users})
    Path("mine", part, "all.json").write_text(text)
clients = {"partition": "by_key", "num_clients": 0, "cohort_size": 3, "rounds": 5}
run = fedjax8.experiment({"name": "leaf", "folder": "mine"}, data_dir=".", **clients)
assert run.experiment.simulation.num_clients == 6 and run.summary["test_accuracy"] == 1.0
