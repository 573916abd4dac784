"""Errors are the documented tree, and survive pickling whole."""

import copy
import inspect
import pickle
from typing import Any

import pytest

from predictpool import _errors
from predictpool._errors import (
    BrokenWorkerError,
    InvalidFeatures,
    PoolClosed,
    PoolTimeout,
    PredictionError,
    PredictorPoolError,
    TooManyRequests,
    WorkerError,
    WorkerStartError,
)

TREE = {
    PoolClosed: (PredictorPoolError,),
    PoolTimeout: (PredictorPoolError, TimeoutError),
    TooManyRequests: (PredictorPoolError,),
    InvalidFeatures: (PredictorPoolError, ValueError),
    WorkerError: (PredictorPoolError,),
    WorkerStartError: (WorkerError,),
    BrokenWorkerError: (WorkerError,),
    PredictionError: (PredictorPoolError,),
}

EXAMPLES: list[tuple[PredictorPoolError, dict[str, Any]]] = [
    (PredictorPoolError("said"), {}),
    (PoolClosed("said"), {}),
    (
        PoolTimeout("said", timeout=2.0, waited=0.5, ran=1.5),
        {"timeout": 2.0, "waited": 0.5, "ran": 1.5},
    ),
    (TooManyRequests("said", waiting=3, max_waiting=2), {"waiting": 3, "max_waiting": 2}),
    (InvalidFeatures("said"), {"feature": None, "given": "", "expected": ""}),
    (
        InvalidFeatures("said", feature="age", given="text", expected="a number"),
        {"feature": "age", "given": "text", "expected": "a number"},
    ),
    (WorkerError("said", slot=1, pid=None), {"slot": 1, "pid": None}),
    (
        WorkerStartError("said", slot=1, pid=2, traceback="Traceback"),
        {"slot": 1, "pid": 2, "traceback": "Traceback"},
    ),
    (
        BrokenWorkerError(
            "said", slot=1, pid=2, exitcode=None, signal=9, crash_report="Fatal", cause="kill -9"
        ),
        {
            "slot": 1,
            "pid": 2,
            "exitcode": None,
            "signal": 9,
            "crash_report": "Fatal",
            "cause": "kill -9",
        },
    ),
    (
        PredictionError("said", type_name="tf.OpError", traceback="Traceback"),
        {"type_name": "tf.OpError", "traceback": "Traceback"},
    ),
]


def test_the_errors_are_the_documented_tree() -> None:
    defined = {
        value
        for value in vars(_errors).values()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert defined == {PredictorPoolError, *TREE}
    for error, bases in TREE.items():
        assert error.__bases__ == bases
    lines = (_errors.__doc__ or "").splitlines()
    documented = [line.split("── ")[1].split()[0] for line in lines if "── " in line]
    assert documented == [error.__name__ for error in TREE]


@pytest.mark.parametrize(("error", "attributes"), EXAMPLES)
def test_every_error_carries_its_data(
    error: PredictorPoolError, attributes: dict[str, Any]
) -> None:
    assert str(error) == "said"
    assert vars(error) == attributes


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("example", "attributes"), EXAMPLES)
def test_every_error_survives_pickling(
    example: PredictorPoolError, attributes: dict[str, Any], protocol: int
) -> None:
    error = copy.copy(example)
    error.add_note("first note")
    error.add_note("second note")
    again = pickle.loads(pickle.dumps(error, protocol=protocol))
    assert type(again) is type(error)
    assert (str(again), again.args) == ("said", ("said",))
    assert again.__notes__ == ["first note", "second note"]
    assert vars(again) == {**attributes, "__notes__": again.__notes__}


def test_an_error_of_a_user_survives_pickling_too() -> None:
    again = pickle.loads(pickle.dumps(OwnError("said", slot=1, pid=2, extra="more")))
    assert isinstance(again, OwnError)
    assert (str(again), again.slot, again.pid, again.extra) == ("said", 1, 2, "more")


class OwnError(WorkerError):
    """What a launcher of somebody else may raise."""

    def __init__(self, message: str, *, slot: int, pid: int | None, extra: str) -> None:
        super().__init__(message, slot=slot, pid=pid)
        self.extra = extra
