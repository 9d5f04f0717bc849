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
print("test rows:", {name: round(value, 3) for name, value in run.evaluate().items()})
print("shifted:  ", {name: round(value, 3) for name, value in run.evaluate(shifted).items()})

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
# `fine_tune` takes local steps from the global model on the client's own training rows. The client's test rows are
# dealt by the digits that it has. What the client gains, all the others lose:

# %%
simulation = longer.simulation
own_rows = held_out(longer.experiment.dataset, simulation.data, simulation.seed).clients
client = int(simulation.data.sizes.argmax())
rows = {name: column[own_rows.rows(client)] for name, column in own_rows.columns.items()}
labels = np.bincount(simulation.data.columns["y"][simulation.data.rows(client)], minlength=10)
print(f"client {client} has {labels.sum()} training rows, by digit: {labels.tolist()}; {len(rows['y'])} own test rows")
for steps in (1, 5, 50):
    own = longer.fine_tune(client, steps)
    on_own, on_all = longer.evaluate(rows, variables=own), longer.evaluate(variables=own)
    print(
        f"{steps:3} steps: on own rows accuracy {on_own['test_accuracy']:.3f}, loss {on_own['test_loss']:.4f}; "
        f"on all rows {on_all['test_accuracy']:.3f}"
    )

# %% [markdown]
# ## Publish
#
# The model as a safetensors file, which every other library opens. These are its weights, and two products with them
# are the whole model: no fedjax8 is needed to use it.

# %%
file = longer.export(folder.parent / "digits.safetensors")
params = models.load_params(file)
print({f"{layer}/{name}": value.shape for layer, leaves in params.items() for name, value in leaves.items()})
