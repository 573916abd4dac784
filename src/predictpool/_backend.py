"""The few things that a pool needs from its event loop, on asyncio, uvloop and trio.

The pool's logic is made of plain functions that run on the loop's thread; it asks the
loop for readable and writable sockets, for a timer, for something a caller can wait on,
and for background work that belongs to no caller. asyncio and uvloop give the first two
as callbacks that stay registered; on trio a system task per socket stands in.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from threading import get_ident
from typing import Any, Protocol

from anyio.lowlevel import current_token

Callback = Callable[[], None]
Work = Callable[[], Coroutine[Any, Any, None]]


class Waiter(Protocol):
    """What a caller waits on; set once."""

    def done(self) -> bool:
        """Whether it is set, or nobody waits any more."""

    def set_result(self, result: Any) -> None:
        """Wake the caller."""

    def __await__(self) -> Generator[Any, Any, Any]: ...


class Cancellable(Protocol):
    """Something that will happen unless it is cancelled."""

    def cancel(self) -> object:
        """Make it not happen."""


class Backend(Protocol):
    """An event loop. All is called on its own thread but `is_current` and `call_from_thread`."""

    def is_current(self) -> bool:
        """Whether the caller runs in this event loop."""

    def waiter(self) -> Waiter:
        """Return a new waiter."""

    def call_soon(self, callback: Callback) -> None:
        """Call back once, when all who are ready now have had their turn."""

    def call_from_thread(self, callback: Callback) -> None:
        """Call back once, on the loop's thread. Raises RuntimeError if the loop has ended."""

    def call_later(self, seconds: float, callback: Callback) -> Cancellable:
        """Call back once, later."""

    def on_readable(self, descriptor: int, callback: Callback) -> Cancellable:
        """Call back whenever a descriptor is readable, until cancelled."""

    def on_writable(self, descriptor: int, callback: Callback) -> Cancellable:
        """Call back whenever a descriptor is writable, until cancelled."""

    def spawn(self, work: Work, name: str) -> None:
        """Run work in the background, in no caller's context."""


def current_backend(on_error: Callable[[Exception], None]) -> Backend:
    """Return the event loop that runs the caller.

    Args:
        on_error: gets what a callback or background work raises. That would be a mistake
            of ours; on trio it would otherwise end the user's whole program, on asyncio
            leave callers waiting for ever.

    Raises:
        RuntimeError: there is no event loop.
    """
    token = current_token().native_token
    if isinstance(token, asyncio.AbstractEventLoop):
        return _AsyncioBackend(token, on_error)
    return _TrioBackend(token, on_error)


class _Guard:
    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error

    def _guarded(self, callback: Callback) -> Callback:
        def call() -> None:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - whoever it is, every caller is told
                self._on_error(error)

        return call

    async def _guarded_work(self, work: Work) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - as above
            self._on_error(error)


# --- asyncio and uvloop ------------------------------------------------------------

_forks = 0  # how many there are between the first process and this one


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - a fact of the process
    _forks += 1


if hasattr(os, "register_at_fork"):  # so that other systems get as far as their error
    os.register_at_fork(after_in_child=_count_fork)


class _Registration:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, remove: Callable[[int], object], descriptor: int
    ) -> None:
        self._loop = loop
        self._remove = remove
        self._descriptor = descriptor

    def cancel(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0 and not self._loop.is_closed():
            self._remove(descriptor)


class _AsyncioBackend(_Guard):
    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_error: Callable[[Exception], None]
    ) -> None:
        super().__init__(on_error)
        self._loop = loop
        self._seen_in = get_ident(), _forks
        self._background: set[asyncio.Task[None]] = set()

    def is_current(self) -> bool:
        # Up to Python 3.11 `get_running_loop` makes a system call, which took 4 % of a busy
        # application's time. A thread runs one loop at a time; only one that has handed ours
        # to another thread, and runs another loop, would be taken for ours.
        here = get_ident(), _forks
        if here == self._seen_in and self._loop.is_running():
            return True
        try:
            current = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
        if current:
            self._seen_in = here
        return current

    def waiter(self) -> Waiter:
        return self._loop.create_future()

    def call_soon(self, callback: Callback) -> None:
        self._loop.call_soon(self._guarded(callback))

    def call_from_thread(self, callback: Callback) -> None:
        self._loop.call_soon_threadsafe(self._guarded(callback))

    def call_later(self, seconds: float, callback: Callback) -> Cancellable:
        return self._loop.call_later(seconds, self._guarded(callback))

    def on_readable(self, descriptor: int, callback: Callback) -> Cancellable:
        self._loop.add_reader(descriptor, self._guarded(callback))
        return _Registration(self._loop, self._loop.remove_reader, descriptor)

    def on_writable(self, descriptor: int, callback: Callback) -> Cancellable:
        self._loop.add_writer(descriptor, self._guarded(callback))
        return _Registration(self._loop, self._loop.remove_writer, descriptor)

    def spawn(self, work: Work, name: str) -> None:
        background = self._loop.create_task(self._guarded_work(work), name=name)
        # The loop itself keeps only weak references to what it runs.
        self._background.add(background)
        background.add_done_callback(self._background.discard)


# --- trio --------------------------------------------------------------------------


class _TrioWaiter:
    __slots__ = ("_done", "_result", "_sleeper")

    def __init__(self) -> None:
        self._done = False
        self._result: Any = None
        self._sleeper: Any = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any) -> None:
        import trio

        self._done, self._result = True, result
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        import trio

        if self._done:
            await trio.lowlevel.checkpoint()
            return self._result
        self._sleeper = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._done = True  # nobody waits any more
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return self._result


class _TrioWatch:
    def __init__(self, scope: Any, descriptor: int) -> None:
        self._scope = scope
        self._descriptor = descriptor

    def cancel(self) -> None:
        import trio

        if self._descriptor >= 0:
            self._scope.cancel()
            # Without it trio would look after a descriptor that is closed meanwhile.
            trio.lowlevel.notify_closing(self._descriptor)
            self._descriptor = -1


class _TrioBackend(_Guard):
    def __init__(self, token: Any, on_error: Callable[[Exception], None]) -> None:
        super().__init__(on_error)
        self._token = token

    def is_current(self) -> bool:
        import trio

        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def waiter(self) -> Waiter:
        return _TrioWaiter()

    def call_soon(self, callback: Callback) -> None:
        self._token.run_sync_soon(self._guarded(callback))

    call_from_thread = call_soon

    def call_later(self, seconds: float, callback: Callback) -> Cancellable:
        import trio

        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(seconds)
                callback()

        self.spawn(wait, "timer")
        return scope

    def on_readable(self, descriptor: int, callback: Callback) -> Cancellable:
        import trio

        return self._watch(trio.lowlevel.wait_readable, descriptor, callback)

    def on_writable(self, descriptor: int, callback: Callback) -> Cancellable:
        import trio

        return self._watch(trio.lowlevel.wait_writable, descriptor, callback)

    def _watch(
        self, wait: Callable[[int], Awaitable[None]], descriptor: int, callback: Callback
    ) -> Cancellable:
        import trio

        scope = trio.CancelScope()
        guarded = self._guarded(callback)

        async def watch() -> None:
            with scope:
                while not scope.cancel_called:
                    try:
                        await wait(descriptor)
                    except trio.ClosedResourceError:
                        continue  # another watch of this descriptor was cancelled
                    guarded()

        self.spawn(watch, f"watch {descriptor}")
        return _TrioWatch(scope, descriptor)

    def spawn(self, work: Work, name: str) -> None:
        import trio

        trio.lowlevel.spawn_system_task(self._guarded_work, work, name=f"predictpool: {name}")
