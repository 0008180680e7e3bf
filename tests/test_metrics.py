"""Laws that every metric in diffcore/metrics/measures/ obeys because it is there: a new file is measured, written, shown and
published without another edit, and is asked all of this."""

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.metrics import measures, mmd, order, reference
from diffcore.metrics.estimate import Estimate, columns
from diffcore.metrics.features import Config, Features, extract, train
from diffcore.metrics.floor import Floor
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.halvings import floor
from diffcore.metrics.likelihood import Model
from diffcore.metrics.measures import METRICS
from diffcore.metrics.metric import Distance, Subject
from diffcore.metrics.point import Point
from diffcore.metrics.reference import Reference, look
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks.tracking.run_specs import _numbers
from tests import test_frontier
from tests.conftest import randn, seeded

ROOT = Path(__file__).parent.parent
CLASSES = torch.tensor([1, 4, 6])
"""Not numbered from 0, as where some classes have no images."""

pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("diffcore.metrics.bootstrap.RESAMPLES", 20)
    monkeypatch.setattr("diffcore.metrics.halvings.SPLITS", 8)


def coloured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, 8, 6], higher than wide, each bright in the colour of its class; their classes, int64 [n]."""
    kind = torch.randint(3, (count,), generator=seeded(seed))
    x = torch.rand(count, 3, 8, 6, generator=seeded(seed + 100)) * 60 + 60
    x[torch.arange(count), kind] += 100
    return x.round().to(torch.uint8), CLASSES[kind]


def judge(classes: bool) -> Features:
    torch.set_num_threads(1)
    pixels, labels = coloured(120, 0)
    config = Config(channels=8, dimension=6, iterations=80, batch=32, lr=4e-3, seed=0)
    return train(Images(pixels, labels if classes else None, None), config)


@pytest.fixture(scope="module", params=[True, False], ids=["classes", "no classes"])
def subject(request) -> Subject:
    """All that any metric asks for; without classes the feature network learned none."""
    network, (pixels, labels) = judge(request.param), coloured(120, 0)
    drawn, asked = coloured(60, 7)
    samples, x0 = to_float(drawn), to_float(pixels)
    exact = GaussianDenoiser(x0.double().mean(0), x0.double().var(0), Cosine())
    asked[::6] = CLASSES[0]  # some samples are not of the class that was asked for
    known = {"classes": asked, "real_classes": labels} if request.param else {}
    return Subject(
        samples,
        Reference.of(Images(pixels, None, None), network),
        network,
        3,
        teacher=samples + 0.1 * randn(*samples.shape).float(),
        model=Model(Sampler(exact, SOLVERS["ddpm"](), uniform(6)), x0[:10], 5, 1, 250, None),
        **known,
    )


def worse(subject: Subject, name: str) -> Subject:
    """Samples under noise, drawn by a sampler that believes in brighter images; what forgives noise is worse by others."""
    if name == "memorised":
        return dataclasses.replace(subject, samples=to_float(coloured(120, 0)[0])[:60])
    if name == "swd":
        return dataclasses.replace(subject, samples=subject.samples[:1].expand(60, -1, -1, -1))
    exact = subject.model.sampler.denoiser
    brighter = GaussianDenoiser(exact.mean + 0.5, exact.variance, exact.schedule)
    sampler = dataclasses.replace(subject.model.sampler, denoiser=brighter)
    noise = randn(*subject.samples.shape, seed=1).float()
    model = dataclasses.replace(subject.model, sampler=sampler)
    return dataclasses.replace(subject, samples=subject.samples + 5 * noise, model=model)


def point(metrics: dict[str, Estimate], name: str = "p") -> Point:
    return dataclasses.replace(test_frontier.point(name, 2, 1.0), metrics=metrics)


def frontier(*points: Point, least: Floor = test_frontier.FLOOR) -> Frontier:
    return Frontier(points, least, "d" * 64, test_frontier.JUDGE)


def test_each_is_found_by_its_file_in_the_order_of_the_columns():
    assert list(METRICS) == [*order.FIRST]
    assert list(METRICS) == order.COLUMNS  # those who import no metric know the same ones
    assert sorted(METRICS) == sorted(path.stem for path in Path(measures.__file__).parent.glob("[!_]*.py"))


def test_each_is_measured_and_is_a_finite_number_with_an_error(subject):
    found = measures.measure(subject)
    classes, captions = (
        ("accuracy",),
        ("caption_accuracy", "caption_accuracy_unseen"),
    )  # tests/test_captioned.py has these
    absent = captions if subject.classes is not None else classes + captions
    assert list(found) == [name for name in METRICS if name not in absent]
    for name, each in found.items():
        assert math.isfinite(each.value), name
        assert 0 < each.se < math.inf, name


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_what_it_needs_is_enough_and_what_is_not_there_is_not_measured(subject, name):
    """A subject with nothing but a metric's needs has it; without one of them the others stay as they are, to the bit."""
    optional = {field.name for field in dataclasses.fields(Subject) if field.default is None}
    assert set(METRICS[name].needs) <= optional
    whole = measures.measure(subject)
    bare = dataclasses.replace(subject, **dict.fromkeys(optional - set(METRICS[name].needs)))
    assert measures.measure(bare).get(name) == whole.get(name)
    for need in METRICS[name].needs:
        without = measures.measure(dataclasses.replace(subject, **{need: None}))
        assert name not in without
        assert without.items() <= whole.items()


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_worse_samples_are_worse_by_it(subject, name):
    """By three standard errors, in the direction that it names."""
    before, after = measures.measure(subject).get(name), measures.measure(worse(subject, name)).get(name)
    if before is None:
        assert after is None
        return
    rise = (after.value - before.value) * {"lower": 1, "higher": -1}[METRICS[name].better]
    assert rise > 3 * math.hypot(before.se, after.se)


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 60])
def test_no_number_depends_on_batches(subject, monkeypatch, size):
    """Of samples, of real images, of rows of a kernel, of images whose likelihood is asked for."""
    whole = columns(measures.measure(subject))
    monkeypatch.setattr(reference, "extract", lambda features, x: extract(features, x, batch=size))
    monkeypatch.setattr(reference, "BLOCK", size)
    monkeypatch.setattr(mmd, "ROWS", size)
    again = Reference.of(Images(coloured(120, 0)[0], None, None), subject.features)
    model = dataclasses.replace(subject.model, batch=3)
    parts = columns(measures.measure(dataclasses.replace(subject, reference=again, model=model)))
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_no_value_depends_on_the_order_of_the_samples(subject):
    order = torch.randperm(len(subject.samples), generator=seeded(4))
    rows = {key: getattr(subject, key) for key in ("samples", "teacher", "classes")}
    mixed = dataclasses.replace(
        subject, **{key: None if value is None else value[order] for key, value in rows.items()}
    )
    found, whole = measures.measure(mixed), measures.measure(subject)
    values = ({name: each.value for name, each in some.items()} for some in (found, whole))
    assert next(values) == pytest.approx(next(values), rel=1e-4, abs=1e-6)


def test_the_same_subject_gives_the_same_bits(subject):
    assert measures.measure(dataclasses.replace(subject)) == measures.measure(subject)


def test_it_is_in_every_file_exactly(subject):
    """json and back, the csv's columns, what MLflow is told, and the table where it is meant for one."""
    metrics = measures.measure(subject)
    one, other = point(metrics), point({"fd": Estimate(1 / 3, 0.1)}, "other")
    whole = frontier(one, other)
    assert Frontier.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    row, few = csv.DictReader(io.StringIO(whole.to_csv()))
    for key, value in columns(metrics).items():
        assert float(row[key]) == value
    for name in METRICS.keys() - metrics.keys():
        assert row[name] == row[f"{name}_se"] == ""
    assert {name for name in METRICS if few[name]} == {"fd"}
    assert columns(metrics).items() <= _numbers(one).items()
    assert set(_numbers(other)) == {"fd", "fd_se", "ms_per_image", "nfe"}
    head, line = whole.table().splitlines()[0].split(), whole.table()
    assert [name for name in metrics if name not in order.CSV_ONLY] == [name for name in head if name in METRICS]
    assert all(each.plus_minus() in line for name, each in metrics.items() if name not in order.CSV_ONLY)


def test_each_is_explained_to_those_who_read_the_frontier():
    rows = [line for line in (ROOT / "docs/frontier.md").read_text().splitlines() if line.startswith("|")]
    for name in METRICS:
        assert any(f"`{name}`" in row for row in rows), f"say in docs/frontier.md what {name} is"


def test_every_distance_and_nothing_else_has_a_floor(subject):
    held_out = look(Images(coloured(30, 11)[0], None, None), subject.features)
    distances = [name for name, each in METRICS.items() if isinstance(each, Distance)]
    for least in (floor(subject.reference, 60, 3), floor(subject.reference, 60, 3, held_out)):
        assert list(least.metrics) == distances
        assert all(math.isfinite(each.value) and each.se > 0 for each in least.metrics.values())
        assert Floor.from_json(json.loads(json.dumps(least.to_json()))) == least
        notes = " ".join(frontier(point({"fd": Estimate(1.0, 0.1)}), least=least).table().split())
        assert all(f"{name} {each.plus_minus()}" in notes for name, each in least.metrics.items())


# --- a metric of one's own


OWN = '''
"""How bright the samples are beside the real images."""

import torch

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Distance


class Brightness(Distance):
    """Of the mean pixel."""

    def compare(self, seen, reference, repeats):
        again = repeats @ seen.pixels.mean(1) / repeats.sum(1)
        value = (seen.pixels.mean() - reference.whole.pixels.mean.mean()).abs()
        return Estimate(float(value), float(again.std()))

    def between(self, halves):
        return float((halves.first.pixels.mean - halves.second.pixels.mean).mean().abs())
'''


@pytest.fixture
def own(tmp_path, monkeypatch) -> Iterator[str]:
    """The name of a metric that is one file more, in a folder beside the others."""
    (tmp_path / "a_brightness.py").write_text(OWN)
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    found = measures.find()
    monkeypatch.setitem(METRICS, "a_brightness", found["a_brightness"])
    monkeypatch.setattr(order, "COLUMNS", [*found])
    yield "a_brightness"
    sys.modules.pop("diffcore.metrics.measures.a_brightness")


def test_a_metric_of_one_s_own_is_one_file(subject, own):
    """Measured, with a floor, in csv, json, table and MLflow; the others' numbers stay what they were, to the bit."""
    assert list(measures.find()) == [*METRICS]
    metrics = measures.measure(subject)
    assert list(metrics)[-1] == own
    least = floor(subject.reference, 60, 3)
    whole = frontier(point(metrics), least=least)
    assert Frontier.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    (row,) = csv.DictReader(io.StringIO(whole.to_csv()))
    assert [float(row[own]), float(row[f"{own}_se"])] == [metrics[own].value, metrics[own].se]
    assert _numbers(whole.points[0])[own] == metrics[own].value
    head, line, *notes = whole.table().splitlines()
    assert (head.split()[-2], line.split()[-2]) == (own, metrics[own].plus_minus())
    assert f"{own} {least.metrics[own].plus_minus()}" in " ".join(" ".join(notes).split())
    del METRICS[own]
    order.COLUMNS.remove(own)
    assert measures.measure(subject).items() <= metrics.items()
    assert floor(subject.reference, 60, 3).metrics.items() <= least.metrics.items()


def test_a_frontier_with_a_metric_that_is_gone_is_of_another_version(subject, own):
    value = frontier(point(measures.measure(subject))).to_json()
    del METRICS[own]
    order.COLUMNS.remove(own)
    with pytest.raises(UserError, match=f"metric '{own}' is unknown"):
        Frontier.from_json(value)
