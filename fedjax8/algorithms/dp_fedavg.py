"""DP-FedAvg: client-level differential privacy, by clipped updates and noise on their sum (McMahan et al. 2018, arXiv
1710.06963), with adaptive clipping (Andrew et al. 2021, arXiv 1905.03871).

    d_i = (y_i - x) min(1, S / |y_i - x|)                            |.| over all entries of a message
    x  <- x + server_optimizer((sum_i d_i + N(0, (z_d S)^2 I)) / m)      every client weighs the same

m is the number of clients asked, fixed beforehand, or the expected number where cohorts are Poisson samples. With a
`quantile` g the bound S follows the norms of the updates: clients also send a bit b_i, 1 if |y_i - x| <= S, and

    b = (sum_i (b_i - 1/2) + N(0, s_b^2)) / m + 1/2;      S <- S exp(-eta (b - g))

The bits cost a share of z: z_d = (z^-2 - (2 s_b)^-2)^(-1/2), so that both together are one Gaussian step with z.

Lossy codecs: a client clips before it encodes, but unbiased rounding lengthens the update (its squared length grows by
the rounding's variance), so the server clips the decoded update again. There the guarantee holds, whatever the
codec: each term of the sum is at most S long (see `privacy.norms`), and depends on one client. The second clip biases
an unbiased codec. An update that is not finite counts as zeros.

The guarantee is for cohorts of m of K clients who stay secret, by the law that draws them (`participation`): uniform
without replacement, see `privacy.accounting` also for why z counts half there; or Poisson samples, each client with
probability m / K. Then the server adds noise and steps in every round, also in one that nobody is in, since a round
without a step would tell. A participation whose law is unknown is refused where an epsilon is stated.

With `noise="clients"` every client adds its share N(0, (z S)^2 / m) itself, and the guarantee is against those who see
the sum alone (secure aggregation); that needs a codec without loss, since a sum of rounded noises is not Gaussian.
Where only a of the m shares arrive (dropouts, clients that were left out), the server adds N(0, (1 - a / m) (z S)^2),
so that the model has all of the noise: the stated epsilon holds against those who see models, while a server that looks
at such a sum sees the multiplier z (a / m)^(1/2) only. Attackers that replace their message are refused, since the
noise in it would be unknown.

Traffic: an update up, a byte more with a quantile, and 4 bytes more down. Losses and clips in the log are not
protected.

The bound S, equal weights and the bits' half are as in the authors' libraries; the second clip is this project's.
"""

import math

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, check_choice, from_parts
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.privacy import gaussian, norms
from fedjax8.privacy.accounting import Facts, calibrate, check_delta, epsilon, library, sampling_of
from fedjax8.types import Algorithm, Array, Codec, Link, LocalTraining, PyTree, Variables
from fedjax8.types.models import nothing

NOISE = ("server", "clients")
MODEL_STATE = ("fixed", "local")
INSIDE = "inside"
"""Name of the bit b_i in a contribution: whether the update was within the bound."""


@checked
def dp_fedavg(
    local: LocalTraining,
    clip: float = 1.0,
    *,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    delta: float = 1e-5,
    server_optimizer: optax.GradientTransformation | None = None,
    noise: str = "server",
    quantile: float | None = None,
    clip_learning_rate: float = 0.2,
    bit_noise: float | None = None,
    model_state: str = "fixed",
    facts: Facts | None = None,
) -> Algorithm:
    """Federated averaging with client-level differential privacy.

    Args:
      local: the clients' local training.
      clip: S, or with a quantile its first value.
      noise_multiplier: z. Give it or `target_epsilon`; 0 for no noise.
      target_epsilon: a client's privacy loss at `delta` after all rounds; gives z.
      delta: of the epsilons in the log; well below one over the number of clients.
      server_optimizer: steps with minus the mean as its gradient; by default `sgd(1.0)`, which adds the mean.
      noise: who adds it, `server` or `clients`; then the server makes up for shares that are missing.
      quantile: g, the share of updates that the bound should leave unclipped; None for a fixed bound.
      clip_learning_rate: eta.
      bit_noise: s_b; m / 20 by default.
      model_state: of batch statistics and the like, `fixed` or `local` as in `parts.from_parts`; they are never sent.
      facts: of the run, for accounting; without it there is no epsilon in the log and no target.

    Raises:
      ValueError: a setting out of range, or z not below 2 s_b.
      UserError: `facts` are given, and dp-accounting is not installed; later, clients add noise before a lossy codec,
        or beside attackers that replace their messages.
    """
    check_delta(delta)
    check_choice("noise", noise, NOISE)
    check_choice("model_state", model_state, MODEL_STATE)
    if (noise_multiplier is None) == (target_epsilon is None):
        raise ValueError(
            f"give one of noise_multiplier and target_epsilon; got {noise_multiplier} and {target_epsilon}"
        )
    if target_epsilon is not None and facts is None:
        raise ValueError("target_epsilon needs the facts of the run: see privacy.Facts")
    sampling = None if facts is None else sampling_of(facts.participants)
    if sampling is not None and sampling.probability < 1:
        library()  # before the run, not after its first round
    if target_epsilon is not None and facts is not None and sampling is not None:
        noise_multiplier = calibrate(target_epsilon, delta, steps=facts.rounds, sampling=sampling)
    if noise_multiplier is None or not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must not be negative; got {noise_multiplier}")
    norms.check_bound(clip, noised=noise_multiplier > 0)
    adaptive = quantile is not None
    if quantile is not None:
        if not 0 <= quantile <= 1 or noise != "server":
            raise ValueError(f"a quantile must be in [0, 1] and needs noise='server'; got {quantile} and {noise!r}")
        if bit_noise is None and noise_multiplier:
            if facts is None:
                raise ValueError("a quantile needs bit_noise, or the facts of the run: see privacy.Facts")
            bit_noise = facts.cohort_size / 20
    update_noise = update_multiplier(noise_multiplier, bit_noise) if adaptive else noise_multiplier
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def init(variables: Variables) -> dict[str, PyTree]:
        bound = {"clip": jnp.float32(clip)} if adaptive else {}
        return {"optimizer": optimizer.init(variables.params)} | bound

    def extra(state: ServerState) -> dict[str, PyTree]:
        # As an integer no codec touches it: clients clip by the very bound that the server clips by.
        return {"clip": jax.lax.bitcast_convert_type(state.memory["clip"], jnp.int32)} if adaptive else {}

    def parts(expected: Array | float, always: bool = False) -> Algorithm:
        """The round for this number m of clients; `always` if the server steps whoever is there."""

        def client(start, received, memory, rows, key, round_number) -> ClientOutput:
            train_key, noise_key = jax.random.split(key)
            bound = jax.lax.bitcast_convert_type(received["clip"], jnp.float32) if adaptive else clip
            out = local.train(start, rows, train_key)
            update = trees.subtract(out.variables.params, start.params)
            norm = norms.norm_of(update)
            long = norms.exceeds(norm, bound)
            sent = {"update": norms.clip(update, bound, norm)}
            if noise == "clients" and noise_multiplier:
                deviation = noise_multiplier * clip / jnp.sqrt(expected)
                sent = gaussian.add_noise(noise_key, sent, deviation)
            if adaptive:
                sent[INSIDE] = (~long).astype(jnp.float32)
            # Everyone sends, so that neither exclusions nor the amount of noise depend on anyone's data.
            state = trees.select(trees.all_finite(out.variables.state), out.variables.state, start.state)
            report = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), out.report)
            report |= {"clipped_updates": jnp.int32(long), "unusable_updates": jnp.int32(jnp.isinf(norm.value))}
            variables = Variables(out.variables.params, state)
            return ClientOutput(sent, jnp.float32(1), variables, memory, report, out.optimizer)

        def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
            noise_key, bit_key = jax.random.split(key)
            params, memory = state.variables.params, state.memory
            bound = memory["clip"] if adaptive else clip
            total = trees.scale(mean.weight, mean.tree["update"])
            report = {"clip_norm": jnp.float32(bound)}
            if noise == "server" and noise_multiplier:
                total = gaussian.add_noise(noise_key, total, update_noise * bound)
            elif noise_multiplier:
                missing = jnp.maximum(expected - mean.weight, 0)  # every share that arrived weighs 1
                deviation = noise_multiplier * clip * jnp.sqrt(missing / expected)
                made_up = lambda total: gaussian.add_noise(noise_key, total, deviation)
                total = jax.lax.cond(missing > 0, made_up, lambda total: total, total)
                report["noise_made_up"] = missing / expected
            steps, optimizer_state = optimizer.update(trees.scale(-1.0 / expected, total), memory["optimizer"], params)
            new: dict[str, PyTree] = {"optimizer": optimizer_state}
            if adaptive:
                inside = mean.weight * (mean.tree[INSIDE] - 0.5)
                if noise_multiplier and bit_noise is not None:
                    inside = gaussian.add_noise(bit_key, inside, bit_noise)
                wanted = bound * jnp.exp(-clip_learning_rate * (inside / expected + 0.5 - quantile))
                new["clip"] = jnp.clip(wanted, *norms.BOUNDS)
            return ServerOutput(local.model.project(optax.apply_updates(params, steps)), new, report)

        return from_parts(
            local, client=client, server=server, init=init, extra=extra, model_state=model_state, always=always
        )

    def round_(link: Link, state: ServerState, cohort, key):
        expected = link.expected(cohort)
        if noise == "server":
            uplink = clipping(link.uplink, state.memory["clip"] if adaptive else clip)
        else:
            if noise_multiplier and link.attack.send is not None:
                raise UserError(
                    "config.attack: attackers replace their message and its noise, so noise='clients' has no stated "
                    "epsilon beside them; set --config.algorithm.noise=server"
                )
            uplink = lossless(link.uplink)
        # Where cohorts vary, a round without a step would tell that nobody was in it.
        return parts(expected, link.varies).round(link.replace(uplink=uplink), state, cohort, key)

    def privacy(rounds: int) -> dict[str, float]:
        if sampling is None or noise_multiplier == 0:
            return {}
        return {"epsilon": epsilon(noise_multiplier, delta, steps=rounds, sampling=sampling), "delta": delta}

    admits = nothing if facts is None else facts.admits
    return parts(1.0)._replace(round=round_, privacy=privacy, admits=admits)


def update_multiplier(noise_multiplier: float, bit_noise: float | None) -> float:
    """z_d, the multiplier of the noise on updates that together with `bit_noise` on bits makes z; 0 for z = 0.

    >>> round(update_multiplier(1.0, 5.0), 7)
    1.0050378
    """
    if noise_multiplier == 0:
        return 0.0
    if bit_noise is None or not 2 * bit_noise > noise_multiplier:
        raise ValueError(f"bit_noise must be above half of noise_multiplier, {noise_multiplier}; got {bit_noise}")
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * bit_noise) ** -2)


def clipping(codec: Codec, bound: Array | float) -> Codec:
    """`codec` for `{"update": tree}`, whose decoded trees are clipped to `bound`; a bit beside it travels as a byte."""

    def without_bit(tree: PyTree) -> PyTree:
        return {name: value for name, value in tree.items() if name != INSIDE}

    def encode(key, state, tree):
        message, state = codec.encode(key, state, without_bit(tree))
        bit = {INSIDE: jnp.clip(tree[INSIDE], 0, 1).astype(jnp.uint8)} if INSIDE in tree else {}
        return {"message": message} | bit, state

    def decode(state, message):
        decoded = codec.decode(state, message["message"])
        bit = {INSIDE: message[INSIDE].astype(jnp.float32)} if INSIDE in message else {}
        return decoded | {"update": norms.clip(decoded["update"], bound)} | bit

    return Codec(
        init=lambda tree: codec.init(without_bit(tree)),
        encode=encode,
        decode=decode,
        unbiased=False,
        measure=lambda tree, decoded: codec.measure(without_bit(tree), without_bit(decoded)),
    )


def lossless(codec: Codec) -> Codec:
    """`codec`, which must send every float32 as it is: UserError when it encodes to anything else."""

    def encode(key, state, tree):
        message, state = codec.encode(key, state, tree)
        if trees.shapes(message) != trees.shapes(tree):
            raise UserError(
                "clients' noise is Gaussian only if it is sent as it is: set --config.uplink.name=none, or "
                "--config.algorithm.noise=server"
            )
        return message, state

    return codec._replace(encode=encode)


EXAMPLES = (
    {"noise_multiplier": 0.1},
    {"noise_multiplier": 0.1, "clip": 0.5, "quantile": 0.5, "bit_noise": 1.0},
    {"noise_multiplier": 0.1, "noise": "clients", "server_optimizer": optax.sgd(0.5, momentum=0.9)},
)
