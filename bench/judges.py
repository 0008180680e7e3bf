"""Does a judge that was trained elsewhere rank samplings as the data's own feature network does? Of a finished run.

python bench/judges.py [FOLDER] [JUDGE] [SEEDS] [IMAGES]

In FOLDER (here), by efficientnet, from 3 noise seeds, evaluate.images of each, if not said. The judge's weights are those of
the extra `judges`. Each point of a student and the teacher's three best are drawn again from each seed, as measured.
Printed are the share of black values (below 8 of 255) in the real images and in the samples of each point (0 SEEDS: no more);
and, of all points and of the students alone, Kendall's and Spearman's coefficients between the two columns of distances for
each seed, their mean and its error over the seeds, the spread of Kendall's over the choice of points (jackknife), how far the
rankings by one network agree between two seeds, and which pairs of points each network orders alike in every seed, but the
two networks otherwise.
"""

import itertools
import math
import os
import statistics
import sys

import torch
from scipy import stats

from diffcore.core import allocator, threads
from diffcore.core.shapes import Sample
from diffcore.data import read
from diffcore.data.feed import to_uint8
from diffcore.metrics import features, frechet, frechet_wide, judges
from diffcore.metrics.features import extract
from diffcore.metrics.frechet import Moments
from diffcore.metrics.judge import Court
from diffcore.metrics.judge_file import PACKAGE, JudgeFile
from diffcore.metrics.point import Point
from diffcore.metrics.reference import Reference, to_8bit
from tasks import measure, named, params, paths
from tasks.params import Params
from tasks.sample import open_named, usual_inputs

TEACHER_S = 3
"""Points of the teacher, its best ones."""

BLACK = 8
"""Of 255: half a step of the 17 grey levels of the digits."""


def main() -> None:
    folder, name, seeds, images = [*sys.argv[1:], *[".", "efficientnet", "3", "0"][len(sys.argv) - 1 :]]
    os.chdir(folder)
    parameters = params.read()
    threads.use(parameters.compute.threads)
    allocator.keep()
    count = int(images) or parameters.evaluate.images
    points = chosen()
    shares(parameters, points, count)
    if not int(seeds):
        return
    judge = judges.load(name, JudgeFile(PACKAGE)).to(parameters.compute.device)
    real = read.open_images(paths.DATA, parameters.compute.memory_bytes)
    own = features.load(paths.FEATURES).to(parameters.compute.device)
    court = measure.courts(parameters, "bench").court(judge, real)
    reference = Reference.of(real, own)
    print(f"{judge}; own network {own.digest[:12]}; {count} samples against {len(real)} real images", flush=True)
    columns: dict[str, list[list[float]]] = {"own": [], name: []}
    for seed in range(int(seeds)):
        rows = [distances(parameters, point, seed, count, own, reference, court) for point in points]
        for column, values in zip(columns.values(), zip(*rows)):
            column.append(list(values))
        show(seed, points, rows)
    students = [number for number, point in enumerate(points) if point.method != "teacher"]
    for who, among in (("all", range(len(points))), ("students", students)):
        print(f"{who}, {len(among)} points")
        summary({word: [[row[i] for i in among] for row in column] for word, column in columns.items()}, name)
        opposed(columns, [(points[i].name, i) for i in among])


def chosen() -> list[Point]:
    points = named.points().values()
    students = [point for point in points if point.method != "teacher"]
    teacher = sorted((point for point in points if point.method == "teacher"), key=lambda point: point.fd)
    return [*students, *teacher[:TEACHER_S]]


def distances(
    parameters: Params, point: Point, seed: int, count: int, own: features.Features, reference: Reference, court: Court
) -> tuple[float, float]:
    """By the own network and by the judge."""
    samples = drawn(parameters, point, seed, count)
    by_own = frechet.frechet(Moments.of(extract(own, to_8bit(samples))), reference.whole.features)
    seen = court.judge.features(samples)
    return by_own, frechet_wide.estimate(seen, court.moments, court.factor).value


def drawn(parameters: Params, point: Point, seed: int, count: int) -> Sample:
    drawable = open_named(named.find(point.name), parameters)
    inputs = usual_inputs(drawable.checkpoint, parameters, count, seed)
    return drawable.draw(parameters, count, seed, inputs)


def shares(parameters: Params, points: list[Point], count: int) -> None:
    """Says how much is black in the real images and in the samples of each point, of seed 0."""
    real = read.open_images(paths.DATA, parameters.compute.memory_bytes)
    black, whole = 0.0, 0
    for places in torch.arange(len(real)).split(1024):
        pixels = real.take(places)
        black, whole = black + (pixels < BLACK).sum().item(), whole + pixels.numel()
    print(f"black  {'real images':<42} {100 * black / whole:5.1f} %", flush=True)
    for point in points:
        share = (to_uint8(drawn(parameters, point, 0, count)) < BLACK).double().mean().item()
        print(f"black  {point.name:<42} {100 * share:5.1f} %", flush=True)


def jackknife(pairs: list[tuple[list[float], list[float]]]) -> float:
    """The standard error, over the choice of points, of the mean of Kendall's coefficients of pairs of columns (Efron & Stein
    1981): from what it is with each point left out."""
    n = len(pairs[0][0])
    without = [
        statistics.mean(float(stats.kendalltau(a[:i] + a[i + 1 :], b[:i] + b[i + 1 :]).statistic) for a, b in pairs)
        for i in range(n)
    ]
    return math.sqrt((n - 1) * statistics.pvariance(without))


def show(seed: int, points: list[Point], rows: list[tuple[float, float]]) -> None:
    for point, (by_own, by_judge) in sorted(zip(points, rows), key=lambda row: row[1][0]):
        print(f"seed {seed}  {point.name:<42} {by_own:8.3f} {by_judge:8.3f}", flush=True)


def summary(columns: dict[str, list[list[float]]], name: str) -> None:
    pairs = list(zip(columns["own"], columns[name]))
    print(f"own against {name}: {agreement(pairs)}, spread over the choice of points {jackknife(pairs):.3f}")
    for who, column in columns.items():
        if len(column) > 1:
            print(f"{who} against itself, another seed: {agreement(list(itertools.combinations(column, 2)))}")


def opposed(columns: dict[str, list[list[float]]], among: list[tuple[str, int]]) -> None:
    """Says which pairs of points each network orders alike in every seed, but the two networks otherwise."""
    clear, reversed_ = 0, []
    for (a, i), (b, j) in itertools.combinations(among, 2):
        orders = [{row[i] < row[j] for row in column} for column in columns.values()]
        if all(len(order) == 1 for order in orders):
            clear += 1
            reversed_ += [f"{a} and {b}"] if orders[0] != orders[1] else []
    print(
        f"of {clear} pairs that each orders alike in every seed {len(reversed_)} are opposed: {', '.join(reversed_) or '-'}"
    )


def agreement(pairs: list[tuple[list[float], list[float]]]) -> str:
    """Mean and standard error of both coefficients over the pairs, and each pair's."""
    parts = []
    for word, coefficient in (("Kendall", stats.kendalltau), ("Spearman", stats.spearmanr)):
        values = [float(coefficient(*pair).statistic) for pair in pairs]
        error = f" +- {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
        each = " ".join(f"{value:.3f}" for value in values)
        parts.append(f"{word} {statistics.mean(values):.3f}{error} ({each})")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
