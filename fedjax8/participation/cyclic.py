"""By turns: the clients in a shuffled order that stays the same, the next `cohort_size` of them in every round.

    round r asks clients  p[M t], ..., p[min(M t + M, N) - 1],     t = r mod ceil(N / M),     p the order

In ceil(N / M) rounds, a cycle, every client takes part exactly once. The last round of a cycle has the clients that are
left, fewer than M where M does not divide N. The order comes from the seed. (Cyclic participation is analyzed in
Eichner et al. 2019, arXiv 1904.10120, where groups of clients take turns by time of day.)

Law: `unknown`. After the first cycle everyone who knows the past knows who comes next: nobody is hidden in a sample,
and the accountants here know laws of one round, not of a schedule. The privacy of examples is accounted by the rounds
that their client was in, which claims no secrecy.
"""

import numpy as np

from fedjax8.participation.base import Ask, Drawn, Numbers, Participation, all_kept, shuffled_clients


def _draw(ask: Ask) -> Drawn:
    turn = ask.round % -(-ask.num_clients // ask.cohort_size)
    order = shuffled_clients(ask.seed, ask.num_clients)
    return all_kept(np.sort(order[turn * ask.cohort_size : (turn + 1) * ask.cohort_size]))


def _numbers(num_clients: int, cohort_size: int) -> Numbers:
    last = num_clients % cohort_size or cohort_size
    return Numbers(last, cohort_size, last, cohort_size)


_CYCLIC = Participation(_draw, _numbers)


def cyclic() -> Participation:
    """The participation of clients by turns."""
    return _CYCLIC


EXAMPLES = ({},)
