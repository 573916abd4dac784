"""A JAX function in a pool. Needs jax."""

import asyncio
from pathlib import Path

import numpy as np

from predictpool import FunctionPredictor, PredictorPool

WEIGHTS = Path("weights.npz")


def load():
    import jax

    weights = dict(np.load(WEIGHTS))

    @jax.jit
    def forward(rows):
        hidden = jax.nn.relu(rows @ weights["hidden"])
        return jax.nn.softmax(hidden @ weights["output"])

    def predict(rows):
        # jit compiles anew for each shape, and a batch has any number of rows: with powers of two
        # it is compiled seven times for batches of up to 64 rows, and not sixty-four times.
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return np.asarray(forward(padded))[: len(rows)]

    for size in (1, 2, 4, 8, 16, 32, 64):  # compiled while the worker loads, not while callers wait
        predict(np.zeros((size, 4), np.float32))
    return predict


predictor = FunctionPredictor(load, row_wise=True, signature=(np.float32, (4,)))


async def main():
    random = np.random.default_rng(0)
    hidden, output = random.normal(size=(4, 16)), random.normal(size=(16, 3))
    np.savez(WEIGHTS, hidden=hidden.astype(np.float32), output=output.astype(np.float32))
    rows = random.normal(size=(5, 4)).astype(np.float32)
    async with PredictorPool(predictor, workers=1) as pool:
        probabilities = await pool.predict(rows)
        scores = np.exp(np.maximum(rows @ hidden, 0) @ output)
        np.testing.assert_allclose(
            probabilities, scores / scores.sum(1, keepdims=True), rtol=1e-4, atol=1e-5
        )
        print(probabilities.round(3))


asyncio.run(main())
