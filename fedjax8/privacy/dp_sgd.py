"""DP-SGD in every client: example-level privacy against all who see its client's messages.

Abadi et al. 2016, arXiv 1607.00133, algorithm 1.

    g = (sum_i min(1, C / |g_i|) g_i + N(0, (z C)^2 I)) / E[B]

The sum is over a Poisson sample of the client's rows, |g_i| over all trainable leaves together, E[B] = min(B, n) the
*expected* batch size. Postprocessing of g by the optimizer, codecs and the server costs nothing more.

The guarantee: for data sets of which one lacks one example's gradients, so sizes, and all that follows from them, are
public. It holds against the server too; the log has the largest epsilon of any client; see `accounting.ExampleSteps`.
A client with batches shuffled instead of sampled is charged a Gaussian step an epoch, with no gain from sampling. The
losses and metrics in the log are the simulator's and are not protected. Each term of the sum is at most C long for any
float32 values (`norms`); the rounding of the sum itself is not accounted for.

For the variant in the experiment code of FedPEFT see `noisy_sgd`.
"""

import jax

from fedjax8 import trees
from fedjax8.data.batches import SAMPLING
from fedjax8.privacy.accounting import ExampleSteps, Facts, check_delta, least_noise
from fedjax8.privacy.gaussian import add_noise
from fedjax8.privacy.norms import check_bound
from fedjax8.privacy.per_example import clipped_sum
from fedjax8.types import BatchGradient, BatchLoss, StepGradient
from fedjax8.types.models import nothing


def dp_sgd(
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    *,
    target_epsilon: float | None = None,
    delta: float = 1e-5,
    sampling: str = "poisson",
    microbatch: int = 16,
    facts: Facts | None = None,
) -> StepGradient:
    """Private steps for `local_training(..., gradient=)`.

    Args:
      clip: C, the largest norm that an example's gradient may have.
      noise_multiplier: z. Give it or `target_epsilon`.
      target_epsilon: privacy loss of a client's example at `delta` after all rounds; gives z.
      delta: of the epsilons in the log.
      sampling: `poisson`, or `shuffled` epochs.
      microbatch: examples whose gradients are in memory at once.
      facts: of the run, for accounting; without it there is no epsilon in the log and no target.

    Raises:
      ValueError: a setting out of range, or a target that can't be met.
      UserError: `facts` are given, and dp-accounting is not installed.

    Example:
      >>> rule = dp_sgd(clip=1.0, noise_multiplier=1.1)
      >>> rule.sampling, rule.accounted
      ('poisson', True)
    """
    check_delta(delta)
    if microbatch < 1:
        raise ValueError(f"microbatch must be at least 1; got {microbatch}")
    if (noise_multiplier is None) == (target_epsilon is None):
        raise ValueError(
            f"give one of noise_multiplier and target_epsilon; got {noise_multiplier} and {target_epsilon}"
        )
    if sampling not in SAMPLING:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLING)}; got {sampling!r}")
    if target_epsilon is not None and facts is None:
        raise ValueError("target_epsilon needs the facts of the run: see privacy.Facts")
    steps = None if facts is None else ExampleSteps(facts, sampling)
    if target_epsilon is not None and facts is not None and steps is not None:
        noise_multiplier = least_noise(target_epsilon, lambda z: steps.epsilon(z, delta, facts.rounds))
    if noise_multiplier is None or not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must not be negative; got {noise_multiplier}")
    check_bound(clip, noised=noise_multiplier > 0)

    def make(loss: BatchLoss) -> BatchGradient:
        def gradient(variables, batch, key, expected):
            gradient_key, noise_key = jax.random.split(key)
            total, sums = clipped_sum(loss, variables, batch, gradient_key, clip, microbatch)
            noised = add_noise(noise_key, total, noise_multiplier * clip)
            return trees.scale(1.0 / expected, noised), variables.state, sums

        return gradient

    def privacy(rounds: int) -> dict[str, float]:
        if steps is None or noise_multiplier == 0:
            return {}
        return {"epsilon": steps.epsilon(noise_multiplier, delta, rounds), "delta": delta}

    return StepGradient(make, sampling, True, privacy, nothing if facts is None else facts.admits)


EXAMPLES = (
    {"noise_multiplier": 1.0},
    {"clip": 0.5, "noise_multiplier": 2.0, "sampling": "shuffled", "microbatch": 3},
)
