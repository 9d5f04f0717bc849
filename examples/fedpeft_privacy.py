# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a little, privately
#
# A small vision transformer that was trained on public data is adapted to private data of four clients, in three ways:
# all of its weights, its biases only, and low-rank changes (LoRA). Clients take DP-SGD steps, and the log says what an
# example has lost so far. Two things favor training little: fewer bytes travel, and the noise that protects an example
# falls on fewer numbers. Takes about a minute and a half on two CPU cores, and needs
# `pip install 'fedjax8[privacy,hf]'`.

# %%
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, privacy, simulate, trees
from fedjax8.plot import use_style

use_style()

# %% [markdown]
# ## Public data, private data
#
# The digits 0 to 4 are public: one server trains on them. The digits 5 to 9 belong to four clients, who will not show
# them to anyone.

# %%
digits = data.digits()


def some_classes(low: int):
    """The digits `low` to `low` + 4, numbered from 0."""
    parts = {}
    for part in ("train", "test"):
        columns = getattr(digits, part)
        kept = (columns["y"] >= low) & (columns["y"] < low + 5)
        parts[part] = {"x": columns["x"][kept], "y": (columns["y"][kept] - low).astype(np.int32)}
    return digits._replace(num_classes=5, name=f"digits {low} to {low + 4}", **parts)


public, private = some_classes(0), some_classes(5)
clients = data.federate(private, data.dirichlet(1.0), num_clients=4)
gray = public.train["x"] / 255
mean, std = float(gray.mean()), float(gray.std())  # what inputs are normalized by: no private row is looked at
print(f"{len(public.train['y'])} public rows, {len(private.train['y'])} private ones")

# %% [markdown]
# ## A backbone
#
# Training on a server is a federation of one client. The parameters go to a file, as published ones would come in one:
# `adapters.pretrained` reads it, and also files of timm and Hugging Face.

# %%
base = models.vit(patch_size=2, image_size=8, num_classes=5, width=32, depth=2, heads=4)
server = local_training(adapters.inputs(base, mean, std), optax.adam(2e-3), data.batch_plan(32, epochs=4))
one = data.federate(public, data.iid(), num_clients=1)
plain = {"uplink": codecs.none(), "downlink": codecs.none()}
run = simulate(algorithms.fedavg(server), one, cohort_size=1, **plain)
state = run.init()
while state.round < 12:
    state, _ = run.run_rounds(state, 12)
print(f"on the public digits: accuracy {run.evaluate(state, public.test)['test_accuracy']:.3f}")

file = Path(tempfile.mkdtemp()) / "backbone.safetensors"
models.save_params(file, run.variables(state).params)

# %% [markdown]
# ## Three ways to adapt it
#
# An adapter maps a model to a model. What it freezes is in no message, and a client is sent it once, not in every
# round. `head="new"` starts the last layer afresh, since the classes are others; it is always trained.

# %%
backbone = adapters.pretrained(base, str(file), head="new")
ways = {
    "everything": backbone,
    "biases": adapters.subset(backbone, "bias"),
    "LoRA": adapters.lora(backbone, rank=2, targets=("*/query", "*/value")),
}

# %% [markdown]
# ## Private steps
#
# `dp_sgd` clips the gradient of every single example and adds Gaussian noise to their sum. We do not choose the noise
# but what may be lost: ε = 2.5 at δ = 1e-3 for an example after all rounds. `Facts` are what the accountant has to know
# of a run; `accounted` puts ε into the log after every round.

# %%
ROUNDS = 30
plan = data.batch_plan(64, epochs=1)
facts = privacy.Facts(clients, cohort_size=4, rounds=ROUNDS, seed=0, plan=plan)
rule = privacy.dp_sgd(clip=1.0, target_epsilon=2.5, delta=1e-3, facts=facts)


def adapt(way):
    """The log of a private run, with accuracies, and the number of trained parameters."""
    model = adapters.inputs(way, mean, std)
    local = local_training(model, optax.sgd(0.5), plan, rule)
    algorithm = privacy.accounted(algorithms.fedavg(local), rule)
    run = simulate(algorithm, clients, cohort_size=4, **plain)
    state, lines = run.init(), []
    for _ in range(ROUNDS):
        state, metrics = run.run_round(state)
        lines.append(metrics | run.evaluate(state, private.test))
    variables = run.variables(state)
    return lines, sum(x.size for x in jax.tree.leaves(variables.params)), trees.num_bytes(variables.frozen)


logs = {}
for name, way in ways.items():
    logs[name], trained, frozen = adapt(way)
    last = logs[name][-1]
    print(
        f"{name:>10}: {trained:6,} parameters trained, accuracy {last['test_accuracy']:.3f}, "
        f"epsilon {last['epsilon']:.2f}, {last['uplink_bytes'] / 1e6:5.2f} MB up, {frozen / 1e3:.0f} kB sent once"
    )

# %% [markdown]
# The noise on each number is the same in all three runs; its total length grows with the square root of how many there
# are, while a clipped gradient is at most 1 long. So the run that trains everything has the worst signal, and sends
# forty times as much as LoRA. (With ε = 8, for which less than half of the noise is enough, it does as well as LoRA.)
# Biases alone learn slowly here: the features of other digits do not help much, and no kernel may change them.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.5))
for name, lines in logs.items():
    accuracy = [line["test_accuracy"] for line in lines]
    axes[0].plot([line["round"] for line in lines], accuracy, marker="o", markersize=3, label=name)
    axes[1].plot([line["uplink_bytes"] / 1e6 for line in lines], accuracy, marker="o", markersize=3, label=name)
epsilon = [line["epsilon"] for line in logs["LoRA"]]
axes[2].plot(np.arange(1, ROUNDS + 1), epsilon, color="black")
axes[2].axhline(2.5, color="#888888", linestyle="--", linewidth=1)
axes[0].set(xlabel="rounds", ylabel="test accuracy", title="by rounds")
axes[1].set(xlabel="megabytes up, all clients", xscale="log", title="by bytes")
axes[2].set(xlabel="rounds", ylabel="epsilon at delta = 1e-3", title="what an example has lost", ylim=(0, None))
axes[0].legend()
plt.show()

# %% [markdown]
# ε grows fast at first and then more slowly: the accountant composes all steps of the client that has taken
# most of them. It does not depend on what is trained, nor on codecs, which only see what is already noisy.
#
# What the number means, and what it does not cover (the losses in the log are the simulator's own and unprotected; the
# random seed stands for a secret), is on the page `docs/privacy.md`. To protect whole clients instead of examples, use
# `algorithms.dp_fedavg`. On the command line:
#
#     python -m fedjax8.train --config.privacy.name=dp_sgd --config.privacy.target_epsilon=8
