"""Where workers live: what the pool and a launcher expect of each other."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from predictpool._backend import Backend
from predictpool._columns import Parts, Schema
from predictpool._devices import Device, Wishes
from predictpool._wire import Frame
from predictpool._worker import Failure, Ready, Start


@dataclass(frozen=True)
class End:
    """How a worker process ended.

    Attributes:
        exitcode: its exit status; None if a signal ended it or nobody knows.
        signal: the signal that ended it, or None.
        crash_report: what ``faulthandler`` wrote.
        goodbye: whether it said goodbye; without, it crashed, whatever the status says.
        why: why the pool killed it, or "".
        out_of_memory: whether the kernel has killed a process of our control group for
            lack of memory since the worker started; None where nobody counts that.
        told: what others say of its end, who alone can know, or "".
    """

    exitcode: int | None
    signal: int | None
    crash_report: str
    goodbye: bool
    why: str
    out_of_memory: bool | None = None
    told: str = ""

    @property
    def cause(self) -> str:
        """The likely cause, in words, or ""."""
        if self.why or self.signal is None:
            return self.told
        if self.signal == signal.SIGKILL and self.out_of_memory:
            return "the kernel, for lack of memory: it counts such a kill in this control group"
        if self.signal == signal.SIGKILL and self.out_of_memory is False:
            return "somebody's kill -9: the kernel has counted no kill for lack of memory"
        return _LIKELY_CAUSES.get(self.signal, "")

    @property
    def kind(self) -> str:
        """What ended it, in one of few words."""
        if self.why:
            return "killed by the pool"
        if self.signal is not None:
            return _signal_name(self.signal)
        return "unknown" if self.exitcode is None else "exit"

    def __str__(self) -> str:
        if self.why:
            return f"was killed: it {self.why}"
        if self.signal is not None:
            name = _signal_name(self.signal)
            return f"was ended by {name}" + (f" ({self.cause})" if self.cause else "")
        if self.exitcode is not None:
            return f"exited by itself with status {self.exitcode}"
        if self.told:
            return f"ended: {self.told}"
        return "ended, and nobody knows its exit status"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have none
        return f"signal {number}"


_LIKELY_CAUSES = {
    int(signal.SIGKILL): "often the kernel, short of memory; or somebody's kill -9",
    int(signal.SIGSEGV): "a bug in native code, often of an extension module",
    int(signal.SIGABRT): "native code gave up, often out of memory or a failed check",
    int(signal.SIGBUS): "often a full /dev/shm or a truncated mapped file",
    int(signal.SIGILL): "a library built for another processor",
}


class Listener(Protocol):
    """Who is told what a worker says. Called on the event loop's thread, never blocking."""

    def waits_for(self, what: str) -> None:
        """What its start waits for from now on; "" for nothing but itself."""

    def ready(self, ready: Ready) -> None:
        """The worker has loaded its predictor."""

    def start_failed(self, failure: Failure) -> None:
        """The worker could not load its predictor and is ending."""

    def answered(self, frame: Frame) -> None:
        """A batch has its outputs."""

    def failed(self, batch_id: int, failure: Failure) -> None:
        """The model raised."""

    def ending(self) -> None:
        """It takes nothing more; `ended` follows as soon as it is known how."""

    def ended(self, end: End) -> None:
        """The process is gone. Nothing comes after this."""


class WorkerHandle(Protocol):
    """One running worker, as the pool sees it."""

    pid: int

    def send(self, batch_id: int, schema: Schema, requests: Sequence[Parts], rows: int) -> None:
        """Send a batch: the encoded features of its requests, and their rows together."""

    def stop(self) -> None:
        """Ask it to let go of the model and end, when it has answered."""

    def kill(self, why: str) -> None:
        """End it now. `Listener.ended` follows, and nothing else."""


class Launcher(Protocol):
    """Where workers live."""

    def plan_blocks(self, wishes: Wishes) -> bool:
        """Whether `plan` would first look for something that takes long to find."""

    def plan(self, wishes: Wishes, workers: int | None) -> list[Device]:
        """Return a device for each worker, in the order of the slots. It starts no worker.

        Called before `bind`, from a thread of its own where it `plan_blocks`; and again
        for another number of workers.

        Args:
            workers: None for as many as there are places for.

        Raises:
            ValueError: what was wished for is not there, or not allowed.
            OSError, ModuleNotFoundError: what is there cannot be found out.
        """

    def bind(self, backend: Backend, preload: tuple[str, ...], devices: Sequence[Device]) -> None:
        """Belong to one pool and its event loop, from now on.

        Args:
            preload: modules that the predictor needs.
            devices: of the workers that the pool begins with.
        """

    async def start(self, start: Start, listener: Listener) -> WorkerHandle:
        """Start a worker. It reports to the listener when it is ready."""

    def kill(self) -> None:
        """End every worker now, without waiting."""

    async def aclose(self) -> None:
        """End every worker and let go of everything."""
