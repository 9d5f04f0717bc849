# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Many seeds at once
#
# One run shows an accuracy; eight show whether a difference is one. Runs that differ in their seed alone are compiled
# once and shared out over the devices, so eight cost about as much as their arithmetic. Takes about half a minute on
# two CPU cores.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.executors import chunked
from fedjax8.plot import use_style

use_style()
SEEDS, ROUNDS, EVERY = range(8), 40, 4
jax.config.update("jax_num_cpu_devices", os.cpu_count())  # a device for each core; has to come before the first array

# %% [markdown]
# ## The question
#
# Updates in two bits: is it worth rotating them first? `rotated` spreads large values over all coordinates before it
# rounds to evenly spaced values; `uniform` rounds them as they are. And does either do worse than FP8?
#
# A seed decides everything that is random in a run: initial weights, who takes part, batches, rounding, and here also
# the split over clients. Settings that are compared get the *same* seeds, so that they differ in nothing else.

# %%
digits = data.digits()
model = adapters.inputs(models.mlp((128,)), digits.mean, digits.std)
local = local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2))
algorithm = algorithms.fedavg(local, payload="update")
splits = [data.federate(digits, data.dirichlet(0.3), num_clients=50, seed=seed) for seed in SEEDS]


def accuracies(uplink):
    """Test accuracies `[seeds, evaluations]`, and megabytes up at the evaluations."""
    runs = []
    for seed, clients in zip(SEEDS, splits, strict=True):
        runs.append(
            simulate(
                algorithm,
                clients,
                cohort_size=10,
                uplink=uplink,
                downlink=codecs.fp8(clip="max"),
                seed=seed,
                executor=chunked(),  # each run on one device; whole runs are shared out
                beside=runs[0] if runs else None,  # shares data and compiled programs with the first
            )
        )
    run_rounds = side_by_side(runs)
    states, found, sent = [run.init() for run in runs], [], []
    while states[0].round < ROUNDS:
        states, _ = run_rounds(states, [EVERY] * len(runs))
        pairs = zip(runs, states, strict=True)
        found.append([run.evaluate(state, digits.test)["test_accuracy"] for run, state in pairs])
        sent.append(states[0].ledger.uplink_bytes / 1e6)
    return np.array(found).T, np.array(sent)


uplinks = {
    "fp8": codecs.fp8(clip="max"),
    "uniform, 2 bits": codecs.uniform(bits=2),
    "rotated, 2 bits": codecs.rotated(bits=2),
}
found = {name: accuracies(uplink) for name, uplink in uplinks.items()}

# %% [markdown]
# ## Mean, spread, and the difference
#
# The band is one standard deviation over seeds: how much a single run may mislead. To compare two settings the band is
# the wrong measure, because seeds are hard or easy for all settings alike. Take differences seed by seed: their mean
# over its standard error says whether there is anything.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
for name, (accuracy, sent) in found.items():
    mean, spread = accuracy.mean(axis=0), accuracy.std(axis=0, ddof=1)
    (line,) = axes[0].plot(sent, mean, marker="o", markersize=3, label=name)
    axes[0].fill_between(sent, mean - spread, mean + spread, color=line.get_color(), alpha=0.18, linewidth=0)
axes[0].set(xlabel="megabytes up", ylabel="test accuracy", title="mean ± one standard deviation, 8 seeds")
axes[0].legend(loc="lower right")

reference = found["fp8"][0]
for i, name in enumerate(list(found)[1:]):
    final = 100 * (found[name][0] - reference)[:, -4:].mean(axis=1)  # of each seed, over the last four evaluations
    error = final.std(ddof=1) / np.sqrt(len(final))
    print(f"{name} minus fp8: {final.mean():+.2f} ± {error:.2f} percentage points (mean ± standard error)")
    axes[1].plot(final, np.full_like(final, i), "o", color=f"C{i + 1}", alpha=0.6)
    axes[1].errorbar(final.mean(), i + 0.2, xerr=2 * error, fmt="D", color=f"C{i + 1}", capsize=4)
axes[1].axvline(0, color="#888888", linestyle="--", linewidth=1)
axes[1].set(yticks=range(2), yticklabels=list(found)[1:], ylim=(-0.5, 1.7))
axes[1].set(xlabel="accuracy minus that of fp8 (percentage points)", title="seed by seed; diamond: mean ± 2 errors")
plt.show()

# %% [markdown]
# Here nothing is found: both means lie within two standard errors of zero, so that two bits are as good as eight on
# these clients, rotated or not. A single seed would have said anything from 0.4 points worse to 0.3 better.
#
# Each of these runs is, bit for bit, the run of its seed alone on one device. The command line does all of this with
# one flag, and `compare` pairs the seeds of the settings it is given:
#
#     python -m fedjax8.train --seeds=0,1,2,3 --config.uplink.name=uniform --config.uplink.bits=2 \
#         --config.algorithm.payload=update --workdir=runs/uniform
#     python -m fedjax8.compare runs/fp8/* runs/uniform/* runs/rotated/*
