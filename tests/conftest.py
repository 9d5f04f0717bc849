"""Set up before JAX starts: four fake CPU devices, a compilation cache that outlives the run, small shared fixtures."""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fedjax8-tests-")  # not the user's folders
# Tests compile much and compute little, so programs are compiled with LLVM's optimizations off, by XLA's older emitters
# of fusions where it still has them, and as one LLVM module each: a quarter of the time of a user's compilation. With
# FEDJAX8_COMPILE_FULLY=1 they are compiled as a user's are; `.ci/run` does that where the last bit depends on it, and
# processes that tests start always do.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1",
        *["--xla_backend_optimization_level=0"] * ("FEDJAX8_COMPILE_FULLY" not in os.environ),
        *["--xla_cpu_use_fusion_emitters=false"]
        * (importlib.metadata.version("jax").startswith("0.10.") and "FEDJAX8_COMPILE_FULLY" not in os.environ),
    ]
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as nohup and & leave it, to all processes that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import numpy as np
import pytest

# What tracing makes is many small objects, and what tests have compiled stays: Python would look for cycles among all
# of these hundreds of times: a twentieth of the time of three of the files.
gc.set_threshold(50_000, 20, 100)

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
jax.config.update("jax_num_cpu_devices", 4)
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The directory of real data sets; tests that need it are skipped where there is none."""
    folder = os.environ.get("FEDJAX8_DATA")
    if not folder:
        pytest.skip("real data sets are needed: set FEDJAX8_DATA to their directory")
    return folder


@pytest.fixture(scope="module")
def compiled_quickly():
    """Programs are compiled with little optimization while the tests of a module run, in two thirds of the time.

    For tests whose numbers are exact however a sum is ordered or fused, such as sums of small integers; what is rounded
    is tested as users compile it. What was compiled in either way is not used by tests of the other.
    """
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed NumPy generator."""
    return np.random.default_rng(20240702)


def _module(name: str):
    """The module tests/`name`.py."""
    import importlib.util

    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"fedjax8_test_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toys():
    """The module tests/toys.py."""
    return _module("toys")


@pytest.fixture(scope="session")
def write_run():
    """Writes the folder of a run from its accuracies: see tests/run_folders.py."""
    return _module("run_folders").write_run


@pytest.fixture(scope="session")
def write_folder():
    """Writes the folder of a run from its config and lines: see tests/run_folders.py."""
    return _module("run_folders").write_folder


@pytest.fixture(scope="session")
def run_module():
    """The module tests/small_runs.py."""
    return _module("small_runs")


@pytest.fixture(scope="session")
def run_folder(run_module, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished run of four rounds on digits; not to be changed: see tests/small_runs.py."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    run_module.run(run_module.config(), folder)
    return folder
