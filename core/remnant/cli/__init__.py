"""The command `remnant`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from remnant.cli._output import print_error
from remnant.cli.app import app
from remnant.errors import ConfigError, RemnantError

__all__ = ["app", "main"]

FAILED = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; a `RemnantError` is a message, not a trace.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        0 when it worked, 2 when it was refused, 130 when it was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        return app(arguments, prog_name="remnant", standalone_mode=False) or 0
    except RemnantError as error:
        print_error(error, as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if type(error).__name__ == "Abort":  # a question that was answered with no, or with Ctrl-C
            return INTERRUPTED
        if complaint := _usage_error(error):
            print_error(complaint, as_json)
    return FAILED


def _usage_error(error: Exception) -> RemnantError | None:
    """The parser's complaint as an error of ours; any other error is a bug and passes.

    None when the parser has already shown the help text and has nothing to add.
    """
    message = getattr(error, "format_message", None)  # the parser's classes move between releases
    if message is None:
        raise error
    text = str(message()).rstrip(".")
    return ConfigError(text, do="see 'remnant --help'") if text else None
