"""Shared vocabulary: what a model, a codec, an algorithm and an executor are.

Axis letters, used in every docstring: `C` clients in the cohort, `S` local steps, `B` examples per batch, `P`
parameters, `K` registered clients, `N` rows of data. An *update* is new minus old. Bytes are octets.

Everything here is a `NamedTuple` of pure functions, built by a factory that closes over its settings. To add one,
write a function that returns the tuple; nothing has to be registered.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import struct

Array = jax.Array
Key = jax.Array
PyTree = Any
Batch = dict[str, Array]
"""Columns of one batch, `[B, ...]` each, and `mask` float32 `[B]`: 1 for an example, 0 for padding."""


class Ratio(NamedTuple):
    """A fraction that can be summed over clients before it is taken: float32 scalars `part` and `whole`."""

    part: Array
    whole: Array


class Product(NamedTuple):
    """The bilinear part of a layer, y = x * kernel. Float32 arrays or 8-bit floats in, sums in float32, float32 out."""

    forward: Callable[[Array, Array], Array]
    """`(x, kernel) -> y`; differentiable for float32 arrays."""
    input_gradient: Callable[[Array, Array], Array]
    """`(dy, kernel) -> dx`."""
    kernel_gradient: Callable[[Array, Array], Array]
    """`(x, dy) -> dkernel`."""
    blocks: int = 1
    """More than one where the kernel is larger than a core's cache and had better be read a block at a time: y is the
    sum, over so many equal parts, of `forward(x[:, part], kernel[part])`."""


Multiply = Callable[[str, Product, Array, Array], Array]
"""`(layer path, product, x, kernel) -> y`: stands in for the product of every dense and convolution layer; see
`Model.apply`. Plainly that is `product.forward(x, kernel)`."""


class Variables(NamedTuple):
    """All that a model carries: what is trained, what merely accompanies it, and what never changes.

    `params` is a nested dict of float32 arrays; `state` (batch statistics and the like) is an empty dict for most
    models. `frozen`, a nested dict too, holds parameters that are not trained. They are the same for all clients and
    rounds: an algorithm never sees them (its `Variables` have none), no message, client state or checkpoint holds them,
    and local training finds them beside a client's rows (`data.batches.Pool`).
    """

    params: PyTree
    state: PyTree
    frozen: Mapping[str, PyTree] = {}


def _same(tree: PyTree) -> PyTree:
    return tree


def _nothing(*_: PyTree) -> dict:
    return {}


class Model(NamedTuple):
    """A model as pure functions. Adapters map a `Model` to a `Model`.

    Invariants: `apply` never draws from anything but `key`; `loss` and every metric are per example, so that masks and
    merging stay outside; with `train=False` the returned state equals the given one. `apply` needs all of what `init`
    gives, frozen parameters included.
    """

    init: Callable[[Key, Batch], Variables]
    """`(key, sample batch) -> Variables`. The batch gives shapes, and adapters may calibrate on its values."""
    apply: Callable[..., tuple[Array, PyTree]]
    """`(variables, batch, *, key=None, train=False, multiply=None) -> (outputs [B, ...], new state)`.
    `multiply`, a `Multiply`, sees and may replace the product of every dense and convolution layer."""
    loss: Callable[[Array, Batch], Array]
    """`(outputs, batch) -> float32 [B]`."""
    metrics: Callable[[Array, Batch], dict[str, Array]]
    """`(outputs, batch) -> {name: float32 [B]}`, each averaged over examples by whoever merges them."""
    project: Callable[[PyTree], PyTree] = _same
    """`params -> params`: back into the feasible set, after every optimizer step."""
    views: Mapping[str, Callable[..., tuple[Array, PyTree]]] = {}
    """Other ways to run the same variables, evaluated beside `apply` (for example `float32` of a quantized model)."""
    report: Callable[[PyTree], dict[str, Array]] = _nothing
    """`params -> {name: scalar}`: what is worth logging about them at every evaluation (for example learnt clips)."""


class Codec(NamedTuple):
    """Tree to message and back. A message is a pytree in wire dtypes; its size is read off its leaves.

    Invariants: the message's structure, shapes and dtypes depend on the tree's shapes alone (parts may be left out:
    `Sections`); leaves that are not float32 pass through unchanged; `decode` yields float32 and the tree that was
    encoded, up to the stated error. What both sides know (shapes, names) may be static fields of a message's classes.
    Finite trees decode to finite ones: what would exceed the largest float32 is clipped to it. Subnormal numbers, below
    2**-126, may be taken for zero, as processors do.
    """

    init: Callable[[PyTree], PyTree]
    """Tree (or its `ShapeDtypeStruct`s) to the state before the first message; `()` for most codecs."""
    encode: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree]]
    """`(key, state, tree) -> (message, state)`."""
    decode: Callable[[PyTree, PyTree], PyTree]
    """`(state, message) -> tree`, with the state that `encode` was given: the receiver keeps a copy where it needs one
    (`delta`), which most codecs do not."""
    unbiased: bool
    """Whether the mean of what is decoded, over keys, is x, for every tree whose clips, if it has any, clip nothing."""
    error_bound: Callable[[PyTree], PyTree] | None = None
    """Tree to the largest possible `|decoded - x|` per element, if there is such a bound."""
    measure: Callable[[PyTree, PyTree], dict[str, Ratio]] = _nothing
    """`(tree, what it was decoded to) -> {name: Ratio}`: what encoding did to it, summed over messages and logged."""
    contracts: bool = False
    """Whether E||decoded - x||^2 <= q ||x||^2 + c over keys, for every update x, with q < 1 and c that depend on shapes
    and settings alone. What remembers its errors (`error_feedback`, `delta`) stays bounded around such a codec."""
    aligned: bool = False
    """Whether that holds of the multiple of each decoded leaf that is nearest to x, so that sending the factor along
    makes a contraction of it. Codecs that are unbiased or contract need not say so."""


@struct.dataclass
class Sections:
    """Parts of a message, some of which are left out, so that its size depends on data though its shapes do not.

    What is sent is `present` and the parts whose bit is 1; in the arrays the others hold zeros.
    """

    present: Array
    """uint8 `[ceil(n / 8)]`: bit i % 8 of byte i // 8 says whether part i is sent. See `numerics.pack_bits`."""
    parts: tuple[PyTree, ...]
    """The n parts."""


def check_codec(given: Any) -> None:
    """Raises ValueError unless `given` is a `Codec`."""
    if not isinstance(given, Codec):
        raise ValueError(f"a codec is needed, such as fp8(); got {given!r}")


MODEL = "model"
"""Name of the messages that every round has."""


class Channel(NamedTuple):
    """One kind of message, or a part of one: key of a count. Static, so that it can stand in a pytree's structure."""

    direction: str
    """`up` (client to server) or `down` (server to client)."""
    name: str
    message_bytes: int
    """Bytes of one encoded message."""
    float32_bytes: int
    """Bytes of the same tree unencoded, without the clips that only the encoding needs; 0 for a part."""
    part: str = ""
    """Which of a message's `Sections`, counted by itself; empty for what is always sent."""


class Cohort(NamedTuple):
    """The clients of one round, or one device's share of them. Leading axis `C`.

    A client with `valid` false is padding: it must change nothing and is counted nowhere.
    """

    ids: Array
    """int32 `[C]`: index among all registered clients."""
    start: Array
    """int32 `[C]`: first position of the client's rows in `Pool.order`."""
    size: Array
    """int32 `[C]`: number of the client's examples."""
    valid: Array
    """bool `[C]`."""
    states: PyTree
    """Persistent client state, leaves `[C, ...]`."""
    dropped: PyTree = ()
    """bool `[C]`: clients that were lost after they received the model, and send nothing any more; `()` for none."""

    @property
    def reached(self) -> Array:
        """bool `[C]`, or bool of one client: those that send."""
        return self.valid if isinstance(self.dropped, tuple) else self.valid & ~self.dropped


class Partial(NamedTuple):
    """What one client adds to the totals of a cohort."""

    sum: PyTree
    """Added over clients."""
    max: PyTree = ()
    """float32 leaves of which the largest over clients is kept, element by element; -inf says nothing."""


class Executor(NamedTuple):
    """How a function is mapped over clients and reduced. Knows nothing about learning.

    `map_reduce`, `total` and `gather` may be called only inside a function given to `compile`, any number of times and
    in loops.
    """

    num_shards: int
    """Devices that share a cohort, those of other processes included."""
    shards: Sequence[int]
    """Which of them are this process's own."""
    chunk: int
    """Clients that a device works on at once, at most; see `executors.groups`."""
    compile: Callable[[Callable], Callable]
    """`f(shared, split) -> (shared_out, split_out)`, compiled. Leaves of `split` have a leading axis that is divided
    over the shards in order; a process gives, and gets back, the part of its own shards. If it has a method `lower` as
    what `jax.jit` gives has, the memory that it needs can be foretold."""
    map_reduce: Callable[[Callable, PyTree, PyTree], tuple[Partial, PyTree]]
    """`(f, shared, per_client) -> (reduction over all clients of the Partial f(...)[0], stacked f(...)[1])`."""
    total: Callable[[PyTree], PyTree]
    """Sum over the shards of a value that each shard holds."""
    place: Callable[[PyTree], PyTree]
    """Puts shared arrays where `compile`d functions read them without a copy."""
    gather: Callable[[PyTree], PyTree] = _same
    """Leaves `[c, ...]` of each shard to those of all, `[S * c, ...]`, the same on every shard; inside `compile` only,
    as `map_reduce` and `total`."""
    collect: Callable[[PyTree], PyTree] = _same
    """A process's part of what is split to the whole of it, leaves `[all shards, ...]`; every process must call it."""


class Contribution(NamedTuple):
    """What one client's function returns to `Link.map_clients`."""

    tree: PyTree
    """What is sent up, encoded by the uplink codec."""
    weight: Array
    """float32 scalar: weight in the mean; 0 contributes nothing."""
    state: PyTree
    """The client's new persistent state."""
    report: dict[str, Array]
    """Sums to be added over clients."""


class Reduced(NamedTuple):
    """What the server has after a reduction."""

    mean: PyTree
    """Weighted mean of the decoded contributions, float32."""
    weight: Array
    """Sum of weights; 0 if there was nothing to average, and then `mean` is all zeros."""
    clients: Array
    """int32: clients whose contribution was used."""
    report: dict[str, Array]
    """Sums over the clients used, and `excluded`: int32 number of clients left out for what they sent (`trees.LARGEST`)
    or because the aggregator did not admit what they sent."""
    lowest: PyTree
    """Smallest of each watched value over the clients of positive weight; +inf if there is none."""
    highest: PyTree
    """Largest likewise; -inf if there is none."""


class Collected(NamedTuple):
    """Contributions of a whole cohort, one by one. Memory grows with the cohort: `[C, ...]` of each leaf, per shard."""

    tree: PyTree
    """Decoded contributions, float32 `[C, ...]`; zeros where a client is padding, was excluded or weighs nothing."""
    weights: Array
    """float32 `[C]`; 0 for those."""
    clients: Array
    """int32: clients whose contribution can be used."""
    report: dict[str, Array]
    """As in `Reduced`."""


class Aggregator(NamedTuple):
    """How a server makes one change of the model out of those that clients sent; see `algorithms.aggregators`.

    A *change* is a decoded contribution less what the client had received, float32, all that is sent together.
    """

    combine: Callable[[PyTree, Array], tuple[PyTree, dict[str, Array]]] | None = None
    """`(changes [C, ...], float32 weights [C]) -> (change, report)`. A client of weight 0, whose change is zeros, must
    not count. None: the weighted mean, summed as contributions come."""
    admit: Callable[[PyTree], tuple[PyTree, Array, dict[str, Array]]] | None = None
    """`change -> (change, bool, sums)`: what is done to each before. Where it says false the client is left out and
    counted as excluded; the sums are added over the other clients and logged."""


class Colluders(NamedTuple):
    """What attackers of a round know together: what the honest clients would send."""

    mean: PyTree
    """Unweighted mean of their changes, before encoding."""
    deviation: PyTree
    """Standard deviation of every value."""
    honest: Array
    """float32: how many they are."""
    attackers: Array
    """float32: how many attack."""


class Attack(NamedTuple):
    """What clients do that work against the server; see `attacks`. A change is as in `Aggregator`."""

    members: Callable[[Array, int], Array]
    """`(int32 client ids, number of registered clients) -> bool`: who they are, the same ones in every round."""
    batch: Callable[[Batch], Batch] | None = None
    """What they make of each batch that they train on."""
    send: Callable[[Key, PyTree, Colluders | None], PyTree] | None = None
    """`(key, own change, what they know) -> the change that is sent in its place`."""
    collude: bool = False
    """Whether `send` is given what honest clients would send, at the price of training everyone twice."""


class StepGradient(NamedTuple):
    """How a client takes the gradient of a step, where it isn't that of a batch's mean loss: see `privacy`."""

    make: Callable[[Callable], Callable] | None = None
    """`loss(variables, batch, key, multiply=None) -> (mean loss, (model state, sums for the log))` to
    `gradient(variables, batch, key, expected) -> (gradients, model state, sums)`; None: the gradient of `loss`.
    `expected` is the float32 number of examples that a batch has in expectation. In a batch examples come first,
    padding last."""
    sampling: str | None = None
    """How the batch is drawn, one of `data.batches.SAMPLING`; None: as the batch plan says."""
    accounted: bool = False
    """Whether all gradients must be those of the batch plan's steps, because they are accounted for."""
    privacy: Callable[[int], dict[str, float]] = _nothing
    """As `Algorithm.privacy`, of an example of a client."""


class Refinement(NamedTuple):
    """A server's own step on an averaged model, before anyone receives it."""

    watch: Callable[[PyTree], PyTree]
    """A client's decoded params to the values in them whose smallest and largest over clients the step needs."""
    step: Callable[[Key, PyTree, PyTree, PyTree], tuple[PyTree, dict[str, Any]]]
    """`(key, averaged params, lowest, highest) -> (params, report)`."""


class Monitor(NamedTuple):
    """How workers that train on their own tell how far their models are apart, without sending them.

    Invariant: with probability 1, or 1 - delta where it is stated, `estimate` is at least the variance of the models
    about their mean. Every worker uses the same functions with the same settings.
    """

    estimate: Callable[[Any, Array], Array]
    """`(reduction of what workers sent, int32 number of the step from 1) -> float32 H`, held against the threshold.
    A monitor that sends nothing gets None for the reduction."""
    sends: Callable[[PyTree, PyTree, Array], PyTree] | None = None
    """`(drift, direction, threshold) -> small tree` that a worker sends up at a check; None: nothing is sent.
    `drift` is the worker's params minus the last common ones, `direction` a unit vector of the same structure that all
    workers know, or `()`."""
    watch: Callable[[PyTree], PyTree] = lambda sent: ()
    """What a worker sent to the values in it whose largest over workers `estimate` needs (`Reduced.highest`)."""
    directed: bool = False
    """Whether `sends` uses `direction`."""
    exact: bool = False
    """Whether the simulator, which knows all models, puts the variance itself in the place of the estimate."""
    compat_bytes: float | None = None
    """Bytes per worker and check by the authors' formula, where these are not the size of what is sent."""
    compat_start: bool = True
    """Whether the authors' formula charges one exchange of models more than there are synchronizations."""


class RoundOutput(NamedTuple):
    """What an algorithm's round returns."""

    state: PyTree
    client_states: PyTree
    link: Any
    report: dict[str, Array]


Way = Mapping[Channel, int]
"""What a client may send and receive in a round: how often each kind of message."""


def each_once(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
    """The ways of most algorithms: every kind of message once, without the parts that may be left out, or with them."""
    return {c: 1 for c in channels if not c.part}, dict.fromkeys(channels, 1)


class Algorithm(NamedTuple):
    """A federated algorithm. Build the usual shape (send, train, reduce, step) with `algorithms.from_parts`."""

    init: Callable[[Variables], PyTree]
    """Initial variables to the server's state (float32)."""
    init_client: Callable[[Variables], PyTree]
    """Initial variables to one client's persistent state; `()` when clients remember nothing."""
    round: Callable[..., RoundOutput]
    """`(link, state, cohort, key) -> RoundOutput`."""
    variables: Callable[[PyTree], Variables]
    """Server state to the variables that are evaluated; without frozen parameters."""
    account: Callable[[Mapping[Channel, int]], dict[str, int]] = _nothing
    """Messages of each kind since the start to byte counts for the log, such as those by an author's formula."""
    everyone: bool = False
    """Whether every client must take part in every round."""
    privacy: Callable[[int], dict[str, float]] = _nothing
    """Rounds done to what they have spent, for the log: `epsilon` at `delta`. Called after every round."""
    frozen: Callable[[PyTree, PyTree], PyTree] = lambda state, frozen: frozen
    """`(server state, frozen parameters as initialized) -> those in use now`, for servers that move what clients do not
    train (`fedlora`). Called before every round."""
    ways: Callable[[Sequence[Channel], int, int], Sequence[Way]] = each_once
    """`(kinds of message, most local steps of a client in a round, clients of a round) -> ways`, those with the fewest
    and the most bytes of either direction among them; for forecasts."""
