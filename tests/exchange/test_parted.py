"""Contributions in parts: the mean of each over those who sent it; bytes, seconds and codec states of what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import codecs, trees
from fedjax8.algorithms.aggregators.median import median
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.codecs import wire
from fedjax8.errors import UserError
from fedjax8.exchange import parted
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.executors.vmap import vmap
from fedjax8.systems import same
from fedjax8.types import Contribution, RoundOutput

SENT = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]], bool)
"""Which of four parts each of four clients sends; nobody sends the third."""
VALUES = np.arange(1.0, 17.0).reshape(4, 4).astype(np.float32)
WEIGHTS = np.float32([1.0, 2.0, 3.0, 0.0])
START = np.float32([10.0, 20.0, 30.0, 40.0])


def in_parts(look, *, named=True, aggregate=None, down=False):
    """A round whose client i sends the values and parts above; the third part has two numbers. `look` gets the mean."""

    def make(local):
        def client(received, place, rows, key):
            x = jnp.asarray(VALUES)[place]
            parts = x[0], x[1], jnp.stack([x[2], x[2]]), x[3]
            tree = {"params": parts, "whole": x[0]}
            present = {"params": jnp.asarray(SENT)[place]}
            return Contribution(tree, jnp.asarray(WEIGHTS)[place], place, {}, present)

        def round_(link, state, cohort, key):
            start = tuple(jnp.full(2 if i == 2 else (), s) for i, s in enumerate(START))
            if down:
                to = {"params": jnp.asarray(SENT)[jnp.minimum(cohort.ids, 3)]}
                received, link = link.broadcast(key, {"params": start, "whole": jnp.ones(3)}, cohort, present=to)
                start = received["params"]
            placed = cohort.remember(jnp.minimum(cohort.ids, 3))
            origin = {"params": start} if named else {}
            reduced, states, link = link.map_clients(client, (), placed, key, origin=origin, aggregate=aggregate)
            report = look(reduced) | {"clients": reduced.clients}
            return RoundOutput(state, states | {"algorithm": cohort.memory}, link, report)

        return fedavg(local)._replace(round=round_)

    return make


def shown(reduced):
    parts = {f"part{i}": jnp.ravel(x)[0] for i, x in enumerate(reduced.mean["params"])}
    shares = {f"share{i}": x for i, x in enumerate(reduced.shares["params"])}
    return parts | shares | {"whole": reduced.mean["whole"]}


def line_of(toys, make, **more):
    sim = toys.build(make, toys.clients([1.0] * 4, [1.0] * 4), epochs=1, **more)
    return sim.run_round(sim.init())[1]


@pytest.mark.parametrize("executor", [loop(), vmap(), pmap(1, 2)], ids=["loop", "vmap", "pmap"])
@pytest.mark.parametrize("named", [True, False])
def test_the_mean_of_a_part_is_over_those_who_sent_it_and_stays_where_nobody_did(toys, named, executor):
    line = line_of(toys, in_parts(shown, named=named), executor=executor)
    for part in range(4):
        total = divisor = 0.0
        for client in range(4):
            if SENT[client, part]:
                total += WEIGHTS[client] * VALUES[client, part]
                divisor += WEIGHTS[client]
        expected = total / divisor if divisor > 0 else (START[part] if named else 0.0)
        assert line[f"part{part}"] == pytest.approx(expected, rel=1e-6)
        assert line[f"share{part}"] == pytest.approx(divisor / WEIGHTS.sum(), rel=1e-6)
    assert line["whole"] == pytest.approx(np.average(VALUES[:, 0], weights=WEIGHTS), rel=1e-6)


def test_bytes_and_seconds_are_those_of_the_parts_that_are_sent(toys):
    """Up: 4 bytes of the whole entry, a byte of bits, 4 or 8 a part. The slowest sends two parts at 1 B/s."""
    line = line_of(toys, in_parts(shown), system=same(0.0, up_bandwidth=1.0, down_bandwidth=1.0))
    assert line["uplink_bytes"] == 4 * 5 + 4 * SENT[:, [0, 1, 3]].sum() + 8 * SENT[:, 2].sum()
    assert line["simulated_seconds"] == 5 + 2 * 4


def test_messages_down_have_the_parts_that_each_client_receives(toys):
    system = same(0.0, up_bandwidth=1e9, down_bandwidth=1.0)
    line = line_of(toys, in_parts(shown, down=True), system=system)
    assert line["downlink_bytes"] == 4 * (12 + 1) + 4 * SENT[:, [0, 1, 3]].sum() + 8 * SENT[:, 2].sum()
    assert line["simulated_seconds"] == pytest.approx(13 + 2 * 4, abs=1e-5)


def test_robust_aggregators_refuse_parts(toys):
    with pytest.raises(UserError, match="leave parts out"):
        line_of(toys, in_parts(lambda reduced: {}, aggregate=median()))


def test_a_part_that_is_left_out_leaves_its_codec_state_and_is_not_in_the_message():
    codec = codecs.error_feedback(codecs.topk(0.5))
    entry = ({"kernel": jnp.float32([[0.3, 0.7]])}, {"kernel": jnp.float32([[0.11, 5.0]])})
    present = {"update": jnp.array([True, False])}
    by, tree = parted.divided(codec, {"update": entry, "plain": jnp.ones(3)}, present)
    state = by.init(tree)
    message, after = by.encode(jax.random.key(0), state, tree)
    decoded, there = parted.whole(by.decode(state, message), present, {})
    assert there["update"].tolist() == [True, False]
    np.testing.assert_array_equal(decoded["update"][1]["kernel"], 0.0)
    np.testing.assert_allclose(decoded["update"][0]["kernel"], [[0.0, 0.7]], rtol=1e-6)
    assert all(not np.any(x) for x in jax.tree.leaves(after[1]["update"][1]))
    assert any(np.any(x) for x in jax.tree.leaves(after[1]["update"][0]))
    sizes = sum(size * int(sent) for size, sent in trees.pieces(message).values())
    assert sizes == len(wire.pack(message)) - wire.HEADER_BYTES
