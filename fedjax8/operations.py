"""Counted operations: multiply-adds of a traced program, floating-point operations of a local step.

    operations of a step = 2 * multiply-adds of the gradient of a batch's mean loss

Traced, not run. A product y = x k of `[M, K]` and `[K, N]` has M K N multiply-adds, and so has each of the derivatives
dx and dk that training needs. `step_operations` counts layers by their definition, whatever form this machine computes
them in (`models.conv` has forms with fewer multiplications on CPU), so that simulated seconds do not depend on the
machine. Elementwise work, rounding and the optimizer are not counted.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.keys import random_key
from fedjax8.types import Array, BatchPlan, Model, Multiply, Product, PyTree, Variables


def step_operations(model: Model, plan: BatchPlan, columns: Mapping[str, np.ndarray | Array]) -> float:
    """Floating-point operations of one local step of a model on a full batch.

    Args:
      model: as it is trained, adapters included.
      plan: gives the size of the batch.
      columns: the data's, `[N, ...]` each; only shapes and types are read.
    """
    shape_of = lambda x: jax.ShapeDtypeStruct((plan.batch_size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
    batch: PyTree = {name: shape_of(column) for name, column in columns.items()}
    batch["mask"] = jax.ShapeDtypeStruct((plan.batch_size,), jnp.float32)
    variables = jax.eval_shape(lambda batch: model.init(random_key(0), batch), batch)
    return 2.0 * multiply_adds(loss_gradient(model, _by_definition), variables, batch)


def loss_gradient(model: Model, multiply: Multiply | None = None) -> Callable[[Variables, PyTree], PyTree]:
    """`(variables, batch) -> gradient of the batch's mean loss`, with `multiply` as in `types.Apply`."""

    def loss(params: PyTree, variables: Variables, batch: PyTree) -> Array:
        given = variables._replace(params=params)
        outputs, _ = model.apply(given, batch, key=random_key(0), train=True, multiply=multiply)
        return jnp.mean(model.loss(outputs, batch))

    return lambda variables, batch: jax.grad(loss)(variables.params, variables, batch)


def _by_definition(path: str, product: Product, x: Array, kernel: Array) -> Array:
    """An array of y's shape, from one matrix product with the multiply-adds of the layer's definition.

    Its values mean nothing. A convolution is known by x, kernel and y that have the same rank, three or more.
    """
    if not x.shape:  # the number 1, of a layer that asks once for a kernel that it uses many times
        return product.forward(x, kernel)
    y = jax.eval_shape(product.forward, x, kernel)
    if x.ndim == kernel.ndim == y.ndim > 2:
        inner = kernel.size // kernel.shape[-1]
    else:
        inner = math.isqrt(x.size * kernel.size // y.size)
    features = kernel.size // inner
    rows = jnp.broadcast_to(jnp.sum(x.astype(jnp.float32)), (y.size // features, inner))
    return (rows @ kernel.astype(jnp.float32).reshape(inner, features)).reshape(y.shape)


def multiply_adds(f: Callable, *arguments: PyTree) -> int:
    """Multiply-adds of the matrix products and convolutions of `f`, traced; loops of unknown length count once.

    >>> multiply_adds(lambda a, b: jnp.tanh(a @ b), jnp.ones((2, 3)), jnp.ones((3, 5)))
    30
    >>> multiply_adds(lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=4)[0], jnp.ones((3, 3)))
    108
    """
    return _multiply_adds(jax.make_jaxpr(f)(*arguments).jaxpr)


def _multiply_adds(program: Any) -> int:
    total = 0
    for equation in program.eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape")]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(shapes[-1]) * math.prod(shapes[1]) // features
        values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        inner = [getattr(value, "jaxpr", value) for value in values]
        counts = [_multiply_adds(one) for one in inner if hasattr(one, "eqns")]
        if counts:  # of the branches of a condition, the longest
            once = max(counts) if equation.primitive.name == "cond" else sum(counts)
            total += once * equation.params.get("length", 1)
    return total
