"""An ONNX model in a pool, run by ONNX Runtime. Needs onnxruntime, and onnx to make the model."""

import asyncio
import os
from pathlib import Path

import numpy as np

from predictpool import FunctionPredictor, PredictorPool

MODEL = Path("model.onnx")


def make_model():
    """Write a linear layer with a softmax; yours comes from an exporter."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["rows", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "classifier",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), MODEL)


def load():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # In a worker, as many as its device has.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda features: dict(zip(names, session.run(names, features), strict=True))


# The names are those of the model's inputs: what `session.run` takes is what callers send.
predictor = FunctionPredictor(load, row_wise=True, signature={"rows": (np.float32, (4,))})


async def main():
    make_model()
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    async with PredictorPool(predictor, workers=1) as pool:
        outputs = await pool.predict({"rows": rows})
        expected = load()({"rows": rows})
        np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], rtol=1e-5)
        print(outputs["probabilities"].round(3))


asyncio.run(main())
