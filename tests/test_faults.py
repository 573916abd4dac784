"""Workers and templates that die, hang or stop: nothing is lost, and everyone is told."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from predictpool import BrokenWorkerError, FunctionPredictor, PredictorPool, WorkerStartError
from predictpool import _local_launcher as local_launcher_module
from predictpool import _slot as slot_module
from tests.conftest import Family
from tests.pools import ONE_LOOP, POOL_TEST, adds_up, calling, held, naming_pids, pids_of, until
from tests.stage import Stage

pytestmark = [*POOL_TEST, pytest.mark.faults]


def segfault() -> None:
    ctypes.string_at(0)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


NAMELESS = signal.SIGRTMIN + 5

DEATHS: dict[str, tuple[Callable[[], object], int | None, int | None]] = {
    "exit 0": (lambda: sys.exit(0), 0, None),
    "exit 1": (lambda: os._exit(1), 1, None),
    "SIGKILL": (kill_myself, None, signal.SIGKILL),
    "SIGSEGV": (segfault, None, signal.SIGSEGV),
    "a signal without a name": (lambda: os.kill(os.getpid(), NAMELESS), None, NAMELESS),
}
death = pytest.mark.parametrize(("die", "exitcode", "ended_by"), DEATHS.values(), ids=DEATHS)


# --- death -------------------------------------------------------------------------


@death
async def test_a_request_that_kills_every_worker_fails_alone_and_says_how(
    die: Callable[[], object], exitcode: int | None, ended_by: int | None, stage: Stage
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loaded")

        def predict(x: Any) -> Any:
            if (x < 0).any():
                die()
            return x * 2

        return predict

    stage.let_go(10)
    pool = PredictorPool(FunctionPredictor(load, row_wise=True), workers=1, retries=1)
    async with pool:
        answers: dict[float, Any] = {}

        async def ask(value: float) -> None:
            try:
                answers[value] = (await pool.predict([value])).tolist()
            except BrokenWorkerError as error:
                answers[value] = error

        async with anyio.create_task_group() as group:
            for value in (1.0, 2.0, -3.0, 4.0):  # the last three share a batch
                group.start_soon(ask, value)
        error = answers.pop(-3.0)
        assert answers == {1.0: [2.0], 2.0: [4.0], 4.0: [8.0]}
        assert (error.exitcode, error.signal) == (exitcode, ended_by)
        assert error.slot == 0
        assert error.pid is not None
        if ended_by == signal.SIGSEGV:
            assert "Segmentation fault" in error.crash_report
            assert "in segfault" in error.crash_report
            assert "a bug in native code" in str(error)
        await pool.wait_ready()  # the slot refills
        assert (await pool.predict([5.0])).tolist() == [10.0]
        assert adds_up(pool)
        # A death with the batch, then one alone. What ran with it has one death, and goes on.
        assert stage.heard() == ["loaded"] * 3
        assert pool.statistics().restarts == 2


@death
async def test_a_request_whose_worker_dies_once_is_answered_by_the_next(
    die: Callable[[], object],
    exitcode: int | None,
    ended_by: int | None,
    stage: Stage,
) -> None:
    del exitcode, ended_by
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        try:
            (folder / "died").mkdir()
        except FileExistsError:
            return x * 2
        die()
        return None

    async with PredictorPool(calling(predict), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert adds_up(pool)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, NAMELESS])
async def test_an_idle_worker_that_is_killed_is_replaced_and_nobody_notices(
    stage: Stage, number: int
) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        os.kill(await stage.hears(), number)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert (await pool.predict([1.0])).tolist() == [2.0]
        await stage.hears()


@pytest.mark.parametrize("status", [0, 1])
async def test_an_idle_worker_that_exits_by_itself_is_replaced_and_nobody_notices(
    stage: Stage, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Callable[[Any], Any]:
        def exit_when_let_go() -> None:
            stage.hold(os.getpid())
            os._exit(status)

        threading.Thread(target=exit_when_let_go, daemon=True).start()
        return lambda x: x * 2

    async with PredictorPool(FunctionPredictor(load), workers=1, retries=0) as pool:
        for lives in range(3):
            await stage.hears()
            assert (await pool.predict([1.0])).tolist() == [2.0]
            stage.let_go()
            await until(lambda lives=lives: pool.statistics().restarts == lives + 1)  # type: ignore[misc]
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().failed == 0
    assert caplog.text.count(f"exited by itself with status {status}") == 3


async def test_all_workers_killed_in_one_tick_come_back_and_every_request_is_answered(
    stage: Stage,
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.say(["pid", os.getpid()])

        def predict(x: Any) -> Any:
            stage.hold(["row", float(x[0])])
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=3) as pool:
        await pool.wait_ready()
        pids = [pid for _, pid in stage.heard()]
        answers: list[float] = []

        async def ask(value: float) -> None:
            answers.extend(await pool.predict([value]))

        async with anyio.create_task_group() as group:
            for value in range(6):
                group.start_soon(ask, float(value))
            for _ in range(3):
                await stage.hears()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            stage.let_go(20)
        assert sorted(answers) == [0, 2, 4, 6, 8, 10]
        assert pool.statistics().answered == 6


async def test_a_worker_killed_while_it_writes_a_large_reply_harms_nobody(stage: Stage) -> None:
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        result = np.full(30_000_000, x[0], np.uint8)
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            return result
        threading.Thread(target=stop_myself_when_writing, daemon=True).start()
        return result

    def stop_myself_when_writing() -> None:
        # The reply does not fit into the socket: the main thread is about to block in send.
        stage.hold("writing")
        os.kill(os.getpid(), signal.SIGKILL)

    async with PredictorPool(calling(predict), workers=1) as pool:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await pool.predict(np.array([7], np.uint8)))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await stage.hears()
            stage.let_go()
        assert answers[0].shape == (30_000_000,)
        assert (answers[0] == 7).all()
        assert adds_up(pool)


async def test_retries_0_runs_nothing_twice(stage: Stage) -> None:
    def predict(_: Any) -> Any:
        stage.say("run")
        os._exit(7)

    async with PredictorPool(calling(predict), workers=1, retries=0) as pool:
        with pytest.raises(BrokenWorkerError, match="exited by itself with status 7") as caught:
            await pool.predict([1.0])
        assert caught.value.exitcode == 7
        assert stage.heard() == ["run"]


async def test_a_request_is_retried_as_often_as_retries_says(stage: Stage) -> None:
    def predict(_: Any) -> Any:
        stage.say("run")
        os._exit(7)

    async with PredictorPool(calling(predict), workers=1, retries=2) as pool:
        with pytest.raises(BrokenWorkerError):
            await pool.predict([1.0])
        assert stage.heard() == ["run"] * 3


async def test_a_worker_that_sends_what_is_no_frame_is_killed_and_replaced(stage: Stage) -> None:
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            return x * 2
        for link in Path("/proc/self/fd").iterdir():  # its own socket, whichever that is
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith("socket:"):  # noqa: PTH115 - it is no path
                    os.write(int(link.name), b"what is this?" * 10)
        return x

    async with PredictorPool(calling(predict), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_an_answer_that_was_sent_before_the_death_counts(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        from predictpool import _worker

        send = _worker._send

        def send_and_die(*arguments: Any) -> None:
            send(*arguments)
            if answering:
                os._exit(1)

        answering: list[bool] = []
        _worker._send = send_and_die  # type: ignore[assignment]

        def predict(x: Any) -> Any:
            answering.append(True)
            stage.hold(os.getpid())
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=1, retries=0) as pool:
        answers: list[float] = []

        async def ask(value: float) -> None:
            answers.extend(await pool.predict([value]))

        for value in range(8):  # on trio it is chance which of the two is seen first
            async with anyio.create_task_group() as group:
                group.start_soon(ask, float(value))
                pidfd = os.pidfd_open(await stage.hears())
                stage.let_go()
                # The event loop stands still, so that it finds answer and death together.
                select.select([pidfd], [], [])
                os.close(pidfd)
        assert answers == [2.0 * value for value in range(8)]


@pytest.mark.parametrize("template_lives", [True, False], ids=["template", "no template"])
async def test_the_death_of_a_worker_whose_child_keeps_its_socket_open_is_noticed(
    stage: Stage, nothing_left: Family, template_lives: bool
) -> None:
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            return x * 2
        stage.hold(os.getpid())
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(1)

    async with (
        PredictorPool(calling(predict), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [0.0])
        worker = await stage.hears()
        if not template_lives:  # who would tell of the worker's end
            os.kill(await template_of(nothing_left, {worker}), signal.SIGKILL)
        stage.let_go()
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_a_worker_that_closes_its_socket_and_lives_on_is_killed_and_replaced(
    stage: Stage,
) -> None:
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            return x * 2
        os.closerange(3, 1000)
        time.sleep(1000)
        return None

    async with PredictorPool(calling(predict), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]


@ONE_LOOP
async def test_a_worker_that_died_before_the_pool_knew_its_pid_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.recv_fds

    def kill_first(*arguments: Any) -> Any:
        received = real(*arguments)
        if b"started" in received[0]:
            os.kill(json.loads(received[0])["pid"], signal.SIGKILL)
            while not select.select([arguments[0]], [], [], 0)[0]:
                pass  # until the template says that it has ended
        return received

    with monkeypatch.context() as patch:
        patch.setattr(socket, "recv_fds", kill_first)
        with pytest.raises(WorkerStartError, match="was ended by SIGKILL"):
            await PredictorPool(calling(lambda x: x), workers=1).open()


# --- slots and pools that are given up ---------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_slot_that_keeps_failing_is_given_up_and_the_others_go_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.say("failed")
            raise ValueError("only one") from None
        return lambda x: x * 2

    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:
        with pytest.raises(WorkerStartError, match="1 of 2 slots were given up after 3 failures"):
            await pool.wait_ready()
        assert stage.heard() == ["failed"] * 3
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().ready == 1
        assert "slot 1 is given up after 3 failures in a row" in caplog.text
        assert "only one" in caplog.text


@pytest.mark.usefixtures("impatient")
async def test_a_pool_without_slots_tells_every_caller_at_once(
    stage: Stage, nothing_left: Family
) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            raise ValueError("gone for good") from None

        def predict(_: Any) -> Any:
            stage.hold("running")
            os._exit(1)

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=1, retries=5) as pool:
        told: list[str] = []

        async def ask() -> None:
            with pytest.raises(WorkerStartError) as caught:
                await pool.predict([1.0])
            told.append(str(caught.value))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            await stage.hears()
            stage.let_go()
        assert len(told) == 3
        await ask()  # a later caller is told the same
        for text in told:
            assert "1 of 1 slots were given up after 3 failures in a row" in text
            assert "gone for good" in text
        with pytest.raises(WorkerStartError, match="given up"):
            await pool.wait_ready()
        assert pool.statistics().ready == 0
        assert adds_up(pool)
    assert nothing_left.gone_within(1)


@pytest.mark.usefixtures("impatient")
async def test_an_answer_resets_the_count_of_failures(stage: Stage) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        for _ in range(5):  # more than the three tries
            os.kill(await stage.hears(), signal.SIGKILL)
            assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().restarts == 5


# --- hangs -------------------------------------------------------------------------


def hold_the_gil(_: object = None) -> None:
    ctypes.PyDLL(None).sleep(1000)


def stop_myself(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("hang", [hold_the_gil, stop_myself], ids=["GIL", "SIGSTOP"])
async def test_a_hung_worker_is_killed_and_only_the_guilty_request_is_told(
    stage: Stage, hang: Callable[[], None]
) -> None:
    def predict(x: Any) -> Any:
        stage.say(len(x))
        if (x < 0).any():
            hang()
        return x * 2

    async with PredictorPool(
        calling(predict, row_wise=True), workers=1, hang_timeout=0.3, retries=1
    ) as pool:
        answers: dict[float, Any] = {}

        async def ask(value: float) -> None:
            try:
                answers[value] = (await pool.predict([value])).tolist()
            except BrokenWorkerError as error:
                answers[value] = error

        async with anyio.create_task_group() as group:
            for value in (1.0, -2.0, 3.0):
                group.start_soon(ask, value)
        error = answers.pop(-2.0)
        assert answers == {1.0: [2.0], 3.0: [6.0]}
        assert "ran longer than hang_timeout=0.3 s" in str(error)
        assert error.signal == signal.SIGKILL


async def test_a_hung_worker_does_not_keep_the_pool_from_closing(nothing_left: Family) -> None:
    pool = PredictorPool(calling(hold_the_gil), workers=1, grace_period=0.05, timeout=0.05)
    async with pool:
        with pytest.raises(TimeoutError):
            await pool.predict([1.0])
    assert nothing_left.gone_within(1)


async def test_a_stopped_worker_that_goes_on_after_it_was_replaced_answers_nobody(
    stage: Stage,
) -> None:
    folder = stage.door.folder

    def predict(x: Any) -> Any:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            return x * 2
        stage.say(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        return x * 3

    async with PredictorPool(calling(predict), workers=1, hang_timeout=0.2) as pool:
        answer = (await pool.predict([1.0])).tolist()
        pid = await stage.hears()
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)
        assert answer == [2.0]
        assert (await pool.predict([2.0])).tolist() == [4.0]


@ONE_LOOP
async def test_both_directions_full_is_no_deadlock() -> None:
    async with PredictorPool(calling(lambda x: x, row_wise=True), workers=1) as pool:
        large = np.arange(3_000_000.0)
        results: list[bool] = []

        async def ask(number: int) -> None:
            results.append(bool(np.array_equal(await pool.predict(large + number), large + number)))

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(ask, number)
        assert results == [True] * 6


# --- the template ------------------------------------------------------------------


async def template_of(family: Family, workers: set[int]) -> int:
    (template,) = set(family.pids()) - workers
    return template


async def test_a_pool_survives_the_death_of_its_idle_template(
    stage: Stage, nothing_left: Family, caplog: pytest.LogCaptureFixture
) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        worker = await stage.hears()
        template = await template_of(nothing_left, {worker})
        os.kill(template, signal.SIGKILL)
        assert (await pool.predict([1.0])).tolist() == [2.0]  # its worker lives on
        os.kill(worker, signal.SIGKILL)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        again = await stage.hears()
        assert await template_of(nothing_left, {again}) != template
        assert "the template process has ended: starting another one" in caplog.text
    assert nothing_left.gone_within(1)


async def test_a_template_that_was_stopped_is_replaced_at_the_next_start(
    stage: Stage,
    nothing_left: Family,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(local_launcher_module, "_ORDER_WAIT", 0.3)
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        worker = await stage.hears()
        template = await template_of(nothing_left, {worker})
        os.kill(template, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert await template_of(nothing_left, {await stage.hears()}) != template
        assert "the template process did not answer within 0.3 s" in caplog.text
    assert nothing_left.gone_within(1)


async def test_a_pool_closes_after_the_death_of_its_template(
    stage: Stage, nothing_left: Family
) -> None:
    async with PredictorPool(naming_pids(stage), workers=1):
        worker = await stage.hears()
        template = await template_of(nothing_left, {worker})
        os.kill(template, signal.SIGKILL)
        await until(lambda: template not in nothing_left.pids())
    assert nothing_left.gone_within(1)


async def test_a_template_killed_under_load_loses_nothing(
    stage: Stage, nothing_left: Family
) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=2) as pool:
        await pool.wait_ready()
        answers: list[float] = []

        async def ask(value: float) -> None:
            answers.extend(await pool.predict([value]))

        async with anyio.create_task_group() as group:
            for value in range(8):
                group.start_soon(ask, float(value))
            await stage.hears()
            await stage.hears()
            workers = set(pids_of(pool))
            os.kill(await template_of(nothing_left, workers), signal.SIGKILL)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            stage.let_go(50)
        assert sorted(answers) == [2.0 * value for value in range(8)]
        assert adds_up(pool)


async def test_a_template_killed_while_it_starts_a_worker_is_replaced(
    stage: Stage, nothing_left: Family
) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.hold(os.getpid())
        return lambda x: x * 2

    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:
        worker = await stage.hears()
        (first,) = pids_of(pool)
        os.kill(await template_of(nothing_left, {worker, first}), signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        await stage.hears()
        stage.let_go()
        await pool.wait_ready()
        assert (await pool.predict([1.0])).tolist() == [2.0]


# --- our own mistakes --------------------------------------------------------------


async def test_a_mistake_of_ours_is_told_to_every_caller_and_ends_all_processes(
    stage: Stage,
    nothing_left: Family,
    monkeypatch: pytest.MonkeyPatch,
    mistakes: list[Exception],
) -> None:
    from predictpool import PredictorPoolError, _dispatcher

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        told = 0

        async def ask() -> None:
            nonlocal told
            with pytest.raises(PredictorPoolError, match="a mistake in predictpool") as caught:
                await pool.predict([1.0])
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
            told += 1

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            await stage.hears()
            monkeypatch.setattr(_dispatcher, "_Outputs", broken)
            monkeypatch.setattr(_dispatcher.Dispatcher, "_hand_out", broken)
            stage.let_go()
        assert told == 2
        await ask()
        await until(lambda: not nothing_left.pids())
    mistakes.clear()


async def test_a_mistake_of_ours_in_the_background_is_told_as_what_it_is(
    nothing_left: Family, monkeypatch: pytest.MonkeyPatch, mistakes: list[Exception]
) -> None:
    from predictpool import PredictorPoolError, _supervisor

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_supervisor.Supervisor, "_back_off", broken)
    async with PredictorPool(calling(lambda _: kill_myself()), workers=1) as pool:
        with pytest.raises(PredictorPoolError, match="a mistake in predictpool"):
            await pool.predict([1.0])
        await until(lambda: not nothing_left.pids())
    assert mistakes
    mistakes.clear()


# --- file descriptors --------------------------------------------------------------


@ONE_LOOP
@pytest.mark.parametrize("missing", [0, 1, 2], ids=["pidfd", "report", "socket"])
async def test_a_restart_without_a_free_file_descriptor_is_tried_again(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    missing: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = slot_module.Backoff
    monkeypatch.setattr(
        slot_module, "Backoff", lambda: real(first=0.01, longest=0.01, tries=10_000)
    )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:

        def take(count: int) -> None:
            with contextlib.suppress(OSError):
                for _ in range(count):
                    taken.callback(os.close, os.open("/dev/null", os.O_RDONLY))

        class WhenItDied(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "was ended by SIGKILL" in record.getMessage():
                    take(missing)

        async with PredictorPool(naming_pids(stage), workers=1) as pool:
            worker = await stage.hears()
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            take(64)  # what the dead worker leaves is three; a start needs four
            hook = WhenItDied()
            logging.getLogger("predictpool").addHandler(hook)
            taken.callback(logging.getLogger("predictpool").removeHandler, hook)
            os.kill(worker, signal.SIGKILL)
            await until(lambda: pool.statistics().restarts >= 2)
            assert "could not be started" in pool._supervisor.slots[0].last_error  # type: ignore[union-attr]
            taken.close()
            assert (await pool.predict([1.0])).tolist() == [2.0]
        assert "cannot be killed" not in caplog.text  # there was nothing to kill


@ONE_LOOP
async def test_a_crash_is_noticed_without_waiting_for_a_poll(stage: Stage) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        began = time.monotonic()
        for _ in range(10):
            os.kill(await stage.hears(), signal.SIGKILL)
            await pool.predict([1.0])
        assert time.monotonic() - began < 8  # a second each, were the status only waited for
