"""What a run of ``predictpool score`` keeps, so that the next one goes on where it stopped.

The output grows in a folder beside the place where it will be, with the rows that are set aside and
a journal, which says how much of them is safe. The journal is replaced as a whole, after the files
it speaks of are on the disk; what is behind that in them is cut off by the next run.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from predictpool._command import CommandError, describe
from predictpool._features._refusals import name_list
from predictpool._tables import (
    AppendedFile,
    Array,
    Format,
    Row,
    Source,
    as_json,
    encoded,
    finished,
    sink,
)

COMMIT_SECONDS: Final = 1.0  # of work that a kill may cost
OWN: Final = ("rows", "rows.new", "rows.parquet", "refused", "journal.new", "journal")

Answers = list[tuple[list[Row], dict[str, Array]]]
"""Rows and the outputs for them, by column, the first axis the row."""


def what_it_is_made_of(target: str, source: Path, keep: Sequence[str]) -> dict[str, Any]:
    """Return what must be the same for a run to go on."""
    now = source.stat()
    return {
        "MODULE:PREDICTOR": target,
        "INPUT": str(source.resolve()),
        "the size of INPUT": now.st_size,
        "the time of INPUT": now.st_mtime_ns,
        "--keep": ",".join(keep),
    }


@dataclass(frozen=True)
class Journal:
    """How far a run is.

    Attributes:
        made_of: what must be the same for a run to go on.
        rows: of the input that are done; always ``scored + refused``.
        scored: rows in the output.
        refused: rows that were set aside.
        written: bytes of the output.
        aside: bytes of the file with the rows that were set aside.
        columns: of the output; empty before the first answer.
        finished: whether all rows are done, and files only have to be put in their places.
    """

    made_of: dict[str, Any]
    rows: int = 0
    scored: int = 0
    refused: int = 0
    written: int = 0
    aside: int = 0
    columns: tuple[str, ...] = ()
    finished: bool = False


class Output:
    """The output while it is not whole: a folder beside it, which belongs to one run at a time.

    Args:
        path: of the file that will be there in the end.
        kind: its format.
        source: the rows that are scored.
        keep: columns of the input that it gets.
        made_of: what must be the same for a run to go on.

    Attributes:
        journal: what is safe on the disk.
        now: what was written, safe or not.

    Raises:
        CommandError: there is an output, or the beginning of another one; another run has the
            folder, or it holds something else; it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        kind: Format,
        source: Source,
        keep: tuple[str, ...],
        made_of: dict[str, Any],
    ) -> None:
        self.path = path
        self.aside_path = path.with_name(f"{path.name}.refused.jsonl")
        self.folder = path.with_name(f"{path.name}.unfinished")
        self._kind = kind
        self._source = source
        self._keep = keep
        self._files: list[AppendedFile] = []
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            try:
                self._own()
                self._require_nothing_else()
                self.journal = self.now = self._found(made_of)
                self._open()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise CommandError(f"OUTPUT cannot be written: {error}", exit_code=2) from error

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(
                f"another run writes {self.path}: wait for it, or stop it", exit_code=2
            ) from error

    def _require_nothing_else(self) -> None:
        others = sorted({path.name for path in self.folder.iterdir()}.difference(OWN))
        if others:
            raise CommandError(
                f"{self.folder} holds {name_list(others)}, which is of no run: move that away, or "
                "name another OUTPUT",
                exit_code=2,
            )

    def _found(self, made_of: dict[str, Any]) -> Journal:
        """Return the journal of the run that this one goes on with, or an empty one."""
        try:
            text = (self.folder / "journal").read_text()
            values = json.loads(text)
            journal = Journal(**{**values, "columns": tuple(values["columns"])})
        except FileNotFoundError:
            self._require_no_output()
            return Journal(made_of)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise CommandError(
                f"{self.folder} holds no journal of this version ({describe(error)}): remove it to "
                "begin anew",
                exit_code=2,
            ) from error
        for what, value in made_of.items():
            if journal.made_of.get(what) != value:
                raise CommandError(
                    f"{self.folder} holds an unfinished run, and {what} has changed since (it was "
                    f"{journal.made_of.get(what)!r}, now it is {value!r}): go on with what it was, "
                    "or remove that folder to begin anew",
                    exit_code=2,
                )
        return journal

    def _require_no_output(self) -> None:
        for path in (self.path, self.aside_path):
            if path.exists():
                self._remove()
                raise CommandError(
                    f"{path} is there already: remove it, or name another OUTPUT", exit_code=2
                )

    def _open(self) -> None:
        if not self.journal.finished:
            rows = self.folder / "rows"
            self._sink = sink(rows, self._kind, self.journal.written, self._source)
            self._aside = AppendedFile(self.folder / "refused", self.journal.aside)
            self._files = [self._sink, self._aside]
            self._committed_at = time.monotonic()

    def write(self, answers: Answers, refused: Sequence[tuple[Row, str]]) -> None:
        """Write what became of rows, and now and then have all of it be safe.

        Args:
            answers: in order.
            refused: and why they were, in any order.
        """
        for rows, outputs in answers:
            self._require_same_columns(outputs)
            kept = {name: [row.values[name] for row in rows] for name in self._keep}
            self._sink.append(kept, outputs)
        for row, reason in sorted(refused, key=lambda each: each[0].line):
            line = {self._source.unit: row.line, "reason": reason, "given": row.given}
            self._aside.write(encoded(as_json(line) + "\n"))
        scored = sum(len(rows) for rows, _ in answers)
        self.now = replace(
            self.now,
            rows=self.now.rows + scored + len(refused),
            scored=self.now.scored + scored,
            refused=self.now.refused + len(refused),
            written=self._sink.size,
            aside=self._aside.size,
        )
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self.commit()

    def _require_same_columns(self, outputs: dict[str, Array]) -> None:
        columns = (*self._keep, *outputs)
        if not self.now.columns:
            both = [name for name in self._keep if name in outputs]
            if both:
                raise CommandError(
                    f"--keep {both[0]}: the model has an output of that name: rename the column of "
                    "INPUT, or leave it out",
                    exit_code=2,
                )
            self.now = replace(self.now, columns=columns)
        elif columns != self.now.columns:
            before = self.now.columns[len(self._keep) :]
            raise CommandError(
                f"the outputs are {', '.join(outputs)}, and were {', '.join(before)} before: each "
                "row needs the same ones"
            )

    def commit(self) -> None:
        """Have everything be safe that was written."""
        self._sink.commit(self.now.written)
        self._aside.commit(self.now.aside)
        path = self.folder / "journal"
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(self.now), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(self.folder)
        self.journal = self.now
        self._committed_at = time.monotonic()

    def finish(self) -> None:
        """Put the files in their places; whoever looks sees whole ones, or none.

        A run that was killed in the middle of this is completed by the next one.
        """
        if not self.journal.finished:
            self.now = replace(self.now, finished=True)
            self.commit()
        if not self.journal.refused:
            (self.folder / "refused").unlink(missing_ok=True)
        whole = finished(self.folder / "rows", self._kind)
        for path, place in ((self.folder / "refused", self.aside_path), (whole, self.path)):
            if path.exists():
                if place.exists():
                    raise CommandError(
                        f"{place} was not there when this began: move it away, and the same "
                        "command puts its own there"
                    )
                path.replace(place)
        sync_folder(self.path.parent)
        self._remove()

    def _remove(self) -> None:
        """Remove the folder, and what a run has put there: the journal last, and nothing else."""
        for name in OWN:
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody has put something else there meanwhile
            self.folder.rmdir()

    def close(self) -> None:
        """Let go of the files; a run that has done nothing leaves nothing."""
        for file in self._files:
            file.close()
        try:
            if not (self.folder / "journal").exists():
                with contextlib.suppress(OSError):
                    self._remove()
        finally:
            os.close(self._lock)


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
