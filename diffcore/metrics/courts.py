"""What judges saw of the real images, kept for the next checkpoint: a judge looks at all of them once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from diffcore.core import processes
from diffcore.core.kept import Kept, Tensors
from diffcore.metrics.frechet import Moments
from diffcore.metrics.judge import Court, Judge
from diffcore.metrics.reference import Images


@dataclass(frozen=True)
class Courts:
    """kept: where they lie. about: all but the judge that their numbers depend on: images, code, device, threads."""

    kept: Kept
    about: dict[str, Any]

    def court(
        self, judge: Judge, images: Images, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Court:
        """`Court.of` the judge and these images: as it was kept, or worked out and then kept."""
        entry = self.kept.load(self._job(judge)) if processes.is_main() else None
        if processes.from_main(entry is not None):
            return _again(judge, entry)
        court = Court.of(judge, images, on_progress)
        if processes.is_main():
            moments = court.moments
            tensors = {"mean": moments.mean, "scatter": moments.scatter, "rows": court.rows}
            self.kept.save(self._job(judge), {"count": moments.count}, tensors)
        return court

    def has(self, judge: Judge) -> bool:
        """Whether what the judge saw of these images is kept."""
        return self.kept.load(self._job(judge)) is not None

    def keep(self, judges: Iterable[Judge]) -> None:
        """Forgets what was kept of other judges, images or code."""
        if processes.is_main():
            self.kept.clear_but(self._job(judge) for judge in judges)

    def _job(self, judge: Judge) -> dict[str, Any]:
        of_judge = {"judge": judge.name, "sha256": judge.sha256, "preprocessing": judge.preprocessing}
        return {**self.about, **of_judge}


def _again(judge: Judge, entry: tuple[dict[str, Any], Tensors] | None) -> Court:
    """In all processes what the main one has loaded."""
    count = processes.from_main(entry and entry[0]["count"])
    each = (processes.dealt([name], lambda name: entry[1][name]) for name in ("mean", "scatter", "rows"))
    mean, scatter, rows = (tensor for alone in each for tensor in alone)
    return Court(judge, Moments(count, mean, scatter), rows)
