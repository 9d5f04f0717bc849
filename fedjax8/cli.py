"""Common part of the command lines: absl flags, errors of a line each, exit statuses."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from fedjax8.errors import UserError, numbered
from fedjax8.streams import keep_standard_streams

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[list[str]], int | None], flags_parser: Callable | None = None) -> None:
    """Runs `main(argv)` under absl and exits with its status. A user's mistake is a line on stderr and status 2."""

    def parse(argv):
        try:
            return (flags_parser or flags.FLAGS)(argv)
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error

    def start(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log their start-up as information
        try:
            return main(argv)
        except SystemExit as stop:  # programs return their status: this is a config's, or a component's of a user's own
            raise UserError(f"a config or component called exit({stop.code!r}); nothing was finished") from stop

    keep_standard_streams()
    try:
        app.run(start, flags_parser=parse)
    except UserError as error:
        sys.exit(report(error))
    except KeyboardInterrupt as error:
        status = report(error)
        sys.stdout.flush()
        os._exit(status)  # the interpreter's own end would wait for the program on the device, minutes at times
    except SystemExit as stop:
        asked_for_help = {"--help", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:])
        sys.exit(0 if asked_for_help and stop.code == 1 else stop.code)


def report(error: BaseException) -> int:
    """The exit status of an error, after it is printed on stderr: a mistake in one line, several as a numbered list."""
    if isinstance(error, UserError):
        said = error.mistakes
        lines = said if len(said) == 1 else [f"{len(said)} mistakes; nothing was run", *numbered(said)]
        print("fedjax8: " + "\n".join(lines), file=sys.stderr)
        return EXIT_USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        print("fedjax8: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    traceback.print_exception(error)
    return 1


def path_of(text: str | os.PathLike) -> Path:
    """The path that a flag names, `~` and `~user` expanded: a shell does that only where a word begins.

    Raises UserError if there is no such home.
    """
    path = Path(os.path.expanduser(text))
    if path.parts and path.parts[0].startswith("~"):
        raise UserError(f"{str(text)!r}: there is no home directory {path.parts[0]!r}; give the whole path, or ./~NAME")
    return path
