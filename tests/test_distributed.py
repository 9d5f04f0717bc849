"""How threads that wait for the network are scheduled; processes that run together are in test_hosts.py."""

import os
import threading

import pytest

from fedjax8.distributed import give_way, threads


def may_schedule():
    """Whether this is Linux, nobody has scheduled the tests otherwise, and a thread may be."""
    may = []

    def attempt():
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            may.append(True)
        except OSError:
            may.append(False)

    if not threads() or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return may[0]


pytestmark = pytest.mark.skipif(not may_schedule(), reason="this system does not let the tests schedule their threads")


@pytest.fixture
def waiting():
    """Starts threads that wait for the end of the test; gives their numbers."""
    done, started = threading.Event(), []

    def start():
        started.append(threading.Thread(target=done.wait))
        started[-1].start()
        return started[-1].native_id

    yield start
    done.set()
    for thread in started:
        thread.join()


def test_threads_started_meanwhile_give_way_and_others_do_not(waiting):
    first = waiting()
    before = threads()
    second = waiting()
    started = threads() - before
    assert second in started and first not in started
    give_way(started)
    assert [os.sched_getscheduler(number) for number in (first, second)] == [os.SCHED_OTHER, os.SCHED_BATCH]


def test_what_someone_scheduled_otherwise_stays_and_what_has_ended_is_passed_over(waiting):
    idle, other = waiting(), waiting()
    os.sched_setscheduler(idle, os.SCHED_IDLE, os.sched_param(0))
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    give_way([ended.native_id, idle, other])
    assert [os.sched_getscheduler(number) for number in (idle, other)] == [os.SCHED_IDLE, os.SCHED_BATCH]
