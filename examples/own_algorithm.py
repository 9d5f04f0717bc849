# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # An algorithm of your own: FedNova in thirty lines
#
# FedAvg gives a client that takes many local steps more say than its data deserve: it walks farther, and the mean of
# the models moves with it. FedNova (Wang et al. 2020, arXiv 2007.07481) divides each client's update by the number of
# steps it took. fedjax8 has it (`algorithms.fednova`, which knows momentum too); here we write it ourselves, on a
# problem whose answer is known exactly. Takes about a quarter of a minute on two CPU cores.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from fedjax8 import algorithms, codecs, data, local_training, simulate, trees
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.plot import use_style
from fedjax8.types import Model, Variables

use_style()

# %% [markdown]
# ## A problem with a known answer
#
# A model is a `NamedTuple` of pure functions; nothing says that it must be a network. Here the parameters are one point
# w of the plane and an example x costs |w - x|² / 2, so the best w for a client is the mean of its points, and the best
# w for all is the mean of all points. `loss` is per example: masks and means are the library's business.


# %%
def point_model() -> Model:
    """One point of the plane, near all examples."""
    return Model(
        init=lambda key, batch: Variables({"w": jnp.zeros(2)}, {}),
        apply=lambda variables, batch, **_: (jnp.broadcast_to(variables.params["w"], batch["x"].shape), {}),
        loss=lambda outputs, batch: jnp.sum((outputs - batch["x"]) ** 2, axis=-1) / 2,
        metrics=lambda outputs, batch: {},
    )


rng = np.random.default_rng(0)
sizes = np.array([20, 40, 40, 80, 160, 640])
centers = 2 * np.stack([np.cos(angles := np.arange(6) * np.pi / 3), np.sin(angles)], axis=1)
owners = np.repeat(np.arange(6), sizes)
points = (centers[owners] + 0.3 * rng.standard_normal((sizes.sum(), 2))).astype(np.float32)
clients = data.FederatedData.from_owners({"x": points, "y": np.zeros(len(points), np.int32)}, owners, num_clients=6)
best = points.mean(axis=0)

# %% [markdown]
# ## The algorithm
#
# Most algorithms have the shape *send, train, reduce, step*. For these, `from_parts` wants two functions:
#
# - `client(start, extra, memory, rows, key, round_number) -> ClientOutput`: what one client does with the model it
#   received. Write it for one client; it is vmapped, padded and spread over devices for you.
# - `server(state, mean, key) -> ServerOutput`: what the server does with the weighted mean of what arrived.
#
# What a `ClientOutput` has as `sent` is encoded by the uplink codec, counted, decoded and averaged. FedNova needs one
# more number from each client, its steps, so it is one more leaf, and four more bytes in the ledger:
#
#     client i sends   d_i = (y_i - x) / a_i   and   a_i          a_i: steps taken
#     server           x <- x + (sum_i p_i a_i) sum_i p_i d_i     p_i: share of the examples


# %%
def fednova(local, server_learning_rate: float = 1.0):
    """FedAvg with every update divided by its number of local steps (for plain SGD)."""

    def client(start, extra, memory, rows, key, round_number):
        out = local.train(start, rows, key)
        steps = jnp.float32(out.num_steps)
        change = trees.subtract(out.variables.params, start.params)
        sent = {"update": trees.scale(1 / jnp.maximum(steps, 1.0), change), "steps": steps}
        weight = jnp.float32(rows.size)  # an empty client weighs nothing
        return ClientOutput(sent, weight, out.variables, memory, out.report)

    def server(state, mean, key):
        step = trees.scale(server_learning_rate * mean.tree["steps"], mean.tree["update"])
        params = trees.add(state.variables.params, step)
        return ServerOutput(params, report={"mean_steps": mean.tree["steps"]})

    return from_parts(local, client=client, server=server)


EXAMPLES = ({},)

# %% [markdown]
# That is all. It resumes from checkpoints, runs on many devices and counts its bytes like any other. In a file
# `my_lab/fednova.py` the command line finds it, settings included, without registering anything:
#
#     python -m fedjax8.train --config.algorithm.name=my_lab.fednova:fednova --config.algorithm.server_learning_rate=0.5
#
# ## What it changes
#
# All six clients train two epochs in batches of ten: the smallest takes 4 steps a round, the largest 128.

# %%
model = point_model()
local = local_training(model, optax.sgd(0.003), data.batch_plan(10, epochs=2))
paths = {}
for name, algorithm in (("FedAvg", algorithms.fedavg(local)), ("FedNova", fednova(local))):
    run = simulate(algorithm, clients, cohort_size=6, uplink=codecs.none(), downlink=codecs.none())
    state, path = run.init(), [np.zeros(2)]
    for _ in range(30):
        state, metrics = run.run_round(state)
        path.append(np.asarray(run.variables(state).params["w"]))
    paths[name] = np.stack(path)
    print(
        f"{name:>8}: ends {np.linalg.norm(path[-1] - best):.3f} from the optimum; "
        f"{metrics['uplink_bytes'] // 30 // 6} bytes a client and round"
    )

# %%
fig, ax = plt.subplots(figsize=(5.2, 5))
shown = rng.permutation(len(points))
ax.scatter(*points[shown].T, c=owners[shown], cmap="Greys", vmin=-4, vmax=7, s=5)
for name, path in paths.items():
    ax.plot(*path.T, marker="o", markersize=4, label=name)
ax.plot(*best, marker="*", markersize=17, color="black", linestyle="none", label="optimum: mean of all points")
ax.set(
    xlabel="w[0]",
    ylabel="w[1]",
    ylim=(-4.2, 2.6),
    title="30 rounds from the origin\n(grays: points of six clients)",
    aspect="equal",
)
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# FedAvg settles where the big client wants it, FedNova nearer to the optimum. (Not quite on it: a client with many
# steps also bends toward its own optimum within a round. Fewer epochs or a smaller step shrink what is left.)
#
# ## Test the limits
#
# The best tests of an algorithm are cases in which it must equal something simpler. If all clients take the same
# number of steps, FedNova is FedAvg:

# %%
equal = local_training(model, optax.sgd(0.02), data.batch_plan(10, steps=5))
ends = []
for algorithm in (algorithms.fedavg(equal), fednova(equal)):
    run = simulate(algorithm, clients, cohort_size=6, uplink=codecs.none(), downlink=codecs.none())
    ends.append(np.asarray(run.variables(run.run_rounds(run.init(), 10)[0]).params["w"]))
print("with equal steps they differ by", np.abs(ends[0] - ends[1]).max())
assert np.allclose(*ends, atol=1e-5)

# %% [markdown]
# Algorithms of another shape (several exchanges a round, workers that remember, decisions in between) write
# `round(link, state, cohort, key)` themselves: read `fedjax8/algorithms/parts.py`, which is one, and then `fda.py`.
# `tests/toys.py` has quadratics like the one above, with closed forms for one step, many clients and many rounds.
