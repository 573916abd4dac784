"""Every Estimator of TensorFlow 2.12 to 2.15, and what ``estimator.predict`` says of its rows.

Run as a program it trains some: ``python -m tests.canned FOLDER NAME...``. tests/test_canned.py
calls it so, in a process of its own, and then asks pools the same. Workers import it, too, so
nothing of pytest is in here. `table` is what the documentation says of all of them.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictpool import Device, EstimatorPredictor, FeatureSpec, _census

Array = NDArray[Any]

ROWS = 70
# The requests that tests make: these alone, one after another, and then those all at once.
ALONE = [slice(start, start + size) for start, size in ((0, 1), (1, 2), (3, 7), (5, 64), (0, ROWS))]
TOGETHER = [slice(start, min(start + 1 + start % 5, ROWS)) for start in range(0, ROWS, 4)]

NUMBER = {"x": (np.float32, (4,))}


@dataclass(frozen=True)
class Rows:
    """What a model is trained with and then asked for.

    Attributes:
        features: arrays with `ROWS` rows; where rows differ in length, a list of lists.
        labels: as the model's head wants them, or a function that makes them.
        training: features that only the training has: weights and names of the examples.
    """

    features: Any
    labels: Any = None
    training: dict[str, Array] = field(default_factory=dict)


def input_fn(rows: Rows) -> Callable[[Any], Any]:
    """Return what `Estimator.train` reads: batches of 16, for ever."""

    def read(params: Any) -> Any:  # noqa: ARG001 - TPUEstimator refuses a function without
        import tensorflow as tf

        features = as_tensors(rows.features)
        if rows.training:
            features = {**features, **rows.training}
        labels = rows.labels() if callable(rows.labels) else rows.labels
        given = features if labels is None else (features, labels)
        return tf.data.Dataset.from_tensor_slices(given).repeat().batch(16)

    return read


def as_tensors(features: Any) -> Any:
    """Make SparseTensors of lists of lists, as `parse_example` does of a VarLenFeature."""
    import tensorflow as tf

    if not isinstance(features, Mapping):
        return features
    return {
        name: tf.ragged.constant(values).to_sparse() if isinstance(values, list) else values
        for name, values in features.items()
    }


def train_some_steps(estimator: Any, rows: Rows) -> None:
    estimator.train(input_fn(rows), steps=10)


@dataclass(frozen=True)
class Model:
    """An Estimator.

    Attributes:
        title: what the documentation calls it.
        build: makes it, in the worker.
        rows: what it is trained with.
        signature: what users have to declare; None where it is read off the estimator.
        train: trains it, a few steps by default.
        checkpoint: which one in the folder, or None for the newest.
        row_wise: whether its outputs can be divided by rows.
        generator, session: what the documentation says of each method.
        remark: what users have to know.
    """

    title: str
    build: Callable[[Path], Any]
    rows: Callable[[], Rows]
    signature: Any = None
    train: Callable[[Any, Rows], None] = train_some_steps
    checkpoint: Callable[[Path], str] | None = None
    row_wise: bool = True
    generator: str = "equal"
    session: str = "equal"
    remark: str = ""


def config(**options: Any) -> Any:
    _census.silence()
    import tensorflow as tf

    return tf.estimator.RunConfig(
        tf_random_seed=7, save_summary_steps=None, log_step_count_steps=None, **options
    )


# --- rows --------------------------------------------------------------------------


def mixed_features() -> dict[str, Array]:
    """Numbers, a vector, and text and whole numbers for categories."""
    random = np.random.default_rng(1)
    return {
        "number": random.normal(size=ROWS).astype(np.float32),
        "vector": random.normal(size=(ROWS, 3)).astype(np.float32),
        "word": np.array([b"a", b"b", b"c", b"?", b""], object)[random.integers(0, 5, ROWS)],
        "city": np.array([f"city {n}".encode() for n in random.integers(0, 30, ROWS)], object),
        "code": random.integers(0, 5, ROWS),
        "tag": np.array([b"p", b"q", b"r"], object)[random.integers(0, 3, ROWS)],
        "tag_weight": random.uniform(0.5, 2, ROWS).astype(np.float32),
    }


def some(*names: str) -> dict[str, Array]:
    features = mixed_features()
    return {name: features[name] for name in names}


def classes(count: int) -> Array:
    return np.random.default_rng(2).integers(0, count, ROWS)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(3).normal(size=(ROWS, *shape)).astype(np.float32)


def counts() -> Array:
    return np.random.default_rng(4).poisson(2, ROWS).astype(np.float32)


def many_labels() -> Array:
    return np.random.default_rng(5).integers(0, 2, (ROWS, 3))


def names_of_classes() -> Array:
    return np.array([b"no", b"yes", b"perhaps"], object)[classes(3)]


def sequences() -> dict[str, Any]:
    """Words and numbers, none to five in a row, the same count of both; and one number more."""
    random = np.random.default_rng(6)
    lengths = random.integers(1, 6, ROWS)
    lengths[9] = 0
    return {
        "words": [[b"abcd?"[i : i + 1] for i in random.integers(0, 5, n)] for n in lengths],
        "values": [random.normal(size=n).astype(np.float32).tolist() for n in lengths],
        "number": random.normal(size=ROWS).astype(np.float32),
    }


def of_sequences(*names: str) -> dict[str, Any]:
    features = sequences()
    return {name: features[name] for name in names}


def plain_rows() -> Rows:
    return Rows({"x": numbers(4)}, numbers(1)[:, 0])


# --- feature columns ---------------------------------------------------------------


def plain_columns() -> list[Any]:
    import tensorflow as tf

    columns = tf.feature_column
    word = columns.categorical_column_with_vocabulary_list("word", ["a", "b", "c"])
    return [columns.numeric_column("number"), columns.indicator_column(word)]


def linear_columns() -> list[Any]:
    import tensorflow as tf

    columns = tf.feature_column
    return [
        columns.numeric_column("number"),
        columns.numeric_column("vector", shape=(3,)),
        columns.categorical_column_with_hash_bucket("city", 20),
        columns.crossed_column(["word", "city"], 30),
    ]


def all_columns() -> list[Any]:
    """Every kind of column that a deep model takes."""
    import tensorflow as tf

    columns = tf.feature_column
    number = columns.numeric_column("number", default_value=0.25)
    word = columns.categorical_column_with_vocabulary_list(
        "word", ["a", "b", "c"], num_oov_buckets=1
    )
    city = columns.categorical_column_with_hash_bucket("city", 20)
    code = columns.categorical_column_with_identity("code", 5)
    tag = columns.categorical_column_with_vocabulary_list("tag", ["p", "q", "r"])
    hashed_tag = columns.categorical_column_with_hash_bucket("tag", 20)
    with tf.Graph().as_default():  # TensorFlow makes these in graph mode only
        shared = columns.shared_embeddings([city, hashed_tag], 3)
    return [
        number,
        columns.numeric_column("vector", shape=(3,), normalizer_fn=lambda x: x / 2),
        columns.bucketized_column(number, [-1.0, 0.0, 1.0]),
        columns.indicator_column(word),
        columns.embedding_column(code, 2),
        columns.indicator_column(columns.crossed_column(["word", "city"], 30)),
        columns.indicator_column(columns.weighted_categorical_column(tag, "tag_weight")),
        *shared,
    ]


def linear_rows(labels: Any) -> Rows:
    return Rows(some("number", "vector", "word", "city"), labels)


def plain_column_rows(labels: Any, **training: Array) -> Rows:
    return Rows(some("number", "word"), labels, training)


# --- canned estimators -------------------------------------------------------------


def canned(kind: str, name: str, **options: Any) -> Callable[[Path], Any]:
    """Return a function that builds a canned estimator.

    Args:
        kind: where it is in `tf`, as in ``estimator.DNNClassifier``.
        name: its folder.
        options: of the estimator; what is callable is called in the worker.
    """

    def build(folder: Path) -> Any:
        settings = config()
        import tensorflow as tf

        found: Any = tf
        for part in kind.split("."):
            found = getattr(found, part)
        made = {key: value() if callable(value) else value for key, value in options.items()}
        return found(model_dir=str(folder / name), config=settings, **made)

    return build


def head(kind: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import tensorflow as tf

        return getattr(tf.estimator, kind)(**options)

    return make


def multi_head() -> Any:
    import tensorflow as tf

    return tf.estimator.MultiHead(
        [
            tf.estimator.MultiLabelHead(n_classes=3, name="labels"),
            tf.estimator.PoissonRegressionHead(name="count"),
        ]
    )


def v1_regression_head() -> Any:
    """A head for optimizers of TensorFlow 1; ``tf.contrib``, which had it in public, is gone."""
    from tensorflow_estimator.python.estimator.canned import head as heads  # type: ignore[import-untyped]

    return heads._regression_head()


def adagrad() -> Any:
    """The default optimizer of deep models, which 2.12 cannot find by itself on Python 3.11."""
    import tensorflow as tf

    return tf.keras.optimizers.legacy.Adagrad  # the class: each graph needs one of its own


def sdca() -> Any:
    import tensorflow as tf

    return tf.estimator.experimental.LinearSDCA("id", num_table_shards=1)


def sdca_columns() -> list[Any]:
    import tensorflow as tf

    columns = tf.feature_column
    return [
        columns.numeric_column("number"),
        columns.categorical_column_with_vocabulary_list("word", ["a", "b", "c"]),
    ]


def word_sequence() -> list[Any]:
    import tensorflow as tf

    columns = tf.feature_column
    words = columns.sequence_categorical_column_with_vocabulary_list("words", list("abcd"))
    return [columns.embedding_column(words, 4)]


def number_sequence() -> list[Any]:
    import tensorflow as tf

    return [tf.feature_column.sequence_numeric_column("values")]


def number_context() -> list[Any]:
    import tensorflow as tf

    return [tf.feature_column.numeric_column("number")]


def several_words() -> list[Any]:
    """Columns over rows that have several words, each with a weight of its own."""
    import tensorflow as tf

    columns = tf.feature_column
    words = columns.categorical_column_with_vocabulary_list("words", list("abcd"))
    weighted = columns.weighted_categorical_column(words, "values")
    return [columns.embedding_column(words, 4), columns.indicator_column(weighted)]


def build_add_metrics(folder: Path) -> Any:
    import tensorflow as tf

    def mean(predictions: Any) -> Any:
        metric = tf.keras.metrics.Mean()
        metric.update_state(predictions["logistic"])
        return {"mean": metric}

    estimator = canned("estimator.DNNClassifier", "add_metrics", **DEEP)(folder)
    return tf.estimator.add_metrics(estimator, mean)


def build_keras(folder: Path) -> Any:
    settings = config()
    import tensorflow as tf

    number, vector = tf.keras.Input((1,), name="number"), tf.keras.Input((3,), name="vector")
    hidden = tf.keras.layers.Dense(4, "relu")(tf.keras.layers.concatenate([number, vector]))
    hidden = tf.keras.layers.Dropout(0.3)(tf.keras.layers.BatchNormalization()(hidden))
    model = tf.keras.Model([number, vector], tf.keras.layers.Dense(1, name="score")(hidden))
    model.compile(tf.keras.optimizers.legacy.SGD(0.01), "mse")
    return tf.keras.estimator.model_to_estimator(
        model, model_dir=str(folder / "keras"), config=settings
    )


def keras_rows() -> Rows:
    features = mixed_features()
    return Rows({"number": features["number"][:, None], "vector": features["vector"]}, numbers(1))


def build_tpu(folder: Path) -> Any:
    _census.silence()
    import tensorflow as tf

    tpu = tf.compat.v1.estimator.tpu

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> Any:
        score = weighted(features["x"], "weight") * params["scale"]
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tpu.TPUEstimatorSpec(mode, predictions={"score": score})
        loss, train_op = training(score, labels)
        return tpu.TPUEstimatorSpec(mode, loss=loss, train_op=train_op)

    return tpu.TPUEstimator(
        model_fn,
        use_tpu=False,
        train_batch_size=16,
        predict_batch_size=16,
        params={"scale": 2.0},
        config=tpu.RunConfig(
            model_dir=str(folder / "tpu"),
            tf_random_seed=7,
            save_summary_steps=None,
            log_step_count_steps=None,
        ),
    )


# --- model functions ---------------------------------------------------------------


def weighted(values: Any, name: str) -> Any:
    """Multiply ``[n, m]`` with a variable: ``[n]``."""
    import tensorflow as tf

    weight = tf.compat.v1.get_variable(
        name, [values.shape[1]], initializer=tf.random_normal_initializer(seed=5)
    )
    return tf.linalg.matvec(tf.cast(values, tf.float32), weight)


def training(score: Any, labels: Any) -> tuple[Any, Any]:
    """Return the loss, and the operation that makes it less."""
    import tensorflow as tf

    loss = tf.reduce_mean((score - labels) ** 2)
    step = tf.compat.v1.train.get_global_step()
    return loss, tf.compat.v1.train.GradientDescentOptimizer(0.01).minimize(loss, step)


def custom(
    name: str, predict: Callable[..., Any], *, session_config: Any = None, **options: Any
) -> Callable[[Path], Any]:
    """Return a function that builds an Estimator with a ``model_fn``.

    Args:
        name: its folder.
        predict: takes the features and returns the score to train and the predictions, or
            these and more arguments of the EstimatorSpec.
    """

    def build(folder: Path) -> Any:
        settings = config(session_config=session_config and session_config())
        import tensorflow as tf

        def model_fn(features: Any, labels: Any, mode: str) -> Any:
            score, predictions, *more = predict(features)
            spec = more[0] if more else {}
            if mode == tf.estimator.ModeKeys.PREDICT:
                return tf.estimator.EstimatorSpec(mode, predictions=predictions, **spec)
            loss, train_op = training(score, labels)
            spec.pop("prediction_hooks", None)
            return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, **spec)

        return tf.estimator.Estimator(
            model_fn, model_dir=str(folder / name), config=settings, **options
        )

    return build


def predict_bare(features: Any) -> Any:
    score = weighted(features, "weight")
    return score, score


def predict_scalars(features: Any) -> Any:
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    words = tf.where(score > 0, "above", "below")
    return score, {"score": score, "sign": tf.cast(score > 0, tf.int64), "word": words}


def predict_without_rows(features: Any) -> Any:
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    weight = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES, "weight")[0]
    step = tf.compat.v1.train.get_global_step()
    return score, {
        "score": score,
        "mean": tf.reduce_mean(score),
        "weight": tf.identity(weight),
        "step": tf.identity(step),
    }


def predict_types(features: Any) -> Any:
    import tensorflow as tf

    image = tf.cast(features["image"], tf.float32) / 255
    score = weighted(tf.reshape(image, [-1, 12]), "weight")
    return score, {
        "score": score,
        "count": features["count"] * 2,
        "sign": tf.cast(features["count"] > 0, tf.int32),
        "flag": tf.logical_not(features["flag"]),
        "exact": features["exact"] / 3,
        "image": 255 - features["image"],
        "half": tf.cast(features["exact"], tf.float16),
        "text": tf.strings.join([tf.strings.as_string(features["count"]), "\0 ü"]),
    }


def types_rows() -> Rows:
    random = np.random.default_rng(7)
    features = {
        "count": random.integers(-(2**40), 2**40, ROWS),
        "flag": random.integers(0, 2, ROWS).astype(bool),
        "exact": random.normal(size=ROWS),
        "image": random.integers(0, 256, (ROWS, 2, 2, 3)).astype(np.uint8),
    }
    return Rows(features, numbers(1)[:, 0])


def predict_table(features: Any) -> Any:
    import tensorflow as tf

    def table(keys: Any, values: Any, default: Any) -> Any:
        return tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(keys), tf.constant(values)), default
        )

    place = table(["a", "b", "c"], [1, 2, 3], -1).lookup(features["word"])
    score = weighted(tf.one_hot(place, 4), "weight")
    name = table([1, 2, 3], ["first", "second", "third"], "none").lookup(place)
    return score, {"score": score, "place": place, "name": name}


def predict_rank_3(features: Any) -> Any:
    import tensorflow as tf

    score = weighted(tf.reduce_sum(features["x"], axis=1), "weight")
    return score, {"score": score, "turned": tf.transpose(features["x"], [0, 2, 1])}


def predict_scaffold(features: Any) -> Any:
    """Use everything that a Scaffold can bring: local variables, tables, a saver of its own."""
    import tensorflow as tf

    v1 = tf.compat.v1
    score = weighted(features["x"], "weight")
    weight = v1.get_collection(v1.GraphKeys.GLOBAL_VARIABLES, "weight")[0]
    shift = v1.get_variable(
        "shift", initializer=tf.constant(3.0), collections=[v1.GraphKeys.LOCAL_VARIABLES]
    )
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant(["low", "high"])), "?"
    )
    fill = v1.placeholder(tf.float32, [4])
    assign = weight.assign(fill)
    step = v1.train.get_global_step()
    scaffold = v1.train.Scaffold(
        init_op=v1.global_variables_initializer(),
        init_fn=lambda _, session: session.run(assign, {fill: [1.0, 2.0, 3.0, 4.0]}),
        local_init_op=tf.group(v1.local_variables_initializer(), v1.tables_initializer()),
        ready_op=v1.report_uninitialized_variables(),
        saver=v1.train.Saver({"by another name": weight, "global_step": step}, sharded=True),
    )
    name = table.lookup(tf.cast(score > 0, tf.int32))
    return score, {"score": score + shift, "name": name}, {"scaffold": scaffold}


def build_params(folder: Path) -> Any:
    settings = config()
    import tensorflow as tf

    def model_fn(features: Any, labels: Any, mode: str, params: Any, config: Any) -> Any:
        score = weighted(features["x"], "weight") * params["scale"] + config.tf_random_seed
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions={"score": score})
        loss, train_op = training(score, labels)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)

    return tf.estimator.Estimator(
        model_fn, model_dir=str(folder / "params"), config=settings, params={"scale": 2.0}
    )


def build_hooks(folder: Path) -> Any:
    """A model whose prediction hook writes down what is called."""
    journal = folder / "hooks.journal"

    def predict(features: Any) -> Any:
        import tensorflow as tf

        class Journal(tf.estimator.SessionRunHook):  # type: ignore[misc]
            def begin(self) -> None:
                note("begin")

            def after_create_session(self, session: Any, coord: Any) -> None:
                note("after_create_session")

            def before_run(self, run_context: Any) -> None:
                note("before_run")

            def after_run(self, run_context: Any, run_values: Any) -> None:
                note("after_run")

            def end(self, session: Any) -> None:
                note("end")

        def note(event: str) -> None:
            with journal.open("a") as lines:
                lines.write(f"{event}\n")

        score = weighted(features["x"], "weight")
        return score, {"score": score}, {"prediction_hooks": [Journal()]}

    return custom("hooks", predict)(folder)


# --- folders and settings ----------------------------------------------------------


def build_warm_start(folder: Path) -> Any:
    first = canned("estimator.DNNClassifier", "warm_start.first", **DEEP)(folder)
    if first.latest_checkpoint() is None:
        train_some_steps(first, plain_column_rows(classes(2)))
    second = canned(
        "estimator.DNNClassifier", "warm_start", **DEEP, warm_start_from=first.model_dir
    )
    return second(folder)


def train_with_best_exporter(estimator: Any, rows: Rows) -> None:
    import tensorflow as tf

    def receive() -> Any:
        features = {
            "number": tf.compat.v1.placeholder(tf.float32, [None]),
            "word": tf.compat.v1.placeholder(tf.string, [None]),
        }
        return tf.estimator.export.ServingInputReceiver(features, features)

    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(input_fn(rows), max_steps=10),
        tf.estimator.EvalSpec(
            input_fn(rows), steps=2, exporters=tf.estimator.BestExporter("best", receive)
        ),
    )
    estimator.train(input_fn(rows), steps=10)  # the newest is another one now


def best_export(folder: Path) -> str:
    (export,) = (folder / "best_export" / "export" / "best").iterdir()
    return str(export / "variables" / "variables")


def train_for_two_checkpoints(estimator: Any, rows: Rows) -> None:
    train_some_steps(estimator, rows)
    train_some_steps(estimator, rows)


def predict_on_a_second_cpu(features: Any) -> Any:
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    with tf.device("/cpu:1"):  # which is there only with the session_config of below
        return score, {"score": score * 2}


def two_cpus() -> Any:
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(device_count={"CPU": 2}, allow_soft_placement=False)


# --- all of them -------------------------------------------------------------------

V1 = "compat.v1.estimator"
V1_DEEP: dict[str, Any] = {"feature_columns": plain_columns, "hidden_units": [4]}
DEEP = V1_DEEP | {"optimizer": adagrad}
WIDE: dict[str, Any] = {"feature_columns": linear_columns}
BOTH: dict[str, Any] = {
    "linear_feature_columns": linear_columns,
    "dnn_feature_columns": plain_columns,
    "dnn_hidden_units": [4],
}
REGULAR: dict[str, Any] = {"dnn_dropout": 0.2, "batch_norm": True}

MODELS: dict[str, Model] = {
    # --- linear
    "linear_classifier": Model(
        "`LinearClassifier`, `label_vocabulary`",
        canned(
            "estimator.LinearClassifier",
            "linear_classifier",
            n_classes=3,
            label_vocabulary=["no", "yes", "perhaps"],
            **WIDE,
        ),
        lambda: linear_rows(names_of_classes()),
    ),
    "linear_regressor": Model(
        "`LinearRegressor`",
        canned("estimator.LinearRegressor", "linear_regressor", **WIDE),
        lambda: linear_rows(numbers(1)),
    ),
    "linear_estimator": Model(
        "`LinearEstimator`, `LogisticRegressionHead`",
        canned(
            "estimator.LinearEstimator",
            "linear_estimator",
            head=head("LogisticRegressionHead"),
            **WIDE,
        ),
        lambda: linear_rows(classes(2).astype(np.float32)),
    ),
    "linear_sdca": Model(
        "`LinearClassifier`, `experimental.LinearSDCA`",
        canned(
            "estimator.LinearClassifier",
            "linear_sdca",
            feature_columns=sdca_columns,
            optimizer=sdca,
        ),
        lambda: plain_column_rows(
            classes(2), id=np.array([str(n).encode() for n in range(ROWS)], object)
        ),
    ),
    # --- deep
    "dnn_binary": Model(
        "`DNNClassifier`",
        canned("estimator.DNNClassifier", "dnn_binary", **DEEP),
        lambda: plain_column_rows(classes(2)),
    ),
    "dnn_three": Model(
        "`DNNClassifier`, `n_classes=3`",
        canned("estimator.DNNClassifier", "dnn_three", n_classes=3, **DEEP),
        lambda: plain_column_rows(classes(3)),
    ),
    "dnn_vocabulary": Model(
        "`DNNClassifier`, `label_vocabulary`",
        canned(
            "estimator.DNNClassifier",
            "dnn_vocabulary",
            n_classes=3,
            label_vocabulary=["no", "yes", "perhaps"],
            **DEEP,
        ),
        lambda: plain_column_rows(names_of_classes()),
    ),
    "dnn_weight": Model(
        "`DNNClassifier`, `weight_column`",
        canned("estimator.DNNClassifier", "dnn_weight", weight_column="weight", **DEEP),
        lambda: plain_column_rows(classes(2), weight=np.abs(numbers(1)[:, 0])),
        remark="the weight is no feature of a request",
    ),
    "dnn_columns": Model(
        "`DNNClassifier`, columns of every kind",
        canned(
            "estimator.DNNClassifier",
            "dnn_columns",
            feature_columns=all_columns,
            hidden_units=[4],
            optimizer=adagrad,
        ),
        lambda: Rows(mixed_features(), classes(2)),
        remark="a categorical column takes one value a row where nothing is declared",
    ),
    "dnn_several_words": Model(
        "`DNNClassifier`, several values a row",
        canned(
            "estimator.DNNClassifier",
            "dnn_several_words",
            feature_columns=several_words,
            hidden_units=[4],
            optimizer=adagrad,
        ),
        lambda: Rows(of_sequences("words", "values"), classes(2)),
        signature={
            "words": FeatureSpec(np.dtype(object), ragged=True),
            "values": FeatureSpec(np.dtype(np.float32), ragged=True),
        },
        remark="declare `tf.io.VarLenFeature`",
    ),
    "dnn_regressor": Model(
        "`DNNRegressor`, `label_dimension=2`",
        canned("estimator.DNNRegressor", "dnn_regressor", label_dimension=2, **DEEP),
        lambda: plain_column_rows(numbers(2)),
    ),
    # --- heads
    "multi_label_head": Model(
        "`DNNEstimator`, `MultiLabelHead`",
        canned(
            "estimator.DNNEstimator",
            "multi_label_head",
            head=head("MultiLabelHead", n_classes=3),
            **DEEP,
        ),
        lambda: plain_column_rows(many_labels()),
    ),
    "poisson_head": Model(
        "`DNNEstimator`, `PoissonRegressionHead`",
        canned(
            "estimator.DNNEstimator", "poisson_head", head=head("PoissonRegressionHead"), **DEEP
        ),
        lambda: plain_column_rows(counts()),
    ),
    "logistic_head": Model(
        "`DNNEstimator`, `LogisticRegressionHead`",
        canned(
            "estimator.DNNEstimator", "logistic_head", head=head("LogisticRegressionHead"), **DEEP
        ),
        lambda: plain_column_rows(classes(2).astype(np.float32)),
    ),
    "binary_head": Model(
        "`DNNEstimator`, `BinaryClassHead`",
        canned("estimator.DNNEstimator", "binary_head", head=head("BinaryClassHead"), **DEEP),
        lambda: plain_column_rows(classes(2)),
    ),
    "multi_class_head": Model(
        "`DNNEstimator`, `MultiClassHead`",
        canned(
            "estimator.DNNEstimator",
            "multi_class_head",
            head=head("MultiClassHead", n_classes=4),
            **DEEP,
        ),
        lambda: plain_column_rows(classes(4)),
    ),
    "regression_head": Model(
        "`DNNEstimator`, `RegressionHead`",
        canned(
            "estimator.DNNEstimator",
            "regression_head",
            head=head("RegressionHead", label_dimension=2),
            **DEEP,
        ),
        lambda: plain_column_rows(numbers(2)),
    ),
    "multi_head": Model(
        "`DNNEstimator`, `MultiHead`",
        canned("estimator.DNNEstimator", "multi_head", head=multi_head, **DEEP),
        lambda: plain_column_rows({"labels": many_labels(), "count": counts()}),
        remark="`estimator.predict` has tuples for keys; here they are joined: `labels/logits`",
    ),
    # --- wide and deep
    "combined_classifier": Model(
        "`DNNLinearCombinedClassifier`, batch norm, dropout",
        canned("estimator.DNNLinearCombinedClassifier", "combined_classifier", **BOTH, **REGULAR),
        lambda: linear_rows(classes(2)),
    ),
    "combined_regressor": Model(
        "`DNNLinearCombinedRegressor`, batch norm, dropout",
        canned("estimator.DNNLinearCombinedRegressor", "combined_regressor", **BOTH, **REGULAR),
        lambda: linear_rows(numbers(1)),
    ),
    "combined_estimator": Model(
        "`DNNLinearCombinedEstimator`, batch norm, dropout",
        canned(
            "estimator.DNNLinearCombinedEstimator",
            "combined_estimator",
            head=head("MultiLabelHead", n_classes=3),
            **BOTH,
            **REGULAR,
        ),
        lambda: linear_rows(many_labels()),
    ),
    # --- without feature columns
    "baseline_classifier": Model(
        "`BaselineClassifier`",
        canned("estimator.BaselineClassifier", "baseline_classifier", n_classes=3),
        lambda: Rows({"x": numbers(4)}, classes(3)),
        NUMBER,
        remark="it has no feature columns: declare what you send",
    ),
    "baseline_regressor": Model(
        "`BaselineRegressor`",
        canned("estimator.BaselineRegressor", "baseline_regressor"),
        lambda: Rows({"x": numbers(4)}, numbers(1)),
        NUMBER,
    ),
    "baseline_estimator": Model(
        "`BaselineEstimator`, `PoissonRegressionHead`",
        canned(
            "estimator.BaselineEstimator", "baseline_estimator", head=head("PoissonRegressionHead")
        ),
        lambda: Rows({"x": numbers(4)}, counts()),
        NUMBER,
    ),
    "kmeans": Model(
        "`compat.v1.estimator.experimental.KMeans`",
        canned(f"{V1}.experimental.KMeans", "kmeans", num_clusters=3, seed=7),
        lambda: Rows(numbers(2)),
        (np.float32, (2,)),
        remark="`cluster_index` is one number a row",
    ),
    # --- sequences
    "rnn_classifier": Model(
        "`experimental.RNNClassifier`, words and context",
        canned(
            "estimator.experimental.RNNClassifier",
            "rnn_classifier",
            sequence_feature_columns=word_sequence,
            context_feature_columns=number_context,
            units=[4],
            cell_type="gru",
        ),
        lambda: Rows(of_sequences("words", "number"), classes(2)),
        remark="TensorFlow fails on a call in which every row is an empty sequence",
    ),
    "rnn_estimator": Model(
        "`experimental.RNNEstimator`, numbers and words",
        canned(
            "estimator.experimental.RNNEstimator",
            "rnn_estimator",
            sequence_feature_columns=lambda: [*number_sequence(), *word_sequence()],
            head=head("RegressionHead"),
            units=[4, 3],
            cell_type="lstm",
        ),
        lambda: Rows(of_sequences("words", "values"), numbers(1)),
    ),
    "rnn_sequences": Model(
        "`experimental.RNNClassifier`, `return_sequences=True`",
        canned(
            "estimator.experimental.RNNClassifier",
            "rnn_sequences",
            sequence_feature_columns=number_sequence,
            units=[4],
            cell_type="simple_rnn",
            return_sequences=True,
        ),
        lambda: Rows(of_sequences("values"), sequence_labels),
        row_wise=False,
        remark="outputs are as long as the longest row of a call, so every request is a call "
        "of its own; the log says so",
    ),
}


def sequence_labels() -> Any:
    import tensorflow as tf

    rows = [[int(value > 0) for value in row] for row in sequences()["values"]]
    return tf.ragged.constant(rows, tf.int64).to_sparse()


def v1_models() -> Iterator[tuple[str, Model]]:
    """The canned estimators of TensorFlow 1, whose model functions are others."""
    plain: dict[str, Callable[[], Rows]] = {
        "Classifier": lambda: plain_column_rows(classes(2)),
        "Regressor": lambda: plain_column_rows(numbers(1)),
        "Estimator": lambda: plain_column_rows(numbers(1)),
    }
    wide: dict[str, Callable[[], Rows]] = {
        "Classifier": lambda: linear_rows(classes(2)),
        "Regressor": lambda: linear_rows(numbers(1)),
        "Estimator": lambda: linear_rows(numbers(1)),
    }
    no_columns: dict[str, Callable[[], Rows]] = {
        "Classifier": lambda: Rows({"x": numbers(4)}, classes(2)),
        "Regressor": lambda: Rows({"x": numbers(4)}, numbers(1)),
        "Estimator": lambda: Rows({"x": numbers(4)}, numbers(1)),
    }
    for family, options, rows in (
        ("Linear", WIDE, wide),
        ("DNN", V1_DEEP | {"batch_norm": True, "dropout": 0.2}, plain),
        ("DNNLinearCombined", BOTH | REGULAR, wide),
        ("Baseline", {}, no_columns),
    ):
        for kind in ("Classifier", "Regressor", "Estimator"):
            name = f"v1_{family}{kind}".lower()
            more = {"head": v1_regression_head} if kind == "Estimator" else {}
            yield (
                name,
                Model(
                    f"`{V1}.{family}{kind}`",
                    canned(f"{V1}.{family}{kind}", name, **options, **more),
                    rows[kind],
                    NUMBER if family == "Baseline" else None,
                ),
            )


MODELS |= v1_models()
MODELS |= {
    # --- wrapped
    "add_metrics": Model(
        "`add_metrics(DNNClassifier)`", build_add_metrics, lambda: plain_column_rows(classes(2))
    ),
    "keras": Model(
        "`tf.keras.estimator.model_to_estimator`",
        build_keras,
        keras_rows,
        {"number": (np.float32, (1,)), "vector": (np.float32, (3,))},
    ),
    "tpu": Model(
        "`compat.v1.estimator.tpu.TPUEstimator`, `use_tpu=False`",
        build_tpu,
        plain_rows,
        NUMBER,
    ),
    # --- model functions
    "bare": Model(
        "`model_fn`: one array in, one tensor out",
        custom("bare", predict_bare),
        lambda: Rows(numbers(4), numbers(1)[:, 0]),
        (np.float32, (4,)),
    ),
    "scalars": Model(
        "`model_fn`: one number or text a row",
        custom("scalars", predict_scalars),
        plain_rows,
        NUMBER,
    ),
    "without_rows": Model(
        "`model_fn`: outputs without a row axis",
        custom("without_rows", predict_without_rows),
        plain_rows,
        NUMBER,
        row_wise=False,
        remark="every request is a call of its own; the log says so",
    ),
    "types": Model(
        "`model_fn`: int64, bool, float64, uint8 images, float16 and text",
        custom("types", predict_types),
        types_rows,
        {
            "count": np.int64,
            "flag": bool,
            "exact": np.float64,
            "image": (np.uint8, (2, 2, 3)),
        },
    ),
    "table": Model(
        "`model_fn`: `tf.lookup.StaticHashTable`",
        custom("table", predict_table),
        lambda: Rows(some("word"), numbers(1)[:, 0]),
        {"word": str},
    ),
    "rank_3": Model(
        "`model_fn`: a feature of rank 3",
        custom("rank_3", predict_rank_3),
        lambda: Rows({"x": numbers(5, 3)}, numbers(1)[:, 0]),
        {"x": (np.float32, (5, 3))},
    ),
    "scaffold": Model(
        "`model_fn`: a `Scaffold` with local variables, tables and a saver",
        custom("scaffold", predict_scaffold),
        plain_rows,
        NUMBER,
    ),
    "params": Model("`model_fn` with `params` and `config`", build_params, plain_rows, NUMBER),
    "hooks": Model(
        "`model_fn` with `prediction_hooks`",
        build_hooks,
        plain_rows,
        NUMBER,
        session="equal; `before_run` and `after_run` are not called",
    ),
    # --- folders and settings
    "warm_start": Model(
        "`warm_start_from`", build_warm_start, lambda: plain_column_rows(classes(2))
    ),
    "best_exporter": Model(
        "`BestExporter`: its `model_dir`",
        canned("estimator.DNNClassifier", "best_exporter", **DEEP),
        lambda: plain_column_rows(classes(2)),
        train=train_with_best_exporter,
    ),
    "best_export": Model(
        "`BestExporter`: what it exported",
        canned("estimator.DNNClassifier", "best_export", **DEEP),
        lambda: plain_column_rows(classes(2)),
        train=train_with_best_exporter,
        checkpoint=best_export,
        remark='`checkpoint_path=f"{export}/variables/variables"`',
    ),
    "older_checkpoint": Model(
        "`checkpoint_path` of an older checkpoint",
        canned("estimator.DNNClassifier", "older_checkpoint", **DEEP),
        lambda: plain_column_rows(classes(2)),
        train=train_for_two_checkpoints,
        checkpoint=lambda folder: str(folder / "older_checkpoint" / "model.ckpt-10"),
    ),
    "session_config": Model(
        "`RunConfig(session_config=…)`",
        custom("session_config", predict_on_a_second_cpu, session_config=two_cpus),
        plain_rows,
        NUMBER,
    ),
}


# --- what no pool can load ---------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A model that cannot be loaded.

    Attributes:
        title: what the documentation calls it.
        build: trains it a little and makes it.
        message: what the error says, among other things.
        remedy: what the documentation says.
    """

    title: str
    build: Callable[[Path], Any]
    message: str
    remedy: str


def trained_here(name: str, predict: Callable[..., Any]) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        estimator = custom(name, predict)(folder)
        train_some_steps(estimator, plain_rows())
        return estimator

    return build


def predict_sparse(features: Any) -> Any:
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    return score, {"score": tf.sparse.from_dense(features["x"])}


def predict_same_names(features: Any) -> Any:
    score = weighted(features["x"], "weight")
    return score, {("a", "b"): score, "a/b": score}


def build_boosted_trees(folder: Path) -> Any:
    import tensorflow as tf

    return tf.estimator.BoostedTreesClassifier(plain_columns(), 1, model_dir=str(folder))


REFUSED = {
    "boosted_trees": Refused(
        "`BoostedTreesClassifier`, `BoostedTreesRegressor`",
        build_boosted_trees,
        "has no attribute 'BoostedTreesClassifier'",
        "TensorFlow removed them and their operations in 2.9: train another kind of model",
    ),
    "sparse": Refused(
        "`model_fn`: a prediction that is a `SparseTensor`",
        trained_here("sparse", predict_sparse),
        "predictions[score] must be Tensor",
        "`EstimatorSpec` itself refuses it: return `tf.sparse.to_dense` of it",
    ),
    "same_names": Refused(
        '`model_fn`: predictions `("a", "b")` and `"a/b"`',
        trained_here("same_names", predict_same_names),
        "two of the predictions' keys have the same name",
        "rename one of them",
    ),
}


def table() -> str:
    """Return the table of the documentation."""
    lines = [
        "| estimator | signature | `generator` | `session` | remarks |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS.values():
        origin = "derived" if model.signature is None else "declared"
        lines.append(
            f"| {model.title} | {origin} | {model.generator} | {model.session} | {model.remark} |"
        )
    return "\n".join(lines)


def refusals() -> str:
    """Return the table of what cannot be loaded."""
    lines = ["| model | the error says | what to do |", "|---|---|---|"]
    lines += [f"| {r.title} | `{r.message}` | {r.remedy} |" for r in REFUSED.values()]
    return "\n".join(lines)


# --- training ----------------------------------------------------------------------


def checkpoint_of(model: Model, folder: Path) -> str | None:
    return model.checkpoint(folder) if model.checkpoint else None


def requests(features: Any, params: Any) -> Any:  # noqa: ARG001 - as `input_fn`
    """Return a Dataset with the rows of each request in ALONE and TOGETHER as an element."""
    import tensorflow as tf

    tensors = as_tensors(features)
    bounds = [(rows.start, rows.stop) for rows in (*ALONE, *TOGETHER)]

    def cut(values: Any, begin: Any, end: Any) -> Any:
        if isinstance(values, tf.SparseTensor):
            # As long as its own longest row, as `parse_example` would make it.
            cut_out = tf.RaggedTensor.from_sparse(values)[begin:end]
            return cut_out.to_sparse()
        return tf.convert_to_tensor(values)[begin:end]

    return tf.data.Dataset.from_tensor_slices(bounds).map(
        lambda bound: tf.nest.map_structure(lambda values: cut(values, *tf.unstack(bound)), tensors)
    )


def joined(answer: Any) -> Any:
    """Join the keys of a MultiHead with "/", as the pool does."""
    if not isinstance(answer, dict):
        return answer
    return {
        "/".join(key) if isinstance(key, tuple) else key: value for key, value in answer.items()
    }


def train(folder: Path, names: list[str]) -> None:
    """Train these models, and write down what they predict and which signature they have."""
    for name in names:
        model = MODELS[name]
        rows = model.rows()
        estimator = model.build(folder)
        model.train(estimator, rows)
        predictor = EstimatorPredictor(partial(model.build, folder))
        predictor.load(Device("cpu"))
        answers = estimator.predict(
            partial(requests, rows.features),
            yield_single_examples=False,
            checkpoint_path=checkpoint_of(model, folder),
        )
        record = (rows.features, [joined(answer) for answer in answers], predictor.signature)
        (folder / f"{name}.expected").write_bytes(pickle.dumps(record))


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2:])
