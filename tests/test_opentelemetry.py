"""The spans that OpenTelemetry's own SDK gets of requests and batches."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import Any

import anyio
import pytest

from predictpool import InvalidFeatures, PoolTimeout, PredictorPool
from tests.pools import ONE_LOOP, POOL_TEST, calling, doubling, held, pids_of, until_waiting
from tests.stage import Stage

pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, get_current_span

from predictpool.opentelemetry import OpenTelemetryHooks

pytestmark = POOL_TEST


class Spans:
    """A provider whose spans are kept here once they have ended."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.hooks = OpenTelemetryHooks(self.provider)
        self.start = self.provider.get_tracer("test").start_as_current_span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    @property
    def requests(self) -> list[ReadableSpan]:
        return self.named("predictpool.predict")

    @property
    def batches(self) -> list[ReadableSpan]:
        return self.named("predictpool.batch")


@pytest.fixture
def spans() -> Spans:
    return Spans()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {
        name.removeprefix("predictpool."): value for name, value in (span.attributes or {}).items()
    }


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def id_of(span: ReadableSpan) -> int:
    return context_of(span).span_id


async def test_a_request_is_a_child_of_its_caller_and_linked_with_its_batch(spans: Spans) -> None:
    async with PredictorPool(doubling(), workers=1, name="two", hooks=[spans.hooks]) as pool:
        with spans.start("caller") as caller:
            await pool.predict([[1.0], [2.0]])
            assert get_current_span() is caller
    (request,), (batch,) = spans.requests, spans.batches
    assert request.parent is not None
    assert request.parent.span_id == caller.get_span_context().span_id
    assert request.kind is batch.kind is SpanKind.INTERNAL
    assert batch.parent is not None
    assert batch.parent.span_id == id_of(request)
    assert links(batch) == [id_of(request)]
    assert links(request) == [id_of(batch)]
    facts = attributes(request)
    assert facts.pop("wait_seconds") >= 0
    assert facts.pop("run_seconds") > 0
    number = facts["batch.id"]
    expected = {"pool": "two", "rows": 2, "outcome": "answered", "slot": 0}
    assert facts == {**expected, "batch.id": number, "batch.rows": 2}
    assert attributes(batch) == {
        "pool": "two",
        "outcome": "answered",
        "slot": 0,
        "batch.id": number,
        "batch.rows": 2,
        "batch.requests": 1,
    }
    assert request.status.status_code is batch.status.status_code is StatusCode.UNSET
    assert request.instrumentation_scope is not None
    assert request.instrumentation_scope.name == "predictpool"


async def test_requests_of_one_batch_keep_their_own_callers(stage: Stage, spans: Spans) -> None:
    parents = {}

    async def ask(name: str) -> None:
        with spans.start(name) as caller:
            parents[name] = caller.get_span_context()
            await pool.predict([1.0])
            assert get_current_span() is caller

    async with (
        PredictorPool(held(stage), workers=1, hooks=[spans.hooks]) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(ask, "first")
        await stage.hears()
        group.start_soon(ask, "second")
        group.start_soon(ask, "third")
        await until_waiting(pool, 2)
        stage.let_go(2)
    requests = {span.parent.span_id: span for span in spans.requests if span.parent is not None}
    second, third = (requests[parents[name].span_id] for name in ("second", "third"))
    assert context_of(second).trace_id == parents["second"].trace_id
    assert context_of(third).trace_id == parents["third"].trace_id
    (batch,) = [span for span in spans.batches if attributes(span)["batch.requests"] == 2]
    assert sorted(links(batch)) == sorted([id_of(second), id_of(third)])
    assert links(second) == links(third) == [id_of(batch)]
    assert batch.parent is not None
    assert batch.parent.span_id in links(batch)


async def test_errors_are_recorded_with_the_request(spans: Spans) -> None:
    def fail(_: Any) -> Any:
        raise ArithmeticError("no such number\nin my books")

    async with PredictorPool(calling(fail), workers=1, hooks=[spans.hooks]) as pool:
        with pytest.raises(ArithmeticError):
            await pool.predict([1.0])
        with pytest.raises(InvalidFeatures):
            await pool.predict({})
    failed, invalid = spans.requests
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "no such number"
    assert attributes(failed)["error.type"] == "ArithmeticError"
    (event,) = failed.events
    assert (event.attributes or {})["exception.message"] == "no such number\nin my books"
    assert attributes(invalid)["outcome"] == "invalid"
    assert attributes(invalid)["error.type"] == "InvalidFeatures"
    (batch,) = spans.batches
    assert batch.status.status_code is StatusCode.ERROR
    assert batch.status.description == "failed"


async def test_one_that_is_cancelled_or_late_ends_its_span_before_the_batch(
    stage: Stage, spans: Spans
) -> None:
    async with PredictorPool(held(stage), workers=1, hooks=[spans.hooks]) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [1.0])
            await stage.hears()
            group.cancel_scope.cancel()
        with pytest.raises(PoolTimeout):
            await pool.predict([1.0], timeout=0.001)
        cancelled, late = spans.requests
        assert not spans.batches
        stage.let_go()
    assert attributes(cancelled)["outcome"] == "cancelled"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert attributes(late)["outcome"] == "timed_out"
    assert "slot" not in attributes(late)
    assert late.status.status_code is StatusCode.ERROR
    assert len(spans.batches) == 1


async def test_a_request_is_linked_to_every_batch_that_it_ran_in(
    stage: Stage, spans: Spans
) -> None:
    async with (
        PredictorPool(held(stage), workers=1, hooks=[spans.hooks]) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        os.kill(pids_of(pool)[0], signal.SIGKILL)
        await stage.hears()
        stage.let_go()
    (request,), (lost, answered) = spans.requests, spans.batches
    assert links(request) == [id_of(lost), id_of(answered)]
    assert attributes(lost)["outcome"] == "lost"
    assert attributes(answered)["outcome"] == attributes(request)["outcome"] == "answered"


async def test_where_nothing_is_sampled_nothing_is_made() -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    async with PredictorPool(doubling(), workers=1, hooks=[spans.hooks]) as pool:
        await pool.predict([1.0])
    assert not spans.requests
    assert not spans.batches


async def test_without_an_sdk_requests_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    hooks = OpenTelemetryHooks()  # of the global provider, which nobody has set
    async with PredictorPool(doubling(), workers=1, hooks=[hooks]) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
        with contextlib.suppress(InvalidFeatures):
            await pool.predict({})
    assert not caplog.records
    assert not hooks._requests
    assert not hooks._batches


@ONE_LOOP
async def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    monkeypatch.delitem(sys.modules, "predictpool.opentelemetry")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("predictpool.opentelemetry")
    assert str(caught.value) == (
        "predictpool.opentelemetry needs opentelemetry-api: "
        'pip install "predictpool[opentelemetry]"'
    )
