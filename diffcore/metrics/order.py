"""Which metrics there are, and in which order their columns stand.

No metric is imported for it: who reads or shows numbers needs no network that could measure them.
"""

import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

FIRST = (
    *("fd", "kid", "fd_pixels", "rmse_teacher", "accuracy", "bits"),
    *("improved_precision", "recall", "density", "coverage", "memorised", "fd_infinity", "swd"),
    *("caption_accuracy", "caption_accuracy_unseen"),
)
"""The first columns; of metrics that are not named here, the first by name comes first."""

CSV_ONLY = ("fd_pixels", "improved_precision", "recall", "density", "coverage", "memorised", "fd_infinity", "swd")
"""Metrics without a column in the printed table."""


def names(folders: Iterable[str]) -> list[str]:
    """The metrics in folders of one file each, in the order of their columns."""
    there = {module.name for module in pkgutil.iter_modules(folders)}
    return [name for name in FIRST if name in there] + sorted(there.difference(FIRST))


COLUMNS = names([str(Path(__file__).with_name("measures"))])
"""All metrics."""

JUDGES = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("judges"))]))
"""Feature networks of ours that were trained elsewhere; what they measure stands behind all columns, as MEASURE_JUDGE."""

JUDGED = ("fd", "kid")
"""What each of them measures."""


def column(measure: str, judge: str) -> str:
    """What the measure of a judge is called."""
    return f"{measure}_{judge}"


NAMED = re.compile(r"(?:^|; )([a-z][a-z0-9]*) [0-9a-f]+(?= \(|;|$)")
"""A judge in the words of a point: its name and the first digits of its file's digest."""


def is_column(name: str, judges: str) -> bool:
    """Whether it is a metric, or what one of the judges measures that a point names."""
    return name in COLUMNS or name in {column(measure, judge) for judge in NAMED.findall(judges) for measure in JUDGED}
