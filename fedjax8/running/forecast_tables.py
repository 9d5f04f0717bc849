"""A forecast as text: tables on a terminal, aligned columns in a file or pipe."""

import functools
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedjax8.exchange.ledger import Ledger
from fedjax8.results.durations import readable_duration
from fedjax8.running.console import readable_bytes
from fedjax8.running.forecast import Forecast, Range, clients_of
from fedjax8.running.timeline import DEADLINE, SERVER
from fedjax8.streams import console_on
from fedjax8.types import Channel

UNLIMITED = 2**15
"""Characters in a line wide enough for any table."""
LEAST_SHARE = 0.005
"""Shares of a round's time below this are not told."""
SHARES = {
    "trained": "trained",
    "clip": "clips, which only 8-bit training has",
    "frozen": "frozen",
    "state": "of statistics",
}


def show(found: Forecast, heading: str, console: Console | None = None) -> None:
    """Prints the heading of a run and its forecast."""
    console = console_on() if console is None else console
    if not console.is_terminal:
        console = Console(file=console.file, width=UNLIMITED, color_system=None, highlight=False)
    console.print(Text(heading))
    _print(console, ("array", "shape", "numbers", ""), _layers(found))
    console.print(Text(_share_of_layers(found)))
    _print(console, ("message", "bytes each", "in float32", "a round", "bytes a round", "the run"), _messages(found))
    for sentence in (*_clients(found), *_traffic(found), _steps(found), *_memory(found), _time(found), *_clock(found)):
        console.print(Text(sentence))


def _print(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    plain = not console.is_terminal
    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=not plain, show_header=True)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i > 0 and name else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if plain:
        console.print()
    console.print(table)
    if plain:
        console.print()


def _layers(found: Forecast) -> list[tuple[str, ...]]:
    return [
        (layer.name, " x ".join(map(str, layer.shape)) or "scalar", f"{layer.size:,}", layer.kind)
        for layer in found.leaves
    ]


def _share_of_layers(found: Forecast) -> str:
    counts = {kind: sum(layer.size for layer in found.leaves if layer.kind == kind) for kind in SHARES}
    return "model    " + ", ".join(f"{n:,} {SHARES[kind]}" for kind, n in counts.items() if n or kind == "trained")


def _messages(found: Forecast) -> list[tuple[str, ...]]:
    clients = functools.partial(clients_of, asked=found.asked, used=found.used)
    of_round = {
        channel: Range(*(a * b for a, b in zip(clients(channel), times, strict=True)))
        for channel, times in found.traffic.times.items()
    }
    return [_message(found, channel, times) for channel, times in (of_round | dict(found.reports)).items()]


def _message(found: Forecast, channel: Channel, of_round: Range) -> tuple[str, ...]:
    part, size = f" {channel.part}" if channel.part else "", channel.message_bytes
    return (
        f"{channel.direction} {channel.name}{part}",
        f"{size:,}",
        f"{channel.float32_bytes:,}",
        _spread(of_round),
        _spread(Range(*(size * n for n in of_round))),
        _spread(Range(*(size * n * found.rounds for n in of_round)), readable_bytes),
    )


def _spread(found: Range, write: Callable[[int], str] = "{:,}".format) -> str:
    """The number, or `least to most`."""
    return write(found.least) if found.least == found.most else f"{write(found.least)} to {write(found.most)}"


def _traffic(found: Forecast) -> list[str]:
    def both(ledger: Ledger) -> str:
        others = (f", {name.removesuffix('_bytes')} {count:,}" for name, count in ledger.others.items())
        return f"up {ledger.uplink_bytes:,}, down {ledger.downlink_bytes:,}{''.join(others)}"

    once, run, traffic = found.round_messages, found.run_messages, found.traffic
    lines = []
    if once and run:
        lines.append(f"bytes    a round {both(once)}; {found.rounds:,} rounds {both(run)}")
    else:
        ways = dict.fromkeys(("up", "down", *(channel.direction for channel in traffic.times)))
        of_client = ", ".join(f"{d} {_spread(traffic.of(d))}" for d in ways)
        whole = ", ".join(f"{d} {_spread(_whole(found, d))}" for d in ways)
        first = f"; the first round {both(once)}" if once else ""
        lines.append(f"bytes    of a client in a round {of_client}{first}; {found.rounds:,} rounds {whole}")
    if once:
        measured = run or once
        where = "" if run else ", in the first round"
        lines.append(
            f"saving   {measured.saving:.2f}x against float32 ({readable_bytes(measured.total_bytes)} instead of "
            f"{readable_bytes(measured.float32_bytes)}{where})"
        )
    return lines


def _whole(found: Forecast, direction: str) -> Range:
    """Bytes of the run."""
    of_client, usual = found.traffic.of(direction), found.asked if direction == "down" else found.used
    counts = [clients_of(c, found.asked, found.used) for c in found.traffic.times if c.direction == direction]
    clients = min([usual.least, *(n.least for n in counts)]), usual.most
    reports = [(c.message_bytes, n) for c, n in found.reports.items() if c.direction == direction]
    least, most = (sum(size * n[i] for size, n in reports) + of_client[i] * clients[i] for i in (0, 1))
    return Range(found.rounds * least, found.rounds * most)


def _clients(found: Forecast) -> list[str]:
    """The number of clients, where it varies or not all of them are waited for."""
    asked, used = found.asked, found.used
    if asked == used and asked.least == asked.most:
        return []
    waited = "" if asked == used else f", {_spread(used)} of them waited for"
    return [f"clients  {_spread(asked)} a round{waited}"]


def _steps(found: Forecast) -> str:
    steps = found.steps
    about = "" if steps.exact else "about "
    spread = "" if steps.least == steps.most else f" to {steps.most:,}, median {steps.median:,g}"
    return (
        f"steps    of a client {steps.least:,}{spread}; a round {about}"
        f"{steps.run / found.rounds:,.1f}; the run {about}{steps.run:,}"
    )


def _memory(found: Forecast) -> list[str]:
    memory = found.memory
    clients = f"{found.chunk} client{'s' * (found.chunk > 1)} at once"
    working = "unknown" if memory.working is None else readable_bytes(memory.working)
    parts = {
        "model": memory.model,
        "frozen": memory.frozen,
        "rows": memory.rows,
        "clients' states": memory.client_states,
    }
    listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)
    least = "at least " if memory.working is None else ""
    return [f"memory   of a device {least}{readable_bytes(memory.total)}: {listed}, work on {clients} {working}"]


def _time(found: Forecast) -> str:
    seconds = found.seconds
    if not found.measured:
        return (
            f"time     estimated: the model's products alone take {readable_seconds(seconds.round)} a round and "
            f"{readable_seconds(seconds.run)} a run at this machine's rate; rounds take longer"
        )
    return (
        f"time     measured: {readable_seconds(seconds.round)} a round, {readable_seconds(seconds.evaluation or 0)} an "
        f"evaluation, {readable_seconds(seconds.start or 0)} to start; the run about {readable_seconds(seconds.run)}"
    )


def _clock(found: Forecast) -> list[str]:
    """Simulated time and what limits it, where there is a clock."""
    simulated = found.simulated
    if simulated is None:
        return []
    least, most = readable_duration(simulated.least), readable_duration(simulated.most)
    spread = "" if least == most else f" to {most}, median {readable_duration(simulated.median)}"
    about = "" if simulated.exact else "about "
    return [
        f"clock    simulated: a round {least}{spread}; the run {about}{readable_duration(simulated.run)}"
        f"{_limited(simulated.limits)}",
        "         by the most bytes that a client may have in a round; dropouts, parts left out of messages and the "
        "order of several messages may change it",
    ]


def _limited(limits: Mapping[str, float]) -> str:
    """As `, limited by the slowest client's uplink 71%, local steps 29%`; empty where nothing takes time."""
    told = [f"{name} {100 * share:.0f}%" for name, share in limits.items() if share >= LEAST_SHARE]
    own = next((i for i, text in enumerate(told) if not text.startswith((SERVER, DEADLINE))), None)
    if own is not None:
        told[own] = f"the slowest client's {told[own]}"
    return f", limited by {', '.join(told)}" if told else ""


def readable_seconds(seconds: float) -> str:
    """Seconds with two digits, or hours and minutes: 0.0123 gives `0.012 s`, 4000 gives `1 h 7 min`.

    >>> [readable_seconds(s) for s in (0.0123, 4.56, 75.2, 4000, 200_000)]
    ['0.012 s', '4.6 s', '1 min 15 s', '1 h 7 min', '2 d 8 h']
    """
    if seconds < 59.5:
        return f"{float(f'{seconds:.2g}'):g} s"
    whole = round(seconds)
    for size, unit, rest, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {round(whole % size / rest)} {smaller}"
    raise ValueError(seconds)
