# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A task of your own: numbers instead of classes
#
# Nothing in a round is about classes. Here ten clinics predict how far a disease will have gone in a year, a number;
# the runs are judged by a mean absolute error, and by a metric that we write ourselves. Takes about a quarter of a
# minute on two CPU cores; the data come with scikit-learn.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

import fedjax8
from fedjax8.plot import use_style
from fedjax8.tasks import HIGHER, LOWER, Metric, metrics, regression
from fedjax8.types import VALUES, SetMetric

use_style()

# %% [markdown]
# ## Data and model
#
# Two arrays: ten measurements of 442 people, and the progression of their diabetes after a year. A fifth of the rows is
# drawn for testing. The model is any flax module; it is asked for as many outputs as a row has numbers, here one.

# %%
x, y = load_diabetes(return_X_y=True)
x, y = x.astype(np.float32), y.astype(np.float32)
print(f"{len(y)} rows of {x.shape[1]} features; targets from {y.min():g} to {y.max():g}, deviation {y.std():.0f}")


class Progression(nn.Module):
    """A network with one hidden layer, whose outputs begin in the middle of the targets."""

    @nn.compact
    def __call__(self, x):
        """Progressions `[B, 1]`."""
        hidden = nn.relu(nn.Dense(32)(x))
        return 150 + 50 * nn.Dense(1)(hidden)


# %% [markdown]
# ## A metric
#
# A factory that returns a `Metric`. If it is a mean over rows, one function of outputs and targets is all of it (and it
# is logged of training rows too). `HIGHER` says which way is better, for callbacks and comparisons; `VALUES` that it is
# defined for numbers.


# %%
def within(units: float = 50.0) -> Metric:
    """Share of rows whose prediction is off by at most so many units."""

    def of_row(outputs, targets):
        return (jnp.abs(outputs.reshape(targets.shape) - targets) <= units).astype(jnp.float32)

    return Metric("within", HIGHER, (VALUES,), of_row=of_row)


# %% [markdown]
# A component is named by its file in the package, or by `module:factory` anywhere else; this notebook is the module
# `__main__`. The first metric is the main one. The loss is Huber's: squared up to an error of 30 units, and beyond it
# no steeper, so that a few people who are far off do not decide everything.

# %%
task = {
    "name": "regression",
    "loss": "huber",
    "delta": 30.0,
    "metrics": ["mae", "r2", {"name": "__main__:within", "units": 50.0}],
}
runs = {
    name: fedjax8.experiment(
        (x, y),
        Progression(),
        task=task,
        partition="iid",
        num_clients=10,
        cohort_size=5,
        rounds=60,
        eval_every=3,
        client={"optimizer": {"name": "sgd", "learning_rate": 1e-5}, "epochs": 2, "batch_size": 16},
        quiet=True,
        **messages,
    )
    for name, messages in {
        "float32": {"adapter": "none", "uplink": "none", "downlink": "none"},
        "8 bits": {"adapter": "qat", "uplink": "fp8", "downlink": "fp8"},
    }.items()
}
runs["8 bits"]

# %% [markdown]
# ## What came out
#
# All metrics are in the log, under their names. For comparison: the same test rows by least squares on all training
# rows, which no clinic would have to hand over here.

# %%
found = runs["float32"].experiment.dataset
lines = LinearRegression().fit(found.train["x"], found.train["y"]).predict(found.test["x"])
print(f"{'least squares':>13}: mae {np.abs(lines - found.test['y']).mean():.1f}")
print(f"{'the mean':>13}: mae {np.abs(found.train['y'].mean() - found.test['y']).mean():.1f}")
for name, run in runs.items():
    last = run.metrics[-1]
    print(f"{name:>13}: mae {last['test_mae']:.1f}, r2 {last['test_r2']:.2f}, within 50 {last['test_within']:.2f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
for name, run in runs.items():
    lines = [line for line in run.metrics if "test_mae" in line]
    sent = [(line["uplink_bytes"] + line["downlink_bytes"]) / 1e6 for line in lines]
    axes[0].plot(sent, [line["test_mae"] for line in lines], label=name)
    axes[1].plot([line["round"] for line in lines], [line["test_within"] for line in lines], label=name)
    axes[2].scatter(found.test["y"], run.predict(found.test["x"])[:, 0], s=12, label=name)
axes[2].plot([25, 346], [25, 346], color="black", linewidth=1, linestyle="--")
axes[0].set(xlabel="megabytes, up and down", ylabel="mean absolute error", xscale="log", title="the main metric")
axes[1].set(xlabel="rounds", ylabel="share within 50 units", title="our metric")
axes[2].set(xlabel="target", ylabel="prediction", title="test rows")
axes[0].legend()
plt.show()

# %% [markdown]
# ## Metrics of a whole set
#
# A median, an AUC or a perplexity is no mean over rows. Such a metric gives a *state* for each batch, states add up
# (or, with `rows=True`, are put one after another), and the value is taken once, from the state of the whole set.


# %%
def median_error() -> Metric:
    """Median of the absolute error."""

    def state(outputs, targets, mask):
        return jnp.abs(outputs.reshape(targets.shape) - targets)

    value = lambda errors: float(np.median(errors))
    return Metric("median_error", LOWER, (VALUES,), of_set=SetMetric(state, value, rows=True))


print(regression(metrics=(median_error(), metrics.mae())))
expected = np.median(np.abs(runs["float32"].predict(found.test["x"])[:, 0] - found.test["y"]))
again = fedjax8.experiment(
    (x, y),
    Progression(),
    config=runs["float32"].config,
    task={"name": "regression", "metrics": ["__main__:median_error"]},
    rounds=1,
    quiet=True,
)
print(f"after 1 round {again.metrics[-1]['test_median_error']:.1f}, after 60 rounds {expected:.1f}")

# %% [markdown]
# In a file `my_lab/scores.py` the command line takes it as well, and so do the callbacks and `fedjax8 compare`, which
# know from the run that lower is better:
#
#     fedjax8 train --config.task.name=regression --config.data.name=npz --config.data.file=clinics \
#         --config.partition.name=iid --config.task.metrics=my_lab.scores:median_error,mae --workdir=runs/a
#
# The other tasks (`binary`, `multilabel`, `language_model`) and all metrics are in `docs/tasks.md`.
