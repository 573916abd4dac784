"""A scikit-learn model in a pool. Needs scikit-learn."""

import asyncio
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from predictpool import FunctionPredictor, PredictorPool

MODEL = Path("iris.joblib")


def load():
    model = joblib.load(MODEL)

    def predict(rows):
        probabilities = model.predict_proba(rows)
        return {"probabilities": probabilities, "class": model.classes_[probabilities.argmax(1)]}

    return predict


# Each row of the outputs depends on the same row alone, so rows of several callers may share a
# call; the signature refuses what is no such row before it reaches the model.
predictor = FunctionPredictor(
    load, row_wise=True, signature=(np.float64, (4,)), preload=("sklearn.linear_model",)
)


async def main():
    rows, classes = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, classes)
    joblib.dump(model, MODEL)
    async with PredictorPool(predictor, workers=1) as pool:
        outputs = await pool.predict(rows[:5])
        np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(rows[:5]))
        one = await pool.predict_one(rows[100])
        print(f"class {one['class']}, probabilities {one['probabilities'].round(3)}")


asyncio.run(main())
