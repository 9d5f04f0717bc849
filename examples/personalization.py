# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # One model for all, or one for each?
#
# Sixty clients hold two dozen images each, of four digits or fewer. A model that knows all ten is more than a client
# needs; a model that a client trains alone has seen little. Between the two lie methods that share a part of the model.
# We compare them with both ends, client by client. Takes about twenty seconds on two CPU cores.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import fedjax8
from fedjax8.data import held_out
from fedjax8.plot import plot_runs, use_style

use_style()

# %% [markdown]
# ## Five answers
#
# `centralized` trains on the rows of all clients in one place, which is what federated learning is to avoid: a
# baseline. `fedavg` averages models. `fedper` averages all layers but the last, which stays with the client; `fedrep`
# too, but it trains the two parts one after the other. `local_only` sends nothing.
#
# The model of a client is judged on test rows that have its digits, in the shares of its training rows; no other
# client is judged by them. `evaluate_clients` puts the mean over clients, `personal_accuracy`, into the log.

# %%
settings = {
    "fedavg": "fedavg",
    "fedper": "fedper",
    "fedrep": {"name": "fedrep", "head_epochs": 4},
    "local_only": "local_only",
    "centralized": "centralized",
}
runs = {}
for name, algorithm in settings.items():
    runs[name] = fedjax8.experiment(
        "digits",
        {"name": "mlp", "hidden": (64, 32)},
        algorithm=algorithm,
        partition={"name": "shards", "shards_per_client": 4},
        num_clients=60,
        cohort_size=20,
        rounds=30,
        eval_every=3,
        evaluate_clients={"every": 3},
        client={"optimizer": {"name": "sgd", "learning_rate": 0.05}},
        config="digits_float32",
        quiet=True,
    )

print(f"{'':>12} everybody's rows   own rows: mean   worst tenth   megabytes up")
for name, run in runs.items():
    last = run.metrics[-1]
    print(
        f"{name:>12} {last['test_accuracy']:16.3f} {last['personal_accuracy']:16.3f}"
        f" {last['personal_worst_tenth']:13.3f} {last['uplink_bytes'] / 1e6:14.2f}"
    )

# %% [markdown]
# The first column is the global model on all test rows. Of FedPer, FedRep and `local_only` it says nothing: their
# global models have an untrained last layer, or are the initial one. The second is what a client gets. No model travels
# in the centralized run; all rows do.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4))
plot_runs([run.path for run in runs.values()], "rounds", axes[0], y="personal_accuracy")
for name, run in runs.items():
    found = json.loads((run.path / "clients.json").read_text())
    accuracy = np.sort(found["accuracy"])
    axes[1].plot(accuracy, np.arange(1, len(accuracy) + 1), drawstyle="steps-post", label=name)
axes[0].set_title("mean over clients")
axes[0].legend(axes[0].lines, runs)
axes[1].set(xlabel="accuracy on own rows", ylabel="clients at or below", title="after 30 rounds, client by client")
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# A last layer of its own wins three to four points over FedAvg on these clients: 0.953 with FedRep and 0.946 with
# FedPer against 0.912. Training alone does as well as FedAvg, and sends nothing. On the right the lower a curve stays,
# the more clients are at 1.0. A client has about six test rows, so that steps are coarse: look at the curve as a whole,
# not at single clients.
#
# ## A third way: fine-tune the global model
#
# FedAvg's model may also be the start of a client's own. `fine_tune` takes local steps from it on the client's rows,
# and forgets them; `evaluate_clients` does so for all at once, here for more and more steps.

# %%
federated = runs["fedavg"]
simulation, state = federated.simulation, federated.state()
own_rows = held_out(federated.experiment.dataset, simulation.data, simulation.seed).clients
STEPS = (0, 1, 2, 5, 10, 20, 40)
scores = [simulation.evaluate_clients(state, range(60), own_rows, steps).metrics["accuracy"] for steps in STEPS]
for steps, accuracy in zip(STEPS, scores, strict=True):
    print(f"{steps:3} steps: mean {accuracy.mean():.3f}, worst client {accuracy.min():.3f}")

fig, ax = plt.subplots(figsize=(6, 3.8))
ax.plot(STEPS, np.mean(scores, axis=1), marker="o", label="fedavg, fine-tuned")
ax.axhline(runs["local_only"].metrics[-1]["personal_accuracy"], color="C3", linestyle="--", label="local_only")
ax.axhline(runs["fedrep"].metrics[-1]["personal_accuracy"], color="C2", linestyle="--", label="fedrep")
ax.set(xlabel="local steps before the evaluation", ylabel="accuracy on own rows, mean over clients")
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# Two steps take FedAvg's model to where FedPer is, 20 past it. A client's own last layer does not have to be kept in
# all rounds for that; it has to be trained before each use.
#
# The order is that of this split. With `dirichlet(0.5)` in place of the four shards, where many clients have most
# digits, FedAvg comes out ahead (0.932; FedRep 0.927, FedPer 0.912, alone 0.792). `docs/studies/personal.md` has both
# orders on larger data. On the command line:
#
#     fedjax8 train --config=digits_float32 --config.partition.name=shards --config.algorithm.name=fedrep \
#         --config.evaluate_clients.every=3 --workdir=runs/fedrep
#     fedjax8 compare runs/*
