"""A stage: where a test holds its workers, and hears what they do.

Two named pipes, so that nothing has to sleep: a worker that comes to `Stage.hold` says so in the
journal and blocks until the test lets it go on. Workers import this module, so nothing of pytest
is in here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio


class Stage:
    """The test's end. In a predictor it becomes a `StageDoor` when that is sent to a worker."""

    def __init__(self, folder: Path) -> None:
        self.door = StageDoor(folder)
        self._journal = _open_both_ends(self.door.journal)
        self._gate = _open_both_ends(self.door.gate)
        self._lines: list[bytes] = []
        self._rest = b""

    def __reduce__(self) -> tuple[Any, ...]:
        return (StageDoor, (self.door.folder,))

    def say(self, fact: object) -> None:
        """Only workers say something."""
        raise NotImplementedError

    def hold(self, fact: object = None) -> None:
        """Only workers are held."""
        raise NotImplementedError

    async def hears(self) -> Any:
        """Return the next thing that a worker said."""
        with anyio.fail_after(15):
            while not self._lines:
                await anyio.wait_readable(self._journal)
                self._read()
        return json.loads(self._lines.pop(0))

    def heard(self) -> list[Any]:
        """Return everything that workers have said meanwhile."""
        self._read()
        lines, self._lines = self._lines, []
        return [json.loads(line) for line in lines]

    def let_go(self, calls: int = 1) -> None:
        """Let workers go on, as many as are held or the next ones that come."""
        os.write(self._gate, b"." * calls)

    def close(self) -> None:
        """Close the pipes."""
        os.close(self._journal)
        os.close(self._gate)

    def _read(self) -> None:
        try:
            while data := os.read(self._journal, 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._lines += lines
        except BlockingIOError:
            return


class StageDoor:
    """The worker's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.gate = folder / "gate"

    def say(self, fact: object) -> None:
        """Tell the test."""
        descriptor = os.open(self.journal, os.O_WRONLY)
        try:
            os.write(descriptor, json.dumps(fact).encode() + b"\n")
        finally:
            os.close(descriptor)

    def hold(self, fact: object = None) -> None:
        """Tell the test, and wait until it lets go."""
        # Opened before the test is told, so that what it then lets go is never lost.
        descriptor = os.open(self.gate, os.O_RDONLY)
        try:
            self.say(fact)
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)


def _open_both_ends(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)
