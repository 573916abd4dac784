"""The peers of the benchmarks, as far as that needs none of them installed."""

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import peers
from benchmarks.figures import Goal
from benchmarks.harness import ContenderFailed, Orders
from benchmarks.peers import environments, held, judged, packed
from benchmarks.peers.contender import PeerContender
from benchmarks.services import Level
from tests import needs

FOLDER = Path(peers.__file__).parent


# --- the table ---------------------------------------------------------------------


def test_every_peer_has_a_module_an_environment_and_a_figure_to_be_held_to() -> None:
    assert {peer.environment for peer in peers.ALL} == set(environments.PEERS)
    assert len({peer.name for peer in peers.ALL}) == len(peers.ALL)
    for peer in peers.ALL:
        assert (FOLDER / f"{peer.module}.py").exists()
        assert peer.batching == peer.name.endswith(", batching")
        assert set(peer.known) == set(judged.JUDGED_CALLERS) or peer.name == "PyTriton"


# --- environments ------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_reported_with_what_to_do(tmp_path: Path) -> None:
    there, looked = peers.installed(tmp_path)
    assert there == []
    assert set(looked) == set(environments.PEERS)
    report = judged.judge(looked, {}, {}, "loop")
    assert [one.name for one in report] == [peer.name for peer in peers.ALL]
    for one, peer in zip(report, peers.ALL, strict=True):
        assert one.reason == f"run `python -m benchmarks environments {peer.environment}`"
        assert (one.version, one.to_loop) == ("", {})
    assert judged.soundness(report) == []


def fake_python(directory: Path, name: str, script: str) -> Path:
    python = directory / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.15.1")


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize(
    ("script", "version", "reason"),
    [
        ("echo 0.9.8 2.15.1", "0.9.8", ""),
        ("echo 0.9.8 2.14.0", "", "has TensorFlow 2.14.0, expected 2.15.1"),
        ("echo 'WARNING: x' >&2; echo 'no mosec' >&2; exit 1", "", "no mosec"),
    ],
    ids=["complete", "another TensorFlow", "incomplete"],
)
def test_an_environment_counts_only_when_it_is_complete_and_has_the_same_tensorflow(
    tmp_path: Path, script: str, version: str, reason: str
) -> None:
    python = fake_python(tmp_path, "mosec", script)
    found = environments.find("mosec", tmp_path)
    assert found == environments.Environment("mosec", None if reason else python, version, reason)
    there, _ = peers.installed(tmp_path)
    assert [service.name for service in there] == ([] if reason else ["mosec", "mosec, batching"])


@pytest.mark.usefixtures("tensorflow")
def test_an_environment_that_cannot_be_built_is_reported_with_pips_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(place: Path, **_: Any) -> None:
        fake_python(place.parent, place.name, "echo 'ERROR: No matching distribution' >&2; exit 1")

    monkeypatch.setattr(venv, "create", create)
    found = environments.build("bentoml", tmp_path)
    assert found == environments.Environment(
        "bentoml", None, reason="ERROR: No matching distribution"
    )


@needs.estimators
def test_every_environment_gets_the_tensorflow_that_runs_here() -> None:
    wanted = f"tensorflow=={metadata.version('tensorflow')}"
    for name, peer in environments.PEERS.items():
        steps = environments.steps(name)
        assert wanted in steps[0]
        assert peer in steps[-1]


# --- which figures count -----------------------------------------------------------


def judge(rate: float, loop: float = 1000.0) -> list[Goal]:
    mosec = next(peer for peer in peers.ALL if peer.name == "mosec, batching")
    looked = {"mosec": environments.Environment("mosec", Path("python"), "0.9.8")}
    speeds = {
        (mosec.name, Level(64, 1)): [1.0],
        (mosec.name, Level(256, 1)): [rate],
        ("loop", Level(1, 1)): [loop],
    }
    return judged.soundness(judged.judge(looked, {}, speeds, "loop", [mosec]))


def test_a_peer_far_below_what_it_reached_elsewhere_voids_the_run() -> None:
    known = 8766 / 1246
    assert [goal.reached for goal in judge(0.71 * known * 1000)] == [True]
    assert [goal.reached for goal in judge(0.69 * known * 1000)] == [False]
    assert [goal.reached for goal in judge(0.71 * known * 1000, loop=1100)] == [False]


def test_a_machine_too_busy_for_a_plain_process_pool_voids_the_run_as_well() -> None:
    speeds = {(judged.CONTROL, Level(callers, 1)): [800.0] for callers in (64, 256)}
    control, *_ = judged.judge({}, {}, {**speeds, ("loop", Level(1, 1)): [1000.0]}, "loop", [])
    (goal,) = judged.soundness([control])
    assert goal.name.startswith("ProcessPoolExecutor")
    assert goal.figure == pytest.approx(0.8 / (1609 / 1246))
    assert not goal.reached


class Starting:
    """Stands for a peer, and for its contender, which starts at the third try or never."""

    def __init__(self, name: str, failures: int) -> None:
        self.name, self.failures, self.ended = name, failures, 0

    def start(self, _: Any) -> "Starting":
        return self

    def result(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise ContenderFailed("no port was free")

    def end(self) -> None:
        self.ended += 1


def test_without_peers_there_is_nothing_to_judge() -> None:
    speeds = {(judged.CONTROL, Level(callers, 1)): [1000.0] for callers in judged.JUDGED_CALLERS}
    assert judged.judge({}, {}, speeds, "loop", []) == []


def test_a_peer_that_does_not_start_is_ended_and_reported() -> None:
    never, late = Starting("LitServe", peers.TRIES), Starting("BentoML", peers.TRIES - 1)
    started: dict[str, Any] = {"pool": object()}
    services: Any = [never, late]
    model: Any = None
    failed = peers.start(services, model, lambda _: None, started)
    assert failed == {"LitServe": "no port was free"}
    assert list(started) == ["pool", "BentoML"]
    assert (never.ended, late.ended) == (peers.TRIES, peers.TRIES - 1)
    looked = {name: environments.Environment(name, Path("p"), "1") for name in environments.PEERS}
    reasons = {one.name: one.reason for one in judged.judge(looked, failed, {}, "loop")}
    assert reasons["LitServe"] == "no port was free"
    assert set(reasons.values()) == {"", "no port was free"}


# --- the contender -----------------------------------------------------------------


def serve_with_a_child(orders: Orders, doubled: int) -> None:
    """Start a process that leaves the session, and double numbers."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(sleep, start_new_session=True)
    orders.reply((child.pid, doubled * 2))
    while (order := orders.next()) is not None:
        orders.reply(order[0] * 2)


def serve_badly(_: Orders) -> None:
    raise ValueError("no such peer")


@pytest.mark.parametrize("deserted", [False, True], ids=["ended", "harness gone"])
def test_a_peer_takes_orders_and_leaves_no_process_behind(deserted: bool) -> None:
    contender = PeerContender("peer", Path(sys.executable), serve_with_a_child, 3)
    try:
        pid, doubled = contender.result()
        child = psutil.Process(pid)
        assert doubled == 6
        assert contender.order(21) == 42
        if deserted:
            contender._connection.close()
            contender._peer.wait(60)
            assert not child.is_running()
    finally:
        contender.end()
    assert not child.is_running()


def test_a_peer_that_fails_tells_why() -> None:
    contender = PeerContender("peer", Path(sys.executable), serve_badly)
    try:
        with pytest.raises(ContenderFailed, match=r"(?s)peer: .*no such peer"):
            contender.result()
    finally:
        contender.end()


# --- what travels ------------------------------------------------------------------

OUTPUTS = {
    "logits": np.array([[-1.5], [0.5]], "f4"),
    "logistic": np.array([[0.2], [0.6]], "f4"),
    "probabilities": np.array([[0.8, 0.2], [0.4, 0.6]], "f4"),
    "class_ids": np.array([[0], [1]]),
    "classes": np.array([[b"0"], [b"1"]], object),
    "all_class_ids": np.array([[0, 1]] * 2, "i4"),
    "all_classes": np.array([[b"0", b"1"]] * 2, object),
}


class Holding:
    """Stands for the model: keeps what it was asked."""

    def __init__(self) -> None:
        number, text = (np.dtype("f4"), (-1, 1)), (np.dtype("O"), (-1,))
        self.features = {"age": number, "hours": number, "race": text}

    def predict_arrays(self, features: Any) -> Any:
        self.asked = features
        return OUTPUTS


def test_packed_features_and_outputs_are_what_they_were() -> None:
    features = {
        "race": np.array(["a", "b"], object),
        "hours": np.array([40.0, 10.0], "f4"),
        "age": np.array([39.0, 52.0], "f4"),
    }
    holding: Any = Holding()
    outputs = packed.unpack_outputs(
        packed.Unpacked(holding).predict(**packed.pack_features(features))
    )
    assert set(holding.asked) == set(features)
    for name, values in features.items():
        assert holding.asked[name].tolist() == values.tolist()
    assert set(outputs) == set(held.OUTPUTS)
    for name, values in OUTPUTS.items():
        assert outputs[name].dtype == values.dtype
        assert outputs[name].tolist() == values.tolist()


def test_columns_become_the_arrays_that_the_model_returned() -> None:
    columns = {
        name: [[each.decode() if isinstance(each, bytes) else each for each in row] for row in rows]
        for name, rows in ((name, values.tolist()) for name, values in OUTPUTS.items())
    }
    for name, values in held.arrays_of(columns).items():
        assert values.dtype == OUTPUTS[name].dtype
        assert values.tolist() == OUTPUTS[name].tolist()
