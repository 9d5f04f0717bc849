"""Count sketch: the whole tree as one small table, linear in it, from which its large entries are read.

    table = S(x);   x^ = median over rows of their estimates of an element, all of them or the `keep` largest

The message of FetchSGD (Rothchild et al., arXiv 2007.07682); `numerics.sketch` has the table and its bounds. As all who
use one seed share the hashes, S(x) + S(y) = S(x + y): a server may add tables instead of trees. Momentum and error
feedback, which FetchSGD keeps on the server in sketched form, are not part of the codec.

Message layout: float32 `[rows, columns]`, 4 rows columns bytes, whatever the size of the model.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import trees
from fedjax8.codecs import _flat
from fedjax8.codecs._leaves import largest_magnitude, unit_of, within
from fedjax8.errors import UserError
from fedjax8.numerics.select import largest
from fedjax8.numerics.sketch import sketch, unsketch
from fedjax8.types import Array, Codec, PyTree


@struct.dataclass
class Sketched:
    """A message."""

    table: Array
    """float32 `[rows, columns]`."""
    others: tuple[PyTree, ...]
    """Leaves that pass through."""
    layout: _flat.Layout = struct.field(pytree_node=False)


def count_sketch(rows: int = 5, columns: int = 500_000, *, keep: int | None = None, seed: int = 0) -> Codec:
    """Codec that sends a count sketch, for updates. Defaults are those of the authors' code.

    Args:
      rows: 1 to 32 independent rows, of which the median is taken.
      columns: buckets of a row.
      keep: number of the largest estimates that are kept, the rest decoding to zero; None keeps all.
      seed: of the hashes; the same for everyone.

    Guarantees: fixed size, independent of the model's; encoding is linear; exact where no two values that differ from
    zero share a bucket in most rows. An estimate has a standard deviation of at most ||x|| / sqrt(columns) over seeds.
    Does not contract, not even after scaling: an entry that all rows miss is missed again in the next message.
    Measures `quantization_error`.

    Raises:
      UserError: when the run is set up, if the table is no smaller than the tree.
    """
    if not 1 <= rows <= 32:
        raise ValueError(f"rows must be 1 to 32; got {rows!r}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns!r}")
    if keep is not None and keep < 1:
        raise ValueError(f"keep must be at least 1, or None to keep all; got {keep!r}")

    def init(tree):
        count = sum(x.size for x in jax.tree.leaves(tree) if trees.is_float32(x))
        if 0 < count <= rows * columns:
            raise UserError(
                f"count_sketch: a table of rows={rows} times columns={columns} is no smaller than the {count} values "
                "of the tree; give fewer columns"
            )
        return ()

    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree)
        if not vectors:
            return Sketched(jnp.zeros((0, 0)), others, layout), state
        unit = unit_of(largest_magnitude(vectors[0]))  # so that no sum leaves float32 on the way
        table = sketch([vectors[0] * (1 / unit)], rows, columns, seed)
        return Sketched(within(table * unit), others, layout), state

    def decode(state, message):
        if not message.table.size:
            return _flat.unflatten((), message.others, message.layout)
        likes = tuple(jax.ShapeDtypeStruct((n,), jnp.float32) for n in _flat.group_sizes(message.layout))
        unit = unit_of(largest_magnitude(message.table))
        vectors = [_top(unit * x, keep) for x in unsketch(message.table * (1 / unit), likes, seed)]
        return _flat.unflatten(vectors, message.others, message.layout)

    return Codec(init, encode, decode, False, None, _flat.squared_error)


def _top(x: Array, keep: int | None) -> Array:
    """x with all but its `keep` largest magnitudes set to zero."""
    if keep is None or keep >= x.size:
        return x
    at = largest(lax.bitcast_convert_type(jnp.abs(x), jnp.int32), keep)
    return _flat.scatter(x.size, at, x[at])


EXAMPLES = ({"rows": 3, "columns": 12}, {"rows": 5, "columns": 7, "keep": 4})
