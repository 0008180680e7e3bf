"""How large a number of params.yaml may be, and why not larger: what would end in a hang, or without memory, hours later.

The limits are far beyond use. Memory is counted as a lower bound and compared with MARGIN times what this machine has, so
that what a larger machine could run is refused only where it is beyond question.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from diffcore.data import sources
from diffcore.data.config import Config as DataConfig
from diffcore.nets import Shape, memory
from diffcore.training.config import Compute, Training

MARGIN = 4
"""Times the memory of this machine: swap, several machines, a batch that is split among more processes."""

UPDATES = 10**8
STEPS = 10**4
MOST = 10**4
"""Of any number without a line below."""

LARGEST = 1e9
"""Of numbers with a point."""

LIMITS: dict[str, tuple[int, str]] = {
    "iterations": (UPDATES, "a thousand a second would take {days:.0f} days"),
    "images": (10**9, "a thousand a second would take {days:.0f} days"),
    "warmup": (UPDATES, "no training has so many updates"),
    "every": (UPDATES, "no training has so many updates"),
    "steps": (STEPS, "ten times what the finest of published samplers take"),
    "layers": (1000, "no network has so many blocks on a level"),
    "inner": (1000, "each of them is a network call at every step"),
    "corrections": (1000, "each of them is a network call at every step"),
    "substeps": (1000, "each of them is a network call at every update"),
    "critic_updates": (1000, "each of them is an update of the critic at every update"),
    "seeds": (100, "each of them is a training"),
    "size": (2**16, "no image has such a side"),
}
"""The largest value of a number by its key, wherever it stands, and why."""

FREE = ("seed", "limit", "batch", "accumulate", "channels", "groups", "dimension", "threads")
"""Numbers of which the machine decides, or of which any will do."""

POINTS = 10**4
"""Points of a frontier."""


def of_numbers(path: str, value: Any) -> Iterator[str]:
    """A line for each number of a section that is beyond all use, whatever the machine."""
    if path.endswith(".network") and isinstance(value, dict) and "module" in value:
        return  # the numbers of a class of the user's own, which knows what they are
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from of_numbers(f"{path}.{key}", inner)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    key = next((word for word in reversed(path.split(".")) if not word.isdigit()), path)
    if isinstance(value, float) and LARGEST < abs(value) < math.inf:
        yield f"{path}: {value:g} is beyond all use; at most {LARGEST:g}"
    elif isinstance(value, int) and key not in FREE:
        most, why = LIMITS.get(key, (MOST, "beyond all use"))
        if abs(value) > most:
            yield f"{path}: {value} is more than {most}: {why.format(days=value / 1000 / 86400)}"


def of_machine(sections: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[str]:
    """A line for whatever this machine cannot have the memory or the processors for. shapes: the network of each checkpoint,
    None for one of which nothing is known."""
    compute = sections["compute"]
    most = max(64, 8 * (os.cpu_count() or 1))
    if compute.threads > most:
        yield f"compute.threads: {compute.threads} threads on {os.cpu_count()} processors; at most {most}"
    for path, (_, config) in _trainings(sections).items():
        for key, parts in (("accumulate", config.accumulate), ("cores", config.accumulate * config.cores)):
            if config.batch % parts:
                yield f"{path}.{key}: {config.batch} images do not divide into {parts} parts; take a divisor"
                break
    has = memory.of_machine()
    for path, needs, purpose, remedy in _needs(sections, shapes):
        if needs > MARGIN * has:
            yield (
                f"{path}: {purpose} needs about {memory.readable(needs)} of memory at the very least, and this machine has "
                f"{memory.readable(has)}; {remedy}"
            )


def of_samplings(samplings: Iterator[tuple[str, str, Any]]) -> Iterator[str]:
    """A line where the frontier would have more points than anybody could draw."""
    points = 0
    for path, _, sampling in samplings:
        tries = [sampling.trajectory, sampling.deepcache, sampling.skip, sampling.guidance]
        each = max(1, len(sampling.steps))
        for several in tries:
            each *= len(several) if isinstance(several, list) else 1
        if (points := points + each) > POINTS:
            yield f"{path}: more than {POINTS} points to measure, all samplings together; leave some out"
            return


Need = tuple[str, int, str, str]
"""path, bytes, purpose, remedy."""


def _needs(sections: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[Need]:
    image = _image(sections["data"])
    for path, (name, config) in _trainings(sections).items():
        if shapes[name] and getattr(_line(sections, name), "network", None):
            weights = memory.of_weights(shapes[name], image[0], copies=2)
            where, remedy = _size(shapes[name])
            yield f"{path}.network{where}", weights, "a training of this network", remedy
        yield _training(path, config, shapes[name], image, sections["compute"])
        if watch := _line(sections, name).watch:
            yield f"{path}.watch.images", *_judged(watch.images, sections, image)
    yield from _measurements(sections, image)


def _size(shape: Shape) -> tuple[str, str]:
    """The end of a path and a remedy: by which keys the network is made smaller."""
    if not shape.sizes:
        return "", "take a smaller one"
    return f".{shape.sizes[0]}", f"take less of {' or '.join(shape.sizes)}"


def _line(sections: Mapping[str, Any], name: str) -> Any:
    return sections["teachers"].get(name) or sections["distill"][name]


def _trainings(sections: Mapping[str, Any]) -> dict[str, tuple[str, Training]]:
    """By path of the line, its checkpoint and its numbers."""
    lines = [(key, name, line) for key in ("teachers", "distill") for name, line in sections[key].items()]
    return {f"{key}.{name}": (name, line.fit) for key, name, line in lines if hasattr(line, "fit")}


def _training(path: str, config: Training, shape: Any, image: tuple[int, ...], compute: Compute) -> Need:
    half = compute.precision == "bf16" or (compute.precision == "auto" and compute.device.type == "cuda")
    part = -(-config.batch // (config.accumulate * config.cores))
    needs = memory.of_batch(shape, image, config.batch, part, 2 if half else memory.FLOAT)
    return (
        f"{path}.batch",
        needs,
        f"a batch of {config.batch} images of {_side(image)}",
        "lower it, or raise accumulate",
    )


def _measurements(sections: Mapping[str, Any], image: tuple[int, ...]) -> Iterator[Need]:
    features = sections["features"]
    evaluate = sections["evaluate"]
    fitted = evaluate.fitted
    one = memory.FLOAT * image[0] * image[1] * image[2]
    wide, lower = features.channels, "lower it"
    held = memory.FLOAT * 2 * wide * image[1] * image[2] + 2 * one
    yield "text.dimension", memory.FLOAT * sections["text"].dimension, "a vector of so many numbers for a word", lower
    yield "features.channels", 16 * 19 * wide * wide, "a feature network so wide", lower
    yield "features.dimension", 16 * features.dimension**2, "a covariance of so many features", lower
    yield "features.batch", features.batch * held, f"a batch of {features.batch} images", lower
    yield "evaluate.images", *_judged(evaluate.images, sections, image)
    for key, drawn in (("evaluate", evaluate.usual_batch), ("data.draw", sections["data"].sampling.batch)):
        yield f"{key}.batch", drawn * 4 * one, f"a batch of {drawn} images of {_side(image)}", lower
    yield "evaluate.fitted.points", 8 * fitted.points**2, "a table of all hops between so many points", lower
    paths = fitted.batch * fitted.points
    yield "evaluate.fitted.batch", paths * one, f"{paths} images on the teacher's paths", lower
    yield "gamma.batch", sections["gamma"].batch * 4 * one, f"a batch of {sections['gamma'].batch} images", lower


def _judged(images: int, sections: Mapping[str, Any], image: tuple[int, int, int]) -> tuple[int, str, str]:
    """What samples and their features take."""
    kept = 2 * memory.FLOAT * math.prod(image) + 8 * sections["features"].dimension
    return images * kept, f"measuring {images} images of {_side(image)}", "lower it"


def _image(data: DataConfig) -> tuple[int, int, int]:
    """[c, h, w] of the images, or of the least they can be where only the files tell."""
    kind, _ = sources.parse(data.source)
    channels, height, width = kind.least
    return data.channels or channels, data.size or height, data.size or width


def _side(image: tuple[int, ...]) -> str:
    return "x".join(map(str, image))
