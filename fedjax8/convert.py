"""Writes any data source to a folder of clients, which `--config.data.name=mapped` reads from the disk as it is used.

    python -m fedjax8.convert --out=DATA/NAME --config.data.name=SOURCE --config.data.SETTING=... [--data_dir=DIR]

    python -m fedjax8.convert --out=DATA/so --data_dir=DIR --config.data.name=tff_h5 --config.data.file=stackoverflow
    python -m fedjax8.train --data_dir=DATA --config.data.name=mapped --config.data.folder=so \
        --config.partition.name=by_key --config.num_clients=0

The settings are those of the source. `leaf`, `tff_h5` and `hf` are read client by client, so that a set may be larger
than memory; other sources are read whole. Natural clients keep their names, classes theirs; rows without natural
clients become one client.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from fedjax8 import cli
from fedjax8.errors import UserError

_PREFIX = "config.data."


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string("out", None, "folder to write: new or empty; it gets the parts train and test")
    flags.DEFINE_string("data_dir", None, "where the source's data lie; default $FEDJAX8_DATA")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl's flags; settings of the source are left in argv for `main`."""
    own = [text for text in argv[1:] if text.lstrip("-").startswith(_PREFIX) and text.startswith("-")]
    return flags.FLAGS([text for text in argv if text not in own]) + own


def main(argv: list[str]) -> int:
    """Writes the folder that the flags and the settings `argv[1:]` ask for; the exit status is 0."""
    pairs = []
    for text in argv[1:]:
        path, equals, value = text.lstrip("-").partition("=")
        if not text.startswith("-") or not path.startswith(_PREFIX) or not equals:
            raise UserError(f"unexpected argument {text!r}; settings are --config.data.NAME=VALUE")
        pairs.append((path.removeprefix("config."), value))
    if not flags.FLAGS.out:
        raise UserError("no folder named: add --out=DATA/NAME")
    out = cli.path_of(flags.FLAGS.out)
    convert(pairs, out, flags.FLAGS.data_dir)
    print(
        f"wrote {out}; read it by --data_dir={out.parent} --config.data.name=mapped --config.data.folder={out.name} "
        "--config.partition.name=by_key --config.num_clients=0"
    )
    return 0


def convert(pairs: list[tuple[str, str]], out: Path, data_dir: str | None = None) -> None:
    """Writes the source that config assignments such as `("data.name", "leaf")` describe to the folder `out`.

    Raises:
        UserError: assignments that name no source or setting, data that cannot be read, or a folder that is not empty.
    """
    from fedjax8.components import SEAMS, bind
    from fedjax8.config import base_config, override
    from fedjax8.data.sources._streams import write_mapped
    from fedjax8.errors import FAILED, mistakes_of

    config = base_config()
    override(config, pairs)
    if "standardize" in config.data:
        raise UserError("config.data.standardize is of no use here: rows are written as they are; give it to mapped")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another folder, or remove it first")
    bound: Any = bind("config.data", config.data, SEAMS["data"], ("data_dir",))
    if bound is FAILED:
        raise UserError("config.data cannot be used")
    factory = SEAMS["data"].finder(config.data.name)
    stream = getattr(sys.modules[factory.__module__], "stream", None)
    supplied = {"data_dir": data_dir} if "data_dir" in bound.needs else {}
    settings = {name: value for name, value in config.data.items() if name != "name"}
    with mistakes_of("config.data"):
        made = bound.make(**supplied) if stream is None else stream(**{"data_dir": data_dir, **settings})
        write_mapped(made, out)


if __name__ == "__main__":
    define_flags()
    cli.run(main, parse_flags)
