"""``python -m benchmarks.peers FD``: a contender in a peer's environment; see `contender`."""

import ctypes
import sys
from multiprocessing.connection import Connection

import psutil

from benchmarks import harness
from benchmarks.peers import contender

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Do what the other end of the connection says first, and leave no process behind."""
    # Whoever loses its parent becomes a child of this process, so that none gets lost.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    connection = Connection(int(sys.argv[1]))
    serve, arguments = connection.recv()
    try:
        harness.run_contender(serve, connection, arguments)
    finally:
        contender.end_all(psutil.Process().children(recursive=True))


if __name__ == "__main__":
    main()
