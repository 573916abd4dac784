"""A PyTorch model in a pool. Needs torch."""

import asyncio
import os
from pathlib import Path

import numpy as np

from predictpool import FunctionPredictor, PredictorPool

WEIGHTS = Path("weights.pt")


def build_model():
    from torch import nn

    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def load():
    import torch

    # In a worker, as many as its device has.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = build_model()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    model.eval()

    def predict(rows):
        with torch.inference_mode():
            # A copy: the features are a view into what was received, which torch may not write to.
            return model(torch.tensor(rows)).softmax(1).numpy()

    return predict


predictor = FunctionPredictor(load, row_wise=True, signature=(np.float32, (4,)))


async def main():
    import torch

    torch.save(build_model().state_dict(), WEIGHTS)
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    async with PredictorPool(predictor, workers=1) as pool:
        probabilities = await pool.predict(rows)
        np.testing.assert_allclose(probabilities, load()(rows), rtol=1e-5, atol=1e-6)
        print(probabilities.round(3))


asyncio.run(main())
