"""A contender that runs in a peer's environment, with whatever processes the peer starts.

It is the first process of a session of its own. It ends its peer's processes when it ends, and it
ends when the connection is closed, which happens also when the harness is killed.

Between two orders the peer's processes are stopped (SIGSTOP): some of them poll, and would take a
core from whoever has his turn.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import harness
from benchmarks.harness import Contender
from benchmarks.peers import environments

_END_SECONDS = 60
_TERMINATE_SECONDS = 5


class PeerContender(Contender):
    """Runs ``serve(orders, *arguments)`` like any `harness.Contender`, on another Python.

    Args:
        python: the interpreter.
        serve: is imported there, not sent there: nothing that it imports at its module's top may be
            missing here or there.
    """

    def __init__(
        self, name: str, python: Path, serve: Callable[..., None], *arguments: Any
    ) -> None:
        self.name = name
        self._connection, theirs = multiprocessing.Pipe()
        variables = {**harness.WORKER_ENVIRONMENT, "PYTHONPATH": environments.python_path()}
        self._peer = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers", str(theirs.fileno())],
            cwd=environments.ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._connection.send((serve, arguments))

    def order(self, *order: Any) -> Any:
        """Send an order to the peer, which is stopped before and afterwards."""
        self._each(psutil.Process.resume)
        try:
            return super().order(*order)
        finally:
            self._each(psutil.Process.suspend)

    def _each(self, do: Callable[[psutil.Process], None]) -> None:
        for process in self._descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                do(process)

    def _descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._peer.pid).children(recursive=True)
        return []

    def end(self) -> None:
        """Have it end, and see to it that nothing of it is left."""
        descendants = self._descendants()
        self._each(psutil.Process.resume)
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._peer.wait(_END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._peer.pid, signal.SIGKILL)
        self._peer.wait()
        end_all(descendants)


def end_all(processes: Sequence[psutil.Process]) -> None:
    """End processes, by force where asking does not help."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()
    _, left = psutil.wait_procs(processes, timeout=_TERMINATE_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_TERMINATE_SECONDS)
