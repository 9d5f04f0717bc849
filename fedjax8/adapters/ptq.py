"""Post-training quantization: trained in float32, run in 8-bit floats. The "no QAT" of an ablation.

    training      layer(x, w)
    evaluation    layer(Q(x; max|x|), Q(w; max|w|))          Q rounds to nearest

There is nothing to learn: each tensor's clip is its own largest magnitude, measured where it is used. Compare with
`qat`, whose training sees the grid.
"""

import jax

from fedjax8 import trees
from fedjax8.numerics import formats, scales
from fedjax8.types import Model, Variables


def ptq(model: Model, format: str = "e4m3fnuz") -> Model:
    """`model` trained as it is and evaluated with its kernels and layer inputs on the grid of an 8-bit float.

    Adds the view `float32`: the evaluation without quantization.
    """
    fmt = formats.get_format(format)

    def on_grid(x: jax.Array) -> jax.Array:
        return scales.quantize(x, scales.max_abs(x), fmt)

    def apply(variables, batch, *, key=None, train=False, layer_input=None):
        if train:
            return model.apply(variables, batch, key=key, train=True, layer_input=layer_input)

        def hook(path, x):
            return on_grid(x if layer_input is None else layer_input(path, x))

        params = trees.map_named(lambda n, x: on_grid(x) if n.rpartition("/")[2] == "kernel" else x, variables.params)
        return model.apply(Variables(params, variables.state), batch, key=key, layer_input=hook)

    return model._replace(apply=apply, views={**model.views, "float32": model.apply})


EXAMPLES = ({}, {"format": "e4m3fn"})
