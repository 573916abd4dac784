"""From how many rows a GPU is faster than the CPU, by the size of the model.

The model is a perceptron with two hidden layers, in TensorFlow, in torch and in JAX, as far as
they are installed. First one caller asks a pool with one worker, on one core, on all cores, or on
a GPU, for many rows at once. Then many callers ask for one row each, of one worker for each core,
of one or two on the GPU, or of a mixed pool that has both.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
import numpy as np
from numpy.typing import NDArray

from benchmarks import harness, load
from benchmarks.figures import Spread, percentile
from benchmarks.report import Paper
from predictpool import FunctionPredictor, PredictorPool

Note: TypeAlias = Callable[[str], None]
Rows: TypeAlias = NDArray[np.float32]

_FEATURES, _OUTPUTS = 256, 8
_GPU = "GPU"
# JAX multiplies in fewer bits on a GPU than on a CPU.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        widths: neurons in each hidden layer.
        rows: of one request.
        seconds: for which a round asks, at least once and at most `calls` times.
        callers: how many ask at once, in `load_rounds` rounds of `load_seconds`.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    rounds: int
    calls: int
    seconds: float
    callers: int
    load_rounds: int
    load_seconds: float


FULL = Size(
    widths=(128, 1024, 4096),
    rows=(1, 4, 16, 64, 256, 1024, 4096),
    rounds=5,
    calls=100,
    seconds=0.1,
    callers=256,
    load_rounds=3,
    load_seconds=1.0,
)
QUICK = Size((16,), (1, 4), 2, 3, 0.1, 4, 2, 0.1)


@dataclass(frozen=True)
class Sight:
    """What a worker says of where it is.

    Attributes:
        sees: the name of its device.
        gpus: how many GPUs it sees.
        visible: its CUDA_VISIBLE_DEVICES.
        cores, threads: how many it may use, and how many the library runs.
        memory_bytes: of its GPU; 0 without one, None where the library does not say.
        held_bytes: what the library keeps of that.
    """

    sees: str
    gpus: int
    visible: str
    cores: int
    threads: int | None
    memory_bytes: int | None
    held_bytes: int


@dataclass(frozen=True)
class Line:
    """How long a request takes.

    Attributes:
        taken_bytes: how much more memory of the GPU is taken than before the worker was there.
    """

    library: str
    width: int
    where: str
    load_seconds: float
    sight: Sight
    taken_bytes: int | None
    p50_seconds: dict[int, Spread]


@dataclass(frozen=True)
class Crossover:
    """The least number of rows from which on the GPU is faster than any CPU; None: never."""

    library: str
    width: int
    rows: int | None


@dataclass(frozen=True)
class Load:
    """How many rows are answered where many callers ask for one each.

    Attributes:
        rows_per_batch: on average.
    """

    library: str
    width: int
    where: str
    workers: int
    rows_per_second: Spread
    rows_per_batch: float


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found."""

    size: Size
    lines: list[Line]
    crossovers: list[Crossover]
    loads: list[Load]


# --- all of it ---------------------------------------------------------------------


def run(*, quick: bool, note: Note) -> Outcome:
    """Ask each model in each place, in turn.

    Raises:
        RuntimeError: two places do not say the same.
    """
    size = QUICK if quick else FULL
    lines: list[Line] = []
    loads: list[Load] = []
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            continue
        for width in size.widths:
            note(f"{library}, {width} wide")
            lines += anyio.run(_measure, library, width, size)
            note(f"{library}, {width} wide: {size.callers} callers")
            found = anyio.run(_load, library, width, size)
            for one in found:  # a machine that is lent may be gone before all is measured
                note(f"{one.where}, {one.workers} workers: {one.rows_per_second.text()} rows/s")
            loads += found
    return Outcome(size, lines, list(_crossovers(lines)), loads)


async def _measure(library: str, width: int, size: Size) -> list[Line]:
    predictor = FunctionPredictor[Any](LIBRARIES[library](width))
    given = {count: _rows(count) for count in size.rows}
    taken: dict[tuple[str, int], list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        pools: dict[str, PredictorPool[Any]] = {}
        more: dict[str, int | None] = {}
        for where, device in places().items():
            before = _gpu_bytes()
            pools[where] = await stack.enter_async_context(_pool(predictor, device))
            await _warm_up(pools[where], given)
            after = _gpu_bytes()
            more[where] = None if before is None or after is None else after - before
        await _compare(pools, given[max(size.rows)])
        for number in range(size.rounds):
            for where in harness.in_turn(pools, number):
                for count, rows in given.items():
                    seconds = await _round(pools[where], rows, size)
                    taken.setdefault((where, count), []).append(percentile(seconds, 50))
        return [
            Line(
                library,
                width,
                where,
                pool.workers()[0].load_seconds,
                Sight(**await pool.predict(LOOK)),
                more[where],
                {count: Spread.of(taken[where, count]) for count in size.rows},
            )
            for where, pool in pools.items()
        ]


async def _load(library: str, width: int, size: Size) -> list[Load]:
    predictor = FunctionPredictor[Any](
        LIBRARIES[library](width), row_wise=True, signature=(np.float32, (_FEATURES,))
    )
    rows = list(np.split(_rows(2 * size.callers), 2 * size.callers))
    taken: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        pools: dict[str, PredictorPool[Any]] = {"one worker for each core": _pool(predictor, "cpu")}
        if _GPU in places():
            pools |= {f"{_GPU}, {n}": _pool(predictor, "gpu:0", workers=n) for n in (1, 2)}
            cores = len(pools["one worker for each core"].plan())
            pools["both"] = _pool(predictor, [*(["cpu"] * cores), "gpu:0"])
        for pool in pools.values():
            await stack.enter_async_context(pool)
            await pool.wait_ready()
        for number in range(size.load_rounds):
            for where in harness.in_turn(pools, number):
                found = await load.closed_loop(
                    pools[where].predict,
                    rows,
                    callers=size.callers,
                    seconds=size.load_seconds,
                    warm_up_seconds=size.load_seconds / 2,
                )
                taken.setdefault(where, []).append(found.calls_per_second)
        return [
            Load(
                library,
                width,
                where.partition(",")[0],
                len(pool.plan()),
                Spread.of(taken[where]),
                pool.statistics().rows / pool.statistics().batches,
            )
            for where, pool in pools.items()
        ]


def places() -> dict[str, str]:
    """Return the devices, by what they are called here; a GPU if there is one."""
    cores = sorted(os.sched_getaffinity(0))
    found = {"one core": f"cpu:{cores[-1]}"}
    if len(cores) > 1:
        found[f"{len(cores)} cores"] = f"cpu:{','.join(map(str, cores))}"
    (best,) = PredictorPool(FunctionPredictor[Any](in_torch(1)), workers=1).plan()
    if best.kind == "gpu":
        found[_GPU] = "gpu:0"
    return found


def _pool(
    predictor: FunctionPredictor[Any], devices: str | list[str], *, workers: int | None = None
) -> PredictorPool[Any]:
    return PredictorPool(predictor, devices=devices, workers=workers, timeout=None)


async def _warm_up(pool: PredictorPool[Any], given: dict[int, Rows]) -> None:
    for _ in range(2):  # JAX compiles for each number of rows, torch chooses its kernels
        for rows in given.values():
            await pool.predict(rows)


async def _compare(pools: dict[str, PredictorPool[Any]], rows: Rows) -> None:
    answers = {where: await pool.predict(rows) for where, pool in pools.items()}
    first = next(iter(answers.values()))
    for where, answer in answers.items():
        if not np.allclose(answer, first, rtol=0, atol=_TOLERANCE):
            worst = np.abs(answer - first).max()
            raise RuntimeError(f"the answers of {where} are others: they differ by {worst}")


async def _round(pool: PredictorPool[Any], rows: Rows, size: Size) -> list[float]:
    seconds: list[float] = []
    end = time.perf_counter() + size.seconds
    while not seconds or (len(seconds) < size.calls and time.perf_counter() < end):
        began = time.perf_counter()
        await pool.predict(rows)
        seconds.append(time.perf_counter() - began)
    return seconds


def _rows(count: int) -> Rows:
    return np.random.default_rng(count).normal(size=(count, _FEATURES)).astype(np.float32)


def _gpu_bytes() -> int | None:
    """Return how much memory of the first GPU is taken; None without one."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def _crossovers(lines: list[Line]) -> Iterator[Crossover]:
    for gpu in lines:
        if gpu.where == _GPU:
            cpus = [
                line
                for line in lines
                if (line.library, line.width) == (gpu.library, gpu.width) and line.where != _GPU
            ]
            yield Crossover(gpu.library, gpu.width, _first_faster(gpu, cpus))


def _first_faster(gpu: Line, cpus: list[Line]) -> int | None:
    found = None
    for count in sorted(gpu.p50_seconds, reverse=True):
        if any(cpu.p50_seconds[count].median < gpu.p50_seconds[count].median for cpu in cpus):
            break
        found = count
    return found


# --- the models, in workers --------------------------------------------------------

# A request that asks where the worker is.
LOOK = np.empty((0,), np.float32)


def weights(width: int) -> list[Rows]:
    """Return the matrices of the layers; the same in each worker."""
    random = np.random.default_rng(1)
    shapes = ((_FEATURES, width), (width, width), (width, _OUTPUTS))
    return [(random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def in_tensorflow(width: int) -> Callable[[], Callable[[Rows], Any]]:
    """Return what loads the model in TensorFlow."""

    def load() -> Callable[[Rows], Any]:
        import tensorflow as tf

        first, second, last = (tf.constant(one) for one in weights(width))

        def forward(rows: Any) -> Any:
            return tf.nn.relu(tf.nn.relu(rows @ first) @ second) @ last

        many_rows = tf.TensorSpec((None, _FEATURES), tf.float32)
        compiled = tf.function(forward, input_signature=[many_rows])

        def predict(rows: Rows) -> Any:
            if rows.ndim == 1:
                return _seen_by_tensorflow(tf)
            return compiled(rows).numpy()

        return predict

    return load


def _seen_by_tensorflow(tf: Any) -> dict[str, Any]:
    gpus = tf.config.list_physical_devices("GPU")
    experimental = tf.config.experimental
    return {
        "sees": experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU",
        "gpus": len(gpus),
        "threads": int(os.environ["TF_NUM_INTRAOP_THREADS"]),
        "memory_bytes": None if gpus else 0,
        "held_bytes": experimental.get_memory_info("GPU:0")["current"] if gpus else 0,
        **_own(),
    }


def in_torch(width: int) -> Callable[[], Callable[[Rows], Any]]:
    """Return what loads the model in torch."""

    def load() -> Callable[[Rows], Any]:
        import torch

        where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        first, second, last = (torch.from_numpy(one).to(where) for one in weights(width))

        def predict(rows: Rows) -> Any:
            if rows.ndim == 1:
                return _seen(torch)
            with torch.inference_mode():
                # A copy: what was received must not be written to.
                hidden = torch.relu(torch.tensor(rows, device=where) @ first)
                return (torch.relu(hidden @ second) @ last).cpu().numpy()

        return predict

    return load


def _seen(torch: Any) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "sees": torch.cuda.get_device_name() if gpu else "CPU",
        "gpus": torch.cuda.device_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": torch.cuda.mem_get_info()[1] if gpu else 0,
        "held_bytes": torch.cuda.memory_reserved() if gpu else 0,
        **_own(),
    }


def in_jax(width: int) -> Callable[[], Callable[[Rows], Any]]:
    """Return what loads the model in JAX."""

    def load() -> Callable[[Rows], Any]:
        import jax

        first, second, last = (jax.device_put(one) for one in weights(width))

        def forward(rows: Any, first: Any, second: Any, last: Any) -> Any:
            return jax.nn.relu(jax.nn.relu(rows @ first) @ second) @ last

        compiled = jax.jit(forward)

        def predict(rows: Rows) -> Any:
            if rows.ndim == 1:
                return _seen_by_jax(jax)
            # Compiled for each number of rows: for powers of two alone.
            count = 1 << (len(rows) - 1).bit_length()
            if count == len(rows):
                return np.asarray(compiled(rows, first, second, last))
            padded = np.zeros((count, _FEATURES), np.float32)
            padded[: len(rows)] = rows
            return np.asarray(compiled(padded, first, second, last))[: len(rows)]

        for power in range(7):  # of the batches that a pool makes
            predict(_rows(1 << power))
        return predict

    return load


def _seen_by_jax(jax: Any) -> dict[str, Any]:
    device = jax.devices()[0]
    memory = device.memory_stats() or {}  # a CPU has none
    gpu = device.platform != "cpu"
    return {
        "sees": device.device_kind if gpu else "CPU",
        "gpus": jax.device_count() if gpu else 0,
        "threads": None,  # it does not say
        "memory_bytes": memory.get("bytes_limit", 0) if gpu else 0,
        "held_bytes": memory.get("bytes_in_use", 0) if gpu else 0,
        **_own(),
    }


def _own() -> dict[str, Any]:
    return {
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "cores": len(os.sched_getaffinity(0)),
    }


LIBRARIES = {"tensorflow": in_tensorflow, "torch": in_torch, "jax": in_jax}


# --- for people --------------------------------------------------------------------


def show(paper: Paper, found: Outcome) -> None:
    """Print where the workers were, how long requests take, and from where on the GPU is faster."""
    if not found.lines:
        paper.print("neither TensorFlow nor torch nor JAX is installed: pip install torch")
        return
    _show_sights(paper, found)
    for width in found.size.widths:
        table = paper.table(
            f"{width} wide",
            f"ms; median of {found.size.rounds} rounds, of one request with so many rows",
            "model",
            *("where", *map(str, found.size.rows)),
        )
        for line in found.lines:
            if line.width == width:
                figures = (f"{1e3 * spread.median:,.2f}" for spread in line.p50_seconds.values())
                table.add_row(line.library, line.where, *figures)
        paper.print(table)
    _show_loads(paper, found)
    for crossing in found.crossovers:
        when = "never" if crossing.rows is None else f"from {crossing.rows} rows on"
        paper.print(f"{crossing.library}, {crossing.width} wide: the GPU is faster {when}")
    if not found.crossovers:
        paper.print("no GPU was there")


def _show_loads(paper: Paper, found: Outcome) -> None:
    size = found.size
    table = paper.table(
        f"{size.callers} callers with one row each",
        f"rows/s; median of {size.load_rounds} rounds (lowest–highest round); rows in a batch",
        "model",
        *("where", "workers", *(what for width in size.widths for what in (f"{width} wide", ""))),
    )
    for library in dict.fromkeys(one.library for one in found.loads):
        ours = [one for one in found.loads if one.library == library]
        for where, workers in dict.fromkeys((one.where, one.workers) for one in ours):
            figures = [
                text
                for one in ours
                if (one.where, one.workers) == (where, workers)
                for text in (one.rows_per_second.text(), f"{one.rows_per_batch:.0f}")
            ]
            table.add_row(library, where, str(workers), *figures)
    paper.print(table)


def _show_sights(paper: Paper, found: Outcome) -> None:
    table = paper.table(
        "What workers see",
        "MB; of the widest model",
        "model",
        *("where", "sees", "GPUs", "cores", "threads", "load, s", "memory", "held", "taken"),
    )
    for line in found.lines:
        if line.width == max(found.size.widths):
            sight = line.sight
            table.add_row(
                line.library,
                line.where,
                sight.sees,
                *(str(sight.gpus), str(sight.cores), str(sight.threads or "")),
                f"{line.load_seconds:.1f}",
                *(
                    f"{count / 1e6:,.0f}" if count else ""
                    for count in (sight.memory_bytes, sight.held_bytes, line.taken_bytes)
                ),
            )
    paper.print(table)
