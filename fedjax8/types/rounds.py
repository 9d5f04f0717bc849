"""Rounds: the cohort, the executor, clients' contributions, their aggregate, the link, the algorithm."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from fedjax8.types.attacks import Attack
from fedjax8.types.graphs import Graph, Mixed, Receive
from fedjax8.types.messages import MODEL, Channel, Codec
from fedjax8.types.models import Array, Key, PyTree, Variables, nothing, unchanged
from fedjax8.types.training import ClientRows, LocalTraining, Pool


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
    """bool `[C]`: dropouts, clients that received the model and send nothing any more; `()` for none."""
    age: PyTree = ()
    """int32 `[C]`: server steps since each client received its model; `()` where all have the present one."""
    factor: PyTree = ()
    """float32 `[C]`: factor on each client's update by its age, 0 for one that is too old; `()` likewise."""
    token: PyTree = ()
    """int32 `[C]`: the walking token that each client holds; `()` where there are none."""

    @property
    def memory(self) -> PyTree:
        """The algorithm's memory of each client, leaves `[C, ...]`."""
        return self.states["algorithm"]

    def remember(self, memory: PyTree) -> "Cohort":
        """The cohort with other memories, leaves `[C, ...]`."""
        return self._replace(states=self.states | {"algorithm": memory})

    @property
    def reached(self) -> Array:
        """bool `[C]`, or bool of one client: those that send."""
        return self.valid if isinstance(self.dropped, tuple) else self.valid & ~self.dropped


class Partial(NamedTuple):
    """One client's addends to the totals of a cohort."""

    sum: PyTree
    """Added over clients."""
    max: PyTree = ()
    """float32 leaves of which the largest over clients is kept, element by element; -inf counts for nothing."""


Program = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
"""`(shared, split) -> (shared_out, split_out)`; leaves of `split` have a leading axis that is divided over the shards
in order."""

ClientMap = Callable[[Any, Any], tuple[Partial, PyTree]]
"""`(shared, one client) -> (addends, the client's own result)`: mapped over clients, sums and maxima of the addends
kept, results stacked."""


class Executor(NamedTuple):
    """The way in which a function is mapped over clients and reduced. Knows nothing about learning.

    `map_reduce`, `total` and `gather` may be called only inside a function given to `compile`, any number of times and
    in loops.
    """

    num_shards: int
    """Devices that share a cohort, those of other processes included."""
    shards: Sequence[int]
    """Which of them are this process's own."""
    chunk: int
    """Clients that a device works on at once, at most; see `executors.groups`."""
    compile: Callable[[Program], Program]
    """A program, compiled; each process gives, and gets back, the part of `split` of its own shards. If the result has
    `lower`, as functions of `jax.jit` have, `--dry_run` can report its memory."""
    map_reduce: Callable[[ClientMap, PyTree, PyTree], tuple[Partial, PyTree]]
    """`(f, shared, per_client) -> (reduction over all clients of the Partial f(...)[0], stacked f(...)[1])`."""
    total: Callable[[PyTree], PyTree]
    """Sum over the shards of a value that each shard holds."""
    place: Callable[[PyTree], PyTree]
    """Puts shared arrays where `compile`d functions read them without a copy."""
    gather: Callable[[PyTree], PyTree] = unchanged
    """Leaves `[c, ...]` of each shard to those of all, `[S * c, ...]` with S shards, the same on every shard."""
    collect: Callable[[PyTree], PyTree] = unchanged
    """A process's part of `split` to all of it, leaves `[all shards, ...]`; every process must call it."""
    own: Callable[[PyTree], PyTree] = unchanged
    """A shard's part of what `gather` gave, leaves `[S * c, ...]` to `[c, ...]`."""


class Contribution(NamedTuple):
    """One client's part in an exchange, as its function returns it to `Link.map_clients`."""

    tree: PyTree
    """The tree that is sent up, encoded by the uplink codec."""
    weight: Array
    """float32 scalar: weight in the mean; 0 for none."""
    state: PyTree
    """The client's new persistent state."""
    report: dict[str, Array]
    """Sums to be added over clients."""
    present: Mapping[str, Array] = {}
    """Entries of `tree` that are tuples of n parts, to bool `[n]`: the parts that are sent; other entries are whole."""


class Reduced(NamedTuple):
    """Aggregate of the contributions of a cohort."""

    mean: PyTree
    """Weighted mean of the decoded contributions, float32."""
    weight: Array
    """Sum of weights; 0 if there was nothing to average, and then `mean` is all zeros."""
    clients: Array
    """int32: clients whose contribution was used."""
    report: dict[str, Array]
    """Sums over the clients used, and `excluded`: int32 number of clients left out because their contribution is not
    finite or too long (`trees.LARGEST`), or because the aggregator did not admit it."""
    lowest: PyTree
    """Smallest of each watched value over the clients of positive weight; +inf if there is none."""
    highest: PyTree
    """Largest of each, likewise; -inf if there is none."""
    shares: Mapping[str, Array] = {}
    """Entries whose parts may be left out (`Contribution.present`), to float32 `[n]`: the share of the weight that sent
    each part. The mean of a part is over those who sent it; where nobody did, it is the value that it started from."""


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
    """The rule by which a server makes one change of the model out of those that clients sent; see
    `algorithms.aggregators`.

    A *change* is a decoded contribution minus the value that the client received, float32, all entries of a message
    together. Entries that are differences already, such as `update`, are changes as they are.
    """

    combine: Callable[[PyTree, Array], tuple[PyTree, dict[str, Array]]] | None = None
    """`(changes [C, ...], float32 weights [C]) -> (change, report)`. A client of weight 0, whose change is zeros, must
    not count. None: the weighted mean, summed as contributions come."""
    admit: Callable[[PyTree], tuple[PyTree, Array, dict[str, Array]]] | None = None
    """`change -> (change, bool, sums)`: preprocessing of each change, such as clipping it. A client with false is left
    out and counted as excluded; the sums are added over the other clients and logged."""


ClientFunction = Callable[[PyTree, PyTree, ClientRows, Key], Contribution]
"""`(received, memory, rows, key) -> Contribution`: one client's work in an exchange."""


class Link(Protocol):
    """A round's access to its clients: messages down and up, functions on clients, counts. A pytree that goes into and
    comes out of every call, so that it can be carried through a loop; see `exchange.link`."""

    @property
    def pool(self) -> Pool:
        """Rows of all clients and frozen parameters."""

    @property
    def num_clients(self) -> int:
        """Registered clients."""

    @property
    def round_number(self) -> Array:
        """int32: rounds done before this one."""

    @property
    def uplink(self) -> Codec:
        """The codec of messages up, unless a call names another."""

    @property
    def downlink(self) -> Codec:
        """The codec of messages down, likewise."""

    @property
    def attack(self) -> Attack:
        """The behavior of Byzantine clients; `attacks.none()` where there are none."""

    def broadcast(
        self,
        key: Key,
        tree: PyTree,
        cohort: Cohort,
        name: str = MODEL,
        codec: Codec | None = None,
        background: bool = False,
        present: Mapping[str, Array] | None = None,
    ) -> tuple[PyTree, Self]:
        """One message to every client of the cohort: (the tree as they decode it, link). Of an entry in `present`, a
        tuple of n parts, each client receives the parts that bool `[C, n]` says."""

    def relay(
        self, key: Key, tree: PyTree, name: str, sent: Array, codec: Codec | None = None, to: Cohort | None = None
    ) -> tuple[PyTree, Self]:
        """A message of each of K trees, leaves `[K, ...]`, sent int32 `[K]` times between edge servers and the server,
        or `to` the clients whose memory names their `group`: (the trees as their receivers decode them, link)."""

    def map_clients(
        self,
        client: ClientFunction,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        watch: Callable[[PyTree], PyTree] = nothing,
        aggregate: Aggregator | None = None,
        origin: Mapping[str, PyTree] | None = None,
        steps: Array | int | None = None,
        background: bool = False,
    ) -> tuple[Reduced, PyTree, Self]:
        """Every client trains and sends; the server gets the weighted mean: (Reduced, new client states, link)."""

    def collect(
        self,
        client: ClientFunction,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        steps: Array | int | None = None,
        background: bool = False,
        direction: str = "up",
    ) -> tuple[Collected, PyTree, Self]:
        """As `map_clients`, with the contributions one by one: (Collected, new client states, link). Clients pass
        theirs on to another client where `direction` is `peer`."""

    def mix(
        self,
        client: ClientFunction,
        receive: Receive,
        shared: PyTree,
        cohort: Cohort,
        key: Key,
        graph: Graph,
        name: str = MODEL,
        codec: Codec | None = None,
        steps: Array | int | None = None,
    ) -> tuple[Mixed, PyTree, Self]:
        """Every worker trains and sends a tree to all who hear it, and `receive`s the weighted mean of its own and
        those that it hears: (Mixed, new client states, link)."""

    def on_clients(
        self,
        f: Callable[[PyTree, PyTree, ClientRows, Key], tuple[Partial, PyTree]],
        shared: PyTree,
        cohort: Cohort,
        key: Key,
        steps: Array | int | None = 0,
    ) -> tuple[Partial, Array, PyTree, Self]:
        """`f(shared, memory, rows, key) -> (Partial, new memory)` on every client, without a message: (totals, int32
        clients left out, new client states, link)."""

    @property
    def varies(self) -> bool:
        """Whether rounds differ in their numbers of clients, or wait for some of the cohort only."""

    def expected(self, cohort: Cohort) -> Array:
        """float32: number of clients whose messages a round has in expectation, before dropouts: all of the cohort, or,
        where these numbers vary, `cohort_size`."""

    def count(self, mask: Array) -> Array:
        """int32: number of clients of the whole cohort for whom the mask bool `[C]` is true."""

    def everyone(self, values: PyTree) -> PyTree:
        """Leaves `[C, ...]` of this shard's clients to those of the whole cohort, in the order of `collect`."""

    def average(self, values: PyTree, mask: Array) -> PyTree:
        """float32 means of leaves `[C, ...]` over the clients of the whole cohort for whom bool `[C]` is true, which a
        simulator alone can know; zeros if there is none."""

    def until(self, deadline: float) -> Self:
        """The link of a round whose stragglers are late `deadline` seconds after its start; needs a system model."""

    def late(self, cohort: Cohort) -> Array:
        """bool `[C]`: stragglers of the round so far; nobody without a deadline."""

    def seconds(self, cohort: Cohort) -> Array:
        """float32 `[C]`: simulated seconds of these clients since the start of the round; 0 without a clock."""

    def seconds_left(self, cohort: Cohort) -> Array:
        """float32 `[C]`: seconds from there to the deadline of `until`, negative for those who are late; infinite
        without a deadline."""

    def step_seconds(self, cohort: Cohort) -> Array:
        """float32 `[C]`: seconds of a local step in this round; 0 without a clock."""

    def wait(self, cohort: Cohort) -> Self:
        """The link after these clients have the messages that were sent to them in the `background`, beside the local
        steps that went on meanwhile."""

    def replace(self, **changes: Any) -> Self:
        """The link with other settings: `uplink`, `downlink`, `attack`."""


class RoundOutput(NamedTuple):
    """Result of an algorithm's round: the server's and the clients' new states, the link, and a report."""

    state: PyTree
    client_states: PyTree
    link: Link
    report: dict[str, Any]
    """Values for the log, by name."""


Way = Mapping[Channel, int]
"""One possibility for a client's traffic in a round: how often it sends or receives each kind of message."""


def each_once(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
    """The ways of most algorithms: every kind of message once, without its optional sections, or with them."""
    return {c: 1 for c in channels if not c.part}, dict.fromkeys(channels, 1)


class Algorithm(NamedTuple):
    """A federated algorithm. Build the usual shape (send, train, reduce, step) with `algorithms.from_parts`."""

    local: LocalTraining
    """Local training of its clients; has the model and the batch plan."""
    init: Callable[[Variables], PyTree]
    """Initial variables to the server's state (float32)."""
    init_client: Callable[[Variables], PyTree]
    """Initial variables to one client's persistent state; `()` when clients remember nothing."""
    round: Callable[[Link, PyTree, Cohort, Key], RoundOutput]
    """`(link, state, cohort, key) -> RoundOutput`."""
    variables: Callable[[PyTree], Variables]
    """Server state to the variables that are evaluated; without frozen parameters."""
    account: Callable[[Mapping[Channel, int]], dict[str, int]] = nothing
    """Messages of each kind since the start to byte counts for the log, such as those by an author's formula."""
    everyone: bool = False
    """Whether every client must take part in every round; with a `graph`, some may still drop out."""
    privacy: Callable[[int], dict[str, float]] = nothing
    """Rounds done to the privacy loss of one client, for the log: `epsilon` at `delta`. Called after every round."""
    admits: Callable[[Any], object] = nothing
    """`(participation.Participants of a run)`: raises UserError where privacy is accounted for other participants.
    Called when a simulation is made."""
    frozen: Callable[[PyTree, PyTree], PyTree] = lambda state, frozen: frozen
    """`(server state, frozen parameters as initialized) -> frozen parameters of this round`, for servers that move
    parameters which clients do not train (`fedlora`). Called before every round."""
    ways: Callable[[Sequence[Channel], int, int], Sequence[Way]] = each_once
    """`(kinds of message, most local steps of a client in a round, clients of a round) -> ways`, those with the fewest
    and the most bytes of either direction among them; for forecasts."""
    personal: Callable[[PyTree, PyTree], Variables] | None = None
    """`(server state, a client's memory) -> Variables`, the model that this client would use, without frozen
    parameters; None: every client uses the global one. See `variables_of`."""
    ages: bool = False
    """Whether its clients may start from the older models that `ClientRows.received` gives them."""
    pooled: bool = False
    """Whether a round trains on the rows of all clients at once: every device then holds all of them."""
    steps: Callable[[Array], Array] | None = None
    """Numbers of rows of clients to their local steps in a round, for forecasts; None: those of the batch plan."""
    timed: bool = False
    """Whether a round reads its clients' time, so that it needs a system model with a clock."""
    deadline: float = math.inf
    """Seconds after the start of a round at which clients are late, for forecasts."""
    trains_until: float = math.inf
    """Seconds after the start of a round at which clients stop training, and send what they have; likewise."""
    graph: Callable[[int, int], Any] | None = None
    """`(round, workers) -> Graph`, where clients are workers on a graph; None: a star."""

    def variables_of(self, state: PyTree, memory: PyTree) -> Variables:
        """The model that the client of this memory would use, without frozen parameters."""
        return self.variables(state) if self.personal is None else self.personal(state, memory)
