# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # How long on my link?
#
# A codec saves bytes; whether that saves time depends on the link. We train the same model with updates in float32 and
# in FP8 on uplinks of 0.02, 0.2 and 10 Mbit/s, and read off the simulated time to 90 % accuracy. Takes about half a
# minute on two CPU cores.

# %%
import matplotlib.pyplot as plt
import optax

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate, systems
from fedjax8.plot import use_style
from fedjax8.results.durations import readable_duration

use_style()
ROUNDS, TARGET = 40, 0.9
MBIT = 125_000  # bytes a second

# %% [markdown]
# ## The run
#
# A local step takes 50 ms on the median device, log-normal over devices. The system model changes nothing that is
# learned: it only says how long it takes.

# %%
digits = data.digits()
model = adapters.inputs(models.mlp((128,)), digits.mean, digits.std)
algorithm = algorithms.fedavg(local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2)))
clients = data.federate(digits, data.dirichlet(0.3), num_clients=50, seed=0)


def trained(codec, uplink):
    """Accuracies and simulated seconds after each round, and the share of it that clients wait."""
    system = systems.lognormal(0.05, up_bandwidth=uplink * MBIT, down_bandwidth=10 * MBIT, latency=0.02)
    sim = simulate(algorithm, clients, cohort_size=10, uplink=codec, downlink=codec, system=system)
    state, accuracies, lines = sim.init(), [], []
    while state.round < ROUNDS:
        state, line = sim.run_round(state)
        lines.append(line)
        accuracies.append(sim.evaluate(state, digits.test)["test_accuracy"])
    waiting = sum(float(line["waiting_share"]) for line in lines) / ROUNDS
    return accuracies, [line["simulated_seconds"] for line in lines], waiting


found = {
    (name, uplink): trained(codec, uplink)
    for uplink in (0.02, 0.2, 10)
    for name, codec in (("float32", codecs.none()), ("fp8", codecs.fp8(clip="max")))
}

# %% [markdown]
# ## Time to the target

# %%
for (name, uplink), (accuracies, seconds, waiting) in found.items():
    reached = next((s for a, s in zip(accuracies, seconds, strict=True) if a >= TARGET), None)
    time = "not reached" if reached is None else readable_duration(reached)
    print(f"{uplink:5} Mbit/s, {name:7}: {time:>12} to {TARGET:.0%}; clients wait {waiting:.0%}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True)
for ax, uplink in zip(axes, (0.02, 0.2, 10), strict=True):
    for name in ("float32", "fp8"):
        accuracies, seconds, _ = found[name, uplink]
        ax.plot(seconds, accuracies, label=name)
    ax.axhline(TARGET, color="#888888", linestyle="--", linewidth=1)
    ax.set(title=f"{uplink} Mbit/s up", xlabel="simulated seconds")
axes[0].set_ylabel("test accuracy")
axes[0].legend(loc="lower right")
plt.show()

# %% [markdown]
# On a thin link the message decides, and a quarter of the bytes takes about a quarter of the time. On a fast one the
# devices' local steps decide, and a codec saves bytes but hardly any time. The share that clients wait grows with the
# link, since then the slowest device is what everyone waits for.
#
#     fedjax8 train --config=digits_fp8 --config.system.name=lognormal --config.system.up_bandwidth=25e3 --dry_run=fast
