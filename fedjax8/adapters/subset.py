"""Partial training: some leaves of a model are trained, the others frozen (linear probes, biases, path patterns).

    params = the leaves that match,      frozen = the others,      y = model(params and frozen together)

Only `params` has gradients, travels and is averaged. The others lie in `Variables.frozen`, bit for bit as the model
below initialized them, beside the leaves that it froze itself. The other adapters of fine-tuning (`lora`, `bottleneck`,
`prompt`) add leaves to a model and then are a subset of it.

Head and Bias of FedPEFT (Sun et al., arXiv 2210.01708): the head is the layer that multiplies last; biases are the
leaves named `bias`, those of norms included and scales not, as in the authors' code, and the head trains with them.
"""

from collections.abc import Callable, Sequence

from fedjax8 import paths, trees
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Batch, Model, PyTree, Variables

PRESETS = ("full", "head", "bias")


def chosen_leaves(
    train: Sequence[str], model: Model, variables: Variables, batch: Batch, what: str, names: Sequence[str]
) -> set[str]:
    """The path names among `names` that presets and patterns choose."""
    chosen: set[str] = set()
    for wanted in train:
        if wanted == "full":
            chosen |= set(names)
            continue
        if wanted not in PRESETS:
            chosen |= set(paths.matching([wanted], names, what))
            continue
        layers = paths.layers_of(model, variables, batch)
        if not layers:
            raise UserError(f"{what}: the model has no layer to take for its head; name the leaves by patterns")
        head = next(reversed(layers))
        inside = f"{head}/" if head else ""
        chosen |= {name for name in names if name.startswith(inside)}
        if wanted == "bias":
            chosen |= {name for name in names if name.rpartition("/")[2] == "bias"}
    return chosen


def freeze(model: Model, choose: Callable[[Variables, Batch], set[str]]) -> Model:
    """`model` of which only the leaves that `choose(variables, batch)` names are trained.

    The model inside gets all leaves together, as trained ones: the others have no gradient outside.
    """

    def init(key, batch):
        variables = model.init(key, batch)
        params, frozen = paths.divide(variables.params, choose(variables, batch))
        return Variables(params, variables.state, paths.join(frozen, variables.frozen))

    def over(apply):
        def run(variables, batch, **settings):
            return apply(paths.whole(variables), batch, **settings)

        return run

    views = {name: over(view) for name, view in model.views.items()}
    return model._replace(init=init, apply=over(model.apply), views=views)


def evaluating(model: Model) -> Model:
    """`model` that runs as in evaluation also while it is trained: no dropout, batch statistics as they are."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        return model.apply(variables, batch, key=key, multiply=multiply)

    return model._replace(apply=apply)


@checked
def subset(model: Model, train: Sequence[str] | str = "bias", *, train_mode: bool = False) -> Model:
    """`model` of which only some leaves are trained.

    Args:
      model: any model. Its `project` and `report` must treat leaves one by one, as those of `qat` do.
      train: presets and shell-style patterns on path names, of which a leaf has to match one. `head` is the layer
        that multiplies last, `bias` the leaves of that name and the head, `full` everything: then this is `model`.
      train_mode: while training, run the model in training mode (dropout, batch statistics of the batch) though most
        of it does not change; by default it runs as in evaluation.

    Raises:
      UserError: when the model is initialized, if a pattern matches no leaf; names the nearest path.
    """
    train = paths.as_patterns(train)
    if not train:
        raise ValueError(f"train names nothing; give patterns or one of {', '.join(PRESETS)}")
    if "full" in train:
        return model
    inner = model if train_mode else evaluating(model)

    def choose(variables: Variables, batch: Batch) -> set[str]:
        names: PyTree = list(trees.named_leaves(variables.params))
        return chosen_leaves(train, model, variables, batch, "subset", names)

    return freeze(inner, choose)


EXAMPLES = ({}, {"train": "head"}, {"train": ("full",)}, {"train": ("*kernel",), "train_mode": True})
