"""Local training: every client trains a model of its own, and nothing travels. The baseline of personalization.

    y_i <- train(y_i, client i)      in the rounds in which client i takes part

All begin with the same model. The client's optimizer begins anew in every round, as with FedAvg. The global model stays
the initial one, so that its test accuracy says nothing: look at `personal_accuracy`.

Traffic: none. Codecs have nothing to encode, and no client is a straggler. Every client remembers a model.
"""

import jax

from fedjax8.algorithms.lockstep import nan_if_unusable
from fedjax8.algorithms.parts import ServerState
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Algorithm, Cohort, Key, Link, LocalTraining, Partial, RoundOutput, Variables


@checked
def local_only(local: LocalTraining) -> Algorithm:
    """Local training without communication.

    Args:
      local: the clients' local training.

    Raises:
      UserError: when a run is set up, if attackers would change their messages.
    """

    def work(_, own: Variables, rows, key):
        out = local.train(own, rows, key)
        return Partial(nan_if_unusable(out.report, out.variables)), out.variables

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        if link.attack.send is not None:
            raise UserError(
                "config.attack: clients of local_only send nothing that an attacker could change; use label_flip"
            )
        # Keys as those of FedAvg's clients, so that the first round of both is the same training.
        _, client_key, _ = jax.random.split(key, 3)
        totals, excluded, states, link = link.on_clients(work, (), cohort, client_key, steps=None)
        report = totals.sum | {"excluded": excluded, "clients": link.count(cohort.reached) - excluded}
        return RoundOutput(state, states, link, report)

    return Algorithm(
        local,
        lambda variables: ServerState(variables, ()),
        lambda variables: variables,
        round_,
        lambda state: state.variables,
        personal=lambda state, own: own,
    )


EXAMPLES = ({},)
