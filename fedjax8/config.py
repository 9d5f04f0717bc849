"""Settings of a run: what they are, how a file and flags change them, how they are checked.

A config is an `ml_collections.ConfigDict`. Some fields are plain values; a *component* is a `ConfigDict` with a `name`
(a file in the matching package, or `package.module:factory`) and that factory's keyword settings. `build.py` turns it
into objects.
"""

import ast
import importlib.util
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FieldReference

from fedjax8.cli import path_of
from fedjax8.errors import FAILED, Mistakes, UserError
from fedjax8.given import fits
from fedjax8.lookup import suggest
from fedjax8.numerics import formats


def component(name: str, **settings: Any) -> ConfigDict:
    """A component's config: its name and the settings that differ from its factory's defaults."""
    return ConfigDict({"name": name, **settings}, convert_dict=False)


def base_config() -> ConfigDict:
    """The default job: FP8FedAvg-UQ on scikit-learn's handwritten digits, 50 clients with label skew, 10 a round."""
    config = ConfigDict()
    config.seed = 0
    config.rounds = 60
    config.eval_every = 5
    config.checkpoint_every = 10
    config.num_clients = 50
    config.cohort_size = 10
    config.data = component("digits")
    config.partition = component("dirichlet", concentration=0.3)
    config.input_mean, config.input_std = (), ()
    config.augment = ()
    config.model = component("mlp", hidden=(128,))
    config.format = formats.DEFAULT
    config.adapter = component("qat")
    config.client = ConfigDict(
        {
            "optimizer": component("sgd", learning_rate=0.1),
            "batch_size": 10,
            "epochs": 2,
            "steps": 0,
            "weight_decay": 0.0,
        },
        convert_dict=False,
    )
    config.privacy = component("none")
    config.algorithm = component("fedavg")
    config.attack = component("none")
    config.dropout = component("none")
    config.uplink = component("fp8")
    config.downlink = component("fp8")
    config.executor = component("auto")
    config.evaluate_clients = ConfigDict({"every": 0, "clients": 1000, "fine_tune_steps": 0})
    config.rounds_per_call = 0
    config.feed = "auto"
    config.on_nan = "drop"
    return config


def in_float32(config: ConfigDict) -> ConfigDict:
    """The same config with nothing quantized and nothing encoded."""
    config.adapter = component("none")
    config.uplink, config.downlink = component("none"), component("none")
    return config


FIELDS = {
    "seed": "of initialization, split, cohorts and training; same seed, same run",
    "rounds": "rounds to run",
    "eval_every": "rounds between evaluations on the test set",
    "checkpoint_every": "rounds between checkpoints",
    "num_clients": "registered clients; 0 for as many as the data names",
    "cohort_size": "clients a round",
    "data": "source of rows: a file in fedjax8/data/sources",
    "partition": "rows to clients: a file in fedjax8/data/partitions",
    "input_mean": "constants in place of the data set's mean, one or one a channel; of x / 255 for images",
    "input_std": "likewise in place of its deviation",
    "augment": "random image changes while training, such as ('crop', 'flip')",
    "model": "a file in fedjax8/models",
    "format": "8-bit grid of weights, inputs and messages: e4m3fn, e4m3fnuz, e5m2; mixed: each part names its own",
    "adapter": "what changes the model: a file in fedjax8/adapters",
    "client": "local training: optimizer (any of optax), batch_size, epochs (or steps > 0), weight_decay of kernels",
    "privacy": "how clients protect their examples: a file in fedjax8/privacy",
    "algorithm": "a file in fedjax8/algorithms",
    "attack": "what some clients do against the server: a file in fedjax8/attacks",
    "dropout": "which clients are lost on the way: a file in fedjax8/dropouts",
    "uplink": "codec of what clients send: a file in fedjax8/codecs",
    "downlink": "codec of what clients receive",
    "executor": "how clients are mapped over devices: a file in fedjax8/executors",
    "evaluate_clients": "clients' own models on their own held-out rows: every so many rounds (0: never), at most so "
    "many clients, after so many fine_tune_steps",
    "rounds_per_call": "most rounds run as one dispatch; 0 for as many as are useful",
    "on_nan": "what becomes of contributions that are not finite: drop (left out and counted) or error (the run ends)",
    "feed": "how rows reach the device: resident (all at once), streamed (each call's own), auto (by size)",
}

LARGEST_SEED = 2**32 - 1
"""Beyond it two seeds could give the same random key."""
LARGEST_COUNT = 2**31 - 1
"""Rounds, steps and clients are counted in int32 on the devices."""
LARGEST_BATCH = 2**30
"""So that a batch more than a client's rows can be counted too."""
LARGEST_NUMBER = float(np.finfo(np.float32).max)
LIMITS = {
    "config.seed": (0, LARGEST_SEED),
    "config.rounds": (1, LARGEST_COUNT),
    "config.eval_every": (1, LARGEST_COUNT),
    "config.checkpoint_every": (1, LARGEST_COUNT),
    "config.num_clients": (0, LARGEST_COUNT),
    "config.cohort_size": (1, LARGEST_COUNT),
    "config.rounds_per_call": (0, LARGEST_COUNT),
    "config.evaluate_clients.every": (0, LARGEST_COUNT),
    "config.evaluate_clients.clients": (1, LARGEST_COUNT),
    "config.evaluate_clients.fine_tune_steps": (0, LARGEST_COUNT),
    "config.client.batch_size": (1, LARGEST_BATCH),
    "config.client.epochs": (1, LARGEST_COUNT),
    "config.client.steps": (0, LARGEST_COUNT),
    "config.client.weight_decay": (0.0, LARGEST_NUMBER),
    "config.client.optimizer.learning_rate": (0.0, LARGEST_NUMBER),
}
"""Least and largest value of each number."""
MIXED = "mixed"
"""As `config.format`: each part that takes a format is given its own."""
CHOICES = {
    "config.on_nan": ("drop", "error"),
    "config.feed": ("auto", "resident", "streamed"),
    "config.format": (*formats.FORMATS, MIXED),
}


def is_component(value: Any) -> bool:
    """Whether a config value is a component."""
    return isinstance(value, ConfigDict) and "name" in value


def plain(value: Any) -> Any:
    """The config as JSON-ready dicts, lists and scalars."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"a config holds {value!r}; for a run with files give component(name, ...) and plain values instead"
    )


def load_config(file: str | None) -> ConfigDict:
    """The config that `FILE.py` or `FILE.py:argument` gives by `get_config()` or `get_config(argument)`; base for None.

    Raises `UserError` if the file is missing, has no `get_config`, refuses the argument, or sets a field wrongly.
    """
    if not file:
        return base_config()
    given, _, argument = file.partition(":")
    path = str(path_of(given))
    spec = importlib.util.spec_from_file_location("fedjax8_config_file", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(
            f"--config: no file {path!r}; give a Python file with a get_config(), such as those in configs/"
        )
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
    """Applies `(dotted path, text)` pairs in place, names of components first.

    Naming another component drops the settings of the old one; the new one starts from its factory's defaults.

    Raises `UserError` that names every assignment which cannot be made. Fields whose value has a wrong type are FAILED
    from then on, so that what needs them is not tried.
    """
    split = [(path.split("."), text) for path, text in assignments]
    with Mistakes() as mistakes:
        for path, text in sorted(split, key=lambda pair: pair[0][-1] != "name"):
            mistakes.attempt(_assign, config, path, text if path[-1] == "name" else parse_value(text))


def _assign(config: ConfigDict, path: list[str], value: Any) -> None:
    dotted = "config." + ".".join(path)
    section: Any = config
    for depth, name in enumerate(path[:-1]):
        here = "config." + ".".join(path[: depth + 1])
        if isinstance(section, list | tuple) and name.isdigit() and int(name) < len(section):
            section = section[int(name)]
            continue
        if is_component(section) and name not in section and path[depth + 1] == "name":
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
    if isinstance(old, ConfigDict):
        hint = f"; to choose another, set --{dotted}.name={value}" if is_component(old) else ""
        raise UserError(f"{dotted} is a section and cannot be {value!r}{hint}")
    value = tuple(value) if isinstance(value, list) else value
    with Mistakes() as mistakes:
        if old is not None:
            if not (is_component(section) and "auto" in (value, old)):  # whether that is allowed, its factory says
                value = mistakes.attempt(_as_type_of, dotted, value, old)
            if value is FAILED or not isinstance(_as_held(section, last), FieldReference):
                del section[last]  # what type it may have is checked here, not by ConfigDict
        section[last] = value


def _as_held(section: ConfigDict, name: str) -> Any:
    """A field's value, or the reference that it is."""
    return dict(section.items(preserve_field_references=True))[name]


def _no_field(section: Any, dotted: str, name: str) -> str:
    if not isinstance(section, ConfigDict):
        return f"no field {dotted}: {dotted.rpartition('.')[0]} is {section!r}"
    if is_component(section):
        return f"no field {dotted}: set --{dotted}.name=NAME first, or give it in a config file"
    return f"no field {dotted}: allowed are {', '.join(sorted(section))}{suggest(name, section)}"


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

    What is wrong with them goes to `mistakes`.
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


def check_call(where: str, factory: Callable, given: Mapping[str, Any], supplied: Sequence[str] = ()) -> None:
    """Raises `UserError` that names every setting of `given` which `factory` does not take or whose value is not of the
    annotated simple type, and what it needs and was not given.

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
                mistakes.note(UserError(f"{where}.{key} must be {shown}; got {value!r}"))
        required = [n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in given]
        if required:
            mistakes.note(UserError(f"{where}: {name} needs {', '.join(required)}; set --{where}.{required[0]}=..."))
