"""Traces for OpenTelemetry: ``PredictorPool(..., hooks=[OpenTelemetryHooks()])``."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from predictpool._hooks import BatchEnded, BatchStarted, Hooks, RequestEnded, RequestSubmitted

try:
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        Link,
        Span,
        Status,
        StatusCode,
        TracerProvider,
        get_tracer,
        set_span_in_context,
    )
except ImportError as _error:
    raise ImportError(
        "predictpool.opentelemetry needs opentelemetry-api: "
        'pip install "predictpool[opentelemetry]"'
    ) from _error

# Here, because looking it up reads files, and hooks may be made on the event loop.
_VERSION: Final = importlib.metadata.version("predictpool")


class OpenTelemetryHooks(Hooks):
    """Makes a span of each request, and one of each batch, to which its requests link.

    A request's span is a child of the span that is current where `predict` was called. A batch
    is a child of the first of its requests that is recorded, and links to them all; where none
    is recorded it has no span. Without an SDK this does nothing.

    Args:
        tracer_provider: where spans go; by default the global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("predictpool", _VERSION, tracer_provider)
        self._requests: dict[int, Span] = {}
        self._batches: dict[int, Span] = {}

    def request_submitted(self, fact: RequestSubmitted) -> None:
        """Begin a span, in the caller's context."""
        span = self._tracer.start_span(
            "predictpool.predict", attributes={"predictpool.pool": fact.pool}
        )
        if fact.rows is not None:
            span.set_attribute("predictpool.rows", fact.rows)
        self._requests[fact.id] = span

    def request_ended(self, fact: RequestEnded) -> None:
        """End it, with what became of the request."""
        span = self._requests.pop(fact.request.id)
        span.set_attribute("predictpool.outcome", fact.outcome)
        if fact.request.rows is not None:
            span.set_attribute("predictpool.wait_seconds", fact.waited)
        if fact.batch is not None:
            span.set_attribute("predictpool.run_seconds", fact.ran)
            span.set_attribute("predictpool.slot", fact.batch.slot)
            span.set_attribute("predictpool.batch.id", fact.batch.id)
            span.set_attribute("predictpool.batch.rows", fact.batch.rows)
        if fact.error is not None and span.is_recording():
            span.record_exception(fact.error)
            span.set_attribute("error.type", type(fact.error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, str(fact.error).partition("\n")[0]))
        span.end()

    def batch_started(self, fact: BatchStarted) -> None:
        """Begin a span of the batch, if a request of it is recorded, and link the two."""
        requests = [self._requests[request] for request in fact.requests]
        recorded = [span for span in requests if span.is_recording()]
        if not recorded:
            return
        batch = self._tracer.start_span(
            "predictpool.batch",
            set_span_in_context(recorded[0], Context()),
            attributes={
                "predictpool.pool": fact.pool,
                "predictpool.slot": fact.slot,
                "predictpool.batch.id": fact.id,
                "predictpool.batch.rows": fact.rows,
                "predictpool.batch.requests": len(fact.requests),
            },
            links=[Link(span.get_span_context()) for span in recorded],
        )
        for span in recorded:
            span.add_link(batch.get_span_context())
        self._batches[fact.id] = batch

    def batch_ended(self, fact: BatchEnded) -> None:
        """End it."""
        span = self._batches.pop(fact.batch.id, None)
        if span is None:
            return
        span.set_attribute("predictpool.outcome", fact.outcome)
        if fact.outcome != "answered":
            span.set_status(Status(StatusCode.ERROR, fact.outcome))
        span.end()
