"""Estimators of public programs, and what ``estimator.predict`` says of their rows.

None of these models is ours: the packages of the dependency group ``programs`` make them. What
is here is what their users write: columns, configurations, and rows to train and ask for, all of
them from scikit-learn or from the demo's census. Run as a program it trains them all:
``python -m tests.programs FOLDER``; see `tests.models` on why.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from predictpool import _census
from tests.answers import rows_of
from tests.models import Array, Features

ROWS = 120
LABELLED = tuple[Features, Array]

# --- deepctr: click-through rate -----------------------------------------------------

CATEGORIES = ("workclass", "education", "occupation", "native_country")
NUMBERS = ("age", "education_num", "hours_per_week")


def build_deepfm(folder: Path) -> Any:
    """Columns of hashed text and of numbers, as in deepctr's own example."""
    tf = _tensorflow()
    columns = tf.feature_column
    words = [columns.categorical_column_with_hash_bucket(name, 100) for name in CATEGORIES]
    numbers = [columns.numeric_column(name, normalizer_fn=tf.math.log1p) for name in NUMBERS]
    return _deepctr().DeepFMEstimator(
        [*words, *numbers],
        [*(columns.embedding_column(word, 4) for word in words), *numbers],
        dnn_hidden_units=(16, 8),
        dnn_dropout=0.1,
        dnn_use_bn=True,
        model_dir=str(folder / "deepfm"),
        config=_config(),
    )


def build_dcn(folder: Path) -> Any:
    """Integer features: each picks a row of an embedding."""
    columns = _tensorflow().feature_column
    pixels = [columns.categorical_column_with_identity(name, 17) for name in _pixel_names()]
    return _deepctr().DCNEstimator(
        pixels,
        [columns.embedding_column(pixel, 2) for pixel in pixels],
        cross_num=2,
        dnn_hidden_units=(8,),
        model_dir=str(folder / "dcn"),
        config=_config(),
    )


def _deepctr() -> Any:
    """Import deepctr without its call home: it asks the registry for its newest version."""
    import requests

    def offline(url: str) -> None:
        raise requests.ConnectionError(f"{url}: tests talk to nobody")

    requests.get = offline  # type: ignore[assignment]
    import deepctr.estimator

    return deepctr.estimator


def census() -> LABELLED:
    features, labels = _census.read_rows("held-out")
    return {name: features[name] for name in (*CATEGORIES, *NUMBERS)}, labels


def digits() -> LABELLED:
    """Whether a digit is even, told from the middle of its picture."""
    from sklearn import datasets

    pictures, labels = datasets.load_digits(return_X_y=True)
    middle = pictures.reshape(-1, 8, 8)[:, 2:5, 2:5].reshape(-1, 9).astype(np.int64)
    return dict(zip(_pixel_names(), middle.T.copy(), strict=True)), (labels % 2).astype(np.float32)


def _pixel_names() -> list[str]:
    return [f"pixel_{number}" for number in range(9)]


# --- tensorflow-lattice: monotonic models ---------------------------------------------


def build_lattice(folder: Path) -> Any:
    """A classifier whose output rises with each of four measures of a tumour."""
    tf = _tensorflow()
    import tensorflow_lattice as tfl

    features, labels = tumours()
    assert isinstance(features, dict)
    return tfl.estimators.CannedClassifier(
        feature_columns=[tf.feature_column.numeric_column(name) for name in features],
        model_config=tfl.configs.CalibratedLatticeConfig(
            feature_configs=[
                tfl.configs.FeatureConfig(name, monotonicity="increasing") for name in features
            ]
        ),
        # Kept in a file of the model's folder: in a worker it is not called again.
        feature_analysis_input_fn=lambda: _dataset(features, labels).batch(len(labels)),
        optimizer=partial(tf.keras.optimizers.legacy.Adagrad, 0.1),
        model_dir=_existing(folder / "lattice"),
        config=_config(),
    )


def build_lattice_ensemble(folder: Path) -> Any:
    """A regressor of random lattices, over numbers and a word that it calibrates itself."""
    tf = _tensorflow()
    import tensorflow_lattice as tfl

    columns = tf.feature_column
    features, labels = patients()
    assert isinstance(features, dict)
    return tfl.estimators.CannedRegressor(
        feature_columns=[
            columns.categorical_column_with_vocabulary_list("sex", ["female", "male"]),
            *(columns.numeric_column(name, default_value=-1.0) for name in ("age", "bmi", "bp")),
        ],
        model_config=tfl.configs.CalibratedLatticeEnsembleConfig(
            lattices="random", num_lattices=3, lattice_rank=2, random_seed=5
        ),
        feature_analysis_input_fn=lambda: _dataset(features, labels).batch(len(labels)),
        optimizer=partial(tf.keras.optimizers.legacy.Adagrad, 0.1),
        model_dir=_existing(folder / "lattice_ensemble"),
        config=_config(),
    )


def _existing(folder: Path) -> str:
    """Make a model's folder: lattices keep notes of their own there before they are trained."""
    folder.mkdir(exist_ok=True)
    return str(folder)


def tumours() -> LABELLED:
    from sklearn import datasets

    data = datasets.load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names[:4]]
    return _named(data.data[:, :4], names), 1 - data.target


def patients() -> LABELLED:
    from sklearn import datasets

    data = datasets.load_diabetes(scaled=False)
    numbers = _named(data.data, data.feature_names)
    sex = np.array(["female", "male"], object)[(numbers["sex"] > 1.5).astype(int)]
    features: Features = {"sex": sex, **{name: numbers[name] for name in ("age", "bmi", "bp")}}
    return features, (data.target / 100).astype(np.float32)


# --- tensorflow-ranking: lists ---------------------------------------------------------

LIST = 5


def build_ranking(folder: Path) -> Any:
    """A row is a list of wines and a wish, the prediction a score for each wine of the list."""
    columns = _tensorflow().feature_column
    import tensorflow_ranking as tfr

    cellar = columns.categorical_column_with_vocabulary_list("cellar", ["north", "south", "west"])
    wish = columns.categorical_column_with_vocabulary_list("wish", ["strong", "light"])
    return tfr.estimator.make_dnn_ranking_estimator(
        example_feature_columns={
            "alcohol": columns.numeric_column("alcohol"),
            "taste": columns.numeric_column("taste", shape=(3,)),
            "cellar": columns.embedding_column(cellar, 2),
        },
        context_feature_columns={"wish": columns.indicator_column(wish)},
        hidden_units=[8, 4],
        use_batch_norm=True,
        dropout=0.2,
        loss="approx_ndcg_loss",
        learning_rate=0.05,
        listwise_inference=True,
        model_dir=str(folder / "ranking"),
    )


def lists(length: int = LIST) -> LABELLED:
    from sklearn import datasets

    data = datasets.load_wine()
    random = np.random.default_rng(4)
    chosen = random.integers(0, len(data.target), (ROWS, length))
    wish = np.array(["strong", "light"], object)[random.integers(0, 2, (ROWS, 1))]
    alcohol = data.data[chosen, 0].astype(np.float32)
    features: Features = {
        "alcohol": alcohol[..., None],
        "taste": data.data[chosen][..., 1:4].astype(np.float32),
        "cellar": np.array(["north", "south", "west"], object)[data.target[chosen]][..., None],
        "wish": wish,
    }
    return features, np.where(wish == "strong", alcohol, 15 - alcohol).astype(np.float32)


RANKING_SIGNATURE = {
    "alcohol": (np.float32, (None, 1)),
    "taste": (np.float32, (None, 3)),
    "cellar": (str, (None, 1)),
    "wish": (str, (1,)),
}

# --- neural-structured-learning: adversarial training ------------------------------------


def build_adversarial(folder: Path) -> Any:
    """A canned classifier, its model function wrapped in another."""
    tf = _tensorflow()
    import neural_structured_learning as nsl

    features, _ = flowers()
    assert isinstance(features, dict)
    return nsl.estimator.add_adversarial_regularization(
        tf.estimator.DNNClassifier(
            hidden_units=[8],
            feature_columns=[tf.feature_column.numeric_column(name) for name in features],
            n_classes=3,
            label_vocabulary=["setosa", "versicolor", "virginica"],
            optimizer=partial(tf.keras.optimizers.legacy.Adagrad, 0.1),
            model_dir=str(folder / "adversarial"),
            config=_config(),
        ),
        adv_config=nsl.configs.make_adv_reg_config(multiplier=0.2, adv_step_size=0.05),
    )


def flowers() -> LABELLED:
    from sklearn import datasets

    data = datasets.load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in data.feature_names]
    return _named(data.data, names), data.target_names.astype(object)[data.target]


# --- all of them ---------------------------------------------------------------------------


class Program(NamedTuple):
    """A public Estimator.

    Attributes:
        package: the one whose model it is.
        model: what the package calls it.
        data: where its rows are from.
        build: makes the estimator, for a folder with a folder for each program.
        rows: makes features and labels.
        signature: what has to be declared; None where nothing has.
    """

    package: str
    model: str
    data: str
    build: Callable[[Path], Any]
    rows: Callable[[], LABELLED]
    signature: Any = None


PROGRAMS = {
    "deepfm": Program("deepctr", "DeepFMEstimator", "census", build_deepfm, census),
    "dcn": Program("deepctr", "DCNEstimator", "digits", build_dcn, digits),
    "lattice": Program(
        "tensorflow-lattice",
        "CannedClassifier, CalibratedLatticeConfig",
        "breast cancer",
        build_lattice,
        tumours,
    ),
    "lattice_ensemble": Program(
        "tensorflow-lattice",
        "CannedRegressor, CalibratedLatticeEnsembleConfig",
        "diabetes",
        build_lattice_ensemble,
        patients,
    ),
    "ranking": Program(
        "tensorflow-ranking",
        "make_dnn_ranking_estimator, listwise",
        "wine",
        build_ranking,
        lists,
        RANKING_SIGNATURE,
    ),
    "adversarial": Program(
        "neural-structured-learning",
        "add_adversarial_regularization, around a DNNClassifier",
        "iris",
        build_adversarial,
        flowers,
    ),
}


def table() -> str:
    """Return the rows of the table in the documentation."""
    return "\n".join(
        f"| {program.package} | {program.model} | {program.data} | {_declared(program)} |"
        for program in PROGRAMS.values()
    )


def _declared(program: Program) -> str:
    if program.signature is None:
        return "nothing"
    specs = (
        f"{name}: {dtype.__name__} {shape}" for name, (dtype, shape) in program.signature.items()
    )
    return f"`{{{', '.join(specs)}}}`"


def train(folder: Path) -> None:
    """Train each model for a few steps; keep rows of it, and what it predicts for them."""
    for name, program in PROGRAMS.items():
        estimator = program.build(folder)
        features, labels = program.rows()
        estimator.train(
            lambda features=features, labels=labels: _dataset(features, labels).repeat().batch(32),
            steps=20,
        )
        _keep(folder / f"{name}.known", estimator, features)
        if name == "ranking":
            _keep(folder / "shorter.known", estimator, lists(LIST - 2)[0])


def _keep(file: Path, estimator: Any, features: Features) -> None:
    asked = rows_of(features, slice(ROWS))
    (expected,) = estimator.predict(
        lambda: _dataset(asked).batch(ROWS), yield_single_examples=False
    )
    file.write_bytes(pickle.dumps((asked, expected)))


def _dataset(features: Features, labels: Array | None = None) -> Any:
    import tensorflow as tf

    rows = features if labels is None else (features, labels)
    return tf.data.Dataset.from_tensor_slices(rows)


def _named(values: Array, names: Any) -> dict[str, Array]:
    return dict(zip(map(str, names), values.astype(np.float32).T.copy(), strict=True))


def _config() -> Any:
    import tensorflow as tf

    return tf.estimator.RunConfig(tf_random_seed=7, save_summary_steps=None)


def _tensorflow() -> Any:
    _census.silence()
    import tensorflow as tf

    return tf


if __name__ == "__main__":
    train(Path(sys.argv[1]))
