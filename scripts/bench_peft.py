#!/usr/bin/env python3
"""Cost of fine-tuning little of a large model: parameters trained and frozen, bytes a message, peak memory, seconds.

    python scripts/bench_peft.py --json=peft.json

A vision transformer (ViT-B/16 on 224x224 pixels by default) with LoRA on queries and values and a head of 100 classes;
synthetic images, one local step a client, FedAvg. Each setting of clients a round and clients at once (`chunk`) runs in
a process of its own and on one device. If frozen parameters were kept for each client, a setting with more clients at
once would hold the backbone that many times; in one with `chunk` 1, no more clients a round may cost memory.

The first round compiles; the second is the one that is timed. The peak is that of the whole process.
"""

import json
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from bench_machine import in_own_process, machine, peak_memory_bytes

_SIZE = flags.DEFINE_enum("size", "base", ("tiny", "small", "base"), "Of the vision transformer.")
_RANK = flags.DEFINE_integer("rank", 8, "Of the low-rank changes.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 2, "Images a local step.", lower_bound=1)
_SETTINGS = flags.DEFINE_list("settings", ["2:1", "8:1", "2:2", "8:8"], "CLIENTS:CHUNK, clients a round and at once.")
_JSON = flags.DEFINE_string("json", None, "Write the results there.")
_WORKER = flags.DEFINE_string("worker", None, "Internal: the setting to measure in this process.")

CLASSES, SIDE = 100, 224


def measure(size: str, rank: int, batch: int, clients: int, chunk: int) -> dict[str, Any]:
    """One setting, in this process."""
    import jax
    import numpy as np
    import optax

    from fedjax8 import trees
    from fedjax8.adapters.inputs import inputs
    from fedjax8.adapters.lora import lora
    from fedjax8.algorithms.fedavg import fedavg
    from fedjax8.codecs.none import none
    from fedjax8.data.batches import batch_plan
    from fedjax8.data.federated import FederatedData
    from fedjax8.engine.simulation import simulate
    from fedjax8.executors.chunked import chunked
    from fedjax8.local import local_training
    from fedjax8.models.vit import vit

    rng, rows = np.random.default_rng(0), batch * clients
    x = rng.integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)
    columns = {"x": x, "y": rng.integers(0, CLASSES, rows).astype(np.int32)}
    data = FederatedData.from_owners(columns, np.repeat(np.arange(clients), batch), clients)
    model = inputs(lora(vit(size, num_classes=CLASSES), rank, targets=("*/query", "*/value")), 0.5, 0.5)
    plan = batch_plan(batch, steps=1)
    sim = simulate(
        fedavg(local_training(model, optax.sgd(0.01), plan)),
        data,
        cohort_size=clients,
        uplink=none(),
        downlink=none(),
        executor=chunked(chunk),
    )
    state = sim.init()
    variables = sim.variables(state)
    at_start = peak_memory_bytes()
    begun = time.perf_counter()
    state, _ = sim.run_round(state)
    compiled = time.perf_counter()
    state, line = sim.run_round(state)
    jax.block_until_ready(state.server)
    return {
        "clients": clients,
        "chunk": chunk,
        "trained": trees.num_bytes(variables.params) // 4,
        "frozen": trees.num_bytes(variables.frozen) // 4,
        "message_bytes": line["uplink_bytes"] // (2 * clients),
        "backbone_bytes": trees.num_bytes(variables.frozen),
        "start_peak_bytes": at_start,
        "peak_bytes": peak_memory_bytes(),
        "first_round_seconds": compiled - begun,
        "round_seconds": time.perf_counter() - compiled,
    }


def main(argv: list[str]) -> None:
    """Measures all settings and prints a line for each."""
    if _WORKER.value:
        clients, chunk = map(int, _WORKER.value.split(":"))
        print(json.dumps(measure(_SIZE.value, _RANK.value, _BATCH.value, clients, chunk)))
        return
    settings = [f"--size={_SIZE.value}", f"--rank={_RANK.value}", f"--batch={_BATCH.value}"]
    found = []
    for setting in _SETTINGS.value:
        found.append(in_own_process(__file__, [*settings, f"--worker={setting}"]))
        line = found[-1]
        print(
            f"{line['clients']} clients, {line['chunk']} at once: {line['trained']:,} numbers trained, "
            f"{line['frozen']:,} frozen; {line['message_bytes']:,} bytes a message; peak "
            f"{line['peak_bytes'] / 2**30:.2f} GiB; {line['round_seconds']:.2f} s a round",
            flush=True,
        )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps({"machine": machine(), "settings": found}, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
