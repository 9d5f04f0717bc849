"""fedjax8's docstrings, which are written like Markdown, for Sphinx, which wants reStructuredText.

`code` in single backticks, indented blocks of equations, `Args:` with a `name: text` for each, tables between bars and
lists become what they mean; everything else is text, whatever stars and bars are in it.
"""

import importlib
import inspect
import pkgutil
import re
import textwrap
import types

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.util.nodes import nested_parse_with_titles

HEADING = re.compile(r"(Args|Raises|Returns|Example|Examples|Reference|References|Invariants)( \([^)]*\))?:\s*$")
ENTRY = re.compile(r"(`?[\w*][\w*, `.]*):\s+(.*)", re.DOTALL)


def inline(text: str) -> str:
    """A paragraph, with its code marked and all other marks of reStructuredText taken literally."""
    parts = re.split(r"(`+[^`]+`+)", text)
    out = []
    for part in parts:
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            code = " ".join(part.strip("`").split()).replace("\\", "\\\\")
            out.append(f"\\ ``{code}``\\ ")
        else:
            out.append(re.sub(r"([\\*|`_])", r"\\\1", part))
    return "".join(out)


def indent_of(line: str) -> int:
    """Spaces before the first character."""
    return len(line) - len(line.lstrip(" "))


def literal(block: list[str]) -> list[str]:
    """A block shown as it stands."""
    text = textwrap.dedent("\n".join(block)).strip("\n").split("\n")
    kind = "pycon" if text[0].startswith(">>>") else "text"
    return ["", f".. code-block:: {kind}", "", *(f"   {line}" for line in text), ""]


def entries(block: list[str]) -> list[str]:
    """A list of `name: text`, of which a text may go on over deeper lines."""
    out: list[str] = []
    lines = [line for line in textwrap.dedent("\n".join(block)).split("\n") if line.strip()]
    items: list[list[str]] = []
    for line in lines:
        if indent_of(line) == 0 or not items:
            items.append([line])
        else:
            items[-1].append(line)
    for item in items:
        text = "\n".join(line.strip() for line in item)
        match = ENTRY.match(text)
        if match:
            name = match[1].replace("*", "\\*").replace("_", "\\_").replace("`", "")
            text = f"**{name}**: {inline(match[2])}"
        else:
            text = inline(text)
        out += ["- " + text.replace("\n", "\n  "), ""]
    return "\n".join(out).split("\n")


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    out: list[str] = []
    i, n = 0, len(lines)

    def block(start: int, least: int) -> int:
        """The line behind the lines that are indented by `least` at least, blank ones among them."""
        end = start
        while end < n and (not lines[end].strip() or indent_of(lines[end]) >= least):
            end += 1
        while end > start and not lines[end - 1].strip():
            end -= 1
        return end

    while i < n:
        line = lines[i]
        if not line.strip():
            out.append("")
            i += 1
        elif (match := HEADING.match(line)) and i + 1 < n:
            end = block(i + 1, 1)
            body = lines[i + 1 : end]
            out += ["", f"**{match[1]}**{match[2] or ''}", ""]
            out += literal(body) if match[1].startswith("Example") else entries(body)
            out.append("")
            i = end
        elif indent_of(line) >= 2:
            end = block(i, 2)
            out += literal(lines[i:end])
            i = end
        elif line.startswith("|"):
            end = i
            while end < n and lines[end].startswith("|"):
                end += 1
            out += literal(lines[i:end])
            i = end
        elif item := re.match(r"(- |\d+\. )", line):
            end = i + 1
            while end < n and lines[end].strip() and indent_of(lines[end]) >= 2:
                end += 1
            text = inline("\n".join([line[len(item[0]) :], *(x.strip() for x in lines[i + 1 : end])]))
            gap = " " * len(item[0])
            out += ["", item[0] + text.replace("\n", f"\n{gap}"), ""]
            i = end
        else:
            end = i
            while end < n and lines[end].strip() and indent_of(lines[end]) < 2 and not lines[end].startswith("|"):
                if end > i and (HEADING.match(lines[end]) or re.match(r"(- |\d+\. )", lines[end])):
                    break
                end += 1
            out += inline("\n".join(lines[i:end])).split("\n")
            i = end
    return "\n".join(out).split("\n")


def as_rst(app, what, name, obj, options, lines) -> None:
    """Handler of autodoc's docstrings."""
    if lines and re.match(r"Alias for field number \d+$", lines[0]):
        lines[:] = [""]
        return
    lines[:] = convert(lines)


def without_noise(app, what, name, obj, skip, options) -> bool | None:
    """Handler that leaves out the method that flax gives to every dataclass."""
    return True if name == "replace" and "replacing the specified fields" in (obj.__doc__ or "") else None


def first_sentence(doc: str | None) -> str:
    """First sentence of a docstring's first paragraph, on one line, as reStructuredText."""
    paragraph = " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!et al)\.(?= [A-Z`])|[.:;]$", paragraph)
    return inline(paragraph[: end.start()] if end else paragraph)


def members(module: types.ModuleType) -> list[str]:
    """Names of the public functions and classes that a module defines and describes, in its order."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)))  # jitted ones too
        and value.__module__ == module.__name__
        and value.__doc__
    ]
    return [name for name in own if without_noise(None, "", name, getattr(module, name), False, None) is not True]


def summary(names: list[str]) -> list[str]:
    """A table of modules: each with a link, its first sentence, and links to what it defines."""
    out = [".. list-table::", "   :widths: 20 50 30", "   :header-rows: 1", ""]
    out += ["   * - module", "     - contents", "     - defines"]
    for name in names:
        module = importlib.import_module(name)
        links = ", ".join(f":py:obj:`~{name}.{member}`" for member in members(module))
        out += [f"   * - :py:mod:`~{name}`", f"     - {first_sentence(module.__doc__)}", f"     - {links}"]
    return [*out, ""]


class AutoModules(Directive):
    """`.. automodules:: package`: a table of the public modules in it, then each of them with what it defines."""

    required_arguments = 1

    def run(self) -> list:
        """Nodes of all of them."""
        package = importlib.import_module(self.arguments[0])
        found = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
        names = [f"{package.__name__}.{name}" for name in found]
        names = [name for name in names if not hasattr(importlib.import_module(name), "__path__")]
        out = summary(names)
        for name in names:  # names of several packages would be one label
            out += [name, "-" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(out, source=package.__name__), node)
        return node.children
