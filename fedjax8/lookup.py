"""Name to factory: `fp8` in package `fedjax8.codecs` is `fedjax8.codecs.fp8.fp8`;

`package.module:factory` is itself.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from fedjax8.errors import UserError


def suggest(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean ...?` for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def component_names(package: str) -> list[str]:
    """Names of a package's components: the modules that end with `EXAMPLES` and hold a factory named like the file."""
    folder = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))
    return [n for n in names if hasattr(importlib.import_module(f"{package}.{n}"), "EXAMPLES")]


def find(name: str, package: str = "") -> Callable:
    """The factory called `name` in `package`, or the object that `package.module:factory` names.

    Raises `UserError` with the nearest match.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"cannot load {name!r}: {error}") from error
    allowed = component_names(package)
    if name in allowed:
        return getattr(importlib.import_module(f"{package}.{name}"), name)
    from fedjax8.words import meant_component  # which is above this

    kind = package.rpartition(".")[2]
    raise UserError(f"no {name!r} in {kind}: allowed are {', '.join(allowed)}{meant_component(kind, name, allowed)}")


def optional(module: str, purpose: str, extra: str) -> Any:
    """A library that comes with an extra; UserError with the install command where it is missing.

    >>> optional("json", "reading JSON", "none").loads("1")
    1
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UserError(f"{purpose} needs {library}: pip install 'fedjax8[{extra}]'") from error
