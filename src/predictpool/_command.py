"""What the commands of the command line have in common: how they fail, and what they hide."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from predictpool._worker import one_line


class CommandError(Exception):
    """What went wrong in one line, with the remedy.

    Attributes:
        exit_code: for the shell: 1 if the predictor does not work, 2 if the command was called
            wrongly.
        details: a traceback for those who ask for it, or ``""``.
    """

    def __init__(self, message: str, *, exit_code: int = 1, details: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.details = details


def describe(error: BaseException) -> str:
    """Return an exception in one line, as a traceback ends with it."""
    # A syntax error's own text has the place once more.
    text = one_line(error.msg if isinstance(error, SyntaxError) else str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def quietly(verbose: bool) -> Iterator[TextIO]:
    """Keep off the terminal what the user's module, its libraries and the worker write.

    It goes to stderr if it is wanted, and else nowhere: stdout is for the result.

    Yields:
        a stream to the real stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    sink = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(sink, number)
        with open(kept[1], "w", closefd=False) as terminal:
            yield terminal
    finally:
        sys.stdout.flush()  # before the switch: it goes the way of the rest
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
        for descriptor in (*kept, sink):
            os.close(descriptor)
