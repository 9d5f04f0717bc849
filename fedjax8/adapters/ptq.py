"""Post-training quantization: trained in float32, run in 8-bit floats. The "no QAT" of an ablation.

    training      layer(x, w)
    evaluation    layer(Q(x; max|x|), Q(w; max|w|))          Q rounds to nearest

There is nothing to learn: each tensor's clip is its own largest magnitude, measured where it is used (for inputs: over
the evaluation batch). Compare with `qat`, which trains on the grid.
"""

from collections.abc import Mapping

import jax

from fedjax8.adapters._rules import check_rules
from fedjax8.given import checked
from fedjax8.numerics import scales
from fedjax8.numerics.format_rules import format_rules
from fedjax8.numerics.formats import Format
from fedjax8.paths import layers_of
from fedjax8.types import Model


@checked
def ptq(model: Model, format: str | None = None, *, rules: Mapping[str, str] | None = None) -> Model:
    """`model` trained as it is and evaluated with its kernels and layer inputs on the grid of an 8-bit float.

    Args:
      model: any model whose dense and convolution layers ask `multiply`.
      format: `e4m3fn`, `e4m3fnuz` or `e5m2`; None: that of the run (`config.format`), `e4m3fn` outside of one.
      rules: as of `qat`: a pattern on layer paths to a format or `float32`, first match wins; None: those of the run.

    Raises:
      UserError: when the model is initialized, if a pattern matches no layer.

    Adds the view `float32`: the evaluation without quantization.
    """
    by_layer = format_rules(format, rules)

    def init(key, batch):
        variables = model.init(key, batch)
        if rules:
            check_rules(by_layer, layers_of(model, variables, batch), "ptq: rules")
        return variables

    def on_grid(x: jax.Array, fmt: Format) -> jax.Array:
        return scales.quantize(x, scales.max_abs(x), fmt)

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        by_layer.record("adapter ptq")

        def rounded(path, product, x, kernel):
            fmt = by_layer.of(path)
            if fmt is None:
                return product.forward(x, kernel) if multiply is None else multiply(path, product, x, kernel)
            forward = lambda x, kernel: product.forward(on_grid(x, fmt), on_grid(kernel, fmt))
            if multiply is None:
                return forward(x, kernel)
            return multiply(path, product._replace(forward=forward), x, kernel)

        return model.apply(variables, batch, key=key, train=train, multiply=multiply if train else rounded)

    return model._replace(init=init, apply=apply, views={**model.views, "float32": model.apply})


EXAMPLES = ({}, {"format": "e4m3fnuz"}, {"rules": {"*": "e5m2"}})
