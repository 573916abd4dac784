"""Few tensors instead of many, for servers that spend their time on each: one for each kind.

Features travel as ``numbers``, float32 of shape ``(rows, 5)``, and ``texts``, objects of shape
``(rows, 8)``; outputs as ``numbers``, ``ids`` and ``texts``.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.models import Arrays
from benchmarks.peers import held

# Each output with its number of columns.
GROUPS = {
    "numbers": {"logits": 1, "logistic": 1, "probabilities": 2},
    "ids": {"class_ids": 1, "all_class_ids": 2},
    "texts": {"classes": 1, "all_classes": 2},
}
KINDS = {"numbers": "f4", "ids": "i8", "texts": "O"}
WIDTHS = {group: sum(widths.values()) for group, widths in GROUPS.items()}


def pack_features(features: Arrays) -> Arrays:
    """Return two arrays for a request, their columns in the order of the features' names."""
    names = sorted(features)
    texts = [name for name in names if features[name].dtype.kind == "O"]
    numbers = [name for name in names if features[name].dtype.kind != "O"]
    return {"numbers": _columns(features, numbers), "texts": _columns(features, texts)}


def _columns(features: Arrays, names: Iterable[str]) -> Any:
    return np.stack([features[name] for name in names], axis=1)


class Unpacked:
    """The model, asked with two arrays and answering with three."""

    def __init__(self, holding: held.Held) -> None:
        self._predict = holding.predict_arrays
        kinds = {name: dtype.kind for name, (dtype, _) in sorted(holding.features.items())}
        self.numbers = [name for name, kind in kinds.items() if kind != "O"]
        self.texts = [name for name, kind in kinds.items() if kind == "O"]

    def predict(self, numbers: Any, texts: Any) -> Arrays:
        """Return all outputs."""
        features = dict(zip(self.numbers, numbers.T, strict=True))
        features.update(zip(self.texts, texts.T, strict=True))
        outputs = self._predict(features)
        return {
            group: np.concatenate([outputs[name] for name in names], axis=1)
            for group, names in GROUPS.items()
        }


def unpack_outputs(packed: Arrays) -> Arrays:
    """Return an answer as the model gave it."""
    outputs = {}
    for group, widths in GROUPS.items():
        at = 0
        for name, width in widths.items():
            values = packed[group][:, at : at + width]
            outputs[name] = values.astype(held.OUTPUTS[name], copy=False)
            at += width
    return outputs
