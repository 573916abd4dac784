"""A peer's HTTP server, and the client that asks it: aiohttp, keep-alive, one POST per request."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp
import orjson

from benchmarks.load import Ask
from benchmarks.models import Arrays
from benchmarks.peers import held

START_SECONDS = 180.0
END_SECONDS = 15.0
_SHOWN = 4000  # characters


class ServerFailed(Exception):
    """Raised when a server ends, or refuses a request; carries its last words."""


JSON = {"Content-Type": "application/json"}

Message = tuple[bytes, Mapping[str, str]]
"""A body and its headers."""


def as_json(features: Arrays) -> Message:
    """Return a request: ``{"age": [39.0], …}``."""
    return orjson.dumps(held.columns_of(features)), JSON


def from_json(message: Message) -> Arrays:
    """Return the arrays of an answer, which is like a request."""
    return held.arrays_of(orjson.loads(message[0]))


@dataclass(frozen=True)
class Service:
    """A server, and how it is asked.

    Attributes:
        command: what is run, from the repository's root, by the environment's Python unless it
            begins with a path.
        path: where requests go, on 127.0.0.1.
        port: where the server was told to listen.
        variables: environment variables of the server's.
        encode, decode: make a request, and read an answer.
    """

    command: list[str]
    path: str
    port: int
    variables: Mapping[str, str]
    encode: Callable[[Arrays], Message] = as_json
    decode: Callable[[Message], Arrays] = from_json


class Server:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raise `ServerFailed` if it has ended."""
        if (status := self._process.poll()) is not None:
            raise ServerFailed(f"ended with status {status}\n{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of what it printed."""
        return Path(self._log.name).read_text(errors="replace")[-_SHOWN:]


@asynccontextmanager
async def opened(service: Service, example: Arrays) -> AsyncIterator[Ask]:
    """Start a server, wait until it answers, yield what asks it, and end it.

    Args:
        example: a request to try it with.

    Raises:
        ServerFailed: it did not start, or a request was answered by an error.
    """
    # A server closes what nobody has used for 5 s or more; one that was stopped meanwhile does so
    # when it goes on. So older connections are not used again.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    with started(service) as server:
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        ) as session:
            url = f"http://127.0.0.1:{service.port}{service.path}"

            async def ask(features: Arrays) -> Arrays:
                body, headers = service.encode(features)
                async with session.post(url, data=body, headers=headers) as response:
                    body = await response.read()
                if response.status != 200:
                    raise ServerFailed(f"{response.status}: {body[:2000].decode(errors='replace')}")
                return service.decode((body, response.headers))

            await _answering(ask, example, server)
            yield ask


async def _answering(ask: Ask, example: Arrays, server: Server) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            await ask(example)
            return
        except (aiohttp.ClientError, ServerFailed) as error:
            server.check()
            if _is_final(error) or time.monotonic() > until:
                raise ServerFailed(f"no answer: {error!r}\n{server.last_words()}") from error
        await asyncio.sleep(0.2)


def _is_final(error: Exception) -> bool:
    """Return whether the server works and cannot answer; until it works it says otherwise."""
    return isinstance(error, ServerFailed) and error.args[0].startswith("500")


@contextlib.contextmanager
def started(service: Service) -> Iterator[Server]:
    """Start a server, and end it."""
    command = [] if Path(service.command[0]).is_absolute() else [sys.executable]
    with tempfile.NamedTemporaryFile(prefix="peer-", suffix=".log") as log:
        process = subprocess.Popen(
            [*command, *service.command],
            env={**os.environ, **service.variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Server(process, log)
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # its children are ended with the contender
                process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
