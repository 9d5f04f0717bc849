# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # What to do with a run afterwards
#
# A run is a folder. It can be opened from Python while it goes on and long after: to look at its curves, evaluate its
# model on other rows, train on, make a model for one client, or publish what came out. Takes about a quarter of a
# minute on two CPU cores.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fedjax8
from fedjax8 import models
from fedjax8.data import held_out
from fedjax8.plot import use_style

use_style()

# %% [markdown]
# ## A run
#
# `workdir` keeps it. The same call finds the finished run there and returns at once; `fedjax8 train --workdir=FOLDER`
# writes the same folder.

# %%
folder = Path(tempfile.mkdtemp()) / "digits"
fedjax8.experiment("digits", rounds=30, eval_every=3, workdir=folder, quiet=True)
print(*sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## Load it
#
# Nothing is read before it is asked for, and nothing in the folder changes. Curves need no data; the model does, since
# it is put together from the objects that the config describes.

# %%
run = fedjax8.load(folder)
print("algorithm", run.config.algorithm.name, "uplink", run.config.uplink.name, "checkpoints of rounds", run.rounds)
run

# %%
run.plot()

# %% [markdown]
# ## Evaluate it
#
# On the test rows, or on any rows like those it was trained on. A model that was trained in 8 bits is judged twice: as
# it runs, and with float32 weights. Here it looks at digits that are shifted by a pixel, which it has never seen.

# %%
test = run.experiment.dataset.test
shifted = {"x": np.roll(test["x"], 1, axis=2), "y": test["y"]}
for name, rows in (("as they are", test), ("shifted", shifted)):
    found = run.evaluate(rows)
    print(f"{name}: accuracy {found['test_accuracy']:.3f}, in float32 {found['float32_test_accuracy']:.3f}")

logits = run.predict(test["x"])
confusion = np.zeros((10, 10), int)
np.add.at(confusion, (test["y"], logits.argmax(axis=1)), 1)
fig, ax = plt.subplots(figsize=(4.6, 4))
image = ax.imshow(np.where(np.eye(10), np.nan, confusion), cmap="Oranges")
ax.grid(False)
ax.set(xlabel="predicted", ylabel="digit", xticks=range(10), yticks=range(10), title="mistakes on the test rows")
fig.colorbar(image, label="rows")
plt.show()

# %% [markdown]
# ## Go on
#
# More rounds in the same folder. The model is bit for bit the one that a run of 60 rounds would have had.

# %%
before = run.evaluate()["test_accuracy"]
longer = run.go_on(rounds=60)
print(f"test accuracy {before:.3f} after 30 rounds, {longer.evaluate()['test_accuracy']:.3f} after 60")
longer.plot("rounds")

# %% [markdown]
# ## A model for one client
#
# `fine_tune` takes local steps from the global model on a client's own training rows. Test rows of the client are those
# that are dealt to it, by the digits that it has. We take the client that the global model serves worst. What it gains,
# all the others lose:

# %%
simulation, state = longer.simulation, longer.state()
own_rows = held_out(longer.experiment.dataset, simulation.data, simulation.seed).clients
scores = simulation.evaluate_clients(state, range(simulation.num_clients), own_rows)
client = int(scores.ids[scores.metrics["accuracy"].argmin()])
rows = {name: column[own_rows.rows(client)] for name, column in own_rows.columns.items()}
labels = np.bincount(simulation.data.columns["y"][simulation.data.rows(client)], minlength=10)
print(
    f"client {client}: {labels.sum()} training rows, by digit {labels.tolist()}; {len(rows['y'])} test rows of its own"
)
for steps in (0, 5, 20, 100):
    own = longer.fine_tune(client, steps) if steps else longer.variables()
    on_own, on_all = longer.evaluate(rows, variables=own), longer.evaluate(variables=own)
    print(
        f"{steps:3} steps: own rows accuracy {on_own['test_accuracy']:.3f}, loss {on_own['test_loss']:.3f}; "
        f"all rows accuracy {on_all['test_accuracy']:.3f}"
    )

# %% [markdown]
# ## Publish
#
# `export` writes a safetensors file, which other libraries open too. A perceptron is two products with its weights, so
# that NumPy alone can use it; pixels are scaled as in training.

# %%
file = longer.export(folder.parent / "digits.safetensors")
params = models.load_params(file)
first, last = params["Dense_0"], params["Dense_1"]
dataset = longer.experiment.dataset
x = (test["x"].reshape(len(test["x"]), -1) / 255 - dataset.mean) / dataset.std
hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
predicted = (hidden @ last["kernel"] + last["bias"]).argmax(axis=1)
accuracy = (predicted == test["y"]).mean()
print(f"{file.stat().st_size:,} bytes; accuracy by NumPy {accuracy:.3f}")
assert abs(accuracy - longer.evaluate()["float32_test_accuracy"]) < 0.005

# %% [markdown]
# The same from the command line:
#
#     fedjax8 evaluate runs/digits
#     fedjax8 train --workdir=runs/digits --config.rounds=60
#     fedjax8 train --init_from=runs/digits --workdir=runs/next --config.adapter.name=lora
#
# All of it, and what a run can and cannot go on with, is in `docs/loading.md`.
