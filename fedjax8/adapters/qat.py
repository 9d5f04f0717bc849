"""Quantization-aware training in 8-bit floats: a model sees its weights and layer inputs on an FP8 grid.

    layer(x, w)  ->  layer(Q(x; beta), Q(w; alpha))          Q rounds to nearest, its gradient goes straight through

Every dense and convolution layer gets two learnable clips, float32 scalars beside its kernel: `kernel_clip` (alpha,
starts at max|w|) and `input_clip` (beta, starts at the largest input seen on the sample batch). Biases, norms and
clips stay float32. Grid and gradients: Kuzmin et al., arXiv 2208.09225, section 4 as in its public code. That Wang et
al. (arXiv 2407.02610) use the same, and the initial values, is inferred.

The model's file is not touched: weights are quantized in the parameter tree, inputs through `layer_input`.
"""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.numerics import formats, scales, straight_through
from fedjax8.types import Model, PyTree, Variables

KERNEL, KERNEL_CLIP, INPUT_CLIP = "kernel", "kernel" + trees.CLIP_SUFFIX, "input" + trees.CLIP_SUFFIX


def _node(params: PyTree, path: str) -> dict:
    """The dict of parameters of the layer at `path`."""
    for name in path.split("/") if path else ():
        params = params[_key(params, name)]
    return params


def _key(params: PyTree, name: str) -> str | int:
    """The key that a path's part stands for: nnx numbers the parts of a sequence."""
    return name if name in params else int(name)


def _with_node(params: dict, path: list[str], node: dict) -> dict:
    """`params` with the dict at `path` replaced."""
    if not path:
        return node
    first, rest = _key(params, path[0]), path[1:]
    return params | {first: _with_node(params[first], rest, node)}


def qat(
    model: Model,
    format: str = "e4m3fnuz",
    *,
    weights: bool = True,
    activations: bool = True,
    gradients: str | None = None,
) -> Model:
    """`model` trained on the grid of an 8-bit float.

    Args:
      model: any model whose dense and convolution layers report to `layer_input` (`from_linen`, `from_nnx`).
      format: grid of weights and inputs: `e4m3fnuz` (that of the FP8 papers), `e4m3fn` or `e5m2`.
      weights: quantize kernels.
      activations: quantize layer inputs.
      gradients: None, or the format (`e5m2`) to which gradients of layer inputs are rounded on the way back.

    Adds the view `float32`: the same parameters without quantization. Keeps clips at least `MIN_ALPHA`.
    """
    fmt = formats.get_format(format)
    back = None if gradients is None else formats.get_format(gradients)

    def layer_paths(variables: Variables, batch) -> dict[str, jax.Array]:
        """Path of every layer with a kernel, with the largest magnitude of its input on this batch."""
        seen: dict[str, jax.Array] = {}

        def record(path, x):
            seen[path] = jnp.maximum(seen.get(path, 0.0), scales.max_abs(x))
            return x

        model.apply(variables, batch, layer_input=record)
        return {path: largest for path, largest in seen.items() if KERNEL in _node(variables.params, path)}

    def init(key, batch):
        variables = model.init(key, batch)
        params = variables.params
        for path, largest in layer_paths(variables, batch).items():
            node = dict(_node(params, path))
            if weights:
                node[KERNEL_CLIP] = scales.max_abs(node[KERNEL])
            if activations:
                node[INPUT_CLIP] = jnp.maximum(largest, scales.MIN_ALPHA)
            params = _with_node(params, path.split("/") if path else [], node)
        return Variables(params, variables.state)

    def quantized_weights(params: PyTree) -> PyTree:
        """Params without clips, each kernel on its grid."""
        if not isinstance(params, dict):
            return params
        plain = {n: quantized_weights(v) for n, v in params.items() if n not in (KERNEL_CLIP, INPUT_CLIP)}
        if KERNEL_CLIP in params:
            plain[KERNEL] = straight_through.fake_quantize(params[KERNEL], params[KERNEL_CLIP], fmt)
        return plain

    def without_clips(params: PyTree) -> PyTree:
        if not isinstance(params, dict):
            return params
        return {n: without_clips(v) for n, v in params.items() if n not in (KERNEL_CLIP, INPUT_CLIP)}

    def quantize_inputs(params: PyTree, outer):
        def hook(path, x):
            if outer is not None:
                x = outer(path, x)
            clip = _node(params, path).get(INPUT_CLIP)
            if clip is None:
                return x
            x = straight_through.fake_quantize(x, clip, fmt)
            return x if back is None else straight_through.quantize_gradient(x, back)

        return hook

    def apply(variables, batch, *, key=None, train=False, layer_input=None):
        params, state = variables
        hook = quantize_inputs(params, layer_input)
        inner = Variables(quantized_weights(params), state)
        return model.apply(inner, batch, key=key, train=train, layer_input=hook)

    def float32(variables, batch, **settings):
        return model.apply(Variables(without_clips(variables.params), variables.state), batch, **settings)

    def project(params):
        def keep_positive(name, x):
            return jnp.maximum(x, scales.MIN_ALPHA) if trees.is_clip(name) else x

        return trees.map_named(keep_positive, model.project(params))

    def report(params):
        clips = {name: x for name, x in trees.named_leaves(params).items() if trees.is_clip(name)}
        return model.report(params) | {f"clip/{name.removesuffix(trees.CLIP_SUFFIX)}": x for name, x in clips.items()}

    views = {**model.views, "float32": float32}
    return model._replace(init=init, apply=apply, project=project, views=views, report=report)


EXAMPLES = ({}, {"format": "e4m3fn", "gradients": "e5m2"}, {"activations": False})
