"""A run that ends by itself when the accuracy on validation rows no longer improves."""

import json

from fedjax8 import train

stopping = ["--config.callbacks=early_stopping", "--config.callbacks.0.patience=2"]
train.main(["train", "--workdir=stopped", "--config.rounds=300", "--config.validation=0.2", *stopping])
with open("stopped/summary.json") as file:
    summary = json.load(file)
print(f"stopped after {summary['rounds']} of 300 rounds: {summary['stopped_by']['reason']}")
assert summary["finished"] and summary["rounds"] < 300
