"""Several labels a row, judged by F1 over labels and by the area under the curve."""

import numpy as np

import fedjax8

x = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
marks = (x @ np.eye(5)[:, :3] > [0.0, 0.3, -0.3]).astype(np.uint8)
task = {"name": "multilabel", "metrics": ["macro_f1", "auc"]}
client = {"optimizer": {"name": "adam", "learning_rate": 0.01}}
run = fedjax8.experiment(
    (x, marks), "mlp", task=task, partition="iid", num_clients=6, cohort_size=6, rounds=15, client=client
)
print(run.plot().get_ylabel())
assert marks.shape == (600, 3) and run.summary["test_macro_f1"] > 0.8 and run.metrics[-1]["test_auc"] > 0.9
