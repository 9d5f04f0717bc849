"""Floors of a round's time, from its multiplications alone, measured on the machine at hand.

The *floor* is the time at the machine's best rate: the multiply-adds of the matrix products and
convolutions of a round (each product y = x k and those of its two derivatives dx and dk) over the rate of large
float32 products on all devices at once:

    floor = samples * sum over products of rows * inner * columns * repeats * (1 + [dx] + [dk]) / rate of large products

Only rows that a client has are counted, not the padding of its last batch. A derivative is counted if training needs
it: the first layer has no dx, unless its input was itself trained, as an embedding was. Of an LSTM these are the
products into its gates, the recurrent ones of every time step, and those of the layer after it. Clips of quantizers are
not taken for parameters, so that 8-bit training has the floor of float32 training. The rate is measured in the same
process right before and after each round, so that a machine whose speed drifts does not spoil the ratio.

The *shape floor* is the time of these products in their own shapes, one client's batch at a time:

    shape floor = samples / batch / devices * (sum over products of its own seconds + seconds to move the parameters)
                  + seconds to read the samples

Each product is run alone as a bare product of matrices that lie as it wants them (for a convolution, patches times
kernel, the patches ready; dk of a recurrence is one product over all time steps), on all devices at once, and as
many clients' at once as the round vmaps. The optimizer must at least read and write every parameter at every step; how
long that takes is measured on an array of the model's size, which may well stay in a cache. The samples are read at the
same rate. Neither padding nor devices that wait for each other are in it. So

    floor -> shape floor    is lost to small or narrow products, and to memory; only another algorithm wins it back
    shape floor -> round    is added by fedjax8 and XLA: patches, activations, random numbers, padding, dispatch

The shape floor is measured once, and scaled with the rate of large products at the time of each round.
"""

import functools
import math
import statistics
import time
import unittest.mock
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MATMUL_SIZE = 1024
CLOCK_SECONDS = 0.25
SHAPE_SECONDS = 0.03
"""Seconds of one of three timings of a product of the shape floor."""
TRAINED, DATA = 1, 2
"""Marks of a value in a program: computed from parameters, from the batch."""


class Product(NamedTuple):
    """A matrix product or convolution of the forward pass on one sample: `[rows, inner] x [inner, columns]`."""

    rows: int
    inner: int
    columns: int
    repeats: int
    """Such products that cannot be one: time steps, blocks."""
    input_gradient: bool
    kernel_gradient: bool

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass."""
        return self.rows * self.inner * self.columns * self.repeats

    @property
    def training_multiply_adds(self) -> int:
        """Multiply-adds of the forward pass and the gradients that are needed."""
        return self.multiply_adds * (1 + self.input_gradient + self.kernel_gradient)

    def matmuls(self, batch: int) -> list[tuple[int, int, int, int]]:
        """`(m, k, n, times)` of the products `[m, k] x [k, n]` in a step on `batch` samples."""
        rows = self.rows * batch
        products = [(rows, self.inner, self.columns, self.repeats)]
        if self.input_gradient:
            products.append((rows, self.columns, self.inner, self.repeats))
        if self.kernel_gradient:
            products.append((self.inner, rows * self.repeats, self.columns, 1))
        return products


def products_of(model: Any, variables: Any, row: dict[str, Any]) -> list[Product]:
    """The products of one forward pass, in order; `row` has the shapes of a batch of one sample.

    A convolution counts as the multiply-adds of its definition, also where `models.conv` needs fewer.
    """
    import jax

    def mark(path, _):
        return 0 if jax.tree_util.keystr(path[-1:]).strip("[]'\"").endswith("clip") else TRAINED

    marks = jax.tree.leaves(jax.tree_util.tree_map_with_path(mark, variables)) + [DATA] * len(row)
    found: list[Product] = []
    # Traced as for an accelerator, for which `models.conv` leaves convolutions to lax.
    with unittest.mock.patch("jax.default_backend", return_value="gpu"):
        program = jax.make_jaxpr(lambda v, b: model.apply(v, b)[0])(variables, row)
    _walk(program.jaxpr, marks, 1, found)
    return found


def _walk(jaxpr, marks: Sequence[int], repeats: int, found: list[Product]) -> list[int]:
    """Marks of the results of a program whose arguments have these marks; adds its products to `found`."""
    known = dict(zip(jaxpr.invars, marks, strict=True))

    def mark_of(atom):
        return 0 if hasattr(atom, "val") else known.get(atom, 0)

    for equation in jaxpr.eqns:
        ins = [mark_of(atom) for atom in equation.invars]
        outs = [functools.reduce(lambda a, b: a | b, ins, 0)] * len(equation.outvars)
        if equation.primitive.name == "dot_general":
            found.append(_dot(equation, ins, repeats))
        elif equation.primitive.name == "conv_general_dilated":
            found.append(_convolution(equation, ins, repeats))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if not hasattr(inner, "eqns"):
                continue
            inside = ins if len(ins) == len(inner.invars) else outs[:1] * len(inner.invars)
            if equation.primitive.name == "scan":
                outs = _scan(equation, inner, inside, repeats, found)
            else:
                after = _walk(inner, inside, repeats, found)
                outs = after if len(after) == len(outs) else outs
        known |= dict(zip(equation.outvars, outs, strict=True))
    return [mark_of(atom) for atom in jaxpr.outvars]


def _scan(equation, inner, ins, repeats, found):
    """As `_walk`, for the body of a loop, whose carry keeps its marks from step to step."""
    constants, carried = equation.params["num_consts"], equation.params["num_carry"]
    while True:
        outs = _walk(inner, ins, repeats, [])
        carry = [a | b for a, b in zip(ins[constants : constants + carried], outs[:carried], strict=True)]
        after = [*ins[:constants], *carry, *ins[constants + carried :]]
        if after == ins:
            return _walk(inner, ins, repeats * equation.params["length"], found)
        ins = after


def _dot(equation, ins, repeats):
    contract, batch = equation.params["dimension_numbers"]
    shapes = [v.aval.shape for v in equation.invars]
    inner = math.prod(shapes[0][axis] for axis in contract[0])
    together = math.prod(shapes[0][axis] for axis in batch[0])
    free = [math.prod(shape) // (inner * together) for shape in shapes]
    x = 1 if ins[1] & DATA and not ins[0] & DATA else 0  # which operand is the input; the other is the kernel
    return Product(free[x], inner, free[1 - x], repeats * together, bool(ins[x] & TRAINED), bool(ins[1 - x] & TRAINED))


def _convolution(equation, ins, repeats):
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    features = kernel[numbers.rhs_spec[0]]
    rows = math.prod(out) // out[numbers.out_spec[1]]
    columns, inner = features // groups, math.prod(kernel) // features
    return Product(rows, inner, columns, repeats * groups, bool(ins[0] & TRAINED), bool(ins[1] & TRAINED))


def matmul_clock() -> Callable[[], float]:
    """A function that measures float32 multiply-adds per second of the whole machine, in about a quarter of a second.

    It multiplies large matrices on all devices at once; on CPU, within a few percent of what NumPy's library reaches.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    devices = jax.local_device_count()
    size = MATMUL_SIZE if jax.default_backend() == "cpu" else 8 * MATMUL_SIZE
    a = np.random.default_rng(0).standard_normal((devices, size, size)).astype(np.float32) / math.sqrt(size)

    @functools.partial(jax.pmap, in_axes=(0, None))
    def chain(a, products):
        return jax.lax.fori_loop(0, products, lambda _, x: jnp.dot(x, a), a)

    a = jax.block_until_ready(jax.pmap(lambda x: x)(a))
    jax.block_until_ready(chain(a, 1))
    begun = time.perf_counter()
    jax.block_until_ready(chain(a, 4))
    products = max(4, round(4 * CLOCK_SECONDS / (time.perf_counter() - begun)))

    def rate() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(chain(a, products))
        return devices * products * size**3 / (time.perf_counter() - begun)

    return rate


def _seconds_of(repeated: Callable, *arguments: Any) -> float:
    """Seconds of one of the runs that `repeated(*arguments, times)` makes on every device; a median of three."""
    import jax

    def run(times: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(repeated(*arguments, times))
        return time.perf_counter() - begun

    run(1)
    times = 1
    while (seconds := run(times)) < SHAPE_SECONDS / 4:
        times *= 4
    times = max(1, math.ceil(times * SHAPE_SECONDS / seconds))
    return statistics.median(run(times) for _ in range(3)) / times


@functools.cache
def matmul_seconds(m: int, k: int, n: int, together: int = 1) -> float:
    """Seconds of a float32 product `[m, k] x [k, n]` (`together` of them batched) while all devices do the same."""
    import jax
    import jax.numpy as jnp

    devices = jax.local_device_count()
    many = (together,) if together > 1 else ()

    @functools.partial(jax.pmap, in_axes=(0, 0, None))
    def repeated(a, b, times):
        def one(_, a):
            y = jax.lax.optimization_barrier(jnp.matmul(a, b))
            first = (0,) * a.ndim
            return a.at[first].set(y[first] * 1e-3)  # the next product needs this one, so none is left out

        return jax.lax.fori_loop(0, times, one, a)

    a, b = (jax.pmap(lambda _, s=s: jnp.full((*many, *s), 0.01))(jnp.arange(devices)) for s in ((m, k), (k, n)))
    return _seconds_of(repeated, a, b)


@functools.cache
def update_seconds(numbers: int) -> float:
    """Seconds to read and write an array of so many float32 numbers while all devices do the same."""
    import jax
    import jax.numpy as jnp

    @functools.partial(jax.pmap, in_axes=(0, None))
    def repeated(a, times):
        return jax.lax.fori_loop(0, times, lambda _, a: jax.lax.optimization_barrier(a + 1.0), a)

    return _seconds_of(repeated, jax.pmap(lambda _: jnp.zeros(numbers))(jnp.arange(jax.local_device_count())))


class ShapeFloor(NamedTuple):
    """Seconds of a round, for each sample that it trains on, on the whole machine."""

    products: float
    """Products, alone."""
    memory: float
    """Parameters read and written at every step, samples read once."""


def shape_floor(products: Sequence[Product], batch: int, together: int, parameters: int, row_bytes: int) -> ShapeFloor:
    """The shape floor of a model on this machine.

    Args:
      products: of one sample.
      batch: samples in a step.
      together: clients vmapped on each device.
      parameters: of the model.
      row_bytes: bytes of a sample, as the data set holds it.
    """
    import jax

    multiplying = sum(
        times * matmul_seconds(m, k, n, together) for p in products for m, k, n, times in p.matmuls(batch)
    )
    moving = update_seconds(parameters * together)
    bytes_a_second = 2 * 4 * parameters * together / moving
    steps_at_once = together * jax.local_device_count()
    return ShapeFloor(
        multiplying / (batch * steps_at_once),
        moving / (batch * steps_at_once) + row_bytes / bytes_a_second / jax.local_device_count(),
    )
