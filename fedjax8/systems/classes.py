"""Named kinds of clients, a device and its link each, with shares.

    kind_i          = the first kind k with u_i < share_1 + ... + share_k
    step_seconds_ir = step_seconds rate_lte / rate_kind exp(jitter v_ir),  or  operations / rate_kind exp(jitter v_ir)

u_i is uniform on [0, 1), drawn once for each client; v_ir is standard normal, drawn anew in every round.

    kind        device              rate (operations/s)  down, up (bits/s)  latency, one way
    lte         phone on LTE        2e10                 36 M    11.2 M     20 ms
    wifi        phone on Wi-Fi      2e10                 69.4 M  18.4 M     10.5 ms
    fiber       home computer       1e11                 271 M   124 M      4.5 ms
    gateway     factory gateway     8e9                  10 M    5 M        25 ms
    datacenter  server with a GPU   1.4e13               10 G    10 G       0.5 ms

Sources of the links, whose latency is half of a round trip; what is "quoted" was read on another's page about it.

    lte         measured, quoted: Speedtest Global Index, world means of mobile networks, September 2020: 35.96 down,
                11.22 up, 40 ms; mostly LTE, not only
    wifi        measured, quoted: Ofcom, UK medians of home broadband at the router, March 2023: 69.4 down, 18.4 up;
                Speedtest, world mean of fixed networks, September 2020: 21 ms. What Wi-Fi adds is in neither.
    fiber       measured: Ookla's article of June 2024, median of the UAE: 270.91 down, 124.37 up (that most lines there
                are fiber is recalled); quoted: 9 ms of Verizon in the US by Speedtest
    gateway     specified, quoted: the peak of an LTE modem of category 1; 50 ms is chosen here, near the 52 to 60 ms
                of US carriers by OpenSignal, about 2019, quoted
    datacenter  chosen here: a port of 10 Gbit/s, a server in the same region

Sources of the rates, which are sustained ones:

    2e10        chosen here; about a seventh of the peak of four large cores of a phone, as recalled
    1e11        chosen here; a third of the peak of a mobile processor of six cores (Intel i9-8950HK: 2.8e11, quoted)
    8e9         measured: Linpack in float64 on a Raspberry Pi 4 (Feiereisen 2022); float32 may be twice as fast
    1.4e13      measured: float32 matrix products on an NVIDIA V100 (table of the project transformers-benchmarks)

All clients of a kind are the same but for the jitter. `lognormal` has a spread, and `trace` takes measured clients.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.lookup import suggest
from fedjax8.systems._checks import check_seed, check_spread, seconds_of_step
from fedjax8.systems._draws import slowness, uniforms
from fedjax8.systems.base import Speeds, SystemModel


class Kind(NamedTuple):
    """A device and its link."""

    flops: float
    """Floating-point operations a second; a multiply-add is two."""
    down_bandwidth: float
    """Bytes a second."""
    up_bandwidth: float
    """Bytes a second."""
    latency: float
    """Seconds, one way."""


MEGABIT = 1e6 / 8
"""Bytes."""
KINDS = {
    "lte": Kind(2e10, 36 * MEGABIT, 11.2 * MEGABIT, 0.02),
    "wifi": Kind(2e10, 69.4 * MEGABIT, 18.4 * MEGABIT, 0.0105),
    "fiber": Kind(1e11, 271 * MEGABIT, 124 * MEGABIT, 0.0045),
    "gateway": Kind(8e9, 10 * MEGABIT, 5 * MEGABIT, 0.025),
    "datacenter": Kind(1.4e13, 1e4 * MEGABIT, 1e4 * MEGABIT, 0.0005),
}
REFERENCE = "lte"
"""The kind that `step_seconds` is of."""
_KIND = 2
"""Address of the draw of the kind, apart from those of speeds and links."""


@checked
def classes(
    shares: str | Mapping[str, float] = "lte=0.5,wifi=0.3,fiber=0.2",
    step_seconds: float | None = None,
    *,
    flops: str | Mapping[str, float] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    operations: Callable[[], float] | None = None,
) -> SystemModel:
    """The system model of clients of named kinds.

    Args:
      shares: `lte=0.5,wifi=0.3,fiber=0.2`, or a mapping: how many of the clients are of a kind; together 1. One name
        alone for all clients.
      step_seconds: of a local step on a phone (`lte`, `wifi`); 0.1 unless `flops` is given. Other kinds by their rates.
      flops: operations a second by kind, in its place: `kinds` for those above; `gateway=4e9` or a mapping for others,
        where kinds that are not named keep theirs. A step takes the operations of the model's products over them.
      jitter: standard deviation of the logarithm of a client's slowness in one round.
      seed: of who is of which kind, apart from the run's seed.
      operations: supplied by the program: gives the operations of a local step.

    Raises:
      UserError: an unknown kind, a share that is no number from 0 to 1, shares that do not add up to 1, or a rate not
        above 0.
    """
    check_spread(jitter=jitter)
    check_seed(seed)
    names, bounds = _bounds(shares)
    rates = _rates(flops)
    if flops is None:
        reference = seconds_of_step(step_seconds, None, None)
        by_kind = [reference * KINDS[REFERENCE].flops / KINDS[name].flops for name in names]
    else:
        once = None if operations is None else functools.cache(operations)
        by_kind = [seconds_of_step(step_seconds, rates[name], once) for name in names]
    kinds = [KINDS[name] for name in names]
    seconds, down, up, latency = (
        np.array(values, float)
        for values in (by_kind, *([getattr(kind, field) for kind in kinds] for field in Kind._fields[1:]))
    )

    def speeds(run_seed: int, round_number: int, ids: np.ndarray) -> Speeds:
        kind = _drawn(bounds, seed, ids)
        device = slowness(seed, run_seed, round_number, ids, 0.0, jitter)
        return Speeds(seconds[kind] * device, down[kind], up[kind], latency[kind])

    return SystemModel(speeds)


def kinds_of(ids: np.ndarray, shares: str | Mapping[str, float], seed: int = 0) -> list[str]:
    """The kind of each client, as `classes` with these settings has it."""
    names, bounds = _bounds(shares)
    return [names[kind] for kind in _drawn(bounds, seed, ids)]


def _drawn(bounds: np.ndarray, seed: int, ids: np.ndarray) -> np.ndarray:
    """int `[n]`: the number of each client's kind; one without a share is never drawn."""
    return np.searchsorted(bounds, uniforms(ids, seed, _KIND)[0], side="right")


def _bounds(shares: str | Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    """(names, sums of the shares up to and with each, the last one 1)."""
    alone = isinstance(shares, str) and shares.strip() in KINDS
    given = _numbers("shares", f"{shares}=1" if alone else shares)
    for name, share in given.items():
        if not 0 <= share <= 1:
            raise UserError(f"shares: {name} is {share}; a share must be from 0 to 1")
    total = sum(given.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"shares must add up to 1; {shares!r} adds up to {total:g}")
    named = {name: share for name, share in given.items() if share > 0}
    bounds = np.minimum(np.cumsum(list(named.values())), 1.0)
    bounds[-1] = 1.0  # above every draw
    return list(named), bounds


def _rates(flops: str | Mapping[str, float] | None) -> dict[str, float]:
    """Operations a second of every kind."""
    rates = {name: kind.flops for name, kind in KINDS.items()}
    given = {} if flops is None or flops == "kinds" else _numbers("flops", flops)
    for name, rate in given.items():
        if not 0 < rate < np.inf:
            raise UserError(f"flops: {name} is {rate}; a rate must be a number above 0")
    return {**rates, **given}


def _numbers(setting: str, given: str | Mapping[str, float]) -> dict[str, float]:
    """Numbers by the name of a kind, from `NAME=NUMBER,...` or a mapping."""
    form = f"give NAME=NUMBER, several with commas; names are {', '.join(KINDS)}"
    if isinstance(given, str):
        pairs = [text.partition("=")[::2] for text in given.split(",")]
    elif isinstance(given, Mapping):
        pairs = [(str(name), str(number)) for name, number in given.items()]
    else:
        raise UserError(f"{setting} is {given!r}; {form}")
    found: dict[str, float] = {}
    for name, number in ((name.strip(), number) for name, number in pairs):
        if name not in KINDS:
            raise UserError(f"{setting}: there is no kind {name!r}; {form}{suggest(name, KINDS)}")
        if name in found:
            raise UserError(f"{setting} names {name} twice; name each kind once")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise UserError(f"{setting}: {name} has no number in {given!r}; {form}") from error
    return found


EXAMPLES = (
    {},
    {"shares": "gateway", "jitter": 0.3},
    {"shares": {"datacenter": 0.25, "lte": 0.75}, "step_seconds": 0.2},
)
