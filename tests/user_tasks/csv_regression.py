"""A CSV file of one's own, with clinics in a column, whose numbers are predicted: needs pip install 'fedjax8[csv]'."""

from pathlib import Path

import numpy as np

import fedjax8

x = np.random.default_rng(0).normal(size=(400, 2))
rows = [f"{age},{dose},{3 * age - dose},clinic{i % 8}" for i, (age, dose) in enumerate(x)]
Path("visits.csv").write_text("\n".join(["age,dose,outcome,clinic", *rows]))
table = {"name": "csv", "file": "visits.csv", "target": "outcome", "client": "clinic"}
rate = {"optimizer": {"name": "sgd", "learning_rate": 0.02}}
clients = {"partition": "by_key", "num_clients": 0, "cohort_size": 4, "rounds": 20, "client": rate}
run = fedjax8.experiment(table, "mlp", task="regression", data_dir=".", **clients)
assert run.experiment.simulation.num_clients == 8 and run.summary["test_mae"] < 0.5
