"""What there is to choose from: components by kind, with their settings and defaults, and the configs of the package.

    fedjax8 list                 the kinds
    fedjax8 list codecs          the components of a kind, a line each; `uplink`, the field, does as well
    fedjax8 list uniform         one component: its settings with defaults, and what it says of itself
    fedjax8 list configs         the configs that come with the package
    fedjax8 list fields          the fields of a config with their defaults

`fedjax8 train --list codecs` and `fedjax8 train --help=uniform` answer likewise.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable

from fedjax8 import cli
from fedjax8.components import INNER, KINDS, OURS, PACKAGES
from fedjax8.config import FIELDS, LISTS, is_component, plain
from fedjax8.errors import UserError
from fedjax8.lookup import component_names, suggest
from fedjax8.shipped import FOLDER, shipped_configs

SUPPLIED = (*OURS, "data_dir", "num_classes")
"""Arguments of factories that the program gives unless a config does."""
OF_OPTAX = {"optimizers": "any optimizer of optax, such as sgd, adam, adamw", "schedules": "any schedule of optax"}
"""Kinds that no folder of this package holds."""
WRITERS = "running.writers"
INSIDE = {"learning_rate": "--config.client.optimizer.learning_rate.name", "metrics": "--config.task.metrics"}
"""Flags of components inside others than the algorithm, by field."""


def kinds() -> dict[str, str]:
    """Packages of components by the name of their kind: `codecs`, `sources`, `aggregators` and so on."""
    folders = [package for package in KINDS if package not in (*OF_OPTAX, "no_schedules")]
    return {package.rpartition(".")[2]: package for package in [*folders, WRITERS]}


def fields_of(package: str) -> list[str]:
    """Flags that name a component of a package."""
    if package == WRITERS:
        return ["--writers"]
    outer = {name: isinstance(field.default, tuple) for name, field in FIELDS.items() if field.package == package}
    inner = [name for name, of in INNER.items() if of == package]
    return [
        *(f"--config.{name}{'' if several else '.name'}" for name, several in outer.items()),
        *(INSIDE.get(name, f"--config.algorithm.{name}.name") for name in inner),
    ]


def factory(package: str, name: str) -> Callable:
    """The factory of a component."""
    return getattr(importlib.import_module(f"fedjax8.{package}.{name}"), name)


def components_of(package: str) -> list[str]:
    """Names of a package's components."""
    found = component_names(f"fedjax8.{package}")
    return found or [
        path.stem
        for path in sorted((FOLDER.parent / package.replace(".", "/")).glob("*.py"))
        if not path.stem.startswith("_")
    ]


def settings(made_by: Callable) -> list[str]:
    """`name=default` for each setting of a factory; `name` alone where it has no default."""
    shown = []
    for name, parameter in inspect.signature(made_by).parameters.items():
        if name in OURS or (name in SUPPLIED and parameter.default in (parameter.empty, None)):
            continue
        shown.append(name if parameter.default is parameter.empty else f"{name}={parameter.default!r}")
    return shown


def first_line(text: str | None) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def overview() -> str:
    """The kinds, with the flags that choose their components."""
    rows = [(name, ", ".join(fields_of(package))) for name, package in kinds().items()]
    rows += [(name, f"{text}: {', '.join(fields_of(name))}") for name, text in OF_OPTAX.items()]
    rows += [("configs", "--config"), ("fields", "--config.FIELD")]
    return _table(rows) + "\n\nfedjax8 list KIND lists one of them, fedjax8 list NAME says what a component takes."


def kind_listing(kind: str) -> str:
    """The components of a kind: name, what it is in a line, settings with their defaults."""
    package = kinds()[kind]
    parts = []
    for name in components_of(package):
        made_by = factory(package, name)
        about = first_line(importlib.import_module(f"fedjax8.{package}.{name}").__doc__ or made_by.__doc__)
        takes = ", ".join(settings(made_by))
        parts.append("\n".join([name, *_wrapped(about), *(_wrapped(takes) if takes else [])]))
    chosen = ", ".join(f"{flag}=NAME" for flag in fields_of(package))
    return "\n".join([*parts, "", f"chosen by {chosen}"])


def component_help(kind: str, name: str) -> str:
    """How to choose a component, its settings with defaults, and its docstrings."""
    package = kinds()[kind]
    made_by = factory(package, name)
    flags = fields_of(package)
    of = flags[0].removesuffix(".name")
    of += ".0" * (of.removeprefix("--config.") in LISTS)  # of the first in a list of components
    takes = [f"  {of}.{one}" for one in settings(made_by)] if of != "--writers" else []
    module = inspect.getdoc(importlib.import_module(made_by.__module__)) or ""
    own = inspect.getdoc(made_by) or ""
    head = f"{name} ({kind}): " + ", ".join(f"{flag}={name}" for flag in flags)
    blocks = [head, "\n".join(["settings and defaults:", *takes]) if takes else "no settings", own, module]
    return "\n\n".join(block for block in blocks if block)


def config_listing() -> str:
    """The configs of the package, and what each runs."""
    docs = {name: ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) for name in shipped_configs()}
    rows = [(name, first_line(text)) for name, text in docs.items()]
    return _table(rows) + "\n\nchosen by --config=NAME or --config=NAME:argument; fedjax8 list NAME shows how."


def field_listing() -> str:
    """The fields of a config with their defaults."""
    shown = lambda value: " ".join(f"{k}={v!r}" if k != "name" else str(v) for k, v in plain(value).items())
    default = lambda value: shown(value) if is_component(value) else repr(value)
    return _table([(f"config.{name}", f"{default(field.default)}: {field.help}") for name, field in FIELDS.items()])


def listing(word: str | None) -> str:
    """The answer to `fedjax8 list WORD`. Raises UserError for a word that names nothing."""
    if not word:
        return overview()
    if word in ("configs", "fields"):
        return config_listing() if word == "configs" else field_listing()
    if word in OF_OPTAX:
        return f"{OF_OPTAX[word]}, with its own settings: {', '.join(f'{flag}=NAME' for flag in fields_of(word))}"
    package = PACKAGES.get(word.removeprefix("config.").rpartition(".")[2], "")
    kind = package.rpartition(".")[2] if package in KINDS and package not in OF_OPTAX else word
    if kind in kinds():
        return kind_listing(kind)
    everything = {kind: components_of(package) for kind, package in kinds().items()}
    found = [component_help(kind, word) for kind, names in everything.items() if word in names]
    if word in shipped_configs():
        found.append(ast.get_docstring(ast.parse((FOLDER / f"{word}.py").read_text())) or word)
    if found:
        return f"\n\n{'-' * 20}\n\n".join(found)
    known = [*everything, *OF_OPTAX, "configs", "fields", *(name for names in everything.values() for name in names)]
    raise UserError(f"no kind or component {word!r}: kinds are {', '.join(everything)}{suggest(word, known)}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ")


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, 115 - min(width, 40)) or [""]
        lines += [f"{name:<{width}}{wrapped[0]}", *(" " * width + line for line in wrapped[1:])]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Prints the answer; the exit status is 0."""
    if len(argv) > 2:
        raise UserError(f"one word at a time: fedjax8 list {argv[1]}")
    print(listing(argv[1] if len(argv) > 1 else None))
    return 0


if __name__ == "__main__":
    cli.run(main)
