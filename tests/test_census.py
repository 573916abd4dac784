"""The demo's data is what its README says."""

import csv
import gzip
import importlib.resources

import numpy as np
import pytest

from predictpool import _census

DATA = importlib.resources.files("predictpool") / "data"


@pytest.fixture(scope="module")
def packed() -> bytes:
    return (DATA / "census.csv.gz").read_bytes()


@pytest.fixture(scope="module")
def rows(packed: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(gzip.decompress(packed).decode("utf-8").splitlines()))


def test_the_extract_fits_into_a_wheel_and_is_the_same_whenever_it_is_made(packed: bytes) -> None:
    assert len(packed) < 250_000
    modification_time = packed[4:8]
    assert modification_time == bytes(4)


def test_the_extract_has_the_columns_and_rows_that_the_readme_promises(
    rows: list[dict[str, str]],
) -> None:
    assert set(rows[0]) == {*_census.NUMERIC, *_census.TEXT, "income", "split"}
    splits = [row["split"] for row in rows]
    assert splits.count("training") == _census.TRAINING_ROWS == 8_000
    assert splits.count("held-out") == _census.HELD_OUT_ROWS == 2_000
    assert len(splits) == 10_000
    assert {row["income"] for row in rows} == set(_census.INCOMES)
    assert all(None not in row and None not in row.values() for row in rows)


def test_no_held_out_row_was_seen_in_training(rows: list[dict[str, str]]) -> None:
    people: dict[str, set[tuple[str, ...]]] = {"training": set(), "held-out": set()}
    for row in rows:
        people[row["split"]].add(tuple(row[name] for name in _census.NUMERIC + _census.TEXT))
    assert not people["training"] & people["held-out"]


def test_the_readme_that_travels_with_the_data_attributes_it() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for words in ("Becker, B. and Kohavi, R. (1996)", "10.24432/C5XW20", "CC BY 4.0"):
        assert words in readme


@pytest.mark.parametrize("split", ["training", "held-out"])
def test_rows_are_read_as_thirteen_arrays_and_their_labels(split: str) -> None:
    features, labels = _census.read_rows(split)  # type: ignore[arg-type]
    count = {"training": 8_000, "held-out": 2_000}[split]
    assert len(features) == 13
    assert {values.shape for values in features.values()} == {(count,)}
    assert {features[name].dtype for name in _census.NUMERIC} == {np.dtype(np.float32)}
    assert {type(value) for name in _census.TEXT for value in features[name]} == {str}
    assert labels.dtype == np.int64
    assert labels.shape == (count,)


def test_the_first_held_out_row_is_read_with_its_own_values() -> None:
    features, labels = _census.read_rows("held-out")
    assert {name: values[0] for name, values in features.items()} == {
        "age": 52.0,
        "workclass": "Self-emp-not-inc",
        "education": "HS-grad",
        "education_num": 9.0,
        "marital_status": "Married-civ-spouse",
        "occupation": "Exec-managerial",
        "relationship": "Husband",
        "race": "White",
        "sex": "Male",
        "capital_gain": 0.0,
        "capital_loss": 0.0,
        "hours_per_week": 45.0,
        "native_country": "United-States",
    }
    assert _census.INCOMES[labels[0]] == ">50K"
