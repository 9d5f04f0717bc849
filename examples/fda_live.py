# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Federated Dynamic Averaging, live
#
# Ten workers train side by side. How often should they average their models? Every step is accurate and costs a model
# each time; every so many steps is a guess made beforehand. FDA (Theologitis et al. 2024, arXiv 2405.20988) looks:
# it averages when the models have drifted apart by more than a threshold. We watch it do that, step by step. Takes
# about half a minute on two CPU cores.

# %%
import matplotlib.pyplot as plt
import numpy as np
import optax

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.algorithms import monitors
from fedjax8.plot import COLORS, use_style

use_style()
BLUE, RED = COLORS[:2]

# %% [markdown]
# ## Workers that keep their models
#
# `u_k` is how far worker k has moved since all had the same model. The variance of the models about their mean is
#
#     Var = mean |u_k|² - |mean u_k|²
#
# Nobody knows it without sending models. But an upper bound H can be had from a few numbers a worker: its |u_k|², and
# its u_k along one direction (`linear`, 8 bytes) or in a small sketch (`sketch`, 5 kB). Workers average when H > Θ, so
# that no step leaves them with a variance above Θ.
#
# A *round* of the simulator is here a stretch of 20 steps, compiled as one loop. `record_steps` logs every step of it,
# and `measure_variance` the true variance, which only a simulator can know.

# %%
digits = data.digits()
clients = data.federate(digits, data.dirichlet(0.5), num_clients=10)
model = adapters.inputs(models.mlp((64,)), digits.mean, digits.std)
local = local_training(model, optax.sgd(0.05), data.batch_plan(16, steps=20))


def make_run(monitor):
    """FDA with one of the monitors, on all ten clients."""
    algorithm = algorithms.fda(local, theta=1.0, monitor=monitor, record_steps=True, measure_variance=True)
    return simulate(algorithm, clients, cohort_size=10, uplink=codecs.none(), downlink=codecs.none())


def watch(run, theta: float, rounds: int = 15):
    """The log of a run, a list for every step where the log has one, and the accuracy after every round.

    The threshold is a number in the server's state, so one compiled program serves them all.
    """
    state, lines = run.init(), []
    state = run.place(state._replace(server=state.server._replace(threshold=np.float32(theta))))
    for _ in range(rounds):
        state, metrics = run.run_round(state)
        lines.append(metrics | run.evaluate(state, digits.test))
    return lines


def steps(lines, name):
    """One number per step, rounds joined."""
    return np.concatenate([line[name] for line in lines])


# %%
THETA = 0.15
linear = make_run(monitors.linear())
log = watch(linear, THETA)
estimate, variance, synced = (steps(log, n) for n in ("variance_estimates", "variances", "synchronized"))
number = np.arange(1, len(estimate) + 1)
assert (estimate >= variance - 1e-4).all()  # H is an upper bound, up to float32
print(f"{int(synced.sum())} synchronizations in {len(synced)} steps; test accuracy {log[-1]['test_accuracy']:.3f}")

fig, ax = plt.subplots(figsize=(9, 3.8))
at = synced > 0
ax.vlines(number[at], 0, estimate[at], color="#999999", linewidth=1, linestyle=":", label="models are averaged")
ax.plot(number, estimate, color=RED, linewidth=1, label="estimate H, which workers know")
ax.plot(number, variance, color=BLUE, linewidth=1.4, label="true variance")
ax.axhline(THETA, color="black", linestyle="--", linewidth=1, label="threshold Θ")
ax.set(xlabel="step", ylabel="variance of the models", ylim=(0, None))
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
plt.show()

# %% [markdown]
# Early on models move fast and are averaged every few steps; later they agree for longer and longer without being
# told to. That is the point of the method: the rhythm follows the training.
#
# A value above the line is the one that decides; right after it all models are equal. The gap between the two curves is
# what the small message could not see of the workers' common movement, and is paid for by averaging earlier than
# necessary.
#
# ## A better look costs more
#
# `sketch` sees the common movement in every direction, by a table of 5 x 250 numbers. For a model of millions of
# parameters that is nothing. Ours has 4,810, so that looking costs more than averaging: the log counts the two apart.

# %%
for name, lines in (("linear", log), ("sketch", watch(make_run(monitors.sketch()), THETA))):
    syncs, last = int(steps(lines, "synchronized").sum()), lines[-1]
    looking = last["uplink_monitor_bytes"] / 1e6
    print(f"{name}: {syncs} synchronizations, {last['uplink_bytes'] / 1e6:.2f} MB up, of which {looking:.2f} to look")

# %% [markdown]
# ## The threshold is a dial
#
# Θ = 0 averages after every step. Larger values save bytes, until the models are too far apart for their mean to be
# any good.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for theta in (0.0, 0.05, 0.5, 2.0):
    lines = watch(linear, theta)
    sent = np.array([line["uplink_bytes"] + line["downlink_bytes"] for line in lines]) / 1e6
    accuracy = [line["test_accuracy"] for line in lines]
    axes[0].plot(sent, accuracy, marker="o", markersize=3, label=f"Θ = {theta:g}")
    axes[1].plot(np.cumsum(steps(lines, "synchronized")), label=f"Θ = {theta:g}")
axes[0].set(xscale="log", xlabel="megabytes, up and down", ylabel="test accuracy", title="accuracy against bytes")
axes[1].set(yscale="symlog", xlabel="step", ylabel="synchronizations so far", title="how often models are averaged")
axes[0].legend(loc="lower right")
plt.show()

# %% [markdown]
# The accuracies are those of the mean of the workers' models at the end of each stretch, whether or not they were
# averaged there.
#
# Two thresholds to begin with: `theta="auto"`, the paper's rule of thumb times the number of parameters; or watch the
# variance as above for a few rounds and take a value it reaches in a few dozen steps. On the command line:
# `python -m fedjax8.train --config=configs/fda.py:mnist,lenet5,linear --data_dir=DIR`.
