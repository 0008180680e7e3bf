"""`distill export`: a checkpoint for who has none of this code, checked against ours before it is handed out."""

import difflib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffcore import exports, nets
from diffcore.checkpoints import Card, Guidance
from diffcore.checkpoints.folded import fold
from diffcore.checkpoints.pipeline import Pipeline
from diffcore.checkpoints.to_diffusers import loop, pipeline_call, reading_of
from diffcore.core import disk, threads
from diffcore.core.errors import UserError
from diffcore.data.manifest import Manifest
from diffcore.denoisers.condition import GUIDANCE
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, best_of
from diffcore.nets import diffusers_model
from tasks import named, origin, paths
from tasks.card import schedule
from tasks.front_matter import front_matter, stated
from tasks.named import Named, Sampling
from tasks.origin import Origin
from tasks.params import Params
from tasks.progress import log

PICTURE = paths.FRONTIER.with_suffix(".png")


def export(
    params: Params,
    word: str,
    target: Path,
    form: str = "diffusers",
    guidance: float | None = None,
    copies: bool = False,
    to_data: bool = False,
) -> None:
    """Writes the checkpoint that `word` names to `target`, whole or not at all; says how far its outputs are from ours.

    guidance: the weight to build into a student that takes it as an input, None for none. copies: of the other folders of
    the pipeline that its teacher was adopted with, which are links otherwise. to_data: of a student that is told where its
    hops land, those to the data alone, which is a network of one time."""
    forms = list(exports.formats())
    if form not in forms:
        near = difflib.get_close_matches(form, forms, n=1)
        raise UserError(
            f"--format {form}: there are {', '.join(forms)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    disk.check_free(target)
    each = named.find(word)
    threads.use(params.compute.threads)
    source = origin.find(params, each.card)
    pipeline = source.pipeline if source and form == "diffusers" else None
    if copies and pipeline is None:
        raise UserError(f"--copy: {word} comes from no pipeline with other folders to copy; leave it out")
    with _folded(each, guidance, to_data) as whole:
        if pipeline is not None:
            pipeline.check(whole.card, nets.read_config(whole.folder / "unet")["_class_name"], source.encoder)
        has_picture = form == "diffusers" and PICTURE.is_file() and _point(whole) is not None
        text = readme(whole, params.data.license, source, pipeline, has_picture)
        gap = exports.export(whole.folder, target, form, text, lambda new: _beside(new, pipeline, has_picture, copies))
    built = "" if guidance is None else f" with a guidance weight of {guidance:g} built in"
    built += " as jumps to the data" if to_data else ""
    log(
        f"{each.title}: exported to {target} ({form}){built}; outputs differ by {gap:.2g} of the largest, at most "
        f"{exports.TOLERANCE:g}"
    )
    if pipeline is not None:
        how = "copied from" if copies else "links to those in"
        log(f"{each.title}: a whole {pipeline.name}; {', '.join(pipeline.others)} are {how} {pipeline.folder}")


def _beside(new: Path, pipeline: Pipeline | None, has_picture: bool, copies: bool) -> None:
    if has_picture:
        shutil.copyfile(PICTURE, new / PICTURE.name)
    if pipeline is not None:
        pipeline.complete(new, copies)


@contextmanager
def _folded(each: Named, guidance: float | None, to_data: bool) -> Iterator[Named]:
    """The same with this weight of guidance built in, or its jumps to the data alone, while the block runs."""
    if guidance is None and not to_data:
        yield each
        return
    with tempfile.TemporaryDirectory() as room:
        fold(each.folder, guidance, Path(room) / each.card.name, to_data)
        # not that of a point, which says more than one weight, and of hops of any length
        yield Named(each.word, Path(room) / each.card.name)


def readme(
    each: Named,
    license: str | None,
    source: Origin | None = None,
    pipeline: Pipeline | None = None,
    has_picture: bool = False,
) -> str:
    """The model card, in Markdown: what it is, what it was measured to be worth, its data, how to sample. license: of the
    data. source: where its teacher comes from, pipeline: what it is a part of; None for nowhere and nothing. has_picture:
    whether the frontier's lies beside it."""
    card, point = each.card, _point(each)
    name = each.registered.tags["point"] if each.registered else (point.name if point else card.name)
    content = nets.read_config(each.folder / "unet")
    library = None if nets.is_own(content["_class_name"]) else "diffusers"
    parts = [
        front_matter(card, license, source, library),
        f"# {name}\n",
        _about(card),
        *([_row(point)] if point else []),
        *([f"![quality against network calls, of all that was measured]({PICTURE.name})\n"] if has_picture else []),
        "## Data\n",
        f"Images of shape {card.image} (channels, height, width), digest `{card.data}`. {_drawn(card)}"
        + _licenses(license, source),
        "## Sampling\n",
        _sampling(card, point or each.sampling, content, pipeline),
    ]
    return "\n".join(parts)


def _drawn(card: Card) -> str:
    """Who drew the data, where they lie in this folder."""
    if not (paths.DATA / "manifest.json").exists():
        return ""
    manifest = Manifest.read(paths.DATA, verify=False)
    own = manifest.drawn_by if manifest.digest == card.data else ""
    return f"They are not real: {own}. " if own else ""


def _licenses(license: str | None, source: Origin | None) -> str:
    """Of the data, and of a teacher from elsewhere."""
    known = stated(license, source)
    lines = []
    for whose in ("data", "teacher") if source else ("data",):
        word = known.get(whose)
        lines.append(f"Licence of the {whose}: {word}." if word else f"The licence of the {whose} is not stated.")
    return " ".join(lines) + "\n"


def _point(each: Named) -> Point | None:
    """The point that was named, or of a checkpoint the best one in this folder's frontier."""
    if each.sampling is not None or not paths.FRONTIER.exists():
        return each.point
    digest = each.card.digest
    points = Frontier.read(paths.FRONTIER, paths.again("frontier")).points
    own = [point for point in points if point.checkpoint_digest == digest]
    return best_of(own) if own else None


def _about(card: Card) -> str:
    lines = {
        "method": card.method,
        "network says": card.parameterization,
        "schedule": schedule(card),
        "steps of its own": len(card.grid) - 1 if card.grid else "none, it is valid at any time",
        "classes": ", ".join(map(str, card.classes)) if card.classes else "none",
        "guidance": json.dumps(card.guidance) if card.guidance else "none built in",
        "cost of its training": ", ".join(f"{value:g} {key.replace('_', ' ')}" for key, value in card.cost.items())
        or "not stated",
        "started from": card.parent or "new weights",
        "taught by": card.teacher or "the data",
        "digest": card.digest,
    }
    return "\n".join(f"- {key}: {value}" for key, value in lines.items()) + "\n"


def _row(point: Point) -> str:
    metrics = {name: each.plus_minus(" +- ") for name, each in point.metrics.items() if isinstance(each, Estimate)}
    head = ["network calls", *metrics]
    rows = [head, ["---"] * len(head), [f"{point.nfe:g}", *metrics.values()]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"## Quality\n\nPoint `{point.name}`, {point.n} samples from noise seed {point.seed}, feature network "
        f"`{point.features[:12]}` (distances are comparable within that network alone, they are not FID):\n\n{table}\n"
    )


STEPS = 50
"""Of what samples a checkpoint that has no steps of its own and was not measured."""


def _sampling(card: Card, point: Point | Sampling | None, content: Mapping[str, Any], pipeline: Pipeline | None) -> str:
    """content: of the network's config.json."""
    times = card.grid or (point.times if point else [1 - k / STEPS for k in range(STEPS + 1)])
    note = "" if point is None else f"Its own sampling: `{point.recipe}` at t = {list(point.times)[:12]}.\n"
    if pipeline is not None:
        is_input = card.guidance is not None and diffusers_model.takes(dict(content), GUIDANCE)
        guidance = _weight(card, point, is_input)
        call = pipeline_call(card, times, pipeline.name, guidance, is_input, pipeline.absent)
        return f"```python\n{call}```\n\n{note}"
    return f"{_code(card, times, content)}\n{note}"


def _weight(card: Card, point: Point | Sampling | None, is_input: bool) -> float:
    """Of guidance: the point's, else the middle of those that the network is told, and 1 where there is none or it is built
    in."""
    if card.guidance is not None and not is_input:
        return 1.0
    said = disk.parse_json(point.recipe).get("guidance") if point else None
    usual = (card.guidance["low"] + card.guidance["high"]) / 2 if is_input else 1.0
    return said or usual


def _weights_told(card: Card, content: Mapping[str, Any]) -> list[str]:
    """Of guidance, where they are an input of a network of diffusers."""
    if card.guidance is None or not diffusers_model.takes(dict(content), GUIDANCE):
        return []
    own = Guidance(**card.guidance)
    return [
        f"a guidance weight from {own.low:g} to {own.high:g}" if own.is_input else f"the guidance weight {own.low:g}"
    ]


def _code(card: Card, times: Sequence[float], content: Mapping[str, Any]) -> str:
    kind = content["_class_name"]
    takes_weight = card.guidance is not None and Guidance(**card.guidance).is_input
    if nets.is_own(kind):
        inputs = ["x", "timestep", *["class_labels"] * bool(card.classes), *["guidance"] * takes_weight]
        inputs += ["end_timestep"] * (card.end is not None)
        return (
            f"diffusers has no class for a `{kind}`. Call the network as `net({', '.join(inputs)})`; "
            f"{reading_of(card).words}.\n"
        )
    if card.inputs:
        told = [*card.inputs, *_weights_told(card, content)]
        return (
            f"The network, in `unet/`, is told {', '.join(told)} besides a time, and no pipeline lies beside it: put "
            "it in the place of the network of the pipeline whose embeddings it was trained with.\n"
        )
    if takes_weight:
        return (
            "The network takes the weight of guidance as an input, for which diffusers has no class: export it as "
            "safetensors, onnx or torch_export, or with one weight built in (`--guidance`).\n"
        )
    if own := loop(card, times, content):
        return f"No pipeline of diffusers samples this network at these times.\n\n```python\n{own}```\n"
    pipeline = "DDPMPipeline" if card.solver == "multistep_consistency" else "DDIMPipeline"
    return (
        f'```python\nfrom diffusers import {pipeline}\n\npipeline = {pipeline}.from_pretrained("PATH")\n'
        f"images = pipeline(batch_size=16, num_inference_steps={len(times) - 1}).images\n```\n"
    )
