"""One file for each metric; its name is the csv's column and MLflow's metric. Adding a file adds the metric: it is measured
for every point, and the files, the table, MLflow and the tests find it here."""

import importlib
import inspect

from diffcore.metrics import order
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


def find() -> dict[str, Metric]:
    """The metric of each file, in the order of their columns."""
    return {name: _of(name) for name in order.names(__path__)}


def _of(name: str) -> Metric:
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Metric))
    return next(kind for kind in kinds if kind.__module__ == module.__name__ and not inspect.isabstract(kind))()


METRICS: dict[str, Metric] = find()


def measure(subject: Subject) -> dict[str, Estimate]:
    """The estimates of all metrics that the subject has the needs of, in the order of METRICS."""
    able = {name: metric for name, metric in METRICS.items() if _has(subject, metric)}
    estimates = {name: metric.measure(subject) for name, metric in able.items()}
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}


def _has(subject: Subject, metric: Metric) -> bool:
    return all(getattr(subject, need) is not None for need in metric.needs)
