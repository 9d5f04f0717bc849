# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A codec of your own: powers of two in four bits
#
# A codec says how a tree of arrays becomes a message and back. Two functions are enough, and the simulator does the
# rest: it calls them on every client, counts the bytes of what they make, and averages what comes out. We write the
# *natural compression* of Horváth et al. (arXiv 1905.10988) in a four-bit form, check what a codec must hold, and see
# what it does to a run. Takes about half a minute on two CPU cores.

# %%
import math
from collections import Counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, numerics, simulate, trees
from fedjax8.codecs import wire
from fedjax8.plot import COLORS, use_style
from fedjax8.types import Codec

use_style()

# %% [markdown]
# ## The idea
#
# With m the largest magnitude of a tensor, a value may become 0 or ±m 2^-k with k = 0 ... 6: that is 15 values, four
# bits. A value between two of them goes up with the probability that makes the mean right:
#
#     |x| / m = y,   low <= y <= high,   x^ = m sign(x) high   with probability (y - low) / (high - low),   else low
#
# so E[x^] = x. Unbiasedness matters more here than in other compression: errors that average to zero shrink with the
# number of clients, a bias stays.
#
# ## The message
#
# What stands in a message is what is sent: arrays in the dtypes that travel. Four-bit codes have no dtype that costs
# half a byte, so they are packed, two to a byte. What both sides know beforehand (the shape) is a static field and
# costs nothing. Sizes must follow from shapes alone: everything is compiled.


# %%
@struct.dataclass
class Packed:
    """A tensor on the wire."""

    codes: jax.Array  # uint8 [ceil(n * bits / 8)]
    largest: jax.Array  # float32 scalar
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def powers_of_two(bits: int = 4) -> Codec:
    """Codec that rounds matrices and kernels, without bias, to a power of two times their largest magnitude."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be from 2 to 8; got {bits}")
    levels = 2 ** (bits - 1) - 1  # positive ones; code 0 is zero, the top bit the sign

    def encode_leaf(key, x):
        largest = jnp.max(jnp.abs(x))
        y = jnp.abs(x) / jnp.maximum(largest, 1e-30)
        k = jnp.clip(jnp.floor(-jnp.log2(y)), 0, levels - 1)  # y lies below 2^-k
        high = 2.0**-k
        low = jnp.where(k < levels - 1, high / 2, 0.0)
        up = numerics.uniform(key, x.shape) < (y - low) / (high - low)  # a cheap hash of (key, index)
        code = levels - k - 1 + up
        code = code.astype(jnp.uint8) + (jnp.signbit(x) * (levels + 1)).astype(jnp.uint8)
        return Packed(numerics.pack_bits(code, bits), largest, x.shape)

    def decode_leaf(message):
        code = numerics.unpack_bits(message.codes, bits, math.prod(message.shape)).astype(jnp.int32)
        number, negative = code % (levels + 1), code > levels
        size = jnp.where(number > 0, 2.0 ** (number - levels), 0.0) * message.largest
        return jnp.where(negative, -size, size).reshape(message.shape)

    def encode(key, state, tree):
        leaves, structure = jax.tree.flatten(tree)
        sent = [
            encode_leaf(jax.random.fold_in(key, i), x) if x.ndim >= 2 else x  # biases stay float32
            for i, x in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, sent), state

    def decode(state, message):
        is_packed = lambda x: isinstance(x, Packed)
        return jax.tree.map(lambda x: decode_leaf(x) if is_packed(x) else x, message, is_leaf=is_packed)

    return Codec(init=lambda tree: (), encode=encode, decode=decode, unbiased=True)


# %% [markdown]
# `state` is for codecs that remember (error feedback keeps what was lost); ours passes on what it was given. A key is
# used once, so every leaf derives its own.
#
# ## What has to hold
#
# **Bytes.** The ledger counts the leaves of the message. `wire.pack` makes the bytes that would leave the machine: as
# many, and 28 of header.

# %%
tree = {"kernel": jax.random.normal(jax.random.key(0), (60, 101)), "bias": jnp.ones(101)}
codec = powers_of_two()
message, _ = jax.jit(codec.encode)(jax.random.key(1), (), tree)
expected = math.ceil(60 * 101 / 2) + 4 + 4 * 101
assert trees.num_bytes(message) == len(wire.pack(message)) - wire.HEADER_BYTES == expected
print(f"{trees.num_bytes(tree):,} bytes in float32, {trees.num_bytes(message):,} as a message")

# %% [markdown]
# **No bias.** Encode the same tree many times under different keys. The mean must come back, to within the standard
# error of the draws; allow five.

# %%
draws = 2000
encode = lambda key: codec.decode((), codec.encode(key, (), tree)[0])["kernel"]
decoded = np.asarray(jax.jit(jax.vmap(encode))(jax.random.split(jax.random.key(2), draws)))
kernel, spread = np.asarray(tree["kernel"]), decoded.std(axis=0)
moves = spread > 1e-3  # values very near one of the fifteen hardly ever leave it: their spread says nothing
off = (decoded.mean(axis=0) - kernel)[moves] / (spread[moves] / math.sqrt(draws))
print(f"largest deviation of {moves.sum()} means: {np.abs(off).max():.1f} standard errors; their mean {off.mean():.3f}")
assert np.abs(off).max() < 5

values = Counter(np.round(np.log2(np.abs(decoded[0][decoded[0] != 0]) / np.abs(kernel).max())).astype(int).tolist())
print("values at each power of two of one message:", dict(sorted(values.items())))

# %% [markdown]
# ## See what it does to values
#
# On the left, where values go: a staircase whose steps double, since small values matter relative to their own size.
# Dots are single roundings, the line their mean. On the right, how far off each value is on average: evenly spaced
# values in as many bits (`uniform(bits=4)`, which is QSGD) treat all values alike, powers of two keep small ones exact.

# %%
line = {"x": jnp.linspace(-1, 1, 401).reshape(1, -1)}
keys = jax.random.split(jax.random.key(3), 400)


def many(codec):
    """Decoded values [400 keys, 401] of the points of `line`."""
    once = lambda key: codec.decode((), codec.encode(key, (), line)[0])["x"][0]
    return np.asarray(jax.jit(jax.vmap(once))(keys))


x, ours, even = np.asarray(line["x"][0]), many(powers_of_two(4)), many(codecs.uniform(bits=4))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
axes[0].plot(x, ours[:6].T, ".", markersize=2, color=COLORS[5])
axes[0].plot(x, ours.mean(axis=0), color=COLORS[0], label="mean of 400 roundings")
axes[0].set(xlabel="x", ylabel="decoded x", title="powers of two, 4 bits")
axes[0].legend(loc="upper left")
for name, got, style in (("powers of two", ours, "-"), ("evenly spaced", even, "--")):
    axes[1].plot(x[x > 0], np.sqrt(((got - x) ** 2).mean(axis=0))[x > 0], style, label=name)
axes[1].set(xlabel="x", ylabel="root mean squared error", xscale="log", title="error of one rounding")
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# ## In a run
#
# The uplink gets updates (`payload="update"`), whose values are small and of many magnitudes. Any codec goes there, so
# comparing is one loop.

# %%
digits = data.digits()
clients = data.federate(digits, data.dirichlet(0.3), num_clients=50)
model = adapters.inputs(models.mlp((128,)), digits.mean, digits.std)
local = local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2))
algorithm = algorithms.fedavg(local, payload="update")

fig, ax = plt.subplots(figsize=(6.4, 3.8))
uplinks = {
    "none (float32)": codecs.none(),
    "fp8 (8 bits)": codecs.fp8(clip="max"),
    "powers of two (4 bits)": powers_of_two(4),
    "powers of two (3 bits)": powers_of_two(3),
}
for name, uplink in uplinks.items():
    run = simulate(algorithm, clients, cohort_size=10, uplink=uplink, downlink=codecs.fp8(clip="max"))
    state, sent, accuracy = run.init(), [], []
    while state.round < 40:
        state, _ = run.run_rounds(state, 4)
        sent.append(state.ledger.uplink_bytes / 1e6)
        accuracy.append(run.evaluate(state, digits.test)["test_accuracy"])
    print(f"{name:>22}: accuracy {accuracy[-1]:.3f} after {sent[-1]:.2f} MB up")
    ax.plot(sent, accuracy, marker="o", markersize=3, label=name)
ax.set(xlabel="megabytes up, all clients", ylabel="test accuracy", xscale="log", title="40 rounds each")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Where it goes next
#
# In a file of your own, `my_lab/powers_of_two.py`, the command line takes it as it is:
# `--config.uplink.name=my_lab.powers_of_two:powers_of_two --config.uplink.bits=3`. The factories that combine codecs
# take it too, such as `codecs.error_feedback(powers_of_two(2))`.
#
# What is here checks one tensor. The properties that fedjax8 holds all of its codecs to (empty and one-element leaves,
# huge and tiny values, NaN that must not vanish, vmap, bytes) are in `tests/codecs/test_conformance.py`; a new file in
# `fedjax8/codecs/` is picked up by them.
