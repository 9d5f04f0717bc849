"""Quantization-aware training in 8-bit floats: weights and layer inputs of a model are rounded to an FP8 grid.

    layer(x, w)  ->  layer(Q(x; beta), Q(w; alpha))          Q rounds to nearest, its gradient goes straight through

Rounded arrays are held in the 8-bit type: weights and inputs as float8_e4m3fn, gradients of products as float8_e5m2
(`_products.py`).

Every dense and convolution layer gets two learnable clips, float32 scalars beside its kernel: `kernel_clip` (alpha,
starts at max|w|) and `input_clip` (beta, starts at the largest input seen on the sample batch). Biases, norms and clips
stay float32. A kernel that a recurrence uses at every step has no `input_clip`: it is rounded, the state is not. Grid
and gradients: Kuzmin et al., arXiv 2208.09225, section 4 as in its public code. It is inferred that Wang et al. (arXiv
2407.02610) use the same; so are the initial values.

The model's file is not touched: the product of each layer is replaced through `multiply` (see `types.Model.apply`).
Layers whose product flax does not let one replace (`ConvTranspose`, `ConvLocal`) stay as they are, with a warning.
"""

import re
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.adapters._products import quantized_product
from fedjax8.adapters._rules import check_rules
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.numerics import formats, scales
from fedjax8.numerics.format_rules import format_rules
from fedjax8.numerics.formats import Format
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


COMPUTE = ("auto", "simulated", "native", "emulated")
CAPABILITY = 8.9
"""Compute capability from which NVIDIA GPUs have 8-bit floating-point matrix units (Ada, Hopper and later)."""
TPUS = ("TPU7x",)
"""Kinds of TPUs that have them; earlier ones multiply 8-bit integers only (`jax._src.pallas.mosaic.tpu_info`)."""


def has_8_bit_units() -> bool:
    """Whether the first device here multiplies 8-bit floats. Starts JAX's backend."""
    device = jax.local_devices()[0]
    capability = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))  # not AMD's "gfx942"
    return device.device_kind in TPUS or (capability is not None and float(capability[0]) >= CAPABILITY)


def multipliable(fmt: Format, back: Format | None, weights: bool, activations: bool) -> bool:
    """Whether 8-bit units multiply these formats: e4m3fn by e4m3fn, and e5m2 by e4m3fn where `back` is given."""
    return fmt.name == "e4m3fn" and (back is None or back.name == "e5m2") and weights and activations


def check_compute(compute: str, fmt: Format, back: Format | None, weights: bool, activations: bool) -> None:
    """Raises UserError unless products of that kind can be computed in that way, here."""
    if compute not in COMPUTE:
        raise UserError(f"compute must be one of {', '.join(COMPUTE)}; got {compute!r}")
    if compute in ("auto", "simulated"):
        return
    if not multipliable(fmt, back, weights, activations):
        raise UserError(
            f"compute={compute!r} needs weights and activations in e4m3fn and gradients in e5m2 or None, those of "
            f"8-bit matrix units; got format={fmt.name!r}, gradients={back and back.name!r}, weights={weights}, "
            f"activations={activations}"
        )
    if compute == "native" and not has_8_bit_units():
        raise UserError(
            f"compute='native' needs 8-bit matrix units (a GPU of NVIDIA compute capability {CAPABILITY} or more, or "
            f"{', '.join(TPUS)}), but this is {jax.local_devices()[0].device_kind}; use compute='simulated', which "
            "gives the same numbers up to the order of float32 sums, or compute='emulated' to run the same program "
            "without such units, slowly"
        )


@checked
def qat(
    model: Model,
    format: str | None = None,
    *,
    weights: bool = True,
    activations: bool = True,
    gradients: str | None = formats.GRADIENTS,
    compute: str = "auto",
    rules: Mapping[str, str] | None = None,
) -> Model:
    """`model` trained on the grid of an 8-bit float.

    Args:
      model: any model whose dense and convolution layers ask `multiply` (`from_linen`, `from_nnx`).
      format: of weights and inputs: `e4m3fn`, `e4m3fnuz` (with a clip, the grid of Kuzmin et al.) or `e5m2`; None: that
        of the run (`config.format`), `e4m3fn` outside of one.
      weights: quantize kernels.
      activations: quantize layer inputs.
      gradients: `e5m2`, the format to which the gradient of a layer's product is rounded before it is multiplied with
        the input and with the kernel, one scale per tensor, from its largest magnitude; or None, which leaves it in
        float32.
      compute: `native` hands the 8-bit operands (weights and inputs e4m3fn, gradients e5m2 unless they are float32) to
        `dot_general` with float32 accumulation, on devices that have units for it; convolutions become patches and a
        matmul. `simulated` multiplies the float32 values of the 8-bit arrays, on any device. `auto` is `native` where
        the device has such units and they take these formats, else `simulated`. `emulated` is the program of `native`
        on any device, slowly.
      rules: a format or `float32` for layers by shell-style patterns on their paths, or on those of modules that they
        are in; first match wins, others get `format`. A layer in float32 is as without this adapter: it has no clips,
        and its gradients are not rounded.
        None: those of the run (`config.format_rules`), none outside of one.

    Adds the view `float32`: the same parameters without quantization. Keeps clips at least `MIN_ALPHA`.

    Raises:
      UserError: for settings that do not go together; when the model is initialized, if it has no layer to quantize,
        hides its layers in `nn.scan`, `nn.remat` or a recurrent layer, or has none that a pattern matches.

    Example (the first and the last layer of three in float32):
      >>> from fedjax8 import models
      >>> model = qat(models.mlp(hidden=(64, 64)), rules={"Dense_0": "float32", "Dense_2": "float32"})
    """
    by_layer = format_rules(format, rules)
    back = None if gradients is None else formats.get_format(gradients)
    for fmt in by_layer.formats:
        check_compute(compute, fmt, back, weights, activations)

    def on_8_bit_operands(fmt: Format) -> bool:  # asked when the model is traced, since it starts JAX's backend
        if compute == "auto":
            return multipliable(fmt, back, weights, activations) and has_8_bit_units()
        return compute != "simulated"

    def layer_paths(variables: Variables, batch) -> dict[str, jax.Array | None]:
        """Path of every layer, with the largest finite magnitude of its input on this batch, at least MIN_ALPHA; None
        where the input is a mere number (1, by which a layer asks for a kernel that it uses many times)."""
        seen: dict[str, jax.Array | None] = {}

        def record(path, product, x, kernel):
            if x.ndim == 0:
                seen[path] = None
                return product.forward(x, kernel)
            finite = jnp.where(jnp.isfinite(x), x, 0.0)  # one bad row must not spoil a clip that everyone receives
            before, largest = seen.get(path), scales.max_abs(finite)
            seen[path] = largest if before is None else jnp.maximum(before, largest)
            return product.forward(x, kernel)

        try:
            model.apply(variables, batch, multiply=record)
            seen = {path: m if m is None else jnp.maximum(m, scales.MIN_ALPHA) for path, m in seen.items()}
        except jax.errors.UnexpectedTracerError as error:
            raise UserError(
                "qat cannot see the layers inside nn.scan, nn.remat or recurrent layers of flax: write the layers out"
            ) from error
        if not seen:
            raise UserError("qat found no dense or convolution layer whose product it could round; use adapter none")
        left = [n for n, x in trees.named_leaves(variables.params).items() if n.endswith(f"/{KERNEL}") and x.ndim > 1]
        left = [name for name in left if name.removesuffix(f"/{KERNEL}") not in seen]
        if left:
            warnings.warn(f"qat leaves {', '.join(left)} in float32: flax has no seam for their product", stacklevel=2)
        return seen

    def init(key, batch):
        variables = model.init(key, batch)
        if variables.frozen:
            raise UserError("qat trains kernels, but the adapter inside froze some; put qat inside: lora(qat(model))")
        params = variables.params
        layers = layer_paths(variables, batch)
        check_rules(by_layer, layers, "qat: rules")
        layers = {path: largest for path, largest in layers.items() if by_layer.of(path) is not None}
        if not layers:
            raise UserError("qat: the rules leave every layer in float32; use adapter none")
        for path, largest in layers.items():
            node = dict(_node(params, path))
            if weights:
                node[KERNEL_CLIP] = scales.max_abs(node[KERNEL])
            if activations and largest is not None:
                node[INPUT_CLIP] = largest
            params = _with_node(params, path.split("/") if path else [], node)
        return variables._replace(params=params)

    def without_clips(params: PyTree) -> PyTree:
        if not isinstance(params, dict):
            return params
        return {n: without_clips(v) for n, v in params.items() if n not in (KERNEL_CLIP, INPUT_CLIP)}

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        by_layer.record("adapter qat")
        params = variables.params
        eight_bit = {fmt.name: on_8_bit_operands(fmt) for fmt in by_layer.formats}

        def on_grid(path, product, x, kernel):
            fmt = by_layer.of(path)
            if fmt is None:
                return product.forward(x, kernel) if multiply is None else multiply(path, product, x, kernel)
            node = _node(params, path)
            clips = node.get(INPUT_CLIP), node.get(KERNEL_CLIP)
            forward = lambda x, kernel: quantized_product(product, x, kernel, *clips, fmt, back, eight_bit[fmt.name])
            if multiply is None:
                return forward(x, kernel)
            return multiply(path, product._replace(forward=forward), x, kernel)

        inner = variables._replace(params=without_clips(params))
        return model.apply(inner, batch, key=key, train=train, multiply=on_grid)

    def float32(variables, batch, **settings):
        return model.apply(variables._replace(params=without_clips(variables.params)), batch, **settings)

    def project(params):
        def keep_positive(name, x):
            return jnp.maximum(x, scales.MIN_ALPHA) if trees.is_clip(name) else x

        return trees.map_named(keep_positive, model.project(params))

    def report(params):
        clips = {name: x for name, x in trees.named_leaves(params).items() if trees.is_clip(name)}
        return model.report(params) | {f"clip/{name.removesuffix(trees.CLIP_SUFFIX)}": x for name, x in clips.items()}

    views = {**model.views, "float32": float32}
    return model._replace(init=init, apply=apply, project=project, views=views, report=report)


EXAMPLES = (
    {},
    {"format": "e4m3fnuz", "gradients": None},
    {"compute": "emulated"},
    {"activations": False},
    {"rules": {"*": "e5m2"}},
)
