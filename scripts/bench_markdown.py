"""The results of all benchmarks as one page of Markdown, with sentences on the limits of each."""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bench_codecs

ROUNDS_OF_A_STUDY = 1500
TF32_PEAKS = {"A100-SXM4": 156.0, "H100 80GB HBM3": 494.7, "H200": 494.7}
"""Teraflops that the vendor states for dense float32 products in tensor cores, which XLA uses by default."""

Row = Mapping[str, Any]


def table(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> list[str]:
    """Lines of a table; a column is its heading and a function of a row."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows)]


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def parts(row: Row) -> dict[str, float]:
    """Shares of a round that its two floors explain, and the rest. They sum to 1."""
    memory = row["shape_memory_seconds"] / row["floor_seconds"]
    products = row["shape_products_seconds"] / row["floor_seconds"]
    large = min(1.0, products)  # where small products are no slower than large ones, nothing is lost to their shape
    shares = {
        "multiplying at the rate of large products": large,
        "the shapes of the products": products - large,
        "reading and writing parameters and samples": memory,
    }
    shares = {name: share / row["floor_ratio"] for name, share in shares.items()}
    return shares | {"everything around the products": 1.0 - sum(shares.values())}


def limits(row: Row) -> str:
    """One sentence on the time of a round by its parts."""
    shares = parts(row)
    large, shapes, memory, rest = shares.values()
    largest = max(shares, key=shares.get)
    label = row["workload"] if row["variant"] == "float32" else f"{row['workload']} in {row['variant']}"
    if rest < 0:
        return (
            f"- {label}: a round takes {row['shape_floor_ratio']:.2f} of the time that its products take alone, each "
            "as a plain matrix product of its definition: it computes them in another way (3x3 convolutions with fewer "
            "multiplications, several products at once)."
        )
    return (
        f"- {label}: {large:.0%} of a round is multiplying at the rate of large products, {shapes:.0%} is lost to the "
        f"shapes of the products, {memory:.0%} moves parameters and samples, and {rest:.0%} is everything around the "
        f"products, with {row['padding']:.1%} of the rows being padding. Most of it goes to {largest}."
    )


def workloads(rows: Sequence[Row]) -> list[str]:
    """The section on whole rounds."""
    columns = {
        "workload": lambda r: r["workload"],
        "precision": lambda r: r["variant"],
        "s/round": lambda r: number(r["seconds_per_round"]),
        "clients/s": lambda r: number(r["clients_per_second"]),
        "samples/s": lambda r: number(r["samples_per_second"]),
        "padding": lambda r: f"{r['padding']:.1%}",
        "to the floor": lambda r: f"{r['floor_ratio']:.2f}",
        "to the shape floor": lambda r: f"{r['shape_floor_ratio']:.2f}",
        "to float32": lambda r: "" if r["variant"] == "float32" else f"{r['ratio_to_first']:.2f}",
        "start s": lambda r: f"{r['start_seconds']:.1f}",
        "compile s": lambda r: f"{r['compile_seconds']:.1f}",
        "peak MB": lambda r: f"{r['peak_memory_bytes'] / 1e6:.0f}",
        "rounds": lambda r: f"{r['rounds']}",
    }
    first = rows[0]
    accelerator = first["platform"] != "cpu"
    rates = sorted(r["matmul_gflops"] for r in rows)
    lines = [
        "## Whole rounds",
        "",
        f"On {first['devices']} {first['device_kind']} device{'s' * (first['devices'] > 1)}, "
        f"{first['chunk']} client{'s' * (first['chunk'] > 1)} at once on each. Rounds are run in calls of "
        "half a second at most, as a run does. Medians; ratios are medians of each call's own. "
        "`scripts/bench_workloads.py` says what the workloads are, `scripts/bench_floor.py` what the "
        "floors are. Large float32 products ran at "
        f"{rates[0]:,.0f} to {rates[-1]:,.0f} Gflop/s on the whole machine. "
        "Where there are two precisions, the peak is that of both together.",
        "",
        *table(columns, rows),
        "",
        "What limits them:",
        "",
        *(limits(row) for row in rows),
    ]
    for row in rows:
        if row["workload"] == "W1" and row["variant"] == "float32":
            lines += ["", projection(row, accelerator)]
    return lines


def projection(row: Row, accelerator: bool) -> str:
    """Time of a study of W1, and its share of the machine."""
    seconds = ROUNDS_OF_A_STUDY * row["seconds_per_round"]
    reached = row["matmul_gflops"] / row["floor_ratio"]
    text = (
        f"{ROUNDS_OF_A_STUDY} rounds of W1, projected from the median: {number(seconds)} s "
        f"({datetime.timedelta(seconds=round(seconds))}). W1 computes {number(reached)} Gflop/s, "
        f"{1 / row['floor_ratio']:.0%} of the measured rate of large products"
    )
    peaks = [peak for name, peak in TF32_PEAKS.items() if accelerator and name in row["device_kind"]]
    if peaks:
        text += f" and {reached / 1e3 / (peaks[0] * row['devices']):.1%} of the vendor's TF32 peak"
    return text + "."


def cohorts(rows: Sequence[Row]) -> list[str]:
    """The section on clients a round."""
    columns = {
        "clients a round": lambda r: f"{r['cohort']}",
        "ms/client": lambda r: number(1e3 * r["seconds_per_client"]),
        "time to the first": lambda r: f"{r['time_ratio']:.2f}",
        "peak MB": lambda r: f"{r['peak_memory_bytes'] / 1e6:.0f}",
        "memory to the first": lambda r: f"{r['memory_ratio']:.2f}",
    }
    growth = max(r["memory_ratio"] for r in rows) - 1
    return [
        "## Clients a round",
        "",
        f"W2's model and clients, {rows[0]['chunk']} at once on each device. Time a client is by the clock of the "
        "machine's large products, as every row is a process of its own.",
        "",
        *table(columns, rows),
        "",
        f"Memory grows by {growth:.0%} at most: updates are summed as they come.",
    ]


def clients(rows: Sequence[Row]) -> list[str]:
    """The section on registered clients."""
    columns = {
        "registered clients": lambda r: f"{r['clients']:,}",
        "ms/round": lambda r: number(1e3 * r["seconds_per_round"]),
        "time to the first": lambda r: f"{r['ratio']:.2f}",
        "start s": lambda r: f"{r['start_seconds']:.1f}",
        "peak MB": lambda r: f"{r['peak_memory_bytes'] / 1e6:.0f}",
    }
    worst = max(abs(r["ratio"] - 1) for r in rows)
    flat = "is the same" if worst <= 0.1 else "is not the same"
    each = (rows[-1]["peak_memory_bytes"] - rows[0]["peak_memory_bytes"]) / (rows[-1]["clients"] - rows[0]["clients"])
    return [
        "## Registered clients",
        "",
        "Logistic regression, 100 clients of 60 images a round, windows into 60,000 images, in turn in one process; "
        "start-up and memory are those of a process each.",
        "",
        *table(columns, rows),
        "",
        f"A round {flat} for all of them to within 10 % (largest difference {worst:.0%}); "
        f"a registered client costs {each:.0f} bytes, at the peak of start-up.",
    ]


def torch(rows: Sequence[Row]) -> list[str]:
    """The section on PyTorch."""
    columns = {
        "workload": lambda r: r["workload"],
        "fedjax8 ms/step": lambda r: number(r["fedjax8_ms"]),
        "PyTorch, a process a core": lambda r: number(r["torch_processes_ms"]),
        "PyTorch, threads": lambda r: number(r["torch_threads_ms"]),
        "fedjax8 to the better": lambda r: f"{r['ratio']:.2f}",
        "lowest to highest": lambda r: f"{r['ratio_low']:.2f} to {r['ratio_high']:.2f}",
    }
    faster = [r["workload"] for r in rows if r["ratio"] < 1]
    return [
        "## A local step, against PyTorch",
        "",
        f"On {rows[0]['cores']} cores in float32, in turn. fedjax8's time is that of whole rounds over their steps, "
        "PyTorch's that of training alone (`scripts/bench_torch.py`).",
        "",
        *table(columns, rows),
        "",
        f"fedjax8 is the faster one in {len(faster)} of {len(rows)}{': ' if faster else ''}{', '.join(faster)}.",
    ]


def hosts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on several processes, as `bench_hosts.py` measures them."""
    columns = {
        "workload": lambda r: f"{r['workload']} in {r['precision']}",
        "one process, ms/round": lambda r: number(1e3 * r["seconds_per_round"]["1x1"]),
        "two processes, ms/round": lambda r: number(1e3 * r["seconds_per_round"]["2x1"]),
        "times the throughput": lambda r: f"{r['ratio']:.2f}",
    }
    return [
        "## Processes",
        "",
        "Each process has one device and one core; taken in turn. Two processes add up their sums once a round, over "
        "the loopback device.",
        "",
        *table(columns, rows),
    ]


def codecs(result: Mapping[str, Any]) -> list[str]:
    """The section on codecs, as `bench_codecs.py` measures them."""
    return bench_codecs.markdown(result, table)


def with_section(text: str, lines: Sequence[str]) -> str:
    """The page with one section replaced by `lines`, or with them at its end; the first line is the heading."""
    section = "\n".join(lines) + "\n"
    old = re.search(rf"^{re.escape(lines[0])}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not old:
        return f"{text.rstrip()}\n\n{section}"
    rest = text[old.end() :]
    return text[: old.start()] + section + ("\n" + rest if rest else "")


def page(results: Mapping[str, Any]) -> str:
    """All sections with results.

    Args:
      results: `machine`, `commands` and `seconds`; `workloads`, `torch` as lists of rows; `scaling` as a dict of
        `cohort`, `clients`, `hosts`; `codecs` as `bench_codecs.run` gives it; `missing`, sentences on what could not
        be measured.
    """
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    first = next(iter(results.get("workloads", ())), None)
    devices = f"; {first['devices']} {first['device_kind']}" if first and first["platform"] != "cpu" else ""
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    lines = [
        "# Benchmarks",
        "",
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {memory}{devices}, {machine['system']}. "
        f"{versions}. Load before: {machine['load']:.1f}.",
        "",
        f"Made by `{results['commands'][0]}` in {results['seconds'] / 60:.0f} minutes, which runs",
        "",
        *(f"    {command}" for command in results["commands"][1:]),
    ]
    scaling = results.get("scaling") or {}
    for section, found in (
        (workloads, results.get("workloads")),
        (torch, results.get("torch")),
        (cohorts, scaling.get("cohort")),
        (clients, scaling.get("clients")),
        (hosts, scaling.get("hosts")),
        (codecs, results.get("codecs")),
    ):
        if found:
            lines += ["", *section(found)]
    if missing := results.get("missing"):
        lines += ["", "## Not measured", "", *(f"- {sentence}" for sentence in missing)]
    return "\n".join(lines) + "\n"
