"""The hop floor: a predictor in one forked process, over a blocking socketpair.

This is what the hop to another process costs when nothing else is done for it, so it shares
nothing with predictpool but the predictor. Both ends agree on one row's layout beforehand. The
client sends bytes that were encoded before the clock was started, and turns the answer's bytes into
arrays. No names, dtypes or shapes travel, nothing is checked, there is no event loop, no queue, no
deadline, and one caller.

A message is its length, the numbers one after another, the lengths of the texts, the texts.
"""

import os
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks import harness
from benchmarks.models import Arrays

_BUFFER = 1 << 16
_LENGTH = struct.Struct("<I")

Loaded = tuple[Callable[[Arrays], Arrays], Arrays, Arrays]
"""What predicts, a row as it takes them, and the answer: both show the layout of all others."""


@dataclass(frozen=True)
class Layout:
    """What both ends know of a message with one row.

    Attributes:
        numbers: name, dtype and shape of each array of numbers.
        texts: name and shape of each array of text, one element in the whole array or more.
    """

    numbers: tuple[tuple[str, str, tuple[int, ...]], ...]
    texts: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, arrays: Arrays) -> "Layout":
        """Read it off one message's arrays."""
        numbers, texts = [], []
        for name, values in arrays.items():
            if values.dtype == object:
                texts.append((name, values.shape))
            else:
                numbers.append((name, values.dtype.str, values.shape))
        return cls(tuple(numbers), tuple(texts))

    def encoder(self) -> Callable[[Arrays], bytes]:
        """Return what makes a message of arrays; text is bytes already."""
        numbers = [name for name, _, _ in self.numbers]
        texts = [name for name, _ in self.texts]
        lengths = struct.Struct(f"<{sum(int(np.prod(shape)) for _, shape in self.texts)}H")

        def encode(arrays: Arrays) -> bytes:
            words: list[bytes] = []
            for name in texts:
                words += arrays[name].ravel().tolist()
            body = b"".join(
                [
                    *[arrays[name].tobytes() for name in numbers],
                    lengths.pack(*map(len, words)),
                    *words,
                ]
            )
            return _LENGTH.pack(len(body)) + body

        return encode

    def decoder(self) -> Callable[[bytes], Arrays]:
        """Return what makes arrays of a message's body; numbers are views of it."""
        numbers = []
        offset = 0
        for name, code, shape in self.numbers:
            dtype, count = np.dtype(code), int(np.prod(shape))
            numbers.append((name, dtype, count, offset, shape))
            offset += count * dtype.itemsize
        texts = []
        words = 0
        for name, shape in self.texts:
            texts.append((name, words, words + int(np.prod(shape)), shape))
            words = texts[-1][2]
        lengths = struct.Struct(f"<{words}H")
        begin, total = offset + lengths.size, words

        def decode(body: bytes) -> Arrays:
            arrays: Arrays = {
                name: np.frombuffer(body, dtype, count, offset).reshape(shape)
                for name, dtype, count, offset, shape in numbers
            }
            if total:
                all_words = np.empty(total, object)
                at = begin
                for index, length in enumerate(lengths.unpack_from(body, offset)):
                    all_words[index] = body[at : at + length]
                    at += length
                for name, first, last, shape in texts:
                    arrays[name] = all_words[first:last].reshape(shape)
            return arrays

        return decode


class Client:
    """The caller's end, and the process behind it."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        """Fork a process and wait until it is ready.

        Args:
            load: called in that process. Nothing may have imported TensorFlow before.
        """
        self._connection, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._connection.close()
            harness.end_with(lambda: _work(theirs, load))
        theirs.close()
        self._buffer = memoryview(bytearray(_BUFFER))
        features, outputs = pickle.loads(_receive(self._connection, self._buffer))
        self.encode: Callable[[Arrays], bytes] = features.encoder()
        self._decode: Callable[[bytes], Arrays] = outputs.decoder()

    def ask(self, message: bytes) -> Arrays:
        """Send an encoded row and return the answer."""
        self._connection.sendall(message)
        return self._decode(_receive(self._connection, self._buffer))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        os.waitpid(self._pid, 0)


def _work(connection: socket.socket, load: Callable[[], Loaded]) -> None:
    predict, row, answer = load()
    features, outputs = Layout.of(row), Layout.of(answer)
    layouts = pickle.dumps((features, outputs))
    connection.sendall(_LENGTH.pack(len(layouts)) + layouts)
    _answer(connection, predict, features.decoder(), outputs.encoder())


def _answer(
    connection: socket.socket,
    predict: Callable[[Arrays], Arrays],
    decode: Callable[[bytes], Arrays],
    encode: Callable[[Arrays], bytes],
) -> None:
    buffer = memoryview(bytearray(_BUFFER))
    while body := _receive(connection, buffer):
        connection.sendall(encode(predict(decode(body))))


def _receive(connection: socket.socket, buffer: memoryview) -> bytes:
    """Return the body of the next message, or b"" when the other end has closed."""
    have = connection.recv_into(buffer)
    if not have:
        return b""
    end = _LENGTH.unpack_from(buffer)[0] + _LENGTH.size
    while have < end:
        have += connection.recv_into(buffer[have:])
    return bytes(buffer[_LENGTH.size : end])
