"""Rules of thumb for Theta, the variance that Federated Dynamic Averaging lets models reach (arXiv 2405.20988).

    guideline:  Theta = slope * d,      slope 4.91e-5 (fl), 3.89e-5 (balanced), 2.74e-5 (hpc)      the paper's Fig. 9
    tradeoff:   Theta = slope(r) * d,   r = seconds to synchronize once / seconds of one step      this project's

with d the trained parameters. The slopes are least-squares lines through the origin over four models trained from
scratch (LeNet-5, VGG16*, DenseNet121 and 201; 0.06 to 18 million parameters), by Adam at 1e-3 or Nesterov SGD at 0.1.
The largest of the four outweighs the others.

Theta is in squared units of parameters. So where steps are c times as long it must be c^2 times as large: scale either
rule by (learning rate / the one above)^2. And both rules fail where steps are short from the start: to fine-tune
ConvNeXtLarge (197,068,580 parameters, AdamW at 5e-5) they give 5,400 to 9,700, and the paper uses 25 to 150. Any value
of the right order of magnitude works; one too low synchronizes at nearly every step, one too high does not converge.

How `tradeoff` gets its slope, all of it our own choice: the longer synchronizing takes beside a step, the rarer it
should be. With 30 workers, the four models' step times on an NVIDIA A10 (the authors' code) and 4 bytes per parameter
each way, r has a geometric mean of 269 on a shared channel of 0.5 Gbit/s, where the paper's `fl` slope holds, and of
0.41 on a hypercube of links of 56 Gbit/s, which we assume for its `hpc` slope. Between these two ratios the slope is
linear in log r, by way of the `balanced` slope, put at their geometric mean, 10.6 (it lies within 2% of the straight
line). It is constant beyond them.
"""

import math

SLOPES = {"fl": 4.91e-5, "balanced": 3.89e-5, "hpc": 2.74e-5}
"""Theta per parameter (the paper's Fig. 9)."""
TOPOLOGIES = ("shared", "ring", "hypercube")

_STEP_SECONDS = {61_706: 6.613e-3, 2_592_202: 8.853e-3, 6_964_106: 87.328e-3, 18_112_138: 142.0896e-3}  # A10, batch 32
_WORKERS = 30  # the largest number that all four models were trained with
_FL, _HPC = (0.5e9, "shared"), (56e9, "hypercube")


def guideline(num_params: int, setting: str = "fl") -> float:
    """The paper's Theta for a model of `num_params` trained parameters; read the module on where it holds.

    Args:
      num_params: at least 1; batch statistics do not count.
      setting: `fl` (a shared channel of 0.5 Gbit/s: synchronize seldom), `balanced`, or `hpc` (synchronizing is cheap).

    Example:
      >>> round(guideline(6_964_106, "fl"))
      342
    """
    if setting not in SLOPES:
        raise ValueError(f"setting must be one of {', '.join(SLOPES)}; got {setting!r}")
    if num_params < 1:
        raise ValueError(f"num_params must be at least 1; got {num_params}")
    return SLOPES[setting] * num_params


def synchronization_seconds(
    num_params: int, workers: int, bandwidth_bits_per_second: float, topology: str = "shared"
) -> float:
    """Seconds in which all workers send a float32 model and receive their average.

    `shared` (one channel) and `hypercube` follow the time model of the paper's authors, who take a natural logarithm
    where log2, used here, must be meant:

        shared 64 d (K - 1) / b,      hypercube 64 d ceil(log2 K) / b,      ring 64 d (K - 1) / (K b)

    with b the bits per second of the channel, or of each worker's link.
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}; got {topology!r}")
    if num_params < 1 or workers < 1 or not 0 < bandwidth_bits_per_second < math.inf:
        raise ValueError(
            "need num_params >= 1, workers >= 1 and a finite bandwidth_bits_per_second > 0; got "
            f"{num_params}, {workers}, {bandwidth_bits_per_second}"
        )
    times = {"shared": workers - 1, "ring": (workers - 1) / workers, "hypercube": (workers - 1).bit_length()}[topology]
    return 64 * num_params * times / bandwidth_bits_per_second


def tradeoff(
    num_params: int, workers: int, bandwidth_bits_per_second: float, step_seconds: float, topology: str = "shared"
) -> float:
    """Our Theta for a network and a device: between the paper's `hpc` and `fl` guidelines, by the time both take.

    Args:
      num_params: trained parameters, at least 1.
      workers: at least 1 (one alone has nothing to send: the `hpc` slope).
      bandwidth_bits_per_second: of the shared channel, or of each worker's link in a `ring` or `hypercube`.
      step_seconds: of one training step.
      topology: `shared`, `ring` or `hypercube`.

    Not measured against training runs, and without meaning for fine-tuning; see the module.

    Example:
      >>> round(tradeoff(6_964_106, workers=10, bandwidth_bits_per_second=1e9, step_seconds=0.1), 1)
      300.2
    """
    if not 0 < step_seconds < math.inf:
        raise ValueError(f"step_seconds must be a finite number above 0; got {step_seconds}")
    seconds = synchronization_seconds(num_params, workers, bandwidth_bits_per_second, topology)
    low, high = _typical_ratio(*_HPC), _typical_ratio(*_FL)
    ratio = min(max(seconds / step_seconds, low), high)
    place = 2 * math.log(ratio / low) / math.log(high / low)  # 0 hpc, 1 balanced, 2 fl
    below, above = ("hpc", "balanced") if place <= 1 else ("balanced", "fl")
    share = place if place <= 1 else place - 1
    return ((1 - share) * SLOPES[below] + share * SLOPES[above]) * num_params


def _typical_ratio(bandwidth: float, topology: str) -> float:
    """Geometric mean over the paper's models of the time to synchronize over the time of a step."""
    ratios = [synchronization_seconds(d, _WORKERS, bandwidth, topology) / s for d, s in _STEP_SECONDS.items()]
    return math.prod(ratios) ** (1 / len(ratios))
