"""Train a small Estimator once, and await its predictions: asyncio."""

import asyncio

import numpy as np

from predictpool import EstimatorPredictor, PredictorPool

OCCUPATIONS = ["Sales", "Tech-support", "Farming-fishing"]


def build_estimator():
    import tensorflow as tf

    age = tf.feature_column.numeric_column("age", normalizer_fn=lambda years: years / 100)
    occupation = tf.feature_column.categorical_column_with_vocabulary_list(
        "occupation", OCCUPATIONS
    )
    return tf.estimator.DNNLinearCombinedClassifier(
        model_dir="models/income",
        linear_feature_columns=[occupation],
        dnn_feature_columns=[age, tf.feature_column.indicator_column(occupation)],
        dnn_hidden_units=[16],
    )


def train():
    """Train on made-up people, in a program that has TensorFlow to itself."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    age = random.uniform(18, 80, 4000).astype(np.float32)
    occupation = random.choice(OCCUPATIONS, 4000)
    rich = (age > 40) & (occupation != "Farming-fishing")

    def rows():
        people = ({"age": age, "occupation": occupation}, rich.astype(int))
        return tf.data.Dataset.from_tensor_slices(people).repeat().batch(64)

    build_estimator().train(rows, max_steps=300)


async def main():
    async with PredictorPool(EstimatorPredictor(build_estimator), workers=2) as pool:
        both = await pool.predict({"age": [39, 52], "occupation": ["Sales", "Tech-support"]})
        print("two people:", both["probabilities"].shape)

        one = await pool.predict_one({"age": 60, "occupation": "Tech-support"})
        print("one person:", one["probabilities"].shape, "class", one["class_ids"][0])

        many = ({"age": [age], "occupation": ["Farming-fishing"]} for age in range(20, 70, 10))
        print("a stream:", [out["class_ids"][0, 0] async for out in pool.map(many)])
        print(pool)


if __name__ == "__main__":
    train()
    asyncio.run(main())
