#!/usr/bin/env python3
"""Runs every benchmark that can run here and writes one page about it, under a quarter of an hour on two cores.

    python scripts/bench_report.py --out=docs/benchmarks.md

Run it on a machine that does nothing else. `--quick` takes one or two rounds of each, to see that everything works.
`--json` keeps the numbers; `--from_json` writes the page anew from them. `--codecs_json` replaces the section on codecs
alone, by what `bench.py --codecs --json` wrote.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from bench_machine import machine
from bench_markdown import codecs, page, with_section

_OUT = flags.DEFINE_string("out", "docs/benchmarks.md", "The page to write.")
_JSON = flags.DEFINE_string("json", None, "Write the numbers there too.")
_FROM_JSON = flags.DEFINE_string("from_json", None, "Read the numbers from there instead of measuring.")
_CODECS_JSON = flags.DEFINE_string("codecs_json", None, "Put these results of bench.py --codecs into the page.")
_QUICK = flags.DEFINE_bool("quick", False, "Few rounds, for a trial.")

FOLDER = Path(__file__).resolve().parent
FULL = (
    ("workloads", "bench.py --workloads=W1,W2,W6 --precision=float32,fp8 --rounds=7"),
    ("workloads", "bench.py --workloads=W3,W4 --rounds=3"),
    ("workloads", "bench.py --workloads=W5 --rounds=7"),
    ("torch", "bench_torch.py --workloads=W1,W2,W6 --rounds=7"),
    ("scaling", "bench_scaling.py --rounds=21"),
    ("codecs", "bench.py --codecs=all --rounds=3"),
)
TRIAL = (
    ("workloads", "bench.py --workloads=W1 --rounds=1"),
    ("workloads", "bench.py --workloads=W2 --precision=float32,fp8 --rounds=2"),
    ("workloads", "bench.py --workloads=W5 --rounds=2"),
    ("torch", "bench_torch.py --workloads=W2 --rounds=2"),
    ("scaling", "bench_scaling.py --rounds=3"),
    ("codecs", "bench.py --codecs=none,fp8 --rounds=1"),
)


def run(command: str) -> Any:
    """The results of one of our scripts, or None if it failed; its output is shown."""
    script, *arguments = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        done = subprocess.run([sys.executable, str(FOLDER / script), *arguments, f"--json={file}"])
        return json.loads(file.read_text()) if done.returncode == 0 and file.exists() else None


def measure(commands: tuple[tuple[str, str], ...], made_by: str) -> dict[str, Any]:
    """Results for `bench_markdown.page`."""
    begun = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "commands": [made_by], "missing": [], "workloads": []}
    for section, command in commands:
        known = results["workloads"]
        if section == "torch" and known and known[0]["platform"] != "cpu":
            results["missing"].append("PyTorch: its script compares processors, not accelerators.")
            continue
        print(f"bench_report: {command}", file=sys.stderr, flush=True)
        found = run(command)
        results["commands"].append(f"python scripts/{command}")
        if found is None:
            results["missing"].append(f"`python scripts/{command}` failed where this page was made.")
        elif section == "workloads":
            known += found
        else:
            results[section] = found
    results["workloads"].sort(key=lambda row: row["workload"])
    if "hosts" not in results.get("scaling", {}):
        results["missing"].append("Several processes: `scripts/bench_hosts.py` is not there or failed.")
    return results | {"seconds": time.perf_counter() - begun}


def main(argv: list[str]) -> None:
    """Measures, then writes the page."""
    if argv[1:]:
        sys.exit(f"bench_report: unexpected {argv[1]!r}")
    out = Path(_OUT.value)
    if not out.parent.is_dir():
        sys.exit(f"bench_report: no folder {str(out.parent)!r} for --out")
    if _CODECS_JSON.value:
        section = codecs(json.loads(Path(_CODECS_JSON.value).read_text()))
        out.write_text(with_section(out.read_text(), section))
        return
    if _FROM_JSON.value:
        results = json.loads(Path(_FROM_JSON.value).read_text())
    else:
        made_by = f"python scripts/bench_report.py{' --quick' if _QUICK.value else ''} --out=docs/{out.name}"
        results = measure(TRIAL if _QUICK.value else FULL, made_by)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))
    out.write_text(page(results))


if __name__ == "__main__":
    app.run(main)
