"""Settings of a run: defaults, changes by a file and by flags, checks.

A config is an `ml_collections.ConfigDict`. Some fields are plain values; a *component* is a `ConfigDict` with a `name`
(a file in the matching package, or `package.module:factory`) and that factory's keyword settings. `build.py` turns it
into objects. `config_fields.py` lists the fields.
"""

import ast
import importlib.util
import inspect
import math
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FieldReference

from fedjax8.cli import path_of
from fedjax8.config_fields import FIELDS as FIELDS
from fedjax8.config_fields import LARGEST_COUNT as LARGEST_COUNT
from fedjax8.config_fields import MIXED as MIXED
from fedjax8.config_fields import component as component
from fedjax8.config_fields import is_component as is_component
from fedjax8.errors import FAILED, Mistakes, UserError
from fedjax8.given import fits, read_object
from fedjax8.lookup import suggest
from fedjax8.shipped import config_file, no_config_file
from fedjax8.words import field_of


def base_config() -> ConfigDict:
    """The default job: FP8FedAvg-UQ on scikit-learn's handwritten digits, 50 clients with label skew, 10 a round."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        section, _, own = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict(convert_dict=False)
        default = component(**field.default) if is_component(field.default) else field.default
        (config[section] if section else config)[own] = default
    return config


def in_float32(config: ConfigDict) -> ConfigDict:
    """The same config with nothing quantized and nothing encoded."""
    config.adapter = component("none")
    config.uplink, config.downlink = component("none"), component("none")
    return config


LIMITS = {f"config.{name}": field.limits for name, field in FIELDS.items() if field.limits} | {
    f"config.{name}.{setting}": limits
    for name, field in FIELDS.items()
    for setting, limits in field.setting_limits.items()
}
"""Least and largest value of each number."""
LISTS = (
    *(name for name, field in FIELDS.items() if field.package and isinstance(field.default, tuple)),
    "task.metrics",
)
"""Fields that are tuples of components."""
CHOICES = {f"config.{name}": field.choices for name, field in FIELDS.items() if field.choices}


def plain(value: Any) -> Any:
    """The config as JSON-ready dicts, lists and scalars; `from_plain` gives it back.

    Mappings inside components keep their order, which decides where the first match wins.
    """
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): plain(value[key]) for key in (sorted(value) if isinstance(value, ConfigDict) else value)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no number for it
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"a config holds {value!r}; for a run with files give component(name, ...) and plain values instead"
    )


def from_plain(given: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `plain`: components where there is a `name`, tuples for lists, whole numbers as keys of numbers
    (rounds of a schedule) where JSON has texts of digits.

    Fields that are not given are at their defaults.
    """

    def restored(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(restored, value))
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            settings = {key: restored(setting) for key, setting in value.items() if key != "name"}
            return component(value["name"], **settings)
        if isinstance(value, dict):
            whole = lambda key, inner: key.isdecimal() and isinstance(inner, int | float)  # a pattern has a text
            return {int(key) if whole(key, inner) else key: restored(inner) for key, inner in value.items()}
        return float(value) if value in ("inf", "-inf", "nan") else value

    config = base_config()
    for name, value in given.items():
        new = restored(value)
        if isinstance(new, dict):  # a section
            start = config.get(name)
            own = start if isinstance(start, ConfigDict) and not is_component(start) else {}
            new = ConfigDict({**own, **new}, convert_dict=False)
        if name in config:
            del config[name]  # its type is checked by `validate`
        config[name] = new
    return config


def _read_record(file: str) -> ConfigDict:
    """The config in the `config.json` of a run, or in a file with the result of `plain`.

    Raises UserError if it is damaged or something else. Warns of fields that it lacks: they are at their defaults.
    """
    path = path_of(file)
    try:
        document = read_object(path)
    except OSError as error:
        raise UserError(f"--config: cannot read {str(path)!r}: {error.strerror}") from error
    if document is None:
        raise UserError(f"--config: {path} is damaged: no JSON object can be read from it")
    found = document.get("config", document)
    if not isinstance(found, dict) or not found.keys() & base_config().keys():
        raise UserError(f"--config: {path} holds no config; give the config.json in the --workdir of a run")
    sections = {"": found} | {name: part for name, part in found.items() if isinstance(part, dict)}
    places = ((name, *name.rpartition(".")[::2]) for name in FIELDS)
    if missing := [name for name, section, own in places if section in sections and own not in sections[section]]:
        warnings.warn(
            f"--config: {path} lacks {', '.join(missing)}, as one of another version; defaults are taken",
            stacklevel=3,
        )
    return from_plain(found)


def load_config(file: str | None) -> ConfigDict:
    """The config that `FILE.py` or `FILE.py:argument` gives by `get_config()` or `get_config(argument)`; one of
    `fedjax8/configs` for `NAME`, `NAME:argument` or `fedjax8://NAME` (see `shipped.config_file`); that of a run for its
    `config.json`; base for None.

    Raises `UserError` if the file is missing or damaged, has no `get_config`, refuses the argument, or sets a field
    wrongly.
    """
    if not file:
        return base_config()
    if file.endswith(".json"):
        return _read_record(file)
    path, argument = config_file(file)
    spec = importlib.util.spec_from_file_location("fedjax8_config_file", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(no_config_file(path, argument))
    module = importlib.util.module_from_spec(spec)
    try:
        sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UserError(f"--config: {path} defines no get_config()")
        config = get_config(argument) if argument else get_config()
        if not isinstance(config, ConfigDict):
            raise UserError(f"--config: get_config() of {path} must return a ConfigDict, got {type(config).__name__}")
        return config
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        line = " ".join(str(error).split())
        raise UserError(f"--config: {file} failed with {type(error).__name__}: {line[:300]}") from error


def parse_value(text: str) -> Any:
    """A flag's text as a Python literal (`0.1`, `(5, 5)`, `None`, `true`, `inf`), or else the text itself."""
    if text in ("inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Applies `(dotted path, text)` pairs in place, names of components first, and lists of them before these.

    Naming another component drops the settings of the old one; the new one starts from its factory's defaults.

    Raises `UserError` that names every assignment which cannot be made. Fields whose value has a wrong type are FAILED
    from then on, so that objects that need them are not tried.
    """
    split = [(path.split("."), text) for path, text in assignments]
    with Mistakes() as mistakes:
        for path, text in sorted(split, key=_place):
            mistakes.attempt(_assign, config, path, text if path[-1] == "name" else parse_value(text))


def _place(pair: tuple[list[str], str]) -> tuple[bool, bool, bool]:
    """The place of an assignment among others: lists that are fields, names, lists inside components, the rest."""
    path, _ = pair
    listed = ".".join(path) in LISTS
    return not (listed and len(path) == 1), path[-1] != "name", not listed


def _assign(config: ConfigDict, path: list[str], value: Any) -> None:
    dotted = "config." + ".".join(path)
    section: Any = config
    for depth, name in enumerate(path[:-1]):
        here = "config." + ".".join(path[: depth + 1])
        if isinstance(section, list | tuple) and name.isdigit() and int(name) < len(section):
            section = section[int(name)]
            continue
        if is_component(section) and not is_component(section.get(name)) and path[depth + 1] == "name":
            if name in section:
                del section[name]  # such as a learning rate, in whose place a schedule is named
            section[name] = component("")  # a component inside a component is made by naming it
        if not isinstance(section, ConfigDict) or name not in section:
            raise UserError(_no_field(section, here, name))
        section = section[name]
    last = path[-1]
    if not isinstance(section, ConfigDict) or (last not in section and not is_component(section)):
        raise UserError(_no_field(section, dotted, last))
    old = section.get(last)
    if last == "name":
        if value != old:
            for key in list(section):
                del section[key]
            section["name"] = value
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and is_component(section) and is_component(old):  # such as a learning rate in a schedule's place
        del section[last]
        section[last] = value
        return
    if isinstance(old, ConfigDict):
        hint = f"; to choose another, set --{dotted}.name={value}" if is_component(old) else ""
        raise UserError(f"{dotted} is a section and cannot be {value!r}{hint}")
    value = tuple(value) if isinstance(value, list) else value
    if ".".join(path) in LISTS:
        value = _components(dotted, value)
    with Mistakes() as mistakes:
        if old is not None:
            if not (is_component(section) and "auto" in (value, old)):  # whether that is allowed, its factory says
                value = mistakes.attempt(_as_type_of, dotted, value, old)
            if value is FAILED or not isinstance(_as_held(section, last), FieldReference):
                del section[last]  # its type is checked here, not by ConfigDict
        section[last] = value


def _components(dotted: str, value: Any) -> tuple[ConfigDict, ...]:
    """Components of these names, given as texts, several in one text with commas; none for an empty text or tuple."""
    texts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{dotted} takes names of components, several with commas; got {value!r}")
    names = [name.strip() for text in texts for name in text.split(",") if text]
    if not all(names):
        raise UserError(f"{dotted} has an empty name in {value!r}; give names, several with commas")
    return tuple(component(name) for name in names)


def _as_held(section: ConfigDict, name: str) -> Any:
    """A field's value, or the reference that it is."""
    return dict(section.items(preserve_field_references=True))[name]


def _no_field(section: Any, dotted: str, name: str) -> str:
    if not isinstance(section, ConfigDict):
        place = dotted.rpartition(".")[0]
        if place.removeprefix("config.") in LISTS:
            have = f"has {len(section)} components" if section else "is empty"
            return f"no field {dotted}: {place} {have}, numbered from 0; set --{place}=NAME,NAME first"
        return f"no field {dotted}: {place} is {section!r}"
    if is_component(section):
        return f"no field {dotted}: set --{dotted}.name=NAME first, or give it in a config file"
    ours = field_of(name, FIELDS) if name not in ("name", *section) else None
    meant = f"; here it is config.{ours}" if ours else suggest(name, section)
    return f"no field {dotted}: allowed are {', '.join(sorted(section))}{meant}"


def _as_type_of(where: str, value: Any, old: Any) -> Any:
    """`value`, converted where nothing is lost, or a UserError if it is of another type than `old`."""
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple) and not isinstance(value, tuple):
        value = (value,)
    if type(value) is not type(old):
        raise UserError(f"{where} must be of type {type(old).__name__}, like {old!r}; got {value!r}")
    return value


def validate(config: ConfigDict) -> None:
    """Raises `UserError` that names every unknown, missing or impossible top-level or client setting."""
    with Mistakes() as mistakes:
        usable(config, mistakes)


def usable(config: ConfigDict, mistakes: Mistakes) -> types.SimpleNamespace:
    """The config's fields as attributes, those of `client` below `client`; FAILED for each that cannot be used.

    Their mistakes go to `mistakes`.
    """
    if not isinstance(config, ConfigDict):
        raise UserError("a config must be a ConfigDict; start from fedjax8.config.base_config()")
    return _usable_section("config", config, base_config(), mistakes)


def _usable_section(path: str, section: ConfigDict, wanted: ConfigDict, mistakes: Mistakes) -> types.SimpleNamespace:
    for name in section:
        if name not in wanted:
            mistakes.note(UserError(_no_field(wanted, f"{path}.{name}", name)))
    fields = types.SimpleNamespace()
    for name in wanted:
        value = mistakes.attempt(_usable_field, f"{path}.{name}", section, name, wanted[name])
        if value is not FAILED and isinstance(wanted[name], ConfigDict) and not is_component(wanted[name]):
            value = _usable_section(f"{path}.{name}", value, wanted[name], mistakes)
        setattr(fields, name, value)
    return fields


def _usable_field(path: str, section: ConfigDict, name: str, wanted: Any) -> Any:
    """The field's value; UserError if it is missing, or of another kind than `wanted`, or out of its range."""
    if name not in section:
        raise UserError(f"{path} is missing; start from fedjax8.config.base_config()")
    value = section[name]
    if value is FAILED:  # its assignment did, and that is known
        return value
    if is_component(wanted):
        if not is_component(value):
            raise UserError(f"{path} must be a component(name, ...), got {value!r}")
        for setting in value:
            if type(value[setting]) in (int, float):
                check_limits(f"{path}.{setting}", value[setting])
        return value
    if isinstance(wanted, ConfigDict):
        if not isinstance(value, ConfigDict):
            raise UserError(f"{path} must be a ConfigDict with fields {', '.join(sorted(wanted))}; got {value!r}")
        return value
    value = _as_type_of(path, value, wanted)
    if path.removeprefix("config.") in LISTS and not all(map(is_component, value)):
        raise UserError(f"{path} must be a tuple of component(name, ...), got {value!r}")
    check_limits(path, value)
    if path in CHOICES:
        check_choice(path, value, CHOICES[path])
    return value


def check_limits(path: str, value: float) -> None:
    """Raises `UserError` if the field has `LIMITS` and the value is not between them; NaN is not."""
    least, most = LIMITS.get(path, (-math.inf, math.inf))
    if path in LIMITS and not value >= least:
        raise UserError(f"{path} is {value}, but must be at least {least}")
    if path in LIMITS and value > most:
        raise UserError(f"{path} is {value}, but must be at most {most:{'.4g' if isinstance(most, float) else ''}}")


def check_choice(path: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises `UserError` unless `value` is one of those allowed."""
    if value not in allowed:
        raise UserError(f"{path} is {value!r}, but must be one of {', '.join(allowed)}{suggest(value, allowed)}")


def _listed_advice(where: str, value: Any, hint: Any) -> str:
    """How to write one text or number, or texts with commas between them, where several are wanted; else empty."""
    parts = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else (value,)
    return f'; try "--{where}={parts}"' if parts and fits(parts, hint) else ""


def check_call(where: str, factory: Callable, given: Mapping[str, Any], supplied: Sequence[str] = ()) -> None:
    """Raises `UserError` that names every setting of `given` which `factory` does not take or whose value is not of the
    annotated simple type, and every required setting that is missing.

    `supplied` are arguments that the program fills in; the user may not set them.
    """
    parameters = dict(inspect.signature(factory).parameters)
    name = getattr(factory, "__name__", str(factory))
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    allowed = [n for n, p in parameters.items() if n not in supplied and p.kind is not p.VAR_POSITIONAL]
    try:
        hints = typing.get_type_hints(factory)
    except Exception:  # annotations that cannot be evaluated are only documentation
        hints = {}
    with Mistakes() as mistakes:
        for key, value in given.items():
            if key not in allowed:
                takes = f"it takes {', '.join(allowed)}" if allowed else "it takes no settings"
                mistakes.note(UserError(f"{where}: {name} has no setting {key!r}; {takes}{suggest(key, allowed)}"))
            elif key in hints and value is not FAILED and not fits(value, hints[key]):
                shown = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else str(hints[key])
                shown = str(shown).replace("collections.abc.", "")
                advice = _listed_advice(f"{where}.{key}", value, hints[key])
                mistakes.note(UserError(f"{where}.{key} must be {shown}; got {value!r}{advice}"))
        required = [n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in given]
        if required:
            mistakes.note(UserError(f"{where}: {name} needs {', '.join(required)}; set --{where}.{required[0]}=..."))
