"""Metrics for Prometheus: ``PredictorPool(..., hooks=[PrometheusHooks()])``."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from predictpool._hooks import (
    OUTCOMES,
    BatchEnded,
    BatchStarted,
    Hooks,
    PoolOpened,
    RequestEnded,
    WorkerLost,
    WorkerReady,
)
from predictpool._statistics import PoolStatistics

try:
    import prometheus_client
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        'predictpool.prometheus needs prometheus-client: pip install "predictpool[prometheus]"'
    ) from _error

# From half a millisecond, which a small model takes, to the pool's own timeout.
_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ROWS: Final = tuple(2**exponent for exponent in range(11))  # 1 to 1024

_GAUGES: Final = (
    ("waiting", "predictpool_waiting_requests", "Requests in the queue."),
    ("running", "predictpool_running_requests", "Requests in a worker."),
    ("workers", "predictpool_workers", "Workers that the pool is meant to have."),
    ("ready", "predictpool_ready_workers", "Workers that are ready."),
)


class PrometheusHooks(Hooks):
    """Counts and times what happens in pools, as metrics of Prometheus.

    Make one of it and give it to all pools of the process: they are told apart by the label
    ``pool``, which is their name; those of one name are added up. The metrics are listed in
    the how-to *Metrics and tracing*.

    Args:
        registry: where the metrics are registered; by default the one that
            prometheus-client's own servers show.

    Raises:
        ValueError: the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
        self._pools: dict[str, _OfPool] = {}
        self._metrics = _Metrics(registry)
        self._now = _Now()
        registry.register(self._now)

    def pool_opened(self, fact: PoolOpened) -> None:
        """Begin with every counter of the pool at 0."""
        self._pools[fact.pool] = self._metrics.of(fact.pool)
        self._now.opened(fact)

    def pool_closed(self, fact: PoolOpened) -> None:
        """Show no more what the pool is doing; what it did stays."""
        self._now.closed(fact)

    def worker_ready(self, fact: WorkerReady) -> None:
        """Time the load."""
        self._pools[fact.pool].loads.observe(fact.worker.load_seconds)

    def worker_lost(self, fact: WorkerLost) -> None:
        """Count the death by its cause."""
        self._metrics.losses.labels(fact.pool, fact.cause).inc()

    def request_ended(self, fact: RequestEnded) -> None:
        """Count the request by its outcome, and time it if it was let in."""
        request, metrics = fact.request, self._pools[fact.request.pool]
        metrics.requests[fact.outcome].inc()
        if request.rows is None:
            return
        metrics.waits.observe(fact.waited)
        metrics.times.observe(fact.waited + fact.ran)
        if fact.outcome == "answered":
            metrics.rows.inc(request.rows)

    def batch_started(self, fact: BatchStarted) -> None:
        """Take note of how large the batch is."""
        self._pools[fact.pool].batch_rows.observe(fact.rows)

    def batch_ended(self, fact: BatchEnded) -> None:
        """Time the batch."""
        self._pools[fact.batch.pool].runs.observe(fact.seconds)


@dataclass(frozen=True, slots=True)
class _OfPool:
    """The metrics of one pool: looking them up by their labels takes longer than counting."""

    requests: dict[str, prometheus_client.Counter]
    rows: prometheus_client.Counter
    times: prometheus_client.Histogram
    waits: prometheus_client.Histogram
    runs: prometheus_client.Histogram
    batch_rows: prometheus_client.Histogram
    loads: prometheus_client.Histogram


class _Metrics:
    """What is counted and timed when it happens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(name, text, ["pool", *labels], registry=registry)

        def histogram(
            name: str, text: str, buckets: tuple[float, ...]
        ) -> prometheus_client.Histogram:
            return prometheus_client.Histogram(
                name, text, ["pool"], registry=registry, buckets=buckets
            )

        self.requests = counter("predictpool_requests", "Requests by their outcome.", "outcome")
        self.rows = counter("predictpool_rows", "Rows of all answered requests.")
        self.losses = counter(
            "predictpool_worker_losses", "Workers that died, by what ended them.", "cause"
        )
        self.times = histogram(
            "predictpool_request_seconds", "From a request's start to its end.", _SECONDS
        )
        self.waits = histogram(
            "predictpool_request_wait_seconds", "Of these, in the queue.", _SECONDS
        )
        self.runs = histogram("predictpool_batch_seconds", "A batch in a worker.", _SECONDS)
        self.batch_rows = histogram("predictpool_batch_rows", "Rows of a batch.", _ROWS)
        self.loads = histogram(
            "predictpool_worker_load_seconds", "Load and warm-up of a worker.", _LOAD_SECONDS
        )

    def of(self, pool: str) -> _OfPool:
        """Return those of one pool, which shows all of them from now on."""
        return _OfPool(
            requests={outcome: self.requests.labels(pool, outcome) for outcome in OUTCOMES},
            rows=self.rows.labels(pool),
            times=self.times.labels(pool),
            waits=self.waits.labels(pool),
            runs=self.runs.labels(pool),
            batch_rows=self.batch_rows.labels(pool),
            loads=self.loads.labels(pool),
        )


class _Now(Collector):
    """What pools say of themselves when they are asked, which may be in any thread."""

    def __init__(self) -> None:
        self._open: list[PoolOpened] = []
        # A counter must not fall when a pool closes, not even for one scrape.
        self._past_restarts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def opened(self, pool: PoolOpened) -> None:
        """Ask this pool, too."""
        with self._lock:
            self._open.append(pool)

    def closed(self, pool: PoolOpened) -> None:
        """Ask this pool no more."""
        now = pool.statistics()
        with self._lock:
            self._open.remove(pool)
            if now is not None:
                self._past_restarts[pool.pool] += now.restarts

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now; called at each scrape."""
        with self._lock:
            pools = [(pool.pool, pool.statistics()) for pool in self._open]
            past = dict(self._past_restarts)
        alive = [(name, now) for name, now in pools if now is not None]
        for field, name, text in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["pool"])
            for pool, value in _totals(alive, field).items():
                gauge.add_metric([pool], value)
            yield gauge
        restarts = CounterMetricFamily(
            "predictpool_worker_restarts",
            "Workers that were started in place of one that died.",
            labels=["pool"],
        )
        for pool, value in _totals(alive, "restarts", past).items():
            restarts.add_metric([pool], value)
        yield restarts


def _totals(
    pools: list[tuple[str, PoolStatistics]], field: str, past: dict[str, int] | None = None
) -> dict[str, int]:
    totals = dict(past or {})
    for pool, now in pools:
        totals[pool] = totals.get(pool, 0) + getattr(now, field)
    return totals
