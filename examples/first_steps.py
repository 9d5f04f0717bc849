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
# reach an accuracy: once with messages in float32, once in 8 bits. Takes about a quarter of a minute on two CPU cores;
# the data come with scikit-learn, so nothing is downloaded.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjax8
from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.plot import plot_runs, use_style

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
# ## Two runs
#
# `experiment` goes from data to curves in one call. What is not said is as in the default job: FedAvg, ten of fifty
# clients a round, messages of 8 bits, and the adapter `qat`, which lets clients train on the FP8 grid so that the model
# is used to being rounded. The config `digits_float32` is the same with nothing rounded.

# %%
settings = {"rounds": 60, "eval_every": 4, "quiet": True}
runs = {
    "float32": fedjax8.experiment("digits", config="digits_float32", **settings),
    "8 bits": fedjax8.experiment("digits", **settings),
}
for name, run in runs.items():
    last = run.metrics[-1]
    print(f"{name:>7}: accuracy {last['test_accuracy']:.3f}, {last['uplink_bytes']:,} bytes up")

# %% [markdown]
# Every message was counted, in both directions. Per round both runs learn about equally fast; per byte they do not:

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for ax, x, title in ((axes[0], "rounds", "the same work"), (axes[1], "bytes", "a quarter of the traffic")):
    plot_runs([run.path for run in runs.values()], x, ax)
    ax.set_title(title)
    ax.legend(ax.lines, runs)
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# ## The same from its parts
#
# Below the one call are functions: how a client trains (`local_training`), what a round is (an algorithm), who takes
# part and what travels (`simulate`). `inputs` scales the raw 8-bit images on the device. Put together by hand they give
# the same run, to the last digit.

# %%
model = adapters.inputs(adapters.qat(models.mlp((128,))), digits.mean, digits.std)
local = local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2))
algorithm = algorithms.fedavg(local)
simulation = simulate(algorithm, clients, cohort_size=10, uplink=codecs.fp8(), downlink=codecs.fp8())
state, _ = simulation.run_rounds(simulation.init(), 4)  # one dispatch for several rounds
by_hand = simulation.evaluate(state, digits.test)["test_accuracy"]
print(f"after {state.round} rounds: {by_hand:.4f} by hand, {runs['8 bits'].metrics[3]['test_accuracy']:.4f} above")
print(f"{state.ledger.uplink_bytes:,} bytes up, {state.ledger.saving:.2f}x saved against float32")
assert by_hand == runs["8 bits"].metrics[3]["test_accuracy"]

# %% [markdown]
# ## How far to go from here
#
# Any part can be exchanged without touching the others: `codecs.uniform(bits=4)` for the uplink, `algorithms.fedprox`,
# `data.shards(2)`, a model of your own by `models.from_linen`. `many_seeds.py` shows how to get error bars,
# `own_codec.py` and `own_algorithm.py` how to add what is missing. On the command line the second run above is
# `fedjax8 train --config.eval_every=4`, which also keeps checkpoints and logs; `loading_a_run.py` opens them.
