"""A server with a link of its own: the clients are those of the inner model."""

import math

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.systems import ServerLink, lognormal, none, same, shared_link

IDS = np.arange(50)


def test_the_clients_are_those_of_the_inner_model_and_the_server_has_a_link():
    inner = lognormal(jitter=0.2, link_spread=0.5)._replace(available=lambda seconds, ids: ids < 3)
    assert inner.server == (math.inf, math.inf)
    system = shared_link(inner, 3e6, up_bandwidth=2e6)
    assert system.server == ServerLink(down_bandwidth=3e6, up_bandwidth=2e6)
    for ours, theirs in zip(system.speeds(1, 2, IDS), inner.speeds(1, 2, IDS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert system.available(0.0, IDS).sum() == 3


def test_of_two_links_in_a_row_the_narrower_one_counts():
    system = shared_link(shared_link(same(), 3e6, up_bandwidth=2e6), 1e6, up_bandwidth=5e6)
    assert system.server == ServerLink(down_bandwidth=1e6, up_bandwidth=2e6)


@pytest.mark.parametrize("setting", [{"down_bandwidth": 0.0}, {"up_bandwidth": math.inf}])
def test_bandwidths_out_of_range_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        shared_link(same(), **setting)


def test_an_inner_model_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no clock"):
        shared_link(none(), 1e6)
    with pytest.raises(UserError, match="inner must be a SystemModel"):
        shared_link("lognormal", 1e6)
