# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # First steps: accuracy against bytes
#
# Fifty clients hold handwritten digits, ten of them train in each round, and we ask what it costs on the network to
# reach an accuracy: once with messages in float32, once in 8 bits. Takes about half a minute on two CPU cores; the data
# come with scikit-learn, so nothing is downloaded.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.plot import use_style

use_style()

# %% [markdown]
# ## Data, and who owns it
#
# A *source* gives rows, a *partition* gives each row an owner. `dirichlet(0.3)` lets every client have its own mixture
# of classes: the smaller the number, the more unequal the clients. Look at the split before you trust a result.

# %%
digits = data.digits()
clients = data.federate(digits, data.dirichlet(0.3), num_clients=50, seed=0)
skew = data.label_skew(clients, digits.num_classes)
print(f"{len(digits.train['y'])} training rows; a client has {clients.sizes.min()} to {clients.sizes.max()} of them")
print(f"Jensen-Shannon divergence of a client's labels from all labels: {np.nanmean(skew.js):.2f} bits on average")

table = clients.label_counts(digits.num_classes)[:15]
fig, ax = plt.subplots(figsize=(5.2, 4))
image = ax.imshow(table, cmap="Blues", aspect="auto")
ax.grid(False)
ax.set(xlabel="digit", ylabel="client", title="rows of each class, first 15 clients", xticks=range(10))
fig.colorbar(image, label="rows")
plt.show()

# %% [markdown]
# ## What travels
#
# A codec turns a tree of arrays into a message and back. The message is real: its leaves have the dtypes that would go
# over the wire, and its size is read off them. `fp8` sends one byte a weight.

# %%
kernel = {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}
codec = codecs.fp8()
message, _ = codec.encode(jax.random.key(1), codec.init(kernel), kernel)
for leaf in jax.tree.leaves(message):
    print(f"{leaf.dtype!s:>15} {list(leaf.shape)}: {leaf.nbytes} bytes")
error = codec.decode((), message)["kernel"] - kernel["kernel"]
print(f"relative error {np.linalg.norm(error) / np.linalg.norm(kernel['kernel']):.3f}, bias {error.mean():.1e}")

# %% [markdown]
# Rounding is *stochastic*: up or down at random, so that the mean is the value itself and the errors of many clients
# average out. `fp8_numerics.py` has pictures of that.
#
# ## A run
#
# The parts: how a client trains (`local_training`), what a round is (an algorithm), who takes part and what travels
# (`simulate`). The adapter `qat` lets clients train on the FP8 grid, so that the model is used to being rounded.
# `inputs` scales the raw 8-bit images on the device.

# %%
ROUNDS, EVERY = 60, 4


def make_run(eight_bit: bool):
    """FedAvg on the digits, in 8 bits or in float32."""
    model = models.mlp((128,))
    model = adapters.inputs(adapters.qat(model) if eight_bit else model, digits.mean, digits.std)
    local = local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2))
    codec = codecs.fp8() if eight_bit else codecs.none()
    return simulate(algorithms.fedavg(local), clients, cohort_size=10, uplink=codec, downlink=codec)


def curve(run):
    """(megabytes sent so far, test accuracy) after every few rounds, and the final state."""
    state, points = run.init(), []
    while state.round < ROUNDS:
        state, _ = run.run_rounds(state, EVERY)  # one dispatch for several rounds
        sent = state.ledger.uplink_bytes + state.ledger.downlink_bytes
        points.append((sent / 1e6, run.evaluate(state, digits.test)["test_accuracy"]))
    return np.array(points), state


curves, states = {}, {}
for name, eight_bit in (("float32", False), ("8 bits", True)):
    curves[name], states[name] = curve(make_run(eight_bit))
    ledger = states[name].ledger
    print(
        f"{name:>7}: accuracy {curves[name][-1, 1]:.3f}, {ledger.uplink_bytes:,} bytes up, {ledger.saving:.2f}x saved"
    )

# %% [markdown]
# The ledger counted every message in both directions. Per round both runs learn about equally fast; per byte they do
# not:

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for name, points in curves.items():
    axes[0].plot(np.arange(1, len(points) + 1) * EVERY, points[:, 1], marker="o", markersize=3, label=name)
    axes[1].plot(points[:, 0], points[:, 1], marker="o", markersize=3, label=name)
axes[0].set(xlabel="rounds", ylabel="test accuracy", title="the same work")
axes[1].set(xlabel="megabytes, up and down", title="a quarter of the traffic")
axes[0].legend()
plt.show()

# %% [markdown]
# ## How far to go from here
#
# Any part can be exchanged without touching the others: `codecs.uniform(bits=4)` for the uplink, `algorithms.fedprox`,
# `data.shards(2)`, a model of your own by `models.from_linen`. `many_seeds.py` shows how to get error bars,
# `own_codec.py` and `own_algorithm.py` how to add what is missing. On the command line the second run above is
# `python -m fedjax8.train`, which also keeps checkpoints and logs.
