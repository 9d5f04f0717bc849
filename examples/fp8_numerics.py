# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Numbers in eight bits
#
# What an 8-bit float can say, why messages are rounded at random, and how a clip is learned: four pictures. Takes about
# a quarter of a minute on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
import optax

from fedjax8 import numerics
from fedjax8.numerics import FORMATS, NARROW_FORMATS
from fedjax8.plot import COLORS, use_style

use_style()
BLUE, RED, GREEN, PINK = COLORS[:4]

# %% [markdown]
# ## The grids
#
# A format with E exponent bits and M mantissa bits has 2^M values in every binade (from one power of two to the next).
# E4M3 spends its bits on precision, E5M2 on range, which is why it is the usual choice for gradients. `fn` means that
# there is no infinity, `fnuz` that there is no negative zero either. Clients train with E4M3FN weights and layer inputs
# and E5M2 gradients; E4M3FNUZ with a clip is exactly the grid of the FP8 quantization papers.

# %%
formats = {"e4m3fn": BLUE, "e4m3fnuz": RED, "e5m2": GREEN}
fig, axes = plt.subplots(2, 1, figsize=(9, 4.2))
for row, (name, color) in enumerate(formats.items()):
    fmt = FORMATS[name]
    codes = jnp.arange(1, fmt.max_code + 1, dtype=jnp.uint8)
    values = np.asarray(numerics.to_float32(numerics.as_storage(codes, fmt)))
    axes[0].plot(values, np.full_like(values, -row), "|", markersize=16, color=color)
    near = values / fmt.max  # as messages use it: the largest value stands for the clip
    axes[1].plot(np.r_[-near, 0, near], np.full(2 * len(near) + 1, -row), "|", markersize=16, color=color)
    print(f"{name:>8}: largest {fmt.max:g}, smallest normal {fmt.smallest_normal:g}, {len(values)} positive values")
axes[0].set(xscale="log", xlabel="positive values", title="every positive value, each binade equally full")
axes[0].set_xscale("log", base=2)
axes[1].set(xlabel="value / clip", title="scaled to a clip: fine near zero, coarse near the clip")
for ax in axes:
    ax.set(yticks=[0, -1, -2], yticklabels=formats, ylim=(-2.6, 0.6))
    ax.grid(False)
plt.show()

# %% [markdown]
# Casting needs care. A plain cast does not saturate: beyond the largest value of E4M3FN comes NaN. `numerics.cast`
# clips first, and otherwise gives the same bits as `ml_dtypes`.

# %%
x = jnp.float32(465.0)
print("astype:", np.float32(465).astype(ml_dtypes.float8_e4m3fn), "  numerics.cast:", numerics.cast(x, "e4m3fn"))

# %% [markdown]
# ## Rounding at random
#
# Rounding to nearest is the best guess for one value. For the mean of many it is not: the same value is always rounded
# the same way, so the error never averages out. *Stochastic* rounding goes up with a probability equal to the fraction
# of the step, E[Q(x)] = x. Here a value that lies a quarter of a step above the grid is rounded 10,000 times, and below
# whole Gaussian tensors are.

# %%
low, high = 1.0, 1.125  # neighbors of E4M3 above 1
value = jnp.full(10_000, low + (high - low) / 4, jnp.float32)
key = jax.random.key(0)
once = {
    "to nearest": np.asarray(numerics.round_to_grid(value, "e4m3fn")),
    "stochastic": np.asarray(numerics.stochastic_round(key, value, "e4m3fn")),
}
spread = jax.random.normal(jax.random.key(1), (200_000,)) * 0.35 + 2
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for i, (name, got) in enumerate(once.items()):
    axes[0].bar(np.array([0, 1]) + 0.38 * (i - 0.5), [np.mean(got == v) for v in (low, high)], 0.36, label=name)
    print(f"{name}: mean {got.mean():.4f}, true value {float(value[0]):.4f}")
axes[0].set(xticks=[0, 1], xticklabels=["1.000", "1.125"], ylabel="share of roundings", title="1.03125, 10,000 times")
axes[0].set_xlabel("grid value")
axes[0].legend()
bins = np.linspace(0.6, 3.4, 141)
axes[1].hist(spread, bins, color="#cccccc", density=True, label="before")
rounded = np.asarray(numerics.stochastic_round(key, spread, "e4m3fn"))
grid, counts = np.unique(rounded, return_counts=True)
width = np.gradient(grid)
axes[1].vlines(grid, 0, counts / counts.sum() / width, color=RED, linewidth=2, label="after: share / step")
axes[1].set(
    xlabel="value", ylabel="density", xlim=(0.6, 3.4), ylim=(0, 1.55), title="a Gaussian tensor, rounded stochastically"
)
axes[1].legend()
plt.show()

# %% [markdown]
# ## Why it decides whether learning goes on
#
# Late in training a round changes a weight by less than half a step of the grid. Send the weight rounded to nearest,
# and the change is lost, every round anew. Send it rounded stochastically, and it is kept *on average*, which is what
# the mean over clients sees.

# %%
rounds, clients, weights, step = 120, 10, 400, 0.0025
nearest = [np.float32(1.0)]
unbiased = [np.ones(weights, np.float32)]  # a server's copies of 400 weights that should all move alike
for r in range(rounds):
    nearest.append(np.asarray(numerics.round_to_grid(nearest[-1] + np.float32(step), "e4m3fn")))
    trained = jnp.broadcast_to(unbiased[-1] + step, (clients, weights))
    unbiased.append(np.asarray(numerics.stochastic_round(jax.random.key(r), trained, "e4m3fn").mean(axis=0)))
unbiased = np.stack(unbiased)
fig, ax = plt.subplots(figsize=(6.4, 3.6))
ax.plot(unbiased[:, :5], color=COLORS[5], linewidth=0.8)
ax.plot(unbiased.mean(axis=1), color=BLUE, linewidth=2, label=f"stochastic: five weights, and the mean of {weights}")
ax.plot(nearest, color=RED, label="rounded to nearest")
ax.plot(1 + step * np.arange(rounds + 1), color="black", linestyle="--", linewidth=1, label="float32")
ax.set(xlabel="rounds", ylabel="weight", title="weights that should move by 0.0025 a round", ylim=(0.98, 1.62))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Learning the clip
#
# Each tensor has a clip: the value that the largest code stands for. A large clip wastes codes on values that do not
# occur, a small one cuts off those that do. With E4M3 there are so many binades that the choice hardly matters over a
# wide range; with four bits (E2M1) it does. `fake_quantize` is rounding that can be trained through: the derivative for
# the clip is (Q(x) - x) / clip where nothing is cut off, and the sign of x where it is. Gradient descent then finds the
# clip, as the adapter `qat` does for every layer.

# %%
tensor = jax.random.normal(jax.random.key(2), (20_000,))


def relative_error(alpha, fmt):
    """Squared error of rounding to the grid scaled to `alpha`, over the squared norm."""
    return jnp.mean((numerics.fake_quantize(tensor, alpha, fmt) - tensor) ** 2) / jnp.mean(tensor**2)


alphas = jnp.geomspace(0.5, 60, 120)
fig, ax = plt.subplots(figsize=(6.8, 4))
for name, color in {"e2m1": PINK, "e5m2": GREEN, "e4m3fn": BLUE}.items():
    fmt = (FORMATS | NARROW_FORMATS)[name]
    ax.plot(alphas, jax.lax.map(lambda a, fmt=fmt: relative_error(a, fmt), alphas), color=color, label=name)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 80))
    gradient = jax.jit(jax.grad(lambda log_alpha, fmt=fmt: relative_error(jnp.exp(log_alpha), fmt)))
    log_alpha = jnp.log(jnp.float32(1.0))
    state, path = optimizer.init(log_alpha), [log_alpha]
    for _ in range(80):
        change, state = optimizer.update(gradient(log_alpha), state)
        path.append(log_alpha := optax.apply_updates(log_alpha, change))
    path = jnp.exp(jnp.array(path))
    ax.plot(path, jax.lax.map(lambda a, fmt=fmt: relative_error(a, fmt), path), ".", markersize=4, color=color)
    ax.plot(path[-1], relative_error(path[-1], fmt), "o", color=color)
    print(
        f"{name:>8}: learned clip {path[-1]:.2f} standard deviations, "
        f"relative error {relative_error(path[-1], fmt):.1e}"
    )
ax.axvline(float(jnp.abs(tensor).max()), color="#888888", linestyle=":", label="largest weight")
ax.set(xscale="log", yscale="log", xlabel="clip (standard deviations)", ylabel="squared error / squared norm")
ax.set_title("error against the clip; dots: Adam from clip 1, the large one its end")
ax.legend()
plt.show()

# %% [markdown]
# In a model all this is one line, `adapters.qat(model)`: kernels, layer inputs and gradients are rounded to nearest on
# their grids while clients train (the error of one client's forward pass does not average over anything), messages
# stochastically. What it costs in accuracy, and saves in bytes, is in the study of FP8 in `docs/studies/fp8.md`, on the
# grid of the papers.
