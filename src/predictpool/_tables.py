"""Files of rows: CSV, JSON lines and Parquet, read row by row, and written so that one can go on.

What is read is a `Row`, whatever the format; a line that is no row is one that says why. What is
written is put behind what a file has, so cutting the file undoes what came after a given size.
Parquet needs pyarrow.
"""

import contextlib
import csv
import io
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from predictpool._command import CommandError

Array = NDArray[Any]
Columns = Mapping[str, Sequence[Any]]
Format = Literal["csv", "jsonl", "parquet"]

ENDINGS: Final[Mapping[str, Format]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
LONGEST_CELL: Final = 2**20  # characters: how far a quote that nobody closes is followed
DEEPEST: Final = 64  # arrays in arrays: what numpy can have, and far from what Python can recurse
GROUP_BATCHES: Final = 256  # requests whose answers become one row group of a Parquet file


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: its first line, from 1; the number of the row in a Parquet file.
        values: by column; text, all of them, in a CSV file. Empty where the line is no row.
        wrong: why it is no row, or ``""``.
        given: the row as it was: the text of its lines, or the values of a Parquet file.
    """

    line: int
    values: dict[str, Any]
    wrong: str
    given: Any


def format_of(path: Path, what: str) -> Format:
    """Return a file's format, which its name tells.

    Raises:
        CommandError: it tells none, or what the format needs is not installed.
    """
    found = ENDINGS.get(path.suffix.lower())
    if found is None:
        raise CommandError(
            f"{what} is {path.name!r}, whose format is not known: its name has to end with "
            f"{', '.join(ENDINGS)}",
            exit_code=2,
        )
    if found == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise CommandError(
                f'Parquet files need pyarrow: pip install "predictpool[score]" ({error})',
                exit_code=2,
            ) from error
    return found


# --- reading -----------------------------------------------------------------------


class Source(ABC):
    """A file of rows.

    Attributes:
        unit: what is counted, for whoever looks for a row.
        text: whether all values are text.
        columns: their names; None where each row has its own.
        only: those that are read where others can be left out; None for all.
    """

    unit = "line"
    text = False
    columns: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None

    @property
    @abstractmethod
    def part(self) -> float:
        """Which part of the file has been read, 0.0 to 1.0."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield all rows."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class TextSource(Source):
    """Lines of UTF-8: what CSV and JSON lines have in common."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        # Errors are kept in the text, so that the line that has them can be set aside.
        self._bytes = path.open("rb")
        self._file = io.TextIOWrapper(
            self._bytes, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self._seen: list[str] = []
        self._again: list[str] = []  # read, but not seen: the next one is the last

    @property
    def part(self) -> float:
        return self._bytes.tell() / max(1, self._size)

    def close(self) -> None:
        self._file.close()

    def _lines(self) -> Iterator[str]:
        while self._again:
            self._seen.append(self._again.pop())
            yield self._seen[-1]
        for line in self._file:
            self._seen.append(line)
            yield line

    def _given(self) -> tuple[str, str]:
        """Return the text that was read since the last call, and what is wrong with it."""
        text = "".join(self._seen).rstrip("\r\n")
        self._seen.clear()
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            return shown, "it is not UTF-8"
        return text, ""


class CsvSource(TextSource):
    """A CSV file: a header, commas, quotes where they are needed."""

    text = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._line = 0  # the last one of the record that was read
        csv.field_size_limit(LONGEST_CELL)
        self._reader = csv.reader(self._lines(), strict=True)
        try:
            self.columns = self._header(path)
        except BaseException:
            self.close()
            raise

    def _header(self, path: Path) -> tuple[str, ...]:
        names, wrong = self._record()
        wrong = self._given()[1] or wrong
        if not names or wrong:
            raise CommandError(
                f"{path} has no header in its first line, the names of its columns with commas "
                f"between them{f': {wrong}' if wrong else ''}",
                exit_code=2,
            )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise CommandError(
                f"{path} has two columns named {twice[0]!r}: rename one", exit_code=2
            )
        return tuple(names)

    def rows(self) -> Iterator[Row]:
        assert self.columns is not None
        count = len(self.columns)
        while True:
            line = self._line + 1
            cells, wrong = self._record()
            if cells is None:
                return
            given, not_text = self._given()
            wrong = not_text or wrong
            if cells and len(cells) != count and not wrong:
                wrong = f"expected {count} cells, as in the header; it has {len(cells)}"
            if cells or wrong:  # else it is a blank line
                values = {} if wrong else dict(zip(self.columns, cells, strict=True))
                yield Row(line, values, wrong, given)

    def _record(self) -> tuple[list[str] | None, str]:
        """Return the next record, None at the end, and what is wrong with it.

        A quote too many swallows all lines up to the next quote, so where that ends in no CSV,
        only the first line is the record, and the others are read again.
        """
        cells, wrong = None, ""
        try:
            cells = next(self._reader, None)
        except csv.Error as error:
            cells, wrong = [], f"it is no CSV: {error}"
            if len(self._seen) > 1:
                wrong += f" ({len(self._seen) - 1} lines further on)"
                self._again += reversed(self._seen[1:])
                del self._seen[1:]
                self._reader = csv.reader(self._lines(), strict=True)
        self._line += len(self._seen)
        return cells, wrong


class JsonSource(TextSource):
    """A file with one JSON object in each line; or one array or number, for a single feature.

    Such a row without names has its value under ``""``.
    """

    def rows(self) -> Iterator[Row]:
        for number, line in enumerate(self._lines(), 1):
            given, wrong = self._given()
            if not line.isspace():
                values, no_json = ({}, "") if wrong else _parsed(line)
                yield Row(number, values, wrong or no_json, given)


def _parsed(line: str) -> tuple[dict[str, Any], str]:
    """Return the row that a line of JSON is, and what is wrong with it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"it is no JSON: {error}"
    if line.count("[") + line.count("{") > DEEPEST and _is_deep(value):
        return {}, f"it has arrays or objects in each other, more than {DEEPEST} deep"
    return value if isinstance(value, dict) else {"": value}, ""


def _is_deep(value: Any) -> bool:
    layer = [value] if isinstance(value, list | dict) else []
    for _ in range(DEEPEST):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(layer)


class ParquetSource(Source):
    """A Parquet file.

    Attributes:
        schema: pyarrow's.
    """

    unit = "row"

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        self._count: int = self._file.metadata.num_rows
        self._read = 0
        self.schema = self._file.schema_arrow
        self.columns = tuple(self.schema.names)

    @property
    def part(self) -> float:
        return self._read / max(1, self._count)

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa

        try:
            for batch in self._file.iter_batches(batch_size=1024, columns=self.only):
                for values, wrong in _values(batch):
                    self._read += 1
                    yield Row(self._read, {} if wrong else values, wrong, values)
        except (OSError, pa.ArrowException) as error:
            raise CommandError(
                f"INPUT cannot be read behind row {self._read:,}: {error}"
            ) from error

    def close(self) -> None:
        self._file.close()


def _values(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a batch of Arrow's, and what is wrong with each."""
    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            for index in range(batch.num_rows):
                yield from _values(batch.slice(index, 1))
            return
        given = [" ".join(column.to_string().split())[2:-2] for column in batch.columns]
        yield dict(zip(names, given, strict=True)), f"it has values that Python has not: {error}"
    else:
        for index in range(batch.num_rows):
            cells = (column[index] for column in columns)
            yield dict(zip(names, cells, strict=True)), ""


def opened(path: Path, kind: Format) -> Source:
    """Open a file of rows.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        if kind == "csv":
            return CsvSource(path)
        return JsonSource(path) if kind == "jsonl" else ParquetSource(path)
    except (OSError, ValueError) as error:  # pyarrow's are both
        raise CommandError(f"INPUT cannot be read: {error}", exit_code=2) from error


# --- writing -----------------------------------------------------------------------


class AppendedFile:
    """A file that one goes on to write.

    Args:
        path: of the file.
        size: bytes that are kept of what it has.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._file: BinaryIO = path.open("r+b" if size else "wb")
        self._file.seek(size)

    def write(self, data: bytes) -> None:
        """Put bytes at the end."""
        self._file.write(data)

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return self._file.tell()

    def commit(self, size: int) -> None:
        """Have the disk keep so many bytes of it, and nothing else."""
        self._file.seek(size)
        self._file.truncate()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it; what was not committed does not matter any more."""
        with contextlib.suppress(OSError):  # a full disk has been told of before
            self._file.close()


class Sink(AppendedFile, ABC):
    """Rows at the end of a file."""

    @abstractmethod
    def append(self, kept: Columns, outputs: Mapping[str, Array]) -> None:
        """Write rows.

        Args:
            kept: the columns of the input that are wanted, one value for each row.
            outputs: those of the model, the first axis the row.

        Raises:
            CommandError: they cannot be written in this format.
        """


class CsvSink(Sink):
    """A CSV file; a value that is an array is JSON."""

    def append(self, kept: Columns, outputs: Mapping[str, Array]) -> None:
        columns = _joined(kept, outputs)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self.size == 0:
            writer.writerow(columns)
        writer.writerows(zip(*(map(_cell, values) for values in columns.values()), strict=True))
        self.write(encoded(text.getvalue()))


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return as_json(value)
    return _text(value) if isinstance(value, bytes) else value


class JsonSink(Sink):
    """A file with one JSON object in each line."""

    def append(self, kept: Columns, outputs: Mapping[str, Array]) -> None:
        columns = _joined(kept, outputs)
        for row in zip(*columns.values(), strict=True):
            self.write(encoded(as_json(dict(zip(columns, row, strict=True))) + "\n"))


def _joined(kept: Columns, outputs: Mapping[str, Array]) -> Columns:
    return {**kept, **{name: plain(name, values) for name, values in outputs.items()}}


class ParquetSink(Sink):
    """Arrow's stream of batches, of which the Parquet file is made at the end.

    Args:
        path, size: as of `AppendedFile`.
        schema: of the input where it has one: the types of the columns that are kept.
    """

    def __init__(self, path: Path, size: int, schema: Any) -> None:
        import pyarrow as pa

        super().__init__(path, size)
        self._input = schema
        self._schema: Any = None
        if size:
            with pa.OSFile(str(path)) as file:
                self._schema = pa.ipc.open_stream(file).schema

    def append(self, kept: Columns, outputs: Mapping[str, Array]) -> None:
        import pyarrow as pa

        columns = {**kept, **{name: _exact(name, values) for name, values in outputs.items()}}
        try:
            if self._schema is None:
                self._schema = self._schema_of(kept, outputs)
                self.write(self._schema.serialize())
            self.write(pa.record_batch(columns, schema=self._schema).serialize())
        except (pa.ArrowException, TypeError, OverflowError) as error:
            fields = ", ".join(f"{field.name}: {field.type}" for field in self._schema or ())
            raise CommandError(
                f"the rows do not fit what OUTPUT begins with ({fields}): {error}. Write a file "
                "that ends with .jsonl, whose rows need not be alike"
            ) from error

    def _schema_of(self, kept: Columns, outputs: Mapping[str, Array]) -> Any:
        import pyarrow as pa

        types = {name: self._type_of(name, values) for name, values in kept.items()}
        types |= {name: _arrow_type(values) for name, values in outputs.items()}
        return pa.schema(list(types.items()))

    def _type_of(self, name: str, values: Sequence[Any]) -> Any:
        import pyarrow as pa

        if self._input is not None:
            found = self._input.field(name).type
            return found.value_type if pa.types.is_dictionary(found) else found
        found = pa.infer_type(values)
        return pa.string() if pa.types.is_null(found) else found


def sink(path: Path, kind: Format, size: int, source: Source) -> Sink:
    """Return what writes rows behind what an earlier run has kept."""
    if kind == "parquet":
        return ParquetSink(path, size, getattr(source, "schema", None))
    return CsvSink(path, size) if kind == "csv" else JsonSink(path, size)


def finished(path: Path, kind: Format) -> Path:
    """Make a file of the format of what a `Sink` has put into `path`, and return where it is.

    It may be called again, wherever it was stopped.
    """
    if kind != "parquet":
        return path
    whole = path.with_suffix(".parquet")
    if path.exists():
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            _write_parquet(path, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(whole)
        path.unlink()
    return whole


def _write_parquet(stream: Path, file: BinaryIO) -> None:
    """Make a Parquet file of a stream, with row groups as large as readers like them."""
    import pyarrow as pa
    from pyarrow import parquet

    if not stream.stat().st_size:  # no row was scored
        parquet.write_table(pa.table({}), file)
        return
    with (
        pa.OSFile(str(stream)) as source,
        pa.ipc.open_stream(source) as batches,
        parquet.ParquetWriter(file, batches.schema) as writer,
    ):
        while group := list(itertools.islice(batches, GROUP_BATCHES)):
            writer.write_table(pa.Table.from_batches(group).combine_chunks())


# --- outputs -----------------------------------------------------------------------


def by_column(outputs: Any, rows: int) -> dict[str, Array]:
    """Return outputs by name, the first axis the row; one value for arrays ``[n, 1]``.

    Args:
        outputs: what the predictor returned; without names it is called ``"output"``.
        rows: how many there have to be.

    Raises:
        CommandError: the first axis is not the row.
    """
    named = outputs if isinstance(outputs, Mapping) else {"output": outputs}
    columns: dict[str, Array] = {}
    for name, value in named.items():
        values = _as_array(value)
        if values.ndim == 0 or len(values) != rows:
            raise CommandError(
                f"the output {str(name)!r} has the shape {values.shape} for {rows} rows, expected "
                "the rows on its first axis: what the predictor returns is not one answer for each "
                "row"
            )
        # Lists stay what they are: those of the next request may be of other lengths.
        single = isinstance(value, np.ndarray) and values.ndim == 2 and values.shape[1] == 1
        columns[str(name)] = values[:, 0] if single else values
    return columns


def _as_array(value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        values = np.empty(len(value), object)
        for index, item in enumerate(value):
            values[index] = item
        return values


def plain(name: str, values: Array) -> list[Any]:
    """Return values as JSON has them: lists for arrays, text for bytes and for dates.

    A float32 becomes the shortest number that is the same float32.

    Raises:
        CommandError: there is something else among them.
    """
    items: list[Any]
    if values.dtype.kind == "f":
        shortest = values.astype(str) if values.itemsize < 8 else values
        items = shortest.astype(np.float64).tolist()
        return items
    if values.dtype.kind in "biu":
        items = values.tolist()
        return items
    if values.dtype.kind == "M":
        items = values.astype(str).tolist()
        return items
    return [_plain(name, item) for item in values.tolist()]


def _plain(name: str, item: Any) -> Any:
    if item is None or isinstance(item, str | bool | int | float):
        return item
    if isinstance(item, bytes):
        return _text(item)
    if isinstance(item, list | tuple):
        return [_plain(name, part) for part in item]
    if isinstance(item, np.ndarray):
        return plain(name, item)
    if isinstance(item, np.generic):
        return plain(name, np.array([item]))[0]
    raise CommandError(
        f"the output {name!r} has a value of the type {type(item).__name__}, expected numbers, "
        "text, or arrays of them: have the predictor return those"
    )


def as_json(value: Any) -> str:
    """Return JSON. It has no NaN and no infinity: they become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_text)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_text)


def encoded(text: str) -> bytes:
    """Return text as UTF-8, also what is none: half of a surrogate pair, escaped in JSON."""
    return text.encode(errors="backslashreplace")


def _text(value: Any) -> str:
    """Return what a file has that JSON has not: dates, decimals, bytes."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _exact(name: str, values: Array) -> Any:
    """Return values for Parquet, with their dtype."""
    if values.dtype.kind not in "biufM":
        return plain(name, values)
    return values if values.ndim == 1 else values.tolist()


def _arrow_type(values: Array) -> Any:
    import pyarrow as pa

    if values.dtype.kind not in "biufM":
        found = pa.infer_type(plain("", values[:1]))  # text, or lists where rows differ in length
        return pa.string() if pa.types.is_null(found) else found
    found = pa.from_numpy_dtype(values.dtype)
    for _ in range(values.ndim - 1):
        found = pa.list_(found)
    return found
