"""Compiled programs kept from one run to the next, by JAX's persistent compilation cache, in a folder of bounded size.

The folder is `xla` in `$FEDJAX8_CACHE`, `$XDG_CACHE_HOME/fedjax8` or `~/.cache/fedjax8`, with one of its own for each
kind of processor: XLA compiles for the vector units of the one at hand. A program from the cache is the one that
compiling again would give, to the last bit.
"""

import contextlib
import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from fedjax8.cli import path_of

OFF = "off"
LARGEST_BYTES = 1 << 30
"""Of the folder as a run starts; those programs go first that were not used for the longest time."""
VARIABLE = "FEDJAX8_CACHE"


def use_compilation_cache(where: str | None = None) -> Path | None:
    """The folder in which JAX keeps compiled programs from now on, or None; call it before anything is compiled.

    Args:
      where: a folder; `off` for none; None for the folder named by the environment (see `default_folder`).

    A cache that JAX has been given (`JAX_COMPILATION_CACHE_DIR`), or has been told not to use
    (`JAX_ENABLE_COMPILATION_CACHE=0`), stays as it is, unless `where` says otherwise. A
    folder that cannot be written is reported on stderr, and the run compiles without.
    """
    import jax

    if where == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    theirs = getattr(jax.config, "jax_compilation_cache_dir", None)  # jax's own types do not know its options
    if where is None and (theirs or not getattr(jax.config, "jax_enable_compilation_cache", True)):
        return None
    root = path_of(where) if where else default_folder(os.environ)
    if root is None:
        return None
    folder = root / kind_of_processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        prune(root, LARGEST_BYTES)
    except OSError as error:
        print(
            f"fedjax8: compiled programs are not kept: {str(folder)!r} cannot be written ({error.strerror}); set "
            f"{VARIABLE} or --compilation_cache to a folder that can, or give --compilation_cache={OFF}",
            file=sys.stderr,
        )
        return None
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a run starts with a dozen small programs
    return folder


def default_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder of the cache by the environment; None where there is no home."""
    if own := environment.get(VARIABLE):
        return path_of(own) / "xla"
    if caches := environment.get("XDG_CACHE_HOME"):
        return Path(caches) / "fedjax8" / "xla"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "fedjax8" / "xla"
    return None


def kind_of_processor() -> str:
    """A name for processors that run each other's programs, such as `x86_64-1f0a93bc`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    named = dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    digest = hashlib.sha256("\n".join(named or lines[:1]).encode()).hexdigest()
    return f"{platform.machine() or 'cpu'}-{digest[:8]}"


def prune(root: Path, most_bytes: int) -> None:
    """Removes the files below `root` that were used longest ago, until the rest has at most `most_bytes`.

    Files that others remove at the same time are no mistake.
    """
    found = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                status = path.stat()
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
