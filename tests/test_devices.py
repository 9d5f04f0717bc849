"""JAX as it was set or started by someone else: a run works, or one line says why not."""

import os
import pathlib
import re

import jax
import pytest

from fedjax8.devices import SETTINGS, check_jax, set_up_devices, start_devices
from fedjax8.distributed import check_equal_devices
from fedjax8.errors import UserError
from fedjax8.keys import GENERATOR, as_key, random_key

ROOT = pathlib.Path(__file__).parents[1]
OTHER = {
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_host": "disallow",
    "jax_threefry_partitionable": False,
}


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_with_which_a_run_cannot_work_is_named(name):
    before = getattr(jax.config, name)
    check_jax()
    jax.config.update(name, OTHER[name])
    try:
        with pytest.raises(UserError, match=f"^{name.upper()} is .*unset it") as raised:
            check_jax()
    finally:
        jax.config.update(name, before)
    assert name in SETTINGS and len(raised.value.mistakes) == 1


def test_once_jax_has_started_its_devices_stay_and_another_number_is_refused(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back afterwards
    there = len(jax.devices("cpu"))
    set_up_devices(None, 1)
    set_up_devices(there)
    assert len(jax.devices("cpu")) == there
    with pytest.raises(UserError, match=f"--cpu_devices={there + 1}, but JAX has started with {there} CPU devices"):
        set_up_devices(there + 1)


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'unknown':\n no such backend")

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "unknown")
    with pytest.raises(UserError, match="JAX_PLATFORMS is 'unknown', and JAX finds no device: Unable") as raised:
        start_devices()
    assert "\n" not in str(raised.value)


def test_processes_with_other_numbers_of_devices_are_told_who_has_how_many():
    check_equal_devices([0, 0, 1, 1])
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 1; give all of them the same --cpu_devices"):
        check_equal_devices([0, 1, 0])


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_keys_are_of_one_kind_whatever_jax_makes_by_default(generator):
    expected = jax.random.bits(jax.random.key(7, impl="threefry2x32"), (3,)).tolist()
    with jax.default_prng_impl(generator):
        assert jax.random.bits(random_key(7), (3,)).tolist() == expected
        assert jax.random.bits(as_key(jax.random.key_data(random_key(7))), (3,)).tolist() == expected
    assert GENERATOR == "threefry2x32"


def test_nobody_in_the_package_makes_keys_otherwise():
    """Examples in docstrings, which begin with `>>>`, apart."""
    makers = re.compile(r"random\.(key|PRNGKey|wrap_key_data)\(")
    found = {
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in (ROOT / "fedjax8").rglob("*.py")
        if file.name != "keys.py"
        for line in file.read_text().splitlines()
        if makers.search(line) and ">>>" not in line
    }
    assert found == set()
