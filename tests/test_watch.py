"""A pool that watches its model loads the next version by itself, and never a half-written one."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import EstimatorPredictor, FunctionPredictor, ModelSource, PredictorPool
from predictpool._watch import Looks
from tests import models, needs
from tests.answers import assert_equal_outputs
from tests.conftest import Family
from tests.pools import POOL_TEST, adds_up, both_pools, doubling, pids_of, until, until_replaced
from tests.stage import Stage

pool_test = [*POOL_TEST, pytest.mark.faults]


def of_pools(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that opens a pool."""
    for mark in pool_test:
        test = mark(test)
    return test


def versioned(
    folder: Path, kind: Any = "file", before: Callable[[int], None] = lambda _: None
) -> FunctionPredictor[Any]:
    """A predictor that answers with the number that is in a file, and can be watched for it."""

    class Versioned(FunctionPredictor[Any]):
        source: ModelSource | None = None

        def load(self, device: Any) -> None:
            self.source = ModelSource.at(folder / "model" if kind == "file" else folder, kind)
            super().load(device)

    def load() -> Callable[[Any], Any]:
        version = int((folder / "model").read_text())
        before(version)
        return lambda x: np.full(len(x), version)

    return Versioned(load, row_wise=True)


def write_version(folder: Path, version: object) -> None:
    """Put a model into its place in one step."""
    (folder / "new").write_text(str(version))
    (folder / "new").replace(folder / "model")


async def answer(pool: PredictorPool[Any]) -> int:
    return int((await pool.predict([0.0]))[0])


async def until_answer(pool: PredictorPool[Any], expected: int) -> None:
    with anyio.fail_after(15):
        while await answer(pool) != expected:
            pass


class Counted:
    """How often the application has looked for a newer version."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        real = ModelSource.version

        def version(source: ModelSource) -> str | None:
            found = real(source)
            self.looks += 1
            return found

        monkeypatch.setattr(ModelSource, "version", version)

    async def more(self, looks: int = 4) -> None:
        """Wait for some whole looks."""
        wanted = self.looks + looks
        await until(lambda: self.looks >= wanted)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


# --- when a version is due ---------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "due"),
    [
        pytest.param("bb", [False, True], id="seen twice"),
        pytest.param("bcdd", [False, False, False, True], id="while it is written"),
        pytest.param("b-bb", [False, False, False, True], id="not complete in between"),
        pytest.param("aaa", [False, False, False], id="the one that is loaded"),
        pytest.param("--", [False, False], id="nothing there"),
    ],
)
def test_a_version_is_due_once_it_was_there_unchanged_at_two_looks(
    seen: str, due: list[bool]
) -> None:
    looks = Looks()
    assert [looks.due(None if v == "-" else v, {"a"}) for v in seen] == due


def test_a_version_is_due_until_every_worker_has_it() -> None:
    looks = Looks()
    looks.due("b", {"a", "b"})
    assert looks.due("b", {"a", "b"})
    assert looks.due("b", {"b", None})
    assert not looks.due("b", {"b"})


def test_a_version_that_failed_is_not_due_again_until_it_changes() -> None:
    looks = Looks()
    looks.due("b", {"a"})
    assert looks.due("b", {"a"})
    looks.failed("b")
    assert [looks.due(v, {"a"}) for v in "bbccbb"] == [False, False, False, True, False, True]


# --- which version is there --------------------------------------------------------


def write_checkpoint(folder: Path, name: str, *, shards: int = 1, lacks: str = "") -> None:
    """Write files that are named as those of a checkpoint are."""
    names = [f"{name}.index", *(f"{name}.data-{n:05}-of-{shards:05}" for n in range(shards))]
    for each in names:
        if not lacks or not each.endswith(lacks):
            (folder / each).write_text(each)


def point_to(folder: Path, text: bytes) -> None:
    lines = b'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "older"\n' % text
    (folder / "checkpoint").write_bytes(lines)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_counts_when_all_its_files_are_there(tmp_path: Path, shards: int) -> None:
    def version() -> str | None:
        return ModelSource.at(tmp_path, "checkpoint").loaded

    assert version() is None
    point_to(tmp_path, b"model.ckpt-1")
    for lacks in (".index", f"{shards - 1:05}-of-{shards:05}"):
        write_checkpoint(tmp_path, "model.ckpt-1", shards=shards, lacks=lacks)
        assert version() is None
        for file in tmp_path.glob("model.ckpt*"):
            file.unlink()
    write_checkpoint(tmp_path, "model.ckpt-1", shards=shards)
    first = version()
    assert first is not None
    assert first.startswith("model.ckpt-1 (")
    write_checkpoint(tmp_path, "model.ckpt-10")  # not named by `checkpoint` yet
    assert version() == first
    os.utime(tmp_path / "model.ckpt-1.index", ns=(1, 1))  # written again
    assert version() not in (None, first)


def test_an_empty_checkpoint_file_names_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").touch()
    assert ModelSource.at(tmp_path, "checkpoint").loaded is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"m\\303\\266del", "mödel"),
        ("mödel".encode(), "mödel"),
        (rb"a\"b\\c", 'a"b\\c'),
        (b"odd\\ttab", "odd\ttab"),
    ],
)
def test_names_of_checkpoints_are_read_as_tensorflow_writes_them(
    tmp_path: Path, written: bytes, name: str
) -> None:
    write_checkpoint(tmp_path, name)
    point_to(tmp_path, written)
    found = ModelSource.at(tmp_path, "checkpoint").loaded
    assert found is not None
    assert found.startswith(f"{name} (")


def test_a_checkpoint_may_be_named_by_its_whole_path(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_checkpoint(elsewhere, "ckpt")
    point_to(tmp_path, os.fsencode(elsewhere / "ckpt"))
    assert ModelSource.at(tmp_path, "checkpoint").loaded is not None


GRAPH = b"\x12\x00"  # a SavedModel with an empty graph; what is whole: test_saved_model


def write_saved_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(GRAPH)


def test_the_highest_complete_saved_model_counts(tmp_path: Path) -> None:
    source = ModelSource.at(tmp_path, "saved_model")
    assert source.loaded is None
    write_saved_model(tmp_path / "9")
    ninth = source.version()
    assert ninth is not None
    assert ninth.startswith("9 (")
    write_saved_model(tmp_path / "temp-10")  # how TensorFlow calls what it is writing
    assert source.version() == ninth
    write_saved_model(tmp_path / "10")
    graph = tmp_path / "10" / "saved_model.pb"
    for cut in (b"", GRAPH[:1]):
        graph.write_bytes(cut)
        assert source.version() == ninth
    graph.unlink()
    assert source.version() == ninth
    graph.write_bytes(GRAPH)
    tenth = source.version()
    assert tenth is not None
    assert tenth.startswith("10 (")
    (tmp_path / "10" / "assets").mkdir()
    (tmp_path / "10" / "assets" / "words").touch()
    assert source.version() not in (None, tenth)


def test_one_saved_model_may_be_written_again_in_its_place(tmp_path: Path) -> None:
    write_saved_model(tmp_path / "model")
    source = ModelSource.at(tmp_path / "model", "saved_model")
    assert source.loaded is not None
    (tmp_path / "model" / "saved_model.pb").write_bytes(2 * GRAPH)
    assert source.version() not in (None, source.loaded)
    assert ModelSource.at(tmp_path / "nowhere", "saved_model").loaded is None


def test_a_file_counts_by_its_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = ModelSource.at("model.keras", "file")
    assert source == ModelSource(str(tmp_path / "model.keras"), "file", None)
    (tmp_path / "model.keras").write_text("one")
    first = source.version()
    assert first is not None
    os.utime(tmp_path / "model.keras", ns=(1, 1))
    assert source.version() not in (None, first)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind is 'folder', expected one of checkpoint, saved_"):
        ModelSource.at(".", "folder")  # type: ignore[arg-type]


# --- pools that watch --------------------------------------------------------------


@of_pools
async def test_a_newer_version_is_loaded_without_a_call_under_64_callers(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=2, watch=0.01) as pool:
        await pool.wait_ready()
        before = pids_of(pool)
        seen: set[int] = set()

        async def ask() -> None:
            while not all(worker not in pids_of(pool) for worker in before):
                seen.add(await answer(pool))

        async with anyio.create_task_group() as group:
            for _ in range(64):
                group.start_soon(ask)
            write_version(tmp_path, 2)
        assert seen <= {1, 2}
        await until_answer(pool, 2)
        now = pool.statistics()
        assert (now.failed, now.refused, now.timed_out, now.cancelled) == (0, 0, 0, 0)
        assert (now.ready, now.restarts) == (2, 0)
        assert adds_up(pool)


@of_pools
async def test_nothing_is_loaded_again_while_nothing_changes(
    tmp_path: Path, counted: Counted
) -> None:
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=1, watch=0.01) as pool:
        before = pids_of(pool)
        await counted.more()
        write_version(tmp_path, 2)
        await until_answer(pool, 2)
        after = pids_of(pool)
        assert after != before
        await counted.more()
        assert pids_of(pool) == after


@of_pools
@both_pools
async def test_without_watch_nobody_looks(tmp_path: Path, counted: Counted) -> None:
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=1) as pool:
        write_version(tmp_path, 2)
        await pool.reload()
        assert await answer(pool) == 2
    assert counted.looks == 0


@of_pools
@both_pools
async def test_a_half_written_checkpoint_is_never_taken(tmp_path: Path, counted: Counted) -> None:
    write_version(tmp_path, 1)
    write_checkpoint(tmp_path, "ckpt-1")
    point_to(tmp_path, b"ckpt-1")
    async with PredictorPool(versioned(tmp_path, "checkpoint"), workers=1, watch=0.01) as pool:
        before = pids_of(pool)
        write_version(tmp_path, 2)
        point_to(tmp_path, b"ckpt-2")
        await counted.more()
        write_checkpoint(tmp_path, "ckpt-2", shards=2, lacks="00001-of-00002")
        await counted.more()
        assert pids_of(pool) == before
        assert await answer(pool) == 1
        write_checkpoint(tmp_path, "ckpt-2", shards=2)
        await until_answer(pool, 2)


@of_pools
async def test_a_version_that_fails_is_logged_and_not_tried_again_until_it_changes(
    stage: Stage, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stage.door.folder

    def fail(version: int) -> None:
        stage.say(version)
        if version == 2:
            raise ValueError("layers are missing")

    write_version(folder, 1)
    pool = PredictorPool(versioned(folder, before=fail), workers=2, watch=0.01)
    async with pool:
        await pool.wait_ready()
        assert [await stage.hears(), await stage.hears()] == [1, 1]
        before = pids_of(pool)
        write_version(folder, 2)
        assert await stage.hears() == 2
        await until(lambda: "could not be loaded; the running one goes on" in caplog.text)
        await counted.more()
        assert stage.heard() == []
        assert caplog.text.count("ValueError: layers are missing") == 2  # and in the traceback
        assert pids_of(pool) == before
        assert await answer(pool) == 1
        write_version(folder, 3)
        await until_answer(pool, 3)
        assert pool.statistics().restarts == 0


@of_pools
async def test_a_worker_that_has_an_older_version_than_the_others_is_brought_up(
    tmp_path: Path, counted: Counted
) -> None:
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=2, watch=0.01) as pool:
        await pool.wait_ready()
        first, second = pids_of(pool)
        await counted.more(1)
        write_version(tmp_path, 2)
        os.kill(first, signal.SIGKILL)  # its successor may load the next version by itself
        await until(lambda: second not in pids_of(pool))
        await pool.wait_ready()
        for _ in range(8):
            assert await answer(pool) == 2


@of_pools
@pytest.mark.usefixtures("impatient")
async def test_a_pool_without_slots_comes_back_with_the_next_version(stage: Stage) -> None:
    folder = stage.door.folder

    def fail(version: int) -> None:
        if version == 2:
            raise ValueError("layers are missing")

    write_version(folder, 1)
    pool = PredictorPool(versioned(folder, before=fail), workers=1, retries=9, watch=0.01)
    async with pool:
        write_version(folder, 2)
        os.kill(pids_of(pool)[0], signal.SIGKILL)
        await until(lambda: pool._supervisor.filling == 0)  # type: ignore[union-attr]
        write_version(folder, 3)
        await until(lambda: pool.statistics().ready)
        assert await answer(pool) == 3


@of_pools
@pytest.mark.parametrize(
    "error", [OSError("stale file handle"), ValueError("embedded null byte")], ids=repr
)
async def test_what_cannot_be_looked_at_is_said_once_and_looked_at_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    looks: list[str] = []

    def version(source: ModelSource) -> str | None:
        looks.append(source.path)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ModelSource, "version", version)
        write_version(tmp_path, 1)
        async with PredictorPool(versioned(tmp_path), workers=1, watch=0.01) as pool:
            await until(lambda: len(looks) > 3)
            assert caplog.text.count("cannot look for newer models in") == 1
            patch.undo()
            write_version(tmp_path, 2)
            await until_answer(pool, 2)


@of_pools
@pytest.mark.parametrize("running", [False, True], ids=["loading", "the old worker is busy"])
async def test_closing_ends_a_watched_reload_in_good_order(
    stage: Stage, nothing_left: Family, running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stage.door.folder
    caplog.set_level(logging.WARNING, "predictpool")

    class Held(FunctionPredictor[Any]):
        source: ModelSource | None = None

        def load(self, device: Any) -> None:
            self.source = ModelSource.at(folder / "model", "file")
            if (folder / "model").read_text() == "2" and not running:
                stage.hold("loading")
            super().load(device)

    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold("running")
            return x * 2

        return predict

    write_version(folder, 1)
    answers: list[float] = []
    async with anyio.create_task_group() as group:
        async with PredictorPool(Held(load), workers=1, watch=0.01) as pool:

            async def ask() -> None:
                answers.extend((await pool.predict([1.0])).tolist())

            group.start_soon(ask)
            assert await stage.hears() == "running"
            write_version(folder, 2)
            if running:
                await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
            else:
                assert await stage.hears() == "loading"
            group.start_soon(pool.aclose)
            await until(lambda: "closing" in repr(pool))
            # The watched reload gives way; what runs is answered.
            await until(lambda: not pool._supervisor._changing.locked())  # type: ignore[union-attr]
            assert not pool._dispatcher._retiring  # type: ignore[union-attr]
            stage.let_go()
        assert nothing_left.gone_within(1)
    assert answers == [2.0]
    assert caplog.text == ""


@of_pools
async def test_a_predictor_that_names_nothing_to_watch_is_an_error(
    tmp_path: Path, nothing_left: Family
) -> None:
    with pytest.raises(ValueError, match=r"watch=5, but the predictor does not say where"):
        await PredictorPool(doubling(), workers=1, watch=5).open()
    assert nothing_left.gone_within(1)
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=1, watch=5) as pool:
        before = pids_of(pool)
        with pytest.raises(ValueError, match="watch=5, but the predictor does not say where"):
            await pool.reload(doubling())
        assert pids_of(pool) == before
        assert await answer(pool) == 1


@of_pools
@both_pools
async def test_a_source_that_is_none_is_an_error() -> None:
    from predictpool import WorkerStartError

    predictor = doubling()
    predictor.source = "models/income"  # type: ignore[attr-defined]
    with pytest.raises(WorkerStartError, match="source is 'models/income', expected a ModelSource"):
        await PredictorPool(predictor, workers=1).open()


# --- Estimators --------------------------------------------------------------------

TRAIN = """
import pickle, sys
from pathlib import Path
import tensorflow as tf
from tests import models

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
estimator = models.build_array(folder)
features, labels = models.array_rows()
rows = tf.data.Dataset.from_tensor_slices
estimator.train(lambda: rows((features, labels)).repeat().batch(32), steps=steps)
expected, = estimator.predict(
    lambda: rows(features).batch(models.ROWS), yield_single_examples=False
)
(folder / f"{steps}.expected").write_bytes(pickle.dumps(expected))
"""


def train(folder: Path, steps: int) -> Any:
    """Train the model for some more steps, and return what it predicts then."""
    subprocess.run([sys.executable, "-c", TRAIN, str(folder), str(steps)], check=True)
    return pickle.loads((folder / f"{steps}.expected").read_bytes())


@needs.estimators
@pytest.mark.anyio
@pytest.mark.timeout(300)  # TensorFlow on a busy machine
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_newer_checkpoint_of_an_estimator_is_loaded_unless_it_is_fixed(
    tmp_path: Path,
) -> None:
    rows, _ = models.array_rows()
    expected = await anyio.to_thread.run_sync(train, tmp_path, 2)
    predictor = EstimatorPredictor(
        partial(models.build_array, tmp_path), signature=models.MODELS["array"][2]
    )
    async with PredictorPool(predictor, workers=1, watch=0.1) as pool:
        before = pids_of(pool)
        assert_equal_outputs(await pool.predict(rows), expected)
        newer = await anyio.to_thread.run_sync(train, tmp_path, 3)
        await until_replaced(pool, before)
        assert not np.allclose(newer, expected)
        assert_equal_outputs(await pool.predict(rows), newer)
    fixed = EstimatorPredictor(
        partial(models.build_array, tmp_path),
        signature=models.MODELS["array"][2],
        checkpoint_path=str(tmp_path / "array" / "model.ckpt-2"),
    )
    with pytest.raises(ValueError, match="unless it has a checkpoint_path"):
        await PredictorPool(fixed, workers=1, watch=1).open()
