"""Tables for `trace` from the device traces of FedScale (Lai et al. 2022, arXiv 2105.11367).

    from fedjax8.systems import fedscale
    fedscale.convert("client_device_capacity", "devices.csv", behavior="client_behave_trace", batch_size=32)

    capacity    {client: {"computation": ms, "communication": kbit/s}}
    behavior    {client: {"active": [s, ...], "inactive": [s, ...], "finish_time": s, "duration": s, "model": text}}

`computation` is the time of a forward pass on one example. FedScale takes three times that for a training step, so that

    step_seconds = 3 batch_size computation / 1000,      down = up = 1024 / 8 communication

in bytes a second, since its clock counts 1024 bits a kbit. A client is there from `active[k]` to `inactive[k]`, at
least a second, and again after `finish_time`. FedScale publishes both as pickles. A file that does not end with `.json`
is read as one without running anything, so that one with values of other types than Python's own has to be written as
JSON first, by whoever trusts it.
"""

import csv
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.given import checked, read_object
from fedjax8.readers.pickled import read_plain_pickle

TRAINING = 3
"""A training step over a forward pass."""
KBIT_BYTES = 1024 / 8


@checked
def convert(
    capacity: str | Path, out: str | Path, *, behavior: str | Path | None = None, batch_size: int | None = None
) -> int:
    """Writes a table for `trace`; the number of clients in it.

    Clients are numbered from 0 in the order of the file. The i-th gets the i-th behavior, from the start again where
    these are fewer.

    Args:
      capacity: file of what devices and links can do.
      out: the table to write, `.csv`; it must not exist.
      behavior: file of when clients are there; None: always.
      batch_size: of the local steps. None: the table has the column `speed` instead of `step_seconds`, which is 1 for
        the median device; `trace` then takes the seconds of its step.

    Raises:
      UserError: a file that cannot be read, or a client in it whose values are not as above, which is named.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    target = Path(out).expanduser()
    if target.suffix != ".csv" or target.exists():
        raise UserError(f"{target}: " + ("exists; choose another name" if target.exists() else "must end with .csv"))
    devices = [_device(capacity, *entry) for entry in _read(capacity).items()]
    times = [] if behavior is None else [_behavior(behavior, *entry) for entry in _read(behavior).items()]
    median = statistics.median(milliseconds for milliseconds, _ in devices)
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        pace = "speed" if batch_size is None else "step_seconds"
        table.writerow(["client", pace, "down", "up", *(["available", "period"] if times else [])])
        for number, (milliseconds, kbits) in enumerate(devices):
            seconds = median / milliseconds if batch_size is None else TRAINING * batch_size * milliseconds / 1000
            rate = KBIT_BYTES * kbits
            table.writerow(
                [number, repr(seconds), repr(rate), repr(rate), *(times[number % len(times)] if times else ())]
            )
    return len(devices)


def _read(given: str | Path) -> Mapping[Any, Any]:
    """The dict in a file."""
    path = Path(given).expanduser()
    try:
        found = read_object(path) if path.suffix == ".json" else read_plain_pickle(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: must hold clients and their values, as a dict; it holds {_shown(found)}")
    return found


def _device(file: str | Path, client: Any, values: Any) -> tuple[float, float]:
    """(ms of a forward pass, kbit/s) of an entry."""
    computation, communication = _fields(values, "computation", "communication")
    if not all(_is_number(number) and number > 0 for number in (computation, communication)):
        allowed = "it must have numbers above 0 called computation and communication"
        raise UserError(f"{file}: client {client!r:.40} is {_shown(values)}; {allowed}")
    return float(computation), float(communication)


def _behavior(file: str | Path, client: Any, values: Any) -> tuple[str, str]:
    """(available, period) of an entry."""
    active, inactive, finish = _fields(values, "active", "inactive", "finish_time")
    lists = isinstance(active, list) and isinstance(inactive, list) and len(active) == len(inactive) > 0
    usable = lists and all(_is_number(seconds) for seconds in (finish, *active, *inactive))
    pairs = sorted(zip(active, inactive, strict=True)) if usable else []
    if not pairs or not all(0 <= begin <= end <= finish and begin < finish for begin, end in pairs):
        allowed = (
            "it must have lists active and inactive of seconds, one as long as the other, with "
            "0 <= active <= inactive <= finish_time, and active below it"
        )
        raise UserError(f"{file}: client {client!r:.40} is {_shown(values)}; {allowed}")
    merged: list[list[float]] = []
    for begin, end in pairs:
        end = min(max(end, begin + 1), finish)
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([begin, end])
    return ";".join(f"{_plain(begin)}-{_plain(end)}" for begin, end in merged), _plain(finish)


def _fields(values: Any, *names: str) -> list[Any]:
    return [values.get(name) if isinstance(values, dict) else None for name in names]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**63


def _plain(seconds: float) -> str:
    """Without an exponent or a point that is not needed."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
