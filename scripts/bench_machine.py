"""Facts about the machine for the benchmarks, peak memory, and a process of its own for a measurement.

No file of the benchmarks but the command lines defines flags, so that any of them can import any other.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor, as far as the platform tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions and the load before anything was measured; does not start JAX."""
    from fedjax8.launch import versions

    return {
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def resident_peak_bytes() -> int:
    """The most main memory that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory_bytes() -> int:
    """Peak of the accelerator where it is reported, else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0)) or resident_peak_bytes()


def in_own_process(script: str, arguments: Sequence[str]) -> Any:
    """The last line that `script` prints, as JSON; exits with a message if the script fails."""
    done = subprocess.run([sys.executable, os.path.abspath(script), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"{Path(script).name} {' '.join(arguments)} failed; its message is above")
    try:
        return json.loads(done.stdout)
    except ValueError:
        return json.loads(done.stdout.strip().splitlines()[-1])
