"""Client learning rates by a cosine that reaches 0 after 20 rounds: nothing moves from there on."""

import json

from fedjax8 import train

rate = "--config.client.optimizer.learning_rate"
cosine = [f"{rate}.name=cosine_decay_schedule", f"{rate}.init_value=0.1", f"{rate}.decay_steps=20"]
train.main(["train", "--config=digits_float32", "--workdir=cosine", "--config.rounds=40", *cosine])
with open("cosine/metrics.jsonl") as file:
    accuracies = [line["test_accuracy"] for line in map(json.loads, file) if "test_accuracy" in line]
assert accuracies[3] > 0.5 and len(set(accuracies[4:])) == 1
