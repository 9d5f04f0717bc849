"""JAX's devices and settings as a run needs them, before and when JAX starts."""

import os

from fedjax8.errors import Mistakes, UserError


def set_up_devices(cpu_devices: int | None, cohort_size: int | None = None) -> None:
    """One CPU device per core, each computing on its own, if JAX has not started yet. No effect on accelerators.

    By default no more devices than clients a round: each holds a copy of the data, and one without a client would idle.
    Devices meet when all have done their clients. XLA aborts the process where one waits 40 seconds for another, which
    clients of unequal size, or a machine with other work, need at times; here it may be an hour. Loops take the widest
    vectors that the processor has, where XLA stops at 256 bits: rounding to the grid takes half the time with 512.

    Where JAX has started (in a notebook, or in a second run of a process) its devices stay as they are; raises
    UserError if `cpu_devices` asks for another number.
    """
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = cpu_devices or min(cores, cohort_size or cores)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        there = len(jax.devices("cpu"))
        if cpu_devices and cpu_devices != there:
            raise UserError(
                f"--cpu_devices={cpu_devices}, but JAX has started with {there} CPU device{'s' * (there > 1)} in this "
                "process and cannot change that; leave the flag out, or start another process"
            ) from error
        return
    flags = ["--xla_cpu_prefer_vector_width=512"]
    if count > 1:
        flags += [f"--xla_cpu_collective_call_{what}_timeout_seconds=3600" for what in ("warn_stuck", "terminate")]
        flags += ["--xla_cpu_multi_thread_eigen=false"]
    own = os.environ.get("XLA_FLAGS", "")  # the user's own win
    os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in flags if flag not in own.split()), own]).strip()


SETTINGS = {
    "jax_disable_jit": (False, "rounds are compiled"),
    "jax_numpy_dtype_promotion": ("standard", "steps mix types of numbers"),
    "jax_numpy_rank_promotion": ("allow", "steps mix numbers of dimensions"),
    "jax_transfer_guard": (None, "a run moves rows and metrics between host and devices"),
    "jax_transfer_guard_host_to_device": (None, "a run moves rows to the devices"),
    "jax_transfer_guard_device_to_host": (None, "a run moves metrics to the host"),
    "jax_threefry_partitionable": (True, "the same seed would be another run"),
}
"""Settings of JAX that a run needs as they are by default, and why. Keys do not depend on any: see `keys.py`."""


def check_jax() -> None:
    """Raises UserError for settings of JAX with which a run cannot work, or would be another run. Starts no device."""
    import jax

    with Mistakes() as mistakes:
        for name, (needed, why) in SETTINGS.items():
            found = getattr(jax.config, name, needed)
            if "guard" in name and (
                found in ("allow", "log") or any("JAX_TRANSFER" in text for text in mistakes.found)
            ):
                continue  # JAX_TRANSFER_GUARD sets the others too
            if found != needed:
                mistakes.note(
                    UserError(f"{name.upper()} is {found}, but {why}: unset it, or set it to {needed or 'allow'}")
                )


def start_devices() -> None:
    """Starts JAX's devices; UserError if there are none of the kind asked for."""
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS") or getattr(jax.config, "jax_platforms", None)
        what = f"JAX_PLATFORMS is {asked!r}, and " if asked else ""
        raise UserError(f"{what}JAX finds no device: {' '.join(str(error).split())[:300]}") from error
