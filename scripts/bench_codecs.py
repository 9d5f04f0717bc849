"""Cost of codecs: values a second of encoding and decoding, and their share of W1's rounds. Run by `bench.py`.

The tree has the shapes of W1's model and values like those of an update, normal with a scale for each leaf. Encoding
and decoding run on one device, as they do for one client. The machine's copy bandwidth is that of a plain copy of as
many float32 values on that device, read and written; a codec's share of it counts the tree and the message, each once.

W1's rounds have the codec both ways, without `error_feedback`, whose memory of 1000 clients would fill the machine.
They take turns with rounds of `none`, and the cost is the median of each pair's own ratio. Codecs that take longer than
`TOO_LONG` for one message have no rounds: fifty clients' messages would take minutes each.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "fp8": {"clip": "max"},
    "block_fp8": {},
    "narrow": {},
    "uniform": {},
    "adaptive": {},
    "terngrad": {},
    "sign": {},
    "rotated": {},
    "drive": {},
    "eden": {},
    "topk": {},
    "randomk": {},
    "powersgd": {},
    "count_sketch": {"columns": 100_000},
    "codebook": {},
    "evofed": {},
}
"""Settings that differ from a factory's own. FP8 by the largest value, since updates have no learned clips."""
SECONDS = 1.0
"""Timing of one direction ends after about this long."""
FEWEST, MOST = 3, 25
"""Repetitions."""
TOO_LONG = 1.0
"""Seconds to encode and decode a message."""


def update_like(params: Any) -> Any:
    """Normal values with the deviation that a step of size 0.01 gives a layer: 0.01 / sqrt(inputs)."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    deviation = lambda x: 0.01 / max(1.0, np.prod(x.shape[:-1])) ** 0.5
    return jax.tree.map(lambda x: jax.device_put(np.float32(deviation(x) * rng.standard_normal(x.shape))), params)


def clock(f: Callable, *arguments: Any) -> dict[str, float]:
    """Smallest and median seconds of `f(*arguments)`, after a first call that compiles."""
    import jax

    jax.block_until_ready(f(*arguments))
    seconds: list[float] = []
    while len(seconds) < FEWEST or (len(seconds) < MOST and sum(seconds) < SECONDS):
        begun = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seconds.append(time.perf_counter() - begun)
    return {"min": min(seconds), "median": statistics.median(seconds)}


def codec_of(name: str) -> Any:
    """The codec as it is measured."""
    from fedjax8.build import SEAMS

    return SEAMS["uplink"].finder(name)(**CODECS[name])


def throughput(name: str, tree: Any, copy_bandwidth: float) -> dict[str, Any]:
    """One codec's row: bytes a value, error; of both ways seconds, values a second, share of a copy's rate."""
    import jax

    from fedjax8 import trees
    from fedjax8.codecs import wire

    codec = codec_of(name)
    state, key = codec.init(tree), jax.random.key(0)
    encode = jax.jit(lambda key, state, tree: codec.encode(key, state, tree)[0])
    decode = jax.jit(codec.decode)
    message = encode(key, state, tree)
    values, size = sum(x.size for x in jax.tree.leaves(tree)), wire.size(message)
    encoding = {"encode": clock(encode, key, state, tree), "decode": clock(decode, state, message)}
    error = trees.subtract(decode(state, message), tree)
    norm = lambda t: (
        sum(float((x.astype("float64") ** 2).sum()) for x in map(jax.device_get, jax.tree.leaves(t))) ** 0.5
    )
    row = {"codec": name, "settings": CODECS[name], "bytes_per_value": size / values}
    row["relative_error"] = norm(error) / norm(tree)
    for direction, seconds in encoding.items():
        row[f"{direction}_seconds"] = seconds
        row[f"{direction}_values_per_second"] = values / seconds["median"]
        row[f"{direction}_copy_share"] = (4 * values + size) / seconds["median"] / copy_bandwidth
    return row


def both_ways(row: dict[str, Any]) -> float:
    """Median seconds to encode and decode a message."""
    return row["encode_seconds"]["median"] + row["decode_seconds"]["median"]


def round_costs(names: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Of each codec: median seconds of a W1 round with it and with `none`, and the median ratio less 1."""
    from bench_workloads import WORKLOADS, experiment_config, prepare

    from fedjax8.config import component

    def prepared(name: str):
        config = experiment_config(WORKLOADS["W1"])
        config.algorithm = component("fedavg", payload="update")
        config.uplink, config.downlink = component(name, **CODECS[name]), component(name, **CODECS[name])
        run = prepare(config)
        for _ in range(2):
            run.one_call()
        return run.one_call

    plain, found = prepared("none"), {}
    for name in names:
        if name == "none":
            continue
        one_call = prepared(name)
        pairs = [(plain().seconds, one_call().seconds) for _ in range(rounds)]
        found[name] = {
            "none_seconds": statistics.median(a for a, _ in pairs),
            "round_seconds": statistics.median(b for _, b in pairs),
            "round_cost": statistics.median(b / a for a, b in pairs) - 1,
        }
    return found


def run(names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measures the codecs called `names`, in this process; no whole rounds where `rounds` is 0."""
    from bench_machine import machine

    from fedjax8.train import set_up_devices

    about = machine()
    set_up_devices(None)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from bench_workloads import WORKLOADS

    from fedjax8.models.simple_cnn import simple_cnn

    batch = {"x": jnp.zeros((1, 32, 32, 3)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    params = jax.eval_shape(simple_cnn().init, jax.random.key(0), batch).params
    tree = update_like(params)
    vector = jnp.asarray(np.random.default_rng(1).standard_normal(WORKLOADS["W1"].parameters), jnp.float32)
    copy = clock(jax.jit(lambda x: -x), vector)["median"]  # negated, since XLA leaves out a plain copy
    bandwidth = 8 * vector.size / copy
    rows = [throughput(name, tree, bandwidth) for name in names]
    costs = round_costs([row["codec"] for row in rows if both_ways(row) < TOO_LONG], rounds) if rounds else {}
    rows = [row | costs.get(row["codec"], {}) for row in rows]
    client = {}
    if costs:
        cohort, devices = WORKLOADS["W1"].cohort, jax.local_device_count()
        client["client_seconds"] = statistics.median(c["none_seconds"] for c in costs.values()) * devices / cohort
    settings = {"values": int(vector.size), "copy_bytes_per_second": bandwidth, "rounds": rounds, "codecs": list(names)}
    return {"machine": about, **settings, **client, "rows": rows}


def _milliseconds(seconds: dict[str, float]) -> str:
    return f"{1e3 * seconds['min']:.3g} / {1e3 * seconds['median']:.3g}"


COLUMNS = {
    "codec": lambda r: r["codec"],
    "bytes/value": lambda r: f"{r['bytes_per_value']:.3g}",
    "relative error": lambda r: f"{r['relative_error']:.2g}",
    "encode ms": lambda r: _milliseconds(r["encode_seconds"]),
    "decode ms": lambda r: _milliseconds(r["decode_seconds"]),
    "encode Mvalues/s": lambda r: f"{r['encode_values_per_second'] / 1e6:.3g}",
    "decode Mvalues/s": lambda r: f"{r['decode_values_per_second'] / 1e6:.3g}",
    "of copy bandwidth": lambda r: f"{r['encode_copy_share']:.0%} / {r['decode_copy_share']:.0%}",
    "cost of W1's round": lambda r: f"{r['round_cost']:+.1%}" if "round_cost" in r else "",
}


def lines(results: dict[str, Any]) -> list[str]:
    """Sentences beside the table."""
    said = [
        f"{results['values']:,} values; a copy of them runs at {results['copy_bytes_per_second'] / 1e9:.3g} GB/s, read "
        "and written, on one device. Milliseconds are the smallest and the median."
    ]
    fp8 = next((row for row in results["rows"] if row["codec"] == "fp8"), None)
    if fp8 and "client_seconds" in results:
        said.append(
            f"Encoding and decoding in FP8 takes {1e3 * both_ways(fp8):.3g} ms, "
            f"{both_ways(fp8) / results['client_seconds']:.1%} of the "
            f"{1e3 * results['client_seconds']:.3g} ms that a client of W1 trains on its device."
        )
    return said


def show(results: dict[str, Any]) -> None:
    """Prints the results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in results["rows"]:
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    console = Console(width=170)
    console.print(table)
    for line in lines(results):
        console.print(line)


def markdown(results: dict[str, Any], table: Callable) -> list[str]:
    """The section of docs/benchmarks.md; `table` is that of `bench_markdown`."""
    about = results["machine"]
    names = ",".join(results["codecs"])
    chosen = "all" if results["codecs"] == list(CODECS) else names
    return [
        "## Codecs",
        "",
        f"{about['date']}, {about['processor']}, {about['cores']} cores, load before: {about['load']:.1f}. "
        f"`python scripts/bench.py --codecs={chosen} --rounds={results['rounds']}`",
        "",
        " ".join(lines(results)) + " `scripts/bench_codecs.py` says what is measured.",
        "",
        *table(COLUMNS, results["rows"]),
    ]
