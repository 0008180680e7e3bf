"""What stands on the pages on which a person picks: the registered model's, its versions' and their logged models'."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffcore.core import disk
from diffcore.metrics.point import Point, best_of
from tasks.tracking.artifacts import ALIASES, Artifacts
from tasks.tracking.client import Experiment

NOTE = "mlflow.note.content"
"""The tag that MLflow's pages show as the description of a run or a logged model."""

MARK = "\n\n[//]: # (distill "
"""Begins the last line of a description of ours, which no page shows: what a person wrote over it has none that fits."""

SHOWN = ("fd", "kid", "recall", "coverage", "accuracy", "memorised")
DIGITS = 16


@dataclass(frozen=True)
class Address:
    """Where the frontier's files are, by the ids of their experiment and their run."""

    experiment: str
    run: str

    def links(self) -> str:
        """The picture, as MLflow's server gives it, and the whole report; elsewhere the words stand there alone."""
        picture = f"get-artifact?path=frontier.png&run_uuid={self.run}"
        report = f"#/experiments/{self.experiment}/runs/{self.run}/artifacts/report.html"
        return (
            f"[The whole report]({report}), an artifact of the run `frontier`.\n\n"
            f"![frontier.png, an artifact of the run frontier]({picture})"
        )


def describe(experiment: Experiment, artifacts: Artifacts, model: str, numbers: dict[str, str], run: str) -> None:
    """Writes the descriptions of the registered model and of each version where they are others; what a person wrote stays.
    numbers: of the versions, by alias. run: that of the frontier, which holds the pictures."""
    client = experiment.client
    address = Address(experiment.id, run)
    text = sealed(of_model(artifacts, numbers, address))
    if _may_replace(client.get_registered_model(model).description, text):
        client.update_registered_model(model, text)
    for number in dict.fromkeys(numbers.values()):
        aliases = [alias for alias in numbers if numbers[alias] == number]
        version = client.get_model_version(model, number)
        text = sealed(of_point(artifacts, artifacts.picks[aliases[0]], aliases, f"models:/{model}/{number}", address))
        if _may_replace(version.description, text):
            client.update_model_version(model, number, text)
        logged = client.get_logged_model(version.source.removeprefix("models:/"))
        if _may_replace(logged.tags.get(NOTE), text):
            client.set_logged_model_tags(logged.model_id, {NOTE: text})


def of_model(artifacts: Artifacts, numbers: dict[str, str], address: Address) -> str:
    """A line for each alias, the report and the picture."""
    chosen = artifacts.frontier.recommended
    rows = [
        f"| `{alias}` | {numbers[alias]} | {point.name} | {ALIASES[alias]} | {point.nfe:.4g} | {_number(point, 'fd')} |"
        for alias, point in artifacts.picks.items()
    ]
    return "\n".join(
        [
            f"Samplers of few network calls. Recommended: **{chosen.point.name}**, the alias `challenger`. {chosen.reason}",
            *_warnings(chosen.warnings),
            "",
            "| alias | version | point | what it is | calls | fd |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "`production` is set by a person: `distill promote POINT` or `distill promote @challenger`.",
            "",
            address.links(),
        ]
    )


def of_point(artifacts: Artifacts, point: Point, aliases: Sequence[str], model: str, address: Address) -> str:
    """What the point is picked for and why, its numbers beside the teacher's best and a perfect sampler's, the picture, and
    how it is loaded from `model`."""
    chosen = artifacts.frontier.recommended
    what = " and ".join(f"`{alias}` ({ALIASES[alias]})" for alias in aliases)
    sentence = [f" {chosen.reason}", *_warnings(chosen.warnings)] if point.name == chosen.point.name else [""]
    lost = artifacts.frontier.losses().get(point.name)
    return "\n".join(
        [
            f"**{point.name}**, published as {what}; the aliases say what it is now.{sentence[0]}",
            *sentence[1:],
            *([f"\n**{lost.lost.capitalize()}**: {lost}."] if lost else []),
            "",
            *_table(artifacts, point),
            "",
            "Takes `num_images` (long) and the parameter `seed` (long); gives uint8 images [n, height, width, channels]: "
            f'`mlflow.pyfunc.load_model("{model}").predict({{"num_images": [16]}}, {{"seed": 0}})`',
            "",
            address.links(),
        ]
    )


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"\n**Warning**: {warning}." for warning in warnings]


def _table(artifacts: Artifacts, point: Point) -> list[str]:
    frontier = artifacts.frontier
    teacher = best_of([each for each in frontier.points if each.method == "teacher"] or frontier.points)
    rows = [("network calls", f"{point.nfe:.4g}", f"{teacher.nfe:.4g}", "")]
    for name in SHOWN:
        if name in point.metrics:
            floor = frontier.floor.metrics.get(name)
            perfect = floor.plus_minus(" ± ") if floor else ""
            rows.append((name, _number(point, name), _number(teacher, name), perfect))
    rows.append(("ms/image", f"{point.ms_per_image:.3g}", f"{teacher.ms_per_image:.3g}", ""))
    about = frontier.about
    footer = (
        f"N = {about['n']}, noise seed {about['seed']}, {point.weights} weights, feature network {about['features'][:12]}, "
        f"data {about['data'][:12]}, checkpoint {point.checkpoint_digest[:12]}; ± is one standard error."
    )
    head = ["| | this | the teacher's best | a perfect sampler |", "|---|---|---|---|"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows), "", footer]


def _number(point: Point, name: str) -> str:
    return point.metrics[name].plus_minus(" ± ") if name in point.metrics else ""


def sealed(text: str) -> str:
    """With the line by which a description is known as ours."""
    return f"{text}{MARK}{disk.digest(text)[:DIGITS]})"


def _may_replace(there: str | None, wanted: str) -> bool:
    """Whether a description is to be written over one that is there: none, or another of ours."""
    if not there:
        return True
    return there != wanted and there == sealed(there.rpartition(MARK)[0])
