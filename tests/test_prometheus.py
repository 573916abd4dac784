"""What Prometheus is shown of pools, by prometheus-client's own server and parser."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from predictpool import InvalidFeatures, PoolTimeout, PredictorPool
from tests.pools import ONE_LOOP, POOL_TEST, doubling, held, pids_of, until, until_waiting
from tests.stage import Stage

pytest.importorskip("prometheus_client", reason="needs prometheus-client")

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from predictpool.prometheus import PrometheusHooks

pytestmark = POOL_TEST

Value = Callable[..., float | None]


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    """A registry that is no other test's."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def value(registry: prometheus_client.CollectorRegistry) -> Value:
    """What a sample of the pool "two" says."""

    def get(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"predictpool_{name}", {"pool": "two", **labels})

    return get


def sampled(registry: prometheus_client.CollectorRegistry) -> dict[str, float]:
    """Return all that the registry shows, as a scrape sees it."""
    text = prometheus_client.generate_latest(registry).decode()
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_are_counted_and_timed(
    registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    predictor = doubling(signature=(np.float64, ()))
    async with PredictorPool(predictor, workers=1, name="two", hooks=[hooks]) as pool:
        await pool.predict([1.0, 2.0, 3.0])
        await pool.predict([1.0])
        with pytest.raises(InvalidFeatures):
            await pool.predict(["x"])
        (worker,) = pool.workers()
    assert value("requests_total", outcome="answered") == 2
    assert value("requests_total", outcome="invalid") == 1
    for outcome in ("failed", "cancelled", "timed_out", "refused"):
        assert value("requests_total", outcome=outcome) == 0
    assert value("rows_total") == 4
    assert value("batch_rows_bucket", le="1.0") == 1
    assert value("batch_rows_bucket", le="4.0") == value("batch_rows_count") == 2
    assert value("batch_rows_sum") == 4
    assert value("request_seconds_count") == value("request_wait_seconds_count") == 2
    now = pool.statistics()
    assert value("request_wait_seconds_sum") == pytest.approx(now.waiting_seconds)
    assert value("batch_seconds_sum") == pytest.approx(now.running_seconds)
    assert value("batch_seconds_count") == 2
    total, waited, ran = (value(f"{name}_sum") for name in _TIMES)
    assert total is not None
    assert waited is not None
    assert ran is not None
    assert total >= waited + ran
    assert value("worker_load_seconds_sum") == pytest.approx(worker.load_seconds)
    assert value("worker_load_seconds_count") == 1


_TIMES = ("request_seconds", "request_wait_seconds", "batch_seconds")


async def test_requests_without_an_answer_have_a_time_but_no_rows(
    registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    async with PredictorPool(doubling(), workers=1, name="two", hooks=[hooks]) as pool:
        await pool.predict([1.0])
        with pytest.raises(PoolTimeout):
            await pool.predict([1.0, 2.0], timeout=0)
    assert value("requests_total", outcome="timed_out") == 1
    assert value("request_seconds_count") == value("request_wait_seconds_count") == 2
    assert value("rows_total") == 1


async def test_what_waits_and_runs_is_read_when_it_is_scraped(
    stage: Stage, registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    async with PredictorPool(
        held(stage), workers=1, max_batch_size=1, name="two", hooks=[hooks]
    ) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(pool.predict, [1.0])
            await stage.hears()
            await until_waiting(pool, 2)
            assert value("waiting_requests") == 2
            assert value("running_requests") == 1
            stage.let_go(3)
        assert value("waiting_requests") == value("running_requests") == 0
        assert value("workers") == value("ready_workers") == 1
    assert value("workers") is None  # a pool that is closed says nothing
    assert value("requests_total", outcome="answered") == 3


async def restarted(pool: PredictorPool[Any]) -> None:
    """Wait until a worker is started in place of one that died."""
    await until(lambda: pool.statistics().restarts == 1)


async def test_deaths_and_restarts_are_counted_and_stay(
    registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    for deaths in (1, 2):
        async with PredictorPool(doubling(), workers=1, name="two", hooks=[hooks]) as pool:
            await pool.predict([1.0])
            os.kill(pids_of(pool)[0], signal.SIGKILL)
            await restarted(pool)
            assert value("worker_restarts_total") == deaths
            await pool.wait_ready()
        assert value("worker_losses_total", cause="SIGKILL") == deaths
        assert value("worker_restarts_total") == deaths
        assert value("worker_load_seconds_count") == 2 * deaths


@ONE_LOOP
async def test_pools_of_one_name_are_added_up_and_others_are_not(
    registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    pool = partial(PredictorPool, doubling(), workers=1, hooks=[hooks])
    async with pool(name="two") as one, pool(name="two") as other, pool(name="three") as third:
        for predict in (one.predict, other.predict, third.predict):
            await predict([1.0])
        assert value("workers") == value("ready_workers") == 2
        assert value("requests_total", outcome="answered") == 2
        assert sampled(registry)["predictpool_workers[('pool', 'three')]"] == 1
        await other.aclose()
        assert value("workers") == 1
        assert value("requests_total", outcome="answered") == 2


@ONE_LOOP
async def test_a_pool_that_nobody_closed_is_collected_and_says_nothing(
    registry: prometheus_client.CollectorRegistry, value: Value
) -> None:
    hooks = PrometheusHooks(registry)
    pool = PredictorPool(doubling(), workers=1, name="two", hooks=[hooks])
    await pool.open()
    assert value("workers") == 1
    with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031
        del pool
        gc.collect()
    assert value("workers") is None


@pytest.fixture
def port(registry: prometheus_client.CollectorRegistry) -> Iterator[int]:
    """The port of prometheus-client's own server, which runs in a thread."""
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@ONE_LOOP
async def test_a_server_in_another_thread_may_ask_at_any_time(
    registry: prometheus_client.CollectorRegistry, port: int
) -> None:
    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            text: str = response.read().decode()
        return text

    hooks = PrometheusHooks(registry)
    done = anyio.Event()

    async def call(pool: PredictorPool[Any]) -> None:
        while not done.is_set():
            await pool.predict([1.0])

    async with PredictorPool(doubling(), workers=2, name="two", hooks=[hooks]) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(call, pool)
            for _ in range(50):
                text = await anyio.to_thread.run_sync(scrape)
            done.set()
        text = await anyio.to_thread.run_sync(scrape)
        answered = pool.statistics().answered
    assert f'requests_total{{outcome="answered",pool="two"}} {float(answered)}' in text
    assert 'predictpool_ready_workers{pool="two"} 2.0' in text


@ONE_LOOP
async def test_a_second_set_in_one_registry_is_refused(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    PrometheusHooks(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusHooks(registry)


@ONE_LOOP
async def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "predictpool.prometheus")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("predictpool.prometheus")
    assert str(caught.value) == (
        'predictpool.prometheus needs prometheus-client: pip install "predictpool[prometheus]"'
    )
