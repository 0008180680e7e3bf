"""The note on an experiment's own page."""

from collections.abc import Sequence

from diffcore.metrics.point import Point, by_calls
from tasks.tracking.artifacts import Artifacts
from tasks.tracking.client import Experiment

NOTE = 20_000  # characters of an experiment's note that MLflow takes


def write_note(experiment: Experiment, artifacts: Artifacts, model: str, number: str) -> None:
    """The table and the recommendation on the experiment's own page."""
    chosen = artifacts.frontier.recommended
    head = f"Recommended: **{chosen.point.name}** ({model} version {number}). {chosen.reason}"
    head += "".join(f"\n\nWarning: {warning}." for warning in chosen.warnings)
    note = "\n".join([head, "", *_lines(artifacts.frontier.points, NOTE - len(head) - 2)])
    if experiment.client.get_experiment(experiment.id).tags.get("mlflow.note.content") != note:
        experiment.client.set_experiment_tag(experiment.id, "mlflow.note.content", note)


def _lines(points: Sequence[Point], room: int) -> list[str]:
    """A table of the points by rising calls in at most `room` characters: all, or the best of each number of calls, as many
    as there is room for, and how many more there are."""
    lines = ["| point | calls | distance | ms/image |", "|---|---|---|---|"]
    rows = [(p, _line(p)) for p in by_calls(points)]
    if _length([*lines, *(line for _, line in rows)]) <= room:
        return [*lines, *(line for _, line in rows)]
    room -= _length(lines) + 100  # for the last line
    for _, line in _firsts(rows):
        if (room := room - len(line) - 1) < 0:
            break
        lines.append(line)
    return [*lines, "", f"{len(rows) - len(lines) + 2} more points: frontier.csv in the run frontier holds all."]


def _firsts(rows: list[tuple[Point, str]]) -> list[tuple[Point, str]]:
    """Of each number of calls the first row alone."""
    return [row for row, before in zip(rows, [None, *rows]) if before is None or before[0].nfe != row[0].nfe]


def _length(lines: list[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _line(p: Point) -> str:
    return f"| {p.name} | {p.nfe:g} | {p.metrics['fd'].plus_minus(' +- ')} | {p.ms_per_image:.3g} |"
