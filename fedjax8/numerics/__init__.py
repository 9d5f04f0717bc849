"""Number formats, casts, unbiased rounding, clipping scales, bit packing and straight-through gradients.

Start with `scales` (encode, decode, quantize with a clipping value) and `straight_through` (training). `bits` holds the
integer arithmetic underneath, `dither` the cheap random bits and `hadamard` random rotations.
"""

from fedjax8.numerics.casts import as_codes as as_codes
from fedjax8.numerics.casts import as_storage as as_storage
from fedjax8.numerics.casts import cast as cast
from fedjax8.numerics.casts import round_to_grid as round_to_grid
from fedjax8.numerics.casts import to_float32 as to_float32
from fedjax8.numerics.dither import hash_bits as hash_bits
from fedjax8.numerics.dither import uniform as uniform
from fedjax8.numerics.formats import FORMATS as FORMATS
from fedjax8.numerics.formats import NARROW_FORMATS as NARROW_FORMATS
from fedjax8.numerics.formats import Format as Format
from fedjax8.numerics.formats import format_from_dtype as format_from_dtype
from fedjax8.numerics.formats import get_format as get_format
from fedjax8.numerics.hadamard import hadamard as hadamard
from fedjax8.numerics.hadamard import padded_size as padded_size
from fedjax8.numerics.hadamard import rotate as rotate
from fedjax8.numerics.hadamard import unrotate as unrotate
from fedjax8.numerics.packing import pack_bits as pack_bits
from fedjax8.numerics.packing import packed_size as packed_size
from fedjax8.numerics.packing import unpack_bits as unpack_bits
from fedjax8.numerics.rounding import stochastic_cast as stochastic_cast
from fedjax8.numerics.rounding import stochastic_round as stochastic_round
from fedjax8.numerics.scales import MIN_ALPHA as MIN_ALPHA
from fedjax8.numerics.scales import decode as decode
from fedjax8.numerics.scales import encode as encode
from fedjax8.numerics.scales import max_abs as max_abs
from fedjax8.numerics.scales import quantize as quantize
from fedjax8.numerics.scales import scale_for as scale_for
from fedjax8.numerics.straight_through import fake_quantize as fake_quantize
from fedjax8.numerics.straight_through import quantize_gradient as quantize_gradient
