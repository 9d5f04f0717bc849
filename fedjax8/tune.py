"""The fastest numbers of devices and of clients at once for an experiment on this machine, measured and remembered.

A round is timed with one setting after another, starting from the machine's default: first more clients at once, four
times as many each, for as long as that helps; then, on CPU, half as many devices likewise. Each trial compiles the
round, so this takes about as long as compiling it a few times. The result is kept in a file, keyed by everything it
depends on (model, adapter, local training, codecs, rows, cohort, devices, versions), and not measured again.

Results do not depend on these settings beyond the order of float32 sums.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from fedjax8 import version
from fedjax8.build import build
from fedjax8.config import component, plain
from fedjax8.errors import UserError
from fedjax8.executors.auto import default_chunk
from fedjax8.given import read_object

TIMED_SECONDS = 1.0
"""A trial runs rounds for about this long, and at least two."""
WORTHWHILE = 0.95
"""A setting is better if it takes at most this share of the time of the best before it; less than that is noise."""
FACTOR = 4
"""Between the numbers of clients at once that are tried."""
MATTERS = (
    *("model", "format", "adapter", "client", "algorithm", "uplink", "downlink", "data", "cohort_size", "augment"),
    *("feed", "participation", "format_rules"),
)
"""Fields of a config that decide which setting is fastest."""


class ExecutorSetting(NamedTuple):
    """The numbers that are tuned."""

    chunk: int
    num_devices: int


def search(
    seconds: Callable[[ExecutorSetting], float], start: ExecutorSetting, most: int, fewer_devices: bool
) -> ExecutorSetting:
    """The fastest setting on the way from `start`: chunks grow up to `most`, then devices are halved if that is asked.

    `seconds` measures one; a setting that fails for want of memory takes infinitely long.
    """
    best, least = start, seconds(start)

    def follow(change: Callable[[ExecutorSetting], ExecutorSetting]) -> None:
        nonlocal best, least
        while (trial := change(best)) != best:
            taken = seconds(trial)
            if taken > WORTHWHILE * least:
                return
            best, least = trial, taken

    follow(lambda setting: setting._replace(chunk=min(setting.chunk * FACTOR, most)))
    if fewer_devices:
        follow(lambda setting: setting._replace(num_devices=max(1, setting.num_devices // 2)))
    return best


def tuned(config: ConfigDict, data_dir: str | None = None, say: Callable[[str], None] = print) -> ConfigDict:
    """The executor component for an experiment: remembered from an earlier call, or measured now.

    Raises UserError if the config's executor is not `auto`, which alone leaves anything open.
    """
    if config.executor.name != "auto":
        raise UserError(
            f"--autotune chooses the settings of the executor auto, but config.executor is {config.executor.name}"
        )
    cache, key = cache_file(), key_of(config)
    known = remembered(cache)
    if key not in known:
        found = search(
            lambda setting: _measure(config, data_dir, setting, say),
            ExecutorSetting(default_chunk(), jax.local_device_count()),
            most=max(1, -(-config.cohort_size // jax.local_device_count())),
            fewer_devices=jax.default_backend() == "cpu",
        )
        known[key] = found._asdict()
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=2) + "\n")
        os.replace(part, cache)
    say("fastest here: " + ", ".join(f"{name} {value}" for name, value in known[key].items()))
    return component("auto", **known[key])


def cache_file() -> Path:
    """File of remembered settings: `$XDG_CACHE_HOME/fedjax8/tuned.json`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax8" / "tuned.json"


def remembered(cache: Path) -> dict[str, dict[str, int]]:
    """Settings by key; damaged ones are dropped, and measured anew."""
    try:
        found = read_object(cache) or {}
    except OSError:
        return {}
    fits = lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31
    whole = lambda setting: isinstance(setting, dict) and set(setting) == set(ExecutorSetting._fields)
    return {key: setting for key, setting in found.items() if whole(setting) and all(map(fits, setting.values()))}


def key_of(config: ConfigDict) -> str:
    """A digest of everything on which the fastest setting depends."""
    devices = [d.device_kind for d in jax.devices()]
    what = {name: plain(config[name]) for name in MATTERS}
    what |= {"devices": devices, "cores": os.cpu_count(), "versions": [version.__version__, jax.__version__]}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _measure(config: ConfigDict, data_dir: str | None, setting: ExecutorSetting, say: Callable[[str], None]) -> float:
    """Seconds of a round, the fastest of a few."""
    trial = ConfigDict(config, convert_dict=False)
    trial.executor = component("auto", **setting._asdict())
    simulation = build(trial, data_dir).simulation
    try:
        state, times = simulation.run_rounds(simulation.init(), 1)[0], []
        while len(times) < 2 or sum(times) < TIMED_SECONDS:
            begun = time.perf_counter()
            state, _ = simulation.run_rounds(state, 1, donate=True)
            times.append(time.perf_counter() - begun)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"chunk {setting.chunk} on {setting.num_devices} devices does not fit into memory")
        return float("inf")
    say(f"chunk {setting.chunk} on {setting.num_devices} devices: {min(times):.4f} s a round")
    return min(times)
