"""The most rounds of a call, by what they would hold on a device."""

ROUNDS_PER_CALL = 64
"""Enough for the host's part of a call to vanish, few enough for plans and logs of a call to be small."""
CALL_STATE_BYTES = 1 << 27
"""Client states that a call of several rounds may hold on one device."""


def fitting_rounds(bytes_of_round: int, reads_state: bool) -> int:
    """Rounds whose client states, so many bytes a round, fit a device; one where the cohort depends on the state."""
    if reads_state:
        return 1
    fitting = CALL_STATE_BYTES // bytes_of_round if bytes_of_round else ROUNDS_PER_CALL
    return max(1, min(ROUNDS_PER_CALL, fitting))


def most_rounds(wanted: int | None, fitting: int, bounded: bool) -> int:
    """Rounds of a call, at most: as `wanted` or as are useful, and where `bounded` no more than are `fitting`."""
    useful = wanted or ROUNDS_PER_CALL
    return min(useful, fitting) if bounded else useful
