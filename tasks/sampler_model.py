"""A student as an MLflow model "from code": MLflow keeps this file and the checkpoint's folder, and pickles nothing.

    import mlflow, pandas
    sampler = mlflow.pyfunc.load_model("models:/sampler@production")
    images = sampler.predict(pandas.DataFrame({"num_images": [16]}), params={"seed": 1})  # uint8 [16, h, w, c]

Runs where the model is served. MLflow also reads this file when the model is logged, so nothing here may import torch
before it is asked for a sample.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

Draw = Callable[[int, int], np.ndarray]
"""(count, seed) -> uint8 [count, h, w, c]."""


def _open(artifacts: dict[str, str], config: dict[str, Any]) -> Draw:
    """artifacts: folder of the checkpoint, and gamma.json for the analytic solver. config: sampler, times, estimator."""
    from diffcore.checkpoint import load
    from diffcore.feed import to_uint8
    from diffcore.sampler import Sampler
    from diffcore.trajectory import Trajectory

    checkpoint = load(Path(artifacts["checkpoint"]))
    sampler = Sampler(checkpoint.denoiser, _solver(artifacts, config), Trajectory(tuple(config["times"])))

    def draw(count: int, seed: int) -> np.ndarray:
        return to_uint8(sampler.draw(checkpoint.shape, count, seed)).permute(0, 2, 3, 1).numpy()

    return draw


def _solver(artifacts: dict[str, str], config: dict[str, Any]) -> Any:
    from diffcore import gamma
    from diffcore.solvers import SOLVERS

    if config["sampler"] != "analytic":
        return SOLVERS[config["sampler"]]()
    found = gamma.Gamma.from_json(json.loads(Path(artifacts["gamma"]).read_text()))
    return SOLVERS["analytic"](estimator=config["estimator"]).knowing(found)


# MLflow advises type hints at this point, which would replace the signature that the model is logged with; it resets the
# filters first, so that only a recorder keeps the advice from whoever serves the model
with warnings.catch_warnings(record=True):

    class SamplerModel(mlflow.pyfunc.PythonModel):
        """One point of the frontier: a checkpoint with the solver and the times it was measured at."""

        def load_context(self, context: Any) -> None:
            self._draw = _open(context.artifacts, context.model_config)

        def predict(self, context, model_input, params=None):
            """uint8 [n, h, w, c], n the sum of the column `num_images`; `seed` (a parameter) chooses the noise."""
            count = int(np.sum(np.asarray(model_input["num_images"])))
            if count < 1:
                raise ValueError(f"num_images must be at least 1, got {count}")
            return self._draw(count, int((params or {}).get("seed", 0)))


mlflow.models.set_model(SamplerModel())
