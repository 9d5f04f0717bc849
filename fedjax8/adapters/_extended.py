"""Models with added leaves, run inside a context that uses them, before anything is frozen."""

import contextlib
from collections.abc import Callable, Sequence

from fedjax8 import paths, trees
from fedjax8.adapters.subset import chosen_leaves, evaluating, freeze
from fedjax8.types import Batch, Key, Model, Multiply, PyTree, Variables

Around = Callable[
    [PyTree, Key | None, bool, Multiply | None], tuple[contextlib.AbstractContextManager, Multiply | None]
]
"""`(all params, key, train, multiply) -> (context to run the model in, multiply to run it with)`."""


def extended(
    model: Model,
    added: Callable[[Key, Variables, Batch], dict],
    is_added: Callable[[str], bool],
    around: Around,
    train: Sequence[str],
    trained: Callable[[str], bool],
    *,
    train_mode: bool,
    what: str,
) -> Model:
    """`model` with more parameters, of which those and a few of its own are trained.

    Args:
      added: `(key, the model's variables, batch) -> nested dict` of the leaves that are added.
      is_added: whether a path name is that of an added leaf.
      around: the context to run the model in, from all parameters.
      train: presets and patterns of the model's own leaves that are trained too.
      trained: whether an added leaf is trained, by its path name.
      train_mode: as of `subset`.
      what: name of the adapter in messages.
    """
    inner = model if train_mode else evaluating(model)

    def parts(params: PyTree) -> tuple[dict, dict]:
        return paths.divide(params, {name for name in trees.named_leaves(params) if is_added(name)})

    def init(key, batch):
        variables = model.init(key, batch)
        return variables._replace(params=paths.join(variables.params, added(key, variables, batch)))

    def over(apply):
        def run(variables, batch, *, key=None, train=False, multiply=None):
            context, multiply = around(variables.params, key, train, multiply)
            with context:
                own = variables._replace(params=parts(variables.params)[1])
                return apply(own, batch, key=key, train=train, multiply=multiply)

        return run

    def project(params):
        more, own = parts(params)
        return paths.join(model.project(own), more)

    whole = inner._replace(
        init=init,
        apply=over(inner.apply),
        views={name: over(view) for name, view in inner.views.items()},
        project=project,
        report=lambda params: model.report(parts(params)[1]),
    )

    def choose(variables: Variables, batch: Batch) -> set[str]:
        names = list(trees.named_leaves(variables.params))
        own = variables._replace(params=parts(variables.params)[1])
        fixed = [name for name in names if not is_added(name)]
        chosen = chosen_leaves(train, model, own, batch, what, fixed)
        return chosen | {name for name in names if is_added(name) and trained(name)}

    return freeze(whole, choose)
