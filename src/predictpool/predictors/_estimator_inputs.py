"""What an Estimator is fed: from the arrays of a request to the tensors of its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from predictpool._columns import Array
from predictpool._devices import available_cores
from predictpool._features._signature import Signature
from predictpool._features._spec import UNNAMED, FeatureSpec

Transform = Callable[[Any], Any]

# Numbers of rows that differ, in no order that a pipeline could bring about by itself.
_PROBES = (3, 7, 1, 5, 2, 8, 4, 6)


class TransformError(Exception):
    """Raised where a transform does not give back each request as it is."""


class EstimatorInputs:
    """The way of features into a graph: by a dataset, or by placeholders.

    TensorFlow's feature columns take rows of their own lengths as a ``SparseTensor``. That
    is fed as its three dense parts and put together in the graph: a dataset of sparse
    tensors would be slower.

    Args:
        signature: what requests have.
        transform: makes a dataset of what the model wants from one of requests, or None.
    """

    def __init__(self, signature: Signature, transform: Transform | None) -> None:
        self._signature = signature
        self._transform = transform
        self._ragged = [name for name, spec in signature.features.items() if spec.ragged]

    def fed(self, features: Any) -> Any:
        """Return what is fed for the features of a request: arrays, or triples of arrays."""
        if not self._ragged:
            return features
        if self._signature.unnamed:
            return sparse_parts(features)
        return {
            name: sparse_parts(values) if name in self._ragged else values
            for name, values in features.items()
        }

    def dataset(self, requests: Callable[[], Iterator[Any]]) -> Any:
        """Return the dataset of what the model wants.

        Args:
            requests: makes an iterator over what `fed` returns.
        """
        import tensorflow as tf

        specs = self._named(_tensor_specs)
        dataset = tf.data.Dataset.from_generator(requests, output_signature=specs)
        if self._ragged:
            dataset = dataset.map(tf.autograph.experimental.do_not_convert(self._composed))
        if not self._ragged and self._transform is None:
            return dataset
        return _with_a_free_thread(self._transformed(dataset))

    def placeholders(self) -> tuple[list[Any], Any]:
        """Make placeholders in the default graph.

        Returns:
            the placeholders, in the order of `flat`, and what the model wants.
        """
        import tensorflow as tf

        fed = self._named(
            lambda _, spec: tf.nest.map_structure(
                lambda tensor: tf.compat.v1.placeholder(tensor.dtype, tensor.shape),
                _tensor_specs("", spec),
            )
        )
        features = self._composed(fed)
        if self._transform is not None:
            one_request = tf.data.Dataset.from_tensors(features)
            features = _without_labels(self._transformed(one_request).get_single_element())
        elif isinstance(features, dict):
            features = dict(features)  # a model function may change it
        return list(self.flat(fed)), features

    def by_name(self, placeholders: list[Any]) -> dict[str, Any]:
        """Return the placeholders by the names of the features: sparse tensors where ragged."""
        import tensorflow as tf

        left = iter(placeholders)
        return {
            name: tf.SparseTensor(next(left), next(left), next(left))
            if name in self._ragged
            else next(left)
            for name in self._signature.features
        }

    def flat(self, fed: Any) -> Iterable[Any]:
        """Yield what was `fed` piece by piece, in the order of the placeholders."""
        if not self._ragged:
            return [fed] if self._signature.unnamed else self._in_order(fed)
        values = [fed] if self._signature.unnamed else self._in_order(fed)
        return [part for value in values for part in (value if type(value) is tuple else (value,))]

    def probe(self, features: Any) -> None:
        """Run the transform alone, over a few requests, and see whether they come back.

        What is wrong with it would otherwise be a wait for ever (for the rest of a batch)
        or another caller's answer.

        Args:
            features: what the requests of the probe are made of; at least one row.

        Raises:
            TransformError: they do not come back one by one, with their rows, in order.
        """
        if self._transform is None:
            return
        import tensorflow as tf

        requests = [self.fed(_rows_of(features, count)) for count in _PROBES]
        with tf.Graph().as_default():
            dataset = self.dataset(lambda: iter(requests))
            iterator = tf.compat.v1.data.make_initializable_iterator(dataset)
            lengths = _lengths(_without_labels(iterator.get_next()))
            ready = [tf.compat.v1.tables_initializer(), iterator.initializer]
            with tf.compat.v1.Session() as session:
                try:
                    session.run(ready)
                    came = _all_of(session, lengths, len(_PROBES) + 1)
                except tf.errors.OpError as error:
                    raise TransformError(
                        f"transform failed on requests of {_counted(_PROBES)} rows: "
                        f"{error.message.splitlines()[0]}"
                    ) from error
        if len(came) != len(_PROBES) or not all(map(_has, came, _PROBES)):
            raise TransformError(_not_one_by_one(came))

    def _named(self, make: Callable[[str, FeatureSpec], Any]) -> Any:
        made = {name: make(name, spec) for name, spec in self._signature.features.items()}
        return made[UNNAMED] if self._signature.unnamed else made

    def _in_order(self, named: Mapping[str, Any]) -> list[Any]:
        return [named[name] for name in self._signature.features]

    def _composed(self, fed: Any) -> Any:
        """Put sparse tensors together, in the graph."""
        import tensorflow as tf

        if not self._ragged:
            return fed
        if self._signature.unnamed:
            return tf.SparseTensor(*fed)
        return {
            name: tf.SparseTensor(*value) if name in self._ragged else value
            for name, value in fed.items()
        }

    def _transformed(self, dataset: Any) -> Any:
        import tensorflow as tf

        if self._transform is None:
            return dataset
        transformed = self._transform(dataset)
        if not isinstance(transformed, tf.data.Dataset):
            raise TransformError(
                f"transform returned {transformed!r}, expected a tf.data.Dataset: it takes the "
                "dataset of requests, and returns that of what the model wants"
            )
        return transformed


def _with_a_free_thread(dataset: Any) -> Any:
    """Let tf.data have a thread more than the generator that waits for a request holds.

    It takes as many as there are cores: on a pinned worker a single one. A map that tf.data
    has made parallel would then wait for it in the middle of a request.
    """
    import tensorflow as tf

    wanted = dataset.options().threading.private_threadpool_size
    options = tf.data.Options()
    options.threading.private_threadpool_size = max(2, wanted or len(available_cores()) + 1)
    return dataset.with_options(options)


def _tensor_specs(name: str, spec: FeatureSpec) -> Any:
    import tensorflow as tf

    dtype = tf_dtype(spec.dtype)
    if not spec.ragged:
        return tf.TensorSpec([None, *spec.shape], dtype, name=name or None)
    return (
        tf.TensorSpec([None, 2], tf.int64),
        tf.TensorSpec([None], dtype),
        tf.TensorSpec([2], tf.int64),
    )


def tf_dtype(dtype: np.dtype[Any]) -> Any:
    """Return TensorFlow's name for a dtype; objects are text."""
    import tensorflow as tf

    return tf.string if dtype.kind == "O" else tf.as_dtype(dtype)


def sparse_parts(rows: Array) -> tuple[Array, Array, Array]:
    """Return the indices, values and dense shape of rows of different lengths."""
    lengths = [len(row) for row in rows]
    widest = max(lengths, default=0)
    columns = [np.arange(length) for length in lengths]
    indices = np.stack([np.repeat(np.arange(len(rows)), lengths), np.concatenate(columns)], 1)
    return indices, np.concatenate(list(rows)), np.array([len(rows), widest])


# --- the probe ---------------------------------------------------------------------


def _rows_of(features: Any, count: int) -> Any:
    """Return so many rows, the given ones over and over."""
    if isinstance(features, Mapping):
        return {name: _rows_of(values, count) for name, values in features.items()}
    return features[np.arange(count) % len(features)]


def _without_labels(element: Any) -> Any:
    # As estimator.predict does it: an input function may be shared with training.
    return element[0] if isinstance(element, tuple) else element


def _lengths(element: Any) -> list[Any]:
    """Return the length of the first axis of each tensor that has one, as tensors."""
    import tensorflow as tf

    lengths = []
    for tensor in tf.nest.flatten(element):
        if isinstance(tensor, tf.SparseTensor):
            lengths.append(tensor.dense_shape[0])
        elif isinstance(tensor, tf.RaggedTensor):
            lengths.append(tensor.nrows())
        elif tensor.shape.rank != 0:
            lengths.append(tf.shape(tensor, out_type=tf.int64)[0])
    return lengths


def _all_of(session: Any, lengths: list[Any], most: int) -> list[list[int]]:
    import tensorflow as tf

    came: list[list[int]] = []
    while len(came) < most:
        try:
            came.append([int(length) for length in session.run(lengths)])
        except tf.errors.OutOfRangeError:
            break
    return came


def _has(lengths: list[int], rows: int) -> bool:
    # A transform may add something that is not per row, such as a constant.
    return rows in lengths


def _not_one_by_one(came: list[list[int]]) -> str:
    shown = [max(lengths, key=lengths.count) if lengths else 0 for lengths in came]
    if not came:
        what = "nothing"
    elif len(came) > len(_PROBES):
        what = f"more than {len(_PROBES)} elements, of {_counted(shown)} rows"
    else:
        what = f"{len(came)} elements of {_counted(shown)} rows"
    return (
        f"transform does not give back each request by itself, with its rows, in order: of "
        f"{len(_PROBES)} requests of {_counted(_PROBES)} rows came {what}. A transform may map, "
        "parse, prefetch and set options; .batch, .unbatch, .shuffle, .filter, .repeat, .take and "
        ".skip have no place in it (the pool makes the batches)"
    )


def _counted(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
