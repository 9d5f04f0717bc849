# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Data of your own: arrays, and a table
#
# Rows are yours and clients have names: that is all a run needs. Twelve hospitals see tumors of different sizes; we
# train on their rows from arrays in memory, and then from a CSV file with a column of hospitals. Takes about a quarter
# of a minute on two CPU cores, and needs `pip install 'fedjax8[plot,csv]'`. The data come with scikit-learn.

# %%
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import fedjax8
from fedjax8.errors import UserError
from fedjax8.plot import plot_runs, use_style

use_style()

# %% [markdown]
# ## Rows, and who has them
#
# 569 tumors, 30 measurements each, malignant or benign. The data name no hospitals, so we make some up: rows in the
# order of a noisy radius, cut into twelve unequal parts.

# %%
table = load_breast_cancer()
x, y = table.data.astype(np.float32), table.target  # 0 malignant, 1 benign
rng = np.random.default_rng(0)
NAMES = ("Aare", "Birs", "Doubs", "Emme", "Inn", "Linth", "Moesa", "Orbe", "Reuss", "Rhone", "Thur", "Ticino")
order = np.argsort(x[:, 0] + rng.normal(0, 2.0, len(x)))
shares = rng.dirichlet(np.full(12, 3.0))
hospital = np.empty(len(x), dtype=object)
hospital[order] = np.repeat(rng.permutation(NAMES), rng.multinomial(len(x), shares))
print({name: int((hospital == name).sum()) for name in NAMES})

# %% [markdown]
# ## From arrays
#
# A mapping of arrays stands for a data set. Clients are numbers from 0; `np.unique` numbers names. Features are scaled,
# each by its mean and deviation over training rows, and a fifth of the rows is drawn for testing. `by_key` makes each
# hospital a client, and `num_clients=0` takes as many as there are.

# %%
names, numbers = np.unique(hospital.astype(str), return_inverse=True)
settings = {
    "partition": "by_key",
    "num_clients": 0,
    "cohort_size": 6,
    "rounds": 30,
    "eval_every": 2,
    "client": {"optimizer": {"name": "sgd", "learning_rate": 0.02}, "epochs": 1},
    "quiet": True,
}
run = fedjax8.experiment({"x": x, "y": y, "clients": numbers}, "logistic", **settings)
print(run)

data = run.simulation.data
counts = data.label_counts(2)
fig, ax = plt.subplots(figsize=(7, 3.4))
ax.bar(names, counts[:, 0], color="C1", label="malignant")
ax.bar(names, counts[:, 1], bottom=counts[:, 0], color="C0", label="benign")
ax.set(ylabel="training rows", title="what the hospitals have")
ax.tick_params("x", labelrotation=45)
ax.legend()
plt.show()

# %% [markdown]
# Always look at the split first: one that you did not expect explains more results than any setting does.
#
# ## From a table
#
# The same rows in a CSV file, with the hospital and the diagnosis as texts. The source `csv` reads it: `target` is the
# column to predict, `client` that of clients, and all other columns are features. (Tables with texts among the features
# name these in `categorical`; Parquet files are read likewise.)

# %%
folder = Path(tempfile.mkdtemp())
with open(folder / "tumors.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([*table.feature_names, "diagnosis", "hospital"])
    for row, label, place in zip(x.tolist(), y, hospital, strict=True):
        writer.writerow([*row, table.target_names[label], place])

source = {"name": "csv", "file": "tumors.csv", "target": "diagnosis", "client": "hospital"}
runs = {}
for name, messages in {
    "8 bits": {},
    "float32": {"adapter": "none", "uplink": "none", "downlink": "none"},
}.items():
    runs[name] = fedjax8.experiment(source, "logistic", data_dir=folder, **settings, **messages)
dataset = runs["8 bits"].experiment.dataset
print(f"{len(dataset.train['y'])} training rows of {runs['8 bits'].simulation.num_clients} hospitals")
print("classes:", *dataset.class_names)

fig, ax = plt.subplots(figsize=(6, 3.8))
plot_runs([run.path for run in runs.values()], "bytes", ax)
ax.legend(ax.lines, runs)
plt.show()

# %% [markdown]
# The plot of a few hundred test rows is coarse: one row is almost a percentage point.
#
# ## Mistakes are named
#
# Nothing is guessed. A column that is not there, an empty cell, a text among numbers: each is refused in a sentence
# that says where.

# %%
broken = (folder / "tumors.csv").read_text().splitlines()
broken[3] = "unknown," + broken[3].split(",", 1)[1]
(folder / "broken.csv").write_text("\n".join(broken))
for wrong in ({"target": "diagnoses"}, {"file": "broken.csv"}):
    try:
        fedjax8.experiment(source | wrong, "logistic", data_dir=folder, **settings)
    except UserError as error:
        print(str(error).replace(str(folder), "FOLDER"))

# %% [markdown]
# On the command line:
#
#     fedjax8 train --data_dir=FOLDER --config.data.name=csv --config.data.file=tumors.csv \
#         --config.data.target=diagnosis --config.data.client=hospital --config.partition.name=by_key \
#         --config.num_clients=0 --config.cohort_size=6
#
# Arrays go to an `.npz` file for that (source `npz`), data sets larger than memory to a folder (`mapped`); Hugging
# Face's data sets, LEAF's and TensorFlow Federated's are read as they are. `docs/data.md` has them all.
