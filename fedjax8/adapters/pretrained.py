"""A model that starts from the parameters in a file, published ones or our own, instead of random ones.

`init` gives the file's values; nothing else changes. Only the file's header is read while a program is traced: the
values come by callbacks when it runs, one leaf at a time, so they are neither constants of the program nor twice in
memory. Formats, names and layouts: `models/pretrained.py`.
"""

import jax

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.models.pretrained import check_settings, find_file, readers
from fedjax8.types import Model, Variables


@checked
def pretrained(
    model: Model, file: str, *, names: str = "fedjax8", head: str = "keep", positions: str = "same"
) -> Model:
    """`model` with the parameters in `file` as its initial ones.

    Args:
      model: a model without adapters, such as `vit`, `text_encoder` or `gpt`; with `names="fedjax8"` any model whose
        parameters `save_params` wrote.
      file: a safetensors file, or a folder with `model.safetensors`.
      names: the library of the file: `fedjax8`, `timm_vit`, `hf_vit`, `bert`, `roberta` or `gpt2`.
      head: `keep` for the file's head, `new` for one as the model starts it, for other classes.
      positions: `same`, or `resize` for position embeddings of another image size or a longer text.

    Raises:
      ValueError: a setting that is not allowed.
      UserError: no such file; when the model is initialized, a file that does not fit, a model that has a state
        (batch statistics), which such files do not hold, or one of which an adapter froze something.

    Example:
      >>> from fedjax8.models import vit
      >>> base = vit("base", num_classes=100)
      >>> model = pretrained(base, "~/vit_base_patch16_224.safetensors", names="timm_vit", head="new")  # doctest: +SKIP
    """
    check_settings(names, head, positions)
    path = find_file(file)

    def init(key, batch):
        shapes = jax.eval_shape(model.init, key, batch)
        if jax.tree.leaves(shapes.state):
            raise UserError("pretrained loads parameters alone, but the model has a state (batch statistics) too")
        if shapes.frozen:
            raise UserError("pretrained loads the model itself; put it inside, as lora(pretrained(model))")
        read = readers(path, shapes.params, names, head=head, positions=positions)

        @jax.jit
        def fresh(key, batch):
            """The leaves that are not loaded; compiled, so that the others are never computed."""
            made = trees.named_leaves(model.init(key, batch).params)
            return {name: leaf for name, leaf in made.items() if name not in read}

        new = fresh(key, batch) if len(read) < len(jax.tree.leaves(shapes.params)) else {}

        def leaf(name, like):
            return new[name] if name in new else jax.pure_callback(read[name], like)

        return Variables(trees.map_named(leaf, shapes.params), shapes.state)

    return model._replace(init=init)


EXAMPLES = ()
"""Empty, since none could run without a file."""
