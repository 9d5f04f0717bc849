"""A run that turned out too short goes on, by the command line or from Python."""

import fedjax8
from fedjax8 import train

train.main(["train", "--workdir=run", "--config.rounds=10"])
train.main(["train", "--workdir=run", "--config.rounds=20"])
run = fedjax8.load("run").go_on(rounds=30)
print([part["after_round"] for part in run.record["parts"]], run.summary["test_accuracy"])
assert len(run.metrics) == 30 and run.summary["finished"]
