"""Means and deviations over the seeds of runs that were made together: `seeds.json`, and a line on the console.

    {"seeds": [0, 1, 2], "test_accuracy": {"mean": 0.91, "deviation": 0.004, "count": 3}, ...}

`deviation` is the sample standard deviation. Numbers that are not finite are left out; `count` says how many are in,
and where it is 0 there is no mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax8.directions import in_words
from fedjax8.results.curves import statistic
from fedjax8.results.log import number
from fedjax8.running.console import readable_number


def over_seeds(seeds: Sequence[int], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `seeds.json`: of every number in the summaries of the runs, mean, deviation and count."""
    names = dict.fromkeys(name for summary in summaries for name in summary)
    found: dict[str, Any] = {"seeds": list(seeds)}
    for name in names:
        values = [summary.get(name) for summary in summaries]
        over = statistic(map(number, values))
        if over is None and name in {n for s in summaries for n, v in s.items() if v is None or isinstance(v, float)}:
            found[name] = {"mean": None, "deviation": None, "count": 0}
        if over:
            deviation = over.spread if math.isfinite(over.spread) else None
            found[name] = {"mean": over.mean, "deviation": deviation, "count": over.count}
    return found


def seeds_in_words(found: Mapping[str, Any], metric: str = "accuracy") -> str:
    """As `mean over 3 seeds: test accuracy 0.9100 (deviation 0.0040), test loss 0.3000 (deviation 0.0100)`."""
    parts = []
    for name in dict.fromkeys((f"test_{metric}", f"validation_{metric}", "test_loss")):
        if name not in found:
            continue
        mean, deviation, count = (found[name][part] for part in ("mean", "deviation", "count"))
        if not count:
            parts.append(f"{in_words(name)} is finite in none of them")
            continue
        beside = [] if deviation is None else [f"deviation {readable_number(deviation)}"]
        beside += [f"of {count} of them"] if count < len(found["seeds"]) else []
        said = f" ({', '.join(beside)})" if beside else ""
        parts.append(f"{in_words(name)} {readable_number(mean)}{said}")
    return f"mean over {len(found['seeds'])} seeds: {', '.join(parts) or 'nothing was evaluated'}"
