"""What all command lines share: absl flags, one-line errors, exit statuses."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from fedjax8.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[list[str]], int | None], flags_parser: Callable | None = None) -> None:
    """Runs `main(argv)` under absl and exits with its status. A user's mistake is one line on stderr and status 2."""

    def parse(argv):
        try:
            return (flags_parser or flags.FLAGS)(argv)
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error

    def start(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log their start-up as information
        return main(argv)

    try:
        app.run(start, flags_parser=parse)
    except UserError as error:
        print(f"fedjax8: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("fedjax8: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as stop:
        asked_for_help = {"--help", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:])
        sys.exit(0 if asked_for_help and stop.code == 1 else stop.code)
