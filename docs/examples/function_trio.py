"""Any function in the pool, on trio, without TensorFlow: many callers share batches."""

import numpy as np
import trio

from predictpool import FunctionPredictor, PredictorPool, TooManyRequests


def load():
    """Run in each worker, once; return the function that predicts."""
    weights = np.array([0.5, -0.25, 2.0])

    def score(features):
        return {"score": features["x"] @ weights, "rows": np.full(len(features["x"]), 1)}

    return score


async def main():
    predictor = FunctionPredictor(load, row_wise=True, signature={"x": (np.float64, (3,))})
    async with PredictorPool(predictor, workers=2, max_batch_size=32, timeout=5.0) as pool:
        answers = {}

        async def caller(number):
            try:
                answer = await pool.predict_one({"x": [number, 0, 1]})
                answers[number] = float(answer["score"])
            except TooManyRequests:
                answers[number] = None  # a web application would answer 429 here

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(caller, number)

        assert all(answers[number] == 0.5 * number + 2 for number in range(100))
        print(len(answers), "answers, each its own, in", pool.statistics().batches, "batches")


trio.run(main)
