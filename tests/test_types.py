"""What is public says the types of what it takes and gives; `python -m mypy` checks that they are true."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "fedjax8"
FILES = sorted(PACKAGE.rglob("*.py"))


def public_functions(tree):
    """Functions of a module and methods of its classes, without those that begin with `_`, but with `__init__`."""
    for node in tree.body:
        found = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in found:
            if isinstance(function, ast.FunctionDef) and (function.name[0] != "_" or function.name == "__init__"):
                yield function, isinstance(node, ast.ClassDef)


def untyped(function, is_method):
    """Names of a function's arguments without a type, and `return`."""
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args][is_method and not static :]
    others = [a for a in (*arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a is not None]
    found = [argument.arg for argument in (*positional, *others) if argument.annotation is None]
    return found + ["return"] * (function.returns is None and function.name != "__init__")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_public_functions_say_their_types(file):
    functions = public_functions(ast.parse(file.read_text()))
    missing = {function.name: names for function, is_method in functions if (names := untyped(function, is_method))}
    assert not missing


def test_an_untyped_function_would_be_seen():
    module = ast.parse("def f(x: int, y, *, z=1): ...\nclass A:\n    def g(self, x): ...\ndef _h(x): ...\n")
    missing = {function.name: untyped(function, is_method) for function, is_method in public_functions(module)}
    assert missing == {"f": ["y", "z", "return"], "g": ["x", "return"]}


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
    assert "fedjax8 = py.typed" in (PACKAGE.parent / "setup.cfg").read_text()
