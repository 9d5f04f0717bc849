"""A run whose metrics TensorBoard shows: `tensorboard --logdir=logged`."""

from pathlib import Path

from fedjax8 import train

train.main(["train", "--workdir=logged", "--config.rounds=10", "--writers=tensorboard"])
(events,) = Path("logged/tensorboard").glob("events.out.tfevents.*")
assert b"test_accuracy" in events.read_bytes()
