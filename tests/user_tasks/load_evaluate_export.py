"""A finished run is loaded, evaluated on rows of one's own, and its model exported."""

import fedjax8
from fedjax8 import models, train

train.main(["train", "--workdir=run", "--config.rounds=20"])
run = fedjax8.load("run")
test = run.experiment.dataset.test
found = run.evaluate({"x": test["x"][:100], "y": test["y"][:100]})
file = run.export("mine.safetensors")
print(run, found["test_accuracy"], sorted(models.load_params(file)))
assert found["test_accuracy"] > 0.9 and models.load_params(file)["Dense_0"]["kernel"].shape == (64, 128)
