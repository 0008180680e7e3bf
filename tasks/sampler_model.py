"""A student as an MLflow model "from code": MLflow keeps this file and the checkpoint's folder, and pickles nothing.

    import mlflow, pandas
    sampler = mlflow.pyfunc.load_model("models:/sampler@production")
    images = sampler.predict(pandas.DataFrame({"num_images": [16]}), params={"seed": 1})  # uint8 [16, h, w, c]

Runs where the model is served. MLflow also reads this file when the model is logged, so nothing here may import torch
before it is asked for a sample.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

Draw = Callable[[int, int, Sequence[int] | None], np.ndarray]
"""(count, seed, labels) -> uint8 [count, h, w, c]."""


def _open(artifacts: dict[str, str], config: dict[str, Any]) -> Draw:
    """artifacts: folder of the checkpoint, and gamma.json for the analytic solver. config: recipe as JSON, times."""
    from diffcore.checkpoints import load
    from diffcore.data.feed import to_uint8
    from diffcore.noise.trajectory import Trajectory
    from diffcore.sampling.recipe import classes, from_json
    from diffcore.search import gamma

    checkpoint = load(Path(artifacts["checkpoint"]))
    estimates = None
    if "gamma" in artifacts:
        own = None if checkpoint.card.teacher else checkpoint.card.digest  # a student is sampled by its teacher's
        content = gamma.read(Path(artifacts["gamma"]), own, "publish this model again")
        estimates = gamma.Gamma.from_json(content)
    recipe = from_json(json.loads(config["recipe"]))
    sampler = recipe.sampler(checkpoint, Trajectory(tuple(config["times"])), estimates)

    if checkpoint.denoiser.nothing.names:
        raise ValueError(f"{checkpoint.card.name} is told a text, which no column holds; draw it with `distill sample`")

    def draw(count: int, seed: int, labels: Sequence[int] | None) -> np.ndarray:
        condition = recipe.condition(checkpoint, classes(checkpoint, count, labels))
        samples = sampler.draw(checkpoint.shape, count, seed, condition=condition)
        return to_uint8(samples).permute(0, 2, 3, 1).numpy()

    return draw


# MLflow advises type hints at this point, which would replace the signature that the model is logged with; it resets the
# filters first, so that only a recorder keeps the advice from whoever serves the model
with warnings.catch_warnings(record=True):

    class SamplerModel(mlflow.pyfunc.PythonModel):
        """One point of the frontier: a checkpoint with the solver and the times it was measured at."""

        def load_context(self, context: Any) -> None:
            self._draw = _open(context.artifacts, context.model_config)

        def predict(self, context, model_input, params=None):
            """uint8 [n, h, w, c], n the sum of the column `num_images`; `seed` (a parameter) chooses the noise, the column
            `label`, where the model knows classes and the column is there, the class of a row's images."""
            each = np.asarray(model_input["num_images"])
            count, labels = int(np.sum(each)), model_input.get("label")
            if count < 1:
                raise ValueError(f"num_images must be at least 1, got {count}")
            repeated = None if labels is None else np.repeat(np.asarray(labels), each)
            return self._draw(count, int((params or {}).get("seed", 0)), repeated)


mlflow.models.set_model(SamplerModel())
