"""The search goes where it gets faster and no further; what it found is remembered by what it depends on."""

import json

import pytest

from fedjax8 import tune
from fedjax8.config import base_config, component
from fedjax8.errors import UserError
from fedjax8.tune import ExecutorSetting, key_of, search, tuned


def record(table):
    """(a function that looks up seconds by (chunk, devices), the settings it was asked for)."""
    asked = []

    def seconds(setting):
        asked.append(tuple(setting))
        return table[tuple(setting)]

    return seconds, asked


def test_chunks_grow_while_that_helps_and_devices_are_halved_after():
    seconds, asked = record({(1, 4): 1.0, (4, 4): 0.5, (16, 4): 0.6, (4, 2): 0.4, (4, 1): 0.9})
    assert search(seconds, ExecutorSetting(1, 4), most=64, fewer_devices=True) == (4, 2)
    assert asked == [(1, 4), (4, 4), (16, 4), (4, 2), (4, 1)]


def test_what_is_hardly_faster_is_not_taken():
    seconds, _ = record({(1, 2): 1.0, (4, 2): 0.97, (1, 1): 0.96})
    assert search(seconds, ExecutorSetting(1, 2), most=64, fewer_devices=True) == (1, 2)


def test_a_chunk_is_no_larger_than_a_devices_cohort_and_no_memory_ends_the_search():
    seconds, _ = record({(32, 1): 1.0, (50, 1): 0.5})
    assert search(seconds, ExecutorSetting(32, 1), most=50, fewer_devices=False) == (50, 1)
    seconds, _ = record({(32, 1): 1.0, (128, 1): float("inf")})
    assert search(seconds, ExecutorSetting(32, 1), most=1000, fewer_devices=False) == (32, 1)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Settings that were measured; the real measurement is replaced, the memory lies in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def measure(config, data_dir, setting, say):
        asked.append(setting)
        return 1.0 / setting.chunk

    monkeypatch.setattr(tune, "_measure", measure)
    return asked


def test_a_setting_is_measured_once_and_again_for_what_it_depends_on(measured, tmp_path):
    config, said = base_config(), []
    first = tuned(config, say=said.append)
    count = len(measured)
    assert first.name == "auto" and first.chunk == 3  # ten clients over four devices
    config.seed, config.rounds = 7, 3
    assert tuned(config, say=said.append) == first and len(measured) == count
    config.client.batch_size = 20
    tuned(config, say=said.append)
    assert len(measured) > count
    assert len(json.loads((tmp_path / "fedjax8" / "tuned.json").read_text())) == 2
    assert "chunk 3" in said[0]


def test_the_key_forgets_nothing_that_matters():
    keys = {key_of(base_config())}
    for field, value in (
        ("model", component("logistic")),
        ("uplink", component("none")),
        ("cohort_size", 11),
        ("adapter", component("none")),
        ("format_rules", ("Dense_0=float32",)),
    ):
        config = base_config()
        config[field] = value
        keys.add(key_of(config))
    assert len(keys) == 6


def test_an_executor_that_was_chosen_is_left_alone(measured):
    config = base_config()
    config.executor = component("loop")
    with pytest.raises(UserError, match="loop"):
        tuned(config)


def test_a_real_measurement_gives_seconds_and_says_them():
    config = base_config()
    config.cohort_size, config.num_clients, config.model.hidden, config.client.epochs = 2, 4, (4,), 1
    config.adapter = config.uplink = config.downlink = component("none")
    said = []
    assert 0 < tune._measure(config, None, ExecutorSetting(1, 2), said.append) < 60
    assert said[0].startswith("chunk 1 on 2 devices: ")
