"""Post-training quantization: trained in float32, run in 8-bit floats. The "no QAT" of an ablation.

    training      layer(x, w)
    evaluation    layer(Q(x; max|x|), Q(w; max|w|))          Q rounds to nearest

There is nothing to learn: each tensor's clip is its own largest magnitude, measured where it is used (for inputs: over
the evaluation batch). Compare with `qat`, whose training sees the grid.
"""

import jax

from fedjax8.given import checked
from fedjax8.numerics import formats, scales
from fedjax8.types import Model


@checked
def ptq(model: Model, format: str | None = None) -> Model:
    """`model` trained as it is and evaluated with its kernels and layer inputs on the grid of an 8-bit float.

    Args:
      model: any model whose dense and convolution layers ask `multiply`.
      format: `e4m3fn`, `e4m3fnuz` or `e5m2`; None: that of the run (`config.format`), `e4m3fn` outside of one.

    Adds the view `float32`: the evaluation without quantization.
    """
    fmt = formats.get_format(format or formats.DEFAULT)

    def on_grid(x: jax.Array) -> jax.Array:
        return scales.quantize(x, scales.max_abs(x), fmt)

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        formats.record_use("adapter ptq", fmt)

        def rounded(path, product, x, kernel):
            forward = lambda x, kernel: product.forward(on_grid(x), on_grid(kernel))
            if multiply is None:
                return forward(x, kernel)
            return multiply(path, product._replace(forward=forward), x, kernel)

        return model.apply(variables, batch, key=key, train=train, multiply=multiply if train else rounded)

    return model._replace(apply=apply, views={**model.views, "float32": model.apply})


EXAMPLES = ({}, {"format": "e4m3fnuz"})
