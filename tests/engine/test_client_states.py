"""Stores of client states: like a dict of arrays, sparse on disk, and back at a checkpoint's round after any crash."""

import gc
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8.engine.states.client_states import DeviceStates, DiskStates, NoStates, _gather, _scatter, client_states
from fedjax8.errors import UserError

K = 23


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """These tests cut the power themselves: nothing has to reach a real disk."""

    def fsync(handle):
        assert os.fstat(handle)

    monkeypatch.setattr(os, "fsync", fsync)


INITIAL = {
    "variate": np.float32([[1, 2, 3], [4, 5, 6]]),
    "codec": {"half": np.array([0.5, -2], ml_dtypes.bfloat16), "eighth": np.array([1.5], ml_dtypes.float8_e4m3fn)},
    "bytes": np.arange(5, dtype=np.uint8),
    "count": np.int32(7),
    "nothing": np.zeros((0, 3), np.float32),
}


def random_rows(rng, n):
    """n states in the structure of INITIAL, all bit patterns allowed where they are not NaN."""

    def of_leaf(x):
        if x.dtype.kind in "iu":
            return rng.integers(0, 100, (n, *x.shape)).astype(x.dtype)
        return rng.standard_normal((n, *x.shape)).astype(x.dtype)

    return jax.tree.map(of_leaf, INITIAL)


class Oracle(dict):
    """Client to state; a client that is not in it has the initial state."""

    def write(self, ids, rows):
        for place, client in enumerate(ids):
            if 0 <= client < K:
                self[int(client)] = jax.tree.map(lambda x, at=place: np.asarray(x)[at], rows)

    def copy(self):
        return Oracle(self)

    def read(self, ids):
        return jax.tree.map(lambda *x: np.stack(x), *[self.get(int(client), INITIAL) for client in ids])


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def everyone(store):
    """All states, and those of ids that are nobody's."""
    return store.read(np.arange(-2, K + 2))


def some_ids(rng):
    """Different clients in any order, with padding anywhere."""
    ids = rng.permutation(K)[: rng.integers(0, 9)]
    return rng.permutation(np.concatenate([ids, np.full(rng.integers(0, 3), K), np.full(rng.integers(0, 2), -1)]))


def on_device():
    return client_states(INITIAL, K)


def on_disk(folder=None):
    return client_states(INITIAL, K, folder=folder, limit_bytes=0)


# Any store


@pytest.mark.parametrize("make", [on_device, on_disk], ids=["device", "disk"])
def test_a_store_is_a_dict_of_arrays_that_begins_with_the_initial_state(make, rng):
    store, oracle = make(), Oracle()
    assert_equal(everyone(store), oracle.read(range(-2, K + 2)))
    for _ in range(30):
        ids = some_ids(rng)
        rows = random_rows(rng, len(ids))
        store = store.write(ids, rows)
        oracle.write(ids, rows)
        asked = rng.integers(-1, K + 1, 6)  # readers may repeat themselves
        assert_equal(store.read(asked), oracle.read(asked))
    assert_equal(everyone(store), oracle.read(range(-2, K + 2)))


@pytest.mark.parametrize("make", [on_device, on_disk], ids=["device", "disk"])
def test_a_write_for_padding_alone_changes_nothing(make, rng):
    store = make().write(np.array([K, K, -1, K + 5]), random_rows(rng, 4))
    assert_equal(everyone(store), Oracle().read(range(-2, K + 2)))


def test_the_store_is_chosen_by_the_size_of_all_states():
    one = {"x": np.zeros(10, np.float32)}
    assert isinstance(client_states(one, 100, limit_bytes=4000), DeviceStates)
    assert isinstance(client_states(one, 101, limit_bytes=4000), DiskStates)
    assert isinstance(client_states({"algorithm": (), "uplink": {}}, 10**7), NoStates)


def test_clients_that_remember_nothing_need_no_store(tmp_path):
    nothing = {"algorithm": (), "uplink": {}}
    store = client_states(nothing, 10**7, folder=tmp_path / "states", limit_bytes=0)
    assert store.read(np.arange(3)) == nothing and store.write(np.arange(3), nothing) is store
    assert store.arrays() == nothing and store.with_arrays(nothing) is store
    store.mark(0)
    store.rewind(0)
    assert not (tmp_path / "states").exists()


# On the device


def test_writing_on_the_device_uses_up_the_store_before_it(rng):
    store = on_device()
    after = store.write(np.array([1]), random_rows(rng, 1), donate=True)
    with pytest.raises(RuntimeError, match="deleted"):
        store.read(np.array([1]))
    assert_equal(after.read(np.array([0])), Oracle().read([0]))


def test_a_device_store_goes_through_a_checkpoint_as_numpy_arrays(rng):
    ids, rows = np.array([3, 8]), random_rows(rng, 2)
    store = on_device().write(ids, rows)
    saved = jax.device_get(store.arrays())
    assert saved["variate"].shape == (K, 2, 3)
    # Bits of the small floats: XLA on CPU copies a whole array of them to write one row.
    assert saved["codec"]["half"].dtype == np.uint16 and saved["codec"]["eighth"].dtype == np.uint8
    restored = on_device().with_arrays(saved)
    restored.mark(4)
    restored.rewind(4)
    restored = restored.write(np.array([5]), random_rows(rng, 1))
    assert_equal(restored.read(ids), rows)
    assert saved["count"][5] == 7  # its memory was not written to


def test_a_device_store_takes_states_that_are_spread_over_devices(rng):
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("devices",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    n = len(jax.local_devices())
    rows = random_rows(rng, n)
    store = on_device()
    for _ in range(2):
        store = store.write(np.arange(n), jax.device_put(rows, split))
    assert_equal(store.read(np.arange(n)), rows)
    assert len(store.arrays()["variate"].devices()) == 1


def test_rounds_of_one_size_compile_once(rng):
    store, sizes = on_device(), []
    for start in range(3):
        store.read(np.arange(4) + start)
        store = store.write(np.arange(4) + start, random_rows(rng, 4))
        sizes.append((_gather._cache_size(), _scatter._cache_size()))
    assert sizes[0] == sizes[1] == sizes[2]


# On disk


def disk_bytes(folder):
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_ten_million_clients_take_the_room_of_those_that_took_part(tmp_path):
    one = {"x": np.ones(1000, np.float32)}
    store = client_states(one, 10_000_000, folder=tmp_path / "states")
    assert isinstance(store, DiskStates)
    ids = np.linspace(0, 9_999_999, 100).astype(int)
    store.write(ids, {"x": np.tile(np.arange(1000, dtype=np.float32), (100, 1))})
    assert (tmp_path / "states" / "rows.bin").stat().st_size > 40e9
    # 100 rows of 4008 bytes lie on at most two blocks of 4 KiB each; the log holds numbers alone.
    assert disk_bytes(tmp_path / "states") < 2 * 100 * 4096 + 64 * 1024
    found = store.read(np.array([ids[50], ids[50] + 1]))["x"]
    np.testing.assert_array_equal(found, [np.arange(1000), np.ones(1000)])


def test_a_temporary_store_goes_with_its_object(rng):
    store = on_disk()
    folder = store._folder
    store.write(np.array([1]), random_rows(rng, 1))
    store.mark(3)
    with pytest.raises(UserError, match="temporary directory cannot be taken back"):
        store.rewind(3)
    assert folder.is_dir()
    del store
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("make", [on_device, on_disk], ids=["device", "disk"])
def test_states_of_another_shape_or_dtype_are_refused(make, rng):
    rows = random_rows(rng, 1)
    for wrong in (np.zeros((1, 3, 2), np.float32), np.zeros((1, 2, 3), np.float64)):
        with pytest.raises(ValueError, match=r"must be float32 \[n, \*\(2, 3\)\]"):
            make().write(np.array([0]), rows | {"variate": wrong})


def test_a_store_is_found_again_in_its_folder(tmp_path, rng):
    ids, rows = np.array([3, K, 8]), random_rows(rng, 3)
    on_disk(tmp_path / "a" / "states").write(ids, rows)
    again, oracle = on_disk(tmp_path / "a" / "states"), Oracle()
    oracle.write(ids, rows)
    assert_equal(everyone(again), oracle.read(range(-2, K + 2)))
    assert again.arrays() == () and again.with_arrays(()) is again


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "states").mkdir()
    on_disk(tmp_path / "states").mark(0)
    assert not (tmp_path / "states.part").exists()


@pytest.mark.parametrize(
    ("initial", "num_clients", "says"),
    [
        (INITIAL, K + 1, f"num_clients: {K}, needed {K + 1}"),
        (INITIAL | {"count": np.float32(7)}, K, "leaves"),
        (INITIAL | {"bytes": np.zeros(6, np.uint8)}, K, "leaves"),
        (INITIAL | {"more": np.float32(0)}, K, "leaves"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, initial, num_clients, says):
    on_disk(tmp_path / "states")
    with pytest.raises(UserError, match=says):
        client_states(initial, num_clients, folder=tmp_path / "states", limit_bytes=0)


def test_a_folder_of_another_format_or_of_something_else_is_refused(tmp_path):
    on_disk(tmp_path / "states")
    header = tmp_path / "states" / "header.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 0}))
    with pytest.raises(UserError, match=r"another version of fedjax8 writes them .format: 0, needed 2"):
        on_disk(tmp_path / "states")
    header.write_text("[1]")
    with pytest.raises(UserError, match="does not hold client states"):
        on_disk(tmp_path / "states")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="does not hold client states"):
        on_disk(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_a_place_that_cannot_hold_states_is_named(tmp_path, rng, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another directory"):
        on_disk(tmp_path / "file")
    store = on_disk(tmp_path / "states")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"states: client states cannot be kept there \(No space left on device\)"):
        store.write(np.array([0]), random_rows(rng, 1))


# Marks and rewinds


def test_a_store_returns_to_any_of_its_marks(tmp_path, rng):
    store, oracle, at, kept = on_disk(tmp_path / "states"), Oracle(), {0: Oracle()}, [0]
    for _ in range(60):
        if rng.random() < 0.3:
            kept.append(kept[-1] + int(rng.integers(1, 4)))
            store.mark(kept[-1])
            at[kept[-1]] = oracle.copy()
            if rng.random() < 0.5:
                oldest = int(rng.choice(kept))
                kept = [r for r in kept if r >= oldest]
                store.release(oldest)
        if rng.random() < 0.2:
            back = int(rng.choice(kept))
            store.rewind(back)
            kept, oracle = [r for r in kept if r <= back], at[back].copy()
            assert_equal(everyone(store), oracle.read(range(-2, K + 2)))
        if rng.random() < 0.2:
            store = on_disk(tmp_path / "states")
        assert store.marks() == kept
        ids = some_ids(rng)
        rows = random_rows(rng, len(ids))
        store.write(ids, rows)
        oracle.write(ids, rows)
    assert_equal(everyone(store), oracle.read(range(-2, K + 2)))


def test_a_round_without_a_mark_is_named_with_what_to_do(tmp_path, rng):
    store = on_disk(tmp_path / "states")
    store.mark(10)
    with pytest.raises(
        UserError, match=r"round 5 .it was not marked., only to rounds 0, 10; put back a checkpoint of one"
    ):
        store.rewind(5)


def test_marks_are_made_in_order(tmp_path, rng):
    store = on_disk(tmp_path / "states")
    store.mark(10)
    store.mark(10)  # nothing happened since
    with pytest.raises(ValueError, match="round 9 cannot be marked after round 10"):
        store.mark(9)
    store.write(np.array([1]), random_rows(rng, 1))
    with pytest.raises(ValueError, match="round 10 cannot be marked after round 10"):
        store.mark(10)


def test_only_the_first_overwrite_after_a_mark_costs_a_log_entry(tmp_path, rng):
    store, log = on_disk(tmp_path / "states"), tmp_path / "states" / "undo-0"
    empty = log.stat().st_size
    store.write(np.arange(4), random_rows(rng, 4))
    size = log.stat().st_size
    assert size == empty + 20 + 4 * 8  # they had nothing before
    store.write(np.arange(4), random_rows(rng, 4))
    on_disk(tmp_path / "states").write(np.arange(4), random_rows(rng, 4))
    assert log.stat().st_size == size
    store.mark(1)
    empty = (tmp_path / "states" / "undo-1").stat().st_size
    store.write(np.arange(5), random_rows(rng, 5))
    row = sum(x.nbytes for x in jax.tree.leaves(INITIAL))
    assert (tmp_path / "states" / "undo-1").stat().st_size == empty + 20 + 5 * 8 + 4 * row


@pytest.fixture
def used(tmp_path, rng):
    """(folder, what its clients had at round 1, and have now): marks at rounds 0, 1 and 2, and writes after each."""
    store, oracle, at = on_disk(tmp_path / "states"), Oracle(), {}
    for number, ids in ((0, [0, 1, 2]), (1, [1, 5]), (2, [0, 5, 6])):
        at[number] = oracle.copy()
        store.mark(number)
        rows = random_rows(rng, len(ids))
        store.write(np.array(ids), rows)
        oracle.write(ids, rows)
    return tmp_path / "states", at[1], oracle


def test_what_a_process_that_died_left_behind_the_end_of_a_log_is_ignored(used, rng):
    folder, at_1, now = used
    for left in (b"\1", bytes(300), rng.bytes(500)):
        with (folder / "undo-2").open("ab") as log:
            log.write(left)
        store = on_disk(folder)
        assert_equal(everyone(store), now.read(range(-2, K + 2)))
        ids, rows = np.array([2, 9]), random_rows(rng, 2)
        store.write(ids, rows)  # writes over it
        now.write(ids, rows)
    store = on_disk(folder)
    store.rewind(1)
    assert_equal(everyone(store), at_1.read(range(-2, K + 2)))


def flip(path, at):
    whole = bytearray(path.read_bytes())
    whole[at] ^= 1 << (at % 8)
    path.write_bytes(bytes(whole))


def test_no_damage_to_a_file_of_a_store_gives_other_states_than_were_written(used):
    """Flipped bits all over logs, rows and the list of marks, a cut, zeros at the end."""
    folder, at_1, _ = used
    expected, refused = at_1.read(range(-2, K + 2)), 0
    names = [path.name for path in sorted(folder.iterdir()) if path.name != "header.json"]
    assert names == ["marks.json", "rows.bin", "undo-0", "undo-1", "undo-2"]
    for name in names:
        whole, size = (folder / name).read_bytes(), (folder / name).stat().st_size
        places = range(0, size, 11 if name == "rows.bin" else 2)
        damages = [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in places]
        damages += [whole[: size - n] for n in (1, 30, 60, size)] + [
            whole[: size - n] + bytes(n) for n in (1, 30, size)
        ]
        for damage in damages:
            if damage == whole:
                continue
            copies = {path: path.read_bytes() for path in folder.iterdir() if path.name != name}
            (folder / name).write_bytes(damage)
            try:
                store = DiskStates(INITIAL, K, folder)
                store.rewind(1)
                found = everyone(store)
            except UserError as error:
                assert str(folder) in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert_equal(found, expected)
            for path, content in {**copies, folder / name: whole}.items():
                path.write_bytes(content)
    assert refused > 100


@pytest.mark.parametrize(
    ("name", "reached"), [("undo-1", "round 1 .undo-1: it is missing., only to rounds 2"), ("undo-2", "undo-2: it is")]
)
def test_a_log_that_is_gone_is_refused_with_what_can_still_be_done(used, name, reached):
    """Also to a mark that has a log of its own: what was changed since is in the logs that came later."""
    folder, _, _ = used
    (folder / name).unlink()
    with pytest.raises(UserError, match=reached + ".*(put back a c|start over in another)"):
        on_disk(folder).rewind(1)
    with pytest.raises(UserError, match=name):
        on_disk(folder).rewind(0)


def test_all_logs_gone_is_an_error_that_says_what_to_do(used):
    for log in used[0].glob("undo-*"):
        log.unlink()
    with pytest.raises(UserError, match=r"undo-2: it is missing; .*put back a copy of the whole run's directory"):
        on_disk(used[0])


def test_a_flipped_bit_or_a_lost_block_of_rows_names_the_client(used):
    folder, _, now = used
    rows = folder / "rows.bin"
    width = rows.stat().st_size // K
    whole = rows.read_bytes()
    row_5 = whole[5 * width : 6 * width]
    for other in (bytes(width), bytes(8) + row_5[8:], row_5[:-1] + bytes([row_5[-1] ^ 64]), whole[:width]):
        rows.write_bytes(whole[: 5 * width] + other + whole[6 * width :])
        store = on_disk(folder)
        assert_equal(store.read(np.array([0, 6, 7])), now.read([0, 6, 7]))
        with pytest.raises(UserError, match=r"the state of client 5 in rows.bin is not what was written"):
            store.read(np.array([0, 5]))
        store.mark(3)
        with pytest.raises(UserError, match="the state of client 5"):
            store.write(np.array([5]), random_rows(np.random.default_rng(0), 1))  # nor is it kept for later as if good


class Full:
    """Lets the `fuse`-th call that writes fail once, or all from it on."""

    def __init__(self, monkeypatch, fuse, once):
        self.fuse, self.once = fuse, once
        for owner, name in ((os, "fsync"), (os, "pwrite"), (os, "replace")):
            monkeypatch.setattr(owner, name, self.limited(getattr(owner, name)))

    def limited(self, real):
        def call(*args, **kwargs):
            self.fuse -= 1
            if self.fuse == 0 or (self.fuse < 0 and not self.once):
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("once", [True, False])
def test_wherever_a_disk_is_full_the_store_goes_back_to_the_newest_checkpoint(tmp_path, rng, once):
    """Marks without a checkpoint, as many as there were failures, take no older mark with them."""
    fuse, failed = 0, True
    while failed:
        fuse, folder = fuse + 1, tmp_path / f"states{fuse}"
        store, oracle = on_disk(folder), Oracle()
        store.write(np.arange(4), rows := random_rows(rng, 4))
        oracle.write(np.arange(4), rows)
        store.mark(1)  # the one with a checkpoint
        store.release(1)
        with pytest.MonkeyPatch.context() as patch:
            full, failed = Full(patch, fuse, once), False
            for number in range(2, 8):
                try:
                    store.write(some_ids(rng)[:2], random_rows(rng, 2)) if number < 3 else None
                    store.write(np.array([number % 4, number]), random_rows(rng, 2))
                    store.mark(number)
                except UserError as error:
                    failed = True
                    assert "No space left on device" in str(error)
            failed |= full.fuse <= 0
        again = on_disk(folder)
        again.rewind(1)
        assert_equal(everyone(again), oracle.read(range(-2, K + 2)))
        assert {path.name for path in folder.iterdir()} == {"header.json", "marks.json", "rows.bin", "undo-1"}
        shutil.rmtree(folder)
    assert fuse > 30


class PowerCut(BaseException):
    """Nothing that was running goes on."""


class Disk:
    """Counts what reaches the disk, cuts the power at the `fuse`-th call, and forgets what was not synced by then.

    Of the rows written since the last sync any subset may have got through, of what was added to a log any beginning,
    of heads of logs the old or the new one.
    """

    def __init__(self, monkeypatch, folder):
        self.folder, self.synced, self.held, self.fuse = folder, {}, [], np.inf
        for owner, name in ((os, "fsync"), (os, "pwrite"), (os, "replace"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real):
        def call(*args, **kwargs):
            self.fuse -= 1
            if self.fuse == 0:
                raise PowerCut
            result = real(*args, **kwargs)
            if real.__name__ == "fsync" and os.path.isfile(f"/proc/self/fd/{args[0]}"):
                path = Path(f"/proc/self/fd/{args[0]}")
                self.synced[path.stat().st_ino] = path.read_bytes()
                self.held.append(os.dup(args[0]))  # or the number could become another file's
            return result

        return call

    def forget(self, rng):
        self.fuse = np.inf
        for file in self.folder.glob("*"):
            durable, now = self.synced.get(file.stat().st_ino, b""), file.read_bytes()
            if file.name == "rows.bin":
                rows = np.frombuffer(now, np.uint8).reshape(K, -1).copy()
                durable = durable or bytes(len(now))
                lost = rng.random(K) < 0.5
                rows[lost] = np.frombuffer(durable, np.uint8).reshape(K, -1)[lost]
                file.write_bytes(rows.tobytes())
            elif file.name.startswith("undo-"):
                kept = now[: rng.integers(min(len(durable), len(now)), len(now), endpoint=True)]
                head = (durable if rng.random() < 0.5 else now)[:20]
                file.write_bytes(head + kept[20:])
            else:
                file.write_bytes(durable)

    def close(self):
        while self.held:
            os.close(self.held.pop())


def test_a_rewind_may_be_interrupted_at_any_call_and_done_again(tmp_path, monkeypatch, rng):
    store, oracle = on_disk(tmp_path / "states"), Oracle()
    store.write(np.arange(4), rows := random_rows(rng, 4))
    oracle.write(np.arange(4), rows)
    for number, ids in ((1, [0]), (2, [1, 5, 6]), (3, [1, 2, 6])):
        store.mark(number)
        store.write(np.array(ids), random_rows(rng, len(ids)))
    fuse, interrupted = 0, True
    while interrupted:
        fuse, copy = fuse + 1, tmp_path / f"copy{fuse}"
        shutil.copytree(tmp_path / "states", copy)
        with monkeypatch.context() as patch:
            disk = Disk(patch, copy)
            store, disk.fuse, interrupted = on_disk(copy), fuse, False
            try:
                store.rewind(1)
            except PowerCut:
                interrupted = True
            disk.close()
        store = on_disk(copy)
        store.rewind(1)
        assert store.marks() == [0, 1]
        assert_equal(everyone(store), oracle.read(range(-2, K + 2)))
    assert fuse > 10


@pytest.mark.parametrize("seed", range(6))
def test_a_run_goes_on_from_its_newest_checkpoint_wherever_the_power_was_cut(tmp_path, monkeypatch, seed):
    """Marks and checkpoints every second round, two checkpoints kept, power cuts at any call, also while going on."""
    rng, folder = np.random.default_rng(seed), tmp_path / "states"
    disk, checkpoints, cuts = Disk(monkeypatch, folder), {}, 0
    while True:
        try:
            store = on_disk(folder)
            current = max(checkpoints, default=0)
            end = current + 10
            store.rewind(current)
            oracle = checkpoints.get(current, Oracle()).copy()
            assert_equal(everyone(store), oracle.read(range(-2, K + 2)))
            disk.fuse = rng.integers(1, 120) if cuts < 50 else np.inf
            while cuts < 50 or current < end:
                current += 1
                ids = some_ids(rng)
                rows = random_rows(rng, len(ids))
                store.write(ids, rows)
                oracle.write(ids, rows)
                if current % 2 == 0:
                    store.mark(current)
                    (tmp_path / "checkpoint.part").touch()
                    os.replace(tmp_path / "checkpoint.part", tmp_path / "checkpoint")  # a call that may be cut
                    checkpoints[current] = oracle.copy()
                    checkpoints = {r: checkpoints[r] for r in sorted(checkpoints)[-2:]}
                    store.release(min(checkpoints))
            break
        except PowerCut:
            cuts += 1
            disk.forget(rng)
            if rng.random() < 0.3 and len(checkpoints) == 2:
                checkpoints.pop(max(checkpoints))  # found damaged and removed: the one before must do
            disk.fuse = rng.integers(1, 40) if cuts < 50 else np.inf
    disk.close()
    assert_equal(everyone(store), oracle.read(range(-2, K + 2)))


def test_states_on_disk_come_from_devices_and_go_to_them(rng):
    store, rows = on_disk(), random_rows(rng, 2)
    store.write(np.array([4, 2]), jax.tree.map(jnp.asarray, rows))
    assert_equal(jax.tree.map(jnp.asarray, store.read(np.array([4, 2]))), rows)
