"""Pictures: what they show is read back from the pixels and from matplotlib's own objects, not from golden files."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics.floor import Floor
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from diffcore.metrics.recommendation import Recommendation
from diffcore.metrics.skill import Skill
from tasks.pictures import charts, grids, tables
from tests.conftest import estimates


def point(method: str, nfe: float, fd: float, **other) -> Point:
    """Everything that a test does not care about follows from the method and the calls."""
    checkpoint = {"teacher": "teacher", "progressive": f"pd{nfe}", "consistency": "cd"}[method]
    row = {"method": method, "checkpoint": checkpoint, "sampler": "ddim", "trajectory": "uniform", "nfe": nfe} | other
    manner = f"{row['sampler']}-{row['trajectory']}-{nfe}"
    curve = f"teacher {row['sampler']} {row['trajectory']}" if method == "teacher" else method
    row = {"curve": curve, "best": True, "recipe": json.dumps({"sampler": row["sampler"]})} | row
    numbers = {"fd": fd, "fd_se": abs(fd) / 25, "kid": fd / 100, "kid_se": abs(fd) / 2000}
    numbers |= {"fd_pixels": fd / 2, "fd_pixels_se": abs(fd) / 60}
    if method != "teacher":
        numbers |= {"rmse_teacher": 0.3 / nfe, "rmse_teacher_se": 0.3 / nfe / 50}
    facts = {"ms_per_image": 0.04 * nfe, "n": 1000, "seed": 0, "weights": "ema", "features": "feed" * 16}
    facts |= {"checkpoint_digest": f"{sum(map(ord, row['checkpoint'])):064d}", "metrics": estimates(numbers)}
    facts |= {"times": tuple(k / round(nfe) for k in range(round(nfe), -1, -1))}
    return Point(**{"name": f"{row['checkpoint']}-{manner}", **facts, **row})


def table(points: Sequence[Point], recommended: str, floor: float = 0.3) -> Frontier:
    numbers = {"fd": floor, "fd_se": 0.02, "kid": 0.0, "kid_se": 1e-4, "fd_pixels": 0.1, "fd_pixels_se": 0.01}
    least = Floor(estimates(numbers), (1000, 1797), (898, 899), "halves")
    judge = Skill("classes", 10, 0.97, 0.11)
    chosen = next(point for point in points if point.name == recommended)
    reason = "the fewest calls within 1.6 times the teacher"
    return Frontier(tuple(points), least, "da7a" * 16, judge, Recommendation(chosen, reason))


def but(shown: Frontier, number: int, **changes) -> Frontier:
    """With one of its points changed."""
    points = [*shown.points]
    points[number] = dataclasses.replace(points[number], **changes)
    return of(shown, points)


def of(shown: Frontier, points: Sequence[Point]) -> Frontier:
    """Of other points with the same names."""
    chosen = next(point for point in points if point.name == shown.recommended.point.name)
    return dataclasses.replace(
        shown, points=tuple(points), recommended=dataclasses.replace(shown.recommended, point=chosen)
    )


def small_table() -> Frontier:
    points = [point("teacher", k, 52 / k) for k in (64, 4, 1)]
    points += [point("teacher", k, 40 / k, trajectory="least_cost") for k in (64, 4)]
    points += [point("progressive", k, 2.4 / math.sqrt(k)) for k in (4, 2, 1)]
    points += [point("consistency", k, 2.2 / k**0.3) for k in (1, 2)]
    return table(points, "pd4-ddim-uniform-4")


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def ramp(n: int, h: int, w: int, c: int) -> np.ndarray:
    """Images of which no two pixels in a row are alike."""
    return (np.arange(n * h * w * c, dtype=np.int64) * 37 % 251).astype(np.uint8).reshape(n, h, w, c)


def test_a_way_is_what_the_points_say():
    groups = charts.by_curve(small_table().points)
    assert list(groups) == ["teacher ddim uniform", "teacher ddim least_cost", "progressive", "consistency"]
    assert [p.nfe for p in groups["teacher ddim uniform"]] == [1, 4, 64]


def test_two_students_with_the_same_calls_are_two_curves():
    points = [
        point("consistency", 1, 2.0),
        point("consistency", 1, 1.5, checkpoint="cd-long"),
        point("consistency", 2, 1.4, checkpoint="cd-long"),
    ]
    groups = charts.by_curve(points)
    assert {name: [p.nfe for p in group] for name, group in groups.items()} == {
        "consistency cd": [1],
        "consistency cd-long": [1, 2],
    }


def test_of_several_tries_the_best_is_shown():
    points = [point("consistency", 2, 2.0, best=False), point("consistency", 2, 1.5, trajectory="fitted")]
    assert charts.by_curve(points) == {"consistency": points[1:]}


def test_no_point_is_lost_between_the_curves():
    points = small_table().points
    assert sorted(p.name for group in charts.by_curve(points).values() for p in group) == sorted(p.name for p in points)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture."""
    kept = []
    save = charts._save
    monkeypatch.setattr(charts, "_save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return lambda: kept[-1].axes[0]


def test_the_frontier_shows_every_point_with_its_error_bar(tmp_path, drawn):
    shown = small_table()
    charts.frontier(shown, tmp_path / "frontier.png")
    assert pixels(tmp_path / "frontier.png").shape[:2] == (800, 1200)
    bars = {container.get_label(): container for container in drawn().containers}
    for name, group in charts.by_curve(shown.points).items():
        line, _, (segments,) = bars[name].lines
        assert line.get_xydata().tolist() == [[p.nfe, p.fd] for p in group]
        ends = [segment[:, 1].tolist() for segment in segments.get_segments()]
        assert np.allclose(ends, [[p.fd - p.fd_se, p.fd + p.fd_se] for p in group])


@pytest.mark.parametrize("name", ["consistency multistep_consistency uniform", "x" * 120, "consistency " * 12])
def test_no_label_of_a_legend_is_cut_off(name, tmp_path, drawn):
    """However long it is: that of a curve, and a checkpoint's name beside its losses."""
    points = (dataclasses.replace(small_table().points[0], curve=name), *small_table().points[1:])
    charts.frontier(dataclasses.replace(small_table(), points=points), tmp_path / "frontier.png")
    write_curve(tmp_path / "x.csv", 40)
    frontier = drawn()
    charts.curves({name: (tmp_path / "x.csv").read_text()}, tmp_path / "curves.png")
    for axes in (frontier, drawn()):
        texts = axes.get_legend().get_texts()
        assert name.replace(" ", "") in ["".join(text.get_text().split()) for text in texts]
        assert all(text.get_window_extent().x1 < axes.figure.bbox.width for text in texts)


def test_the_frontier_names_the_recommended_point_the_floor_and_the_terms(tmp_path, drawn):
    shown = small_table()
    charts.frontier(shown, tmp_path / "frontier.png")
    axes = drawn()
    texts = " ".join(t.get_text() for t in [*axes.texts, *axes.figure.texts, *axes.get_legend().get_texts()])
    for word in (
        "recommended: pd4-ddim-uniform-4",
        "a perfect sampler: 0.300",
        "A perfect sampler: from halves of the 1797 real images",
        "N = 1000",
        "feedfeedfeed",
        "seed 0",
        "standard error",
    ):
        assert word in texts
    ring = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xydata().tolist() for line in ring] == [[[4.0, 1.2]]]


def test_a_warning_stands_under_the_title_and_within_the_picture(tmp_path, drawn):
    shown = small_table()
    chosen = dataclasses.replace(shown.recommended, warnings=("the teacher is poor, " * 10, "and more"))
    floor = dataclasses.replace(shown.floor, compared=(300, 1797), real="held-out")
    shown = dataclasses.replace(shown, recommended=chosen, floor=floor)
    charts.frontier(shown, tmp_path / "frontier.png")
    figure = drawn().figure
    (text,) = [text for text in figure.texts if "Warning: the teacher is poor" in text.get_text()]
    assert text.get_text().endswith("... (1 more)")
    box, others = text.get_window_extent(), [t.get_window_extent() for t in figure.texts if t is not text]
    assert max(each.get_window_extent().x1 for each in figure.texts) < 1200
    assert not any(box.overlaps(other) for other in (*others, drawn().get_window_extent()))
    assert any("A perfect sampler: from 300 held-out images." in each.get_text() for each in figure.texts)


def test_the_label_of_the_recommended_point_hides_no_point(tmp_path, drawn):
    shown = small_table()
    charts.frontier(shown, tmp_path / "frontier.png")
    axes = drawn()
    label = next(text for text in axes.texts if "recommended" in text.get_text())
    box = label.get_bbox_patch().get_window_extent().transformed(axes.transAxes.inverted())
    for x, y in charts._fractions(axes, [(p.nfe, p.fd) for p in shown.points]):
        assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)
    assert 0 < box.x0 < box.x1 < 1


@pytest.mark.parametrize("least", [0.0, -0.01])
def test_a_distance_that_is_not_positive_does_not_spoil_the_axis(tmp_path, drawn, least):
    points = [point("teacher", 8, 3.0), point("progressive", 4, 1.0), point("progressive", 2, least)]
    charts.frontier(table(points, points[1].name, floor=least), tmp_path / "frontier.png")
    low, high = drawn().get_ylim()
    assert 0.1 < low < 1
    assert 3 < high < 10


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        charts.frontier(small_table(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("n", "h", "w", "c"), [(7, 8, 8, 1), (6, 5, 9, 3), (1, 4, 4, 1)])
def test_a_grid_gives_its_images_back(tmp_path, n, h, w, c):
    images = ramp(n, h, w, c)
    grids.grid(images, tmp_path / "grid.png", columns=3, scale=4)
    assert np.array_equal(grids.tiles(tmp_path / "grid.png"), images)


def test_a_grid_runs_along_its_rows(tmp_path):
    images = np.stack([np.full((2, 2, 1), k, np.uint8) for k in (10, 20, 30)])
    grids.grid(images, tmp_path / "grid.png", columns=2, scale=3)
    sheet = pixels(tmp_path / "grid.png")
    pitch, edge = 2 * 3 + grids.GAP, grids.GAP
    assert sheet.shape == (2 * pitch + edge, 2 * pitch + edge)
    assert [int(sheet[edge + r * pitch, edge + k * pitch]) for r, k in ((0, 0), (0, 1), (1, 0), (1, 1))] == [
        10,
        20,
        30,
        255,
    ]


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 2), np.uint8), np.zeros((2, 4, 4, 1), np.float32)])
def test_a_grid_refuses_what_is_not_images(tmp_path, images):
    with pytest.raises(ValueError, match="uint8"):
        grids.grid(images, tmp_path / "grid.png", columns=2, scale=1)


def test_a_foreign_png_is_a_mistake(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(UserError, match=r"foreign\.png is not a grid"):
        grids.tiles(tmp_path / "foreign.png")


def test_a_contact_sheet_keeps_columns_and_order(tmp_path):
    rows = [(f"row {k}", np.stack([np.full((8, 8, 1), 40 * k + i, np.uint8) for i in range(5 - k)])) for k in range(3)]
    grids.contact_sheet(rows, tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")[..., 0]
    scale = grids.TILE // 8
    pitch = 8 * scale + 3 * grids.GAP
    shown = [sheet[16 + k * pitch + 4 * scale] for k in range(3)]
    right = sheet.shape[1] - 16 - grids.GAP - 4 * scale
    across = [right - (2 - i) * (8 * scale + grids.GAP) for i in range(3)]
    # three columns: as many as the shortest row has, the first images of each
    assert [[int(line[x]) for x in across] for line in shown] == [[40 * k + i for i in range(3)] for k in range(3)]


def test_a_contact_sheet_of_large_images_stays_a_sheet(tmp_path):
    grids.contact_sheet([("a", ramp(16, 256, 256, 3))], tmp_path / "sheet.png")
    assert pixels(tmp_path / "sheet.png").shape[1] < 2000


LOOKS = ["fd", "fd_se", "diversity", "diversity_se", "contrast", "beyond"]


def seen(k: int) -> list[float]:
    """What a look after k updates saw."""
    return [20 / k, 2 / k, 0.9, 0.01, 1.0 + 1 / k, 0.02]


def write_curve(path, rows: int, every: int = 0) -> None:
    """every: of the updates at which it was looked at, from the second row on in rows without a loss; 0 for never."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "images", "loss", "grad_norm", "lr", *(LOOKS if every else [])])
    for k in range(1, rows + 1):
        is_look = every and k % every == 0
        losses = ["", "", ""] if is_look and k > every else [1 / k, 1.0, 1e-3]
        writer.writerow([k, 128 * k, *losses, *((seen(k) if is_look else [""] * 6) if every else [])])
    disk.write_summed(path, text.getvalue())


def texts(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: (folder / f"{name}.csv").read_text() for name in names}


def test_curves_show_every_run_as_logged_and_smoothed(tmp_path, drawn):
    for name, rows in (("teacher", 300), ("pd4", 40)):
        write_curve(tmp_path / f"{name}.csv", rows)
    charts.curves(texts(tmp_path, ("teacher", "pd4")), tmp_path / "curves.png")
    axes = drawn()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["teacher", "pd4"]
    assert [len(line.get_xdata()) for line in axes.lines] == [300, 300, 40, 40]
    assert axes.lines[1].get_xdata()[-1] == 38400


def test_watched_trainings_have_their_distances_below_their_losses(tmp_path, drawn):
    """Against updates, with a band of one standard error, in the colour of their losses; others have losses alone."""
    for name, rows, every in (("teacher", 300, 0), ("pd4", 40, 8), ("cd", 60, 20)):
        write_curve(tmp_path / f"{name}.csv", rows, every)
    charts.curves(texts(tmp_path, ("teacher", "pd4", "cd")), tmp_path / "curves.png")
    losses, looks = drawn().figure.axes
    assert [len(line.get_xdata()) for line in losses.lines[::2]] == [300, 40 - 4, 60 - 2]
    assert [text.get_text() for text in looks.get_legend().get_texts()] == ["pd4", "cd"]
    assert [list(line.get_xdata()) for line in looks.lines] == [[8, 16, 24, 32, 40], [20, 40, 60]]
    assert [list(line.get_ydata()) for line in looks.lines] == [
        [20 / k for k in (8, 16, 24, 32, 40)],
        [1, 0.5, 20 / 60],
    ]
    assert [line.get_color() for line in looks.lines] == [line.get_color() for line in losses.lines[3::2]]
    band = looks.collections[0].get_paths()[0].vertices
    ends = {float(y) for x, y in band if x == 16}
    assert ends == {20 / 16 - 2 / 16, 20 / 16 + 2 / 16}
    assert looks.get_xlabel() == "updates"


def test_distances_stand_against_seconds_too_where_every_look_of_a_line_has_them(tmp_path, drawn):
    """Of a training of long ago they are not there; the vertical axis is that of the updates."""
    for name, rows, every in (("teacher", 300, 100), ("pd4", 40, 8), ("cd", 60, 20)):
        write_curve(tmp_path / f"{name}.csv", rows, every)
    csvs = texts(tmp_path, ("teacher", "pd4", "cd"))
    seconds = {"pd4": {k: k / 4 for k in (8, 16, 24, 32, 40)}, "cd": {20: 1.5}}
    charts.curves(csvs, tmp_path / "curves.png", seconds)
    _, left, right = drawn().figure.axes
    assert [len(line.get_xdata()) for line in left.lines] == [3, 5, 3]
    assert [list(line.get_xdata()) for line in right.lines] == [[2, 4, 6, 8, 10]]
    assert list(right.lines[0].get_ydata()) == list(left.lines[1].get_ydata())
    assert right.lines[0].get_color() == left.lines[1].get_color()
    assert right.get_ylim() == left.get_ylim()
    assert right.get_xlabel() == "seconds of training, looks left out"


def test_a_table_s_points_and_looks_are_told_apart(tmp_path):
    write_curve(tmp_path / "x.csv", 5, 2)
    text = (tmp_path / "x.csv").read_text()
    assert [row["step"] for row in tables.points(text)] == [1, 2, 3, 5]
    assert set(tables.points(text)[0]) == {"step", "images", "loss", "grad_norm", "lr"}
    assert tables.looks(text) == [{"step": k, "images": 128 * k, **dict(zip(LOOKS, seen(k)))} for k in (2, 4)]
    write_curve(tmp_path / "y.csv", 5)
    assert tables.looks((tmp_path / "y.csv").read_text()) == []
    assert tables.looks("") == tables.points("") == []


def test_a_running_mean_keeps_constants_and_straight_lines():
    assert np.allclose(charts._running_mean(np.full(500, 3.0)), 3)
    line = np.arange(500.0)
    assert np.allclose(charts._running_mean(line)[10:-10], line[10:-10])


def test_a_curve_without_a_training_has_no_line(tmp_path, drawn):
    write_curve(tmp_path / "teacher.csv", 0)
    write_curve(tmp_path / "pd4.csv", 40)
    charts.curves(texts(tmp_path, ("teacher", "pd4")), tmp_path / "curves.png")
    assert [text.get_text() for text in drawn().get_legend().get_texts()] == ["pd4"]
    charts.curves(texts(tmp_path, ["teacher"]), tmp_path / "curves.png")


def test_the_front_is_drawn_through_the_points_that_none_dominates(tmp_path, drawn):
    """Of many random ones, with ties in calls and in distance."""
    rng = np.random.default_rng(3)
    points = [
        dataclasses.replace(point("consistency", int(2 ** rng.integers(0, 5)), float(rng.integers(1, 30))), name=f"{k}")
        for k in range(60)
    ]
    shown = table(points, "7")
    charts.frontier(shown, tmp_path / "frontier.png")
    (front,) = [line for line in drawn().lines if line.get_label().startswith("frontier")]

    def beaten(p: Point) -> bool:
        return any(q.nfe <= p.nfe and q.fd <= p.fd and (q.nfe, q.fd) != (p.nfe, p.fd) for q in points)

    corners = [tuple(each) for each in front.get_xydata().tolist()][:-1]
    assert list(dict.fromkeys(corners)) == sorted({(p.nfe, p.fd) for p in points if not beaten(p)})


def test_the_front_and_the_floor_lie_where_they_are(tmp_path, drawn):
    """Steps that hold until the next point of the front and to the right edge; a band of one standard error."""
    shown = small_table()
    charts.frontier(shown, tmp_path / "frontier.png")
    axes = drawn()
    lines = {line.get_label(): line for line in axes.lines}
    front, best = lines["frontier: best within so many calls"], shown.non_dominated()
    corners = [[p.nfe, p.fd] for p in best]
    assert front.get_xydata().tolist() == [*corners, [axes.get_xlim()[1], best[-1].fd]]
    assert front.get_drawstyle() == "steps-post"
    (floor,) = [line for name, line in lines.items() if name.startswith("a perfect sampler")]
    assert floor.get_ydata() == [0.3, 0.3]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.28, 0.32))
    assert axes.get_xlim() == pytest.approx((1 / 1.35, 64 * 1.35))
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(2**k) for k in range(7)]
    assert axes.get_xticks().tolist() == [2**k for k in range(7)]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_students_stand_out_from_the_teacher_and_no_two_ways_look_alike():
    """Also where there are more curves than colours of one kind."""
    groups = {f"{k}": [point("teacher" if k % 2 else "progressive", 1, 1.0)] for k in range(20)}
    styles = charts._styles(groups)
    for k, style in enumerate(styles):
        assert (style.get("markerfacecolor") == "white") == ("linestyle" in style) == bool(k % 2)
        assert style["color"] in (charts.TEACHER if k % 2 else charts.STUDENT)
        assert (style["linewidth"] > 2, style["zorder"] > 3) == (not k % 2, not k % 2)
    assert [style["color"] for style in styles[::2]][:6] == list(charts.STUDENT)
    assert [style["color"] for style in styles[1::2]][:6] == list(charts.TEACHER)
    looks = {(style["color"], style["marker"]) for style in styles}
    assert len(looks) == len(styles)


def test_the_footer_tells_how_the_points_were_measured(tmp_path, drawn, monkeypatch):
    shown = small_table()
    shown = of(shown, [dataclasses.replace(p, n=777, seed=9, weights="last") for p in shown.points])
    shown = dataclasses.replace(shown, recommended=dataclasses.replace(shown.recommended, warnings=("alone",)))
    monkeypatch.setattr("diffcore.metrics.frontier.RESAMPLES", 55)
    charts.frontier(shown, tmp_path / "frontier.png")
    words = [" ".join(text.get_text().split()) for text in drawn().figure.texts]
    assert (
        "N = 777 images for each point, the same noise (seed 9) throughout, last weights; feature network feedfeedfeed, "
        "data da7ada7ada7a. Bars: one standard error over the samples (slopes; pairs by 55 resamples), not over trainings. "
        "A perfect sampler: from halves of the 1797 real images."
    ) in words
    assert "Warning: alone" in words


@pytest.mark.parametrize(
    ("name", "told"), [("pd1-ddim-uniform-1", "1 network call, "), ("pd2-ddim-uniform-2", "2 network calls, ")]
)
def test_the_label_tells_the_calls_and_the_distance_of_the_recommended_point(name, told, tmp_path, drawn):
    shown = table(small_table().points, name)
    charts.frontier(shown, tmp_path / "frontier.png")
    (point_,) = [p for p in shown.points if p.name == name]
    texts = [text.get_text() for text in drawn().texts]
    assert f"recommended: {name}\n{told}distance {point_.metrics['fd'].plus_minus(charts.SIGN)}" in texts


@pytest.mark.parametrize(("count", "half"), [(40, 1), (200, 2), (400, 5)])
def test_a_running_mean_is_over_a_fortieth_of_the_run(count, half):
    values = np.arange(float(count)) ** 2
    found = [values[max(0, k - half) : k + half + 1].mean() for k in range(count)]
    np.testing.assert_allclose(charts._running_mean(values), found)


def test_a_curve_s_strong_line_is_the_running_mean_of_its_own_losses(tmp_path, drawn):
    names = [f"s{k:02d}" for k in range(13)]
    for k, name in enumerate(names):
        write_curve(tmp_path / f"{name}.csv", 10 + k)
    charts.curves(texts(tmp_path, names), tmp_path / "curves.png")
    lines = drawn().lines
    for k, (pale, strong) in enumerate(zip(lines[::2], lines[1::2])):
        losses = np.array([1 / step for step in range(1, 11 + k)])
        assert pale.get_xdata().tolist() == [128.0 * step for step in range(1, 11 + k)]
        np.testing.assert_allclose(pale.get_ydata(), losses)
        np.testing.assert_allclose(strong.get_ydata(), charts._running_mean(losses))
        assert (pale.get_alpha(), strong.get_label()) == (0.18, names[k])
    looks = {(line.get_color(), line.get_linestyle()) for line in lines[1::2]}
    assert len(looks) == 13


def test_small_images_are_enlarged_and_large_ones_are_not(tmp_path):
    """To about 48 pixels; a contact sheet has no more than sixteen columns."""
    for side, scale in ((8, 6), (32, 1), (64, 1)):
        grids.grid(ramp(3, side, side, 1), tmp_path / "grid.png")
        sheet = pixels(tmp_path / "grid.png")
        pitch = side * scale + grids.GAP
        assert sheet.shape == (pitch + grids.GAP, 8 * pitch + grids.GAP)
    for count in (16, 20):
        grids.contact_sheet([("a", ramp(count, 8, 8, 1))], tmp_path / f"{count}.png")
    assert pixels(tmp_path / "16.png").tolist() == pixels(tmp_path / "20.png").tolist()
    grids.contact_sheet([("a", ramp(2, 8, 8, 3)), ("longer", ramp(2, 8, 8, 3))], tmp_path / "colour.png")
    sheet, scale = pixels(tmp_path / "colour.png"), 6
    right = sheet.shape[1] - 16 - 2 * (8 * scale + grids.GAP)
    assert sheet[16 : 16 + 48 : scale, right : right + 48 : scale].tolist() == ramp(2, 8, 8, 3)[0].tolist()


@pytest.mark.parametrize("side", [(4, 10), (10, 4), (6, 6), (4, 200), (200, 4), (512, 512), (30, 1900)])
def test_every_tile_of_a_contact_sheet_is_its_image_and_nothing_covers_another(side, tmp_path):
    """Of images wider than high and higher than wide, with the longest name anywhere but in the first row."""
    h, w = side
    scale = max(1, 48 // max(h, w))
    rows = [
        ("a", ramp(6, h, w, 3)),
        ("by far the longest name of all", 255 - ramp(7, h, w, 3)),
        ("bb", ramp(9, h, w, 1)),
    ]
    grids.contact_sheet(rows, tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    columns = min(6, max(4, 1600 // (w * scale)))
    left = sheet.shape[1] - 16 - columns * (w * scale + grids.GAP)
    blank = np.full_like(sheet, 255)
    for k, (_, images) in enumerate(rows):
        top = 16 + k * (h * scale + 3 * grids.GAP)
        for i in range(columns):
            across = left + i * (w * scale + grids.GAP)
            tile = (slice(top, top + h * scale), slice(across, across + w * scale))
            assert (blank[tile] == 255).all()  # of no other tile
            blank[tile] = images[i].repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(sheet[:, left:], blank[:, left:])
    assert sheet.shape[0] == 32 + 3 * (h * scale + 3 * grids.GAP)
    ink = (sheet[:, :left] != 255).any((0, 2)).nonzero()[0]
    assert ink[0] >= 16
    assert left - 30 <= ink[-1] < left - 8  # the longest name ends before the images begin


@pytest.mark.parametrize("side", [(4, 200), (200, 4), (3, 20)])
def test_a_grid_is_enlarged_by_the_longer_side_of_its_images(side, tmp_path):
    grids.grid(ramp(2, *side, 1), tmp_path / "grid.png", columns=2)
    h, w = side
    scale = {200: 1, 20: 2}[max(side)]
    assert pixels(tmp_path / "grid.png").shape == (h * scale + 2 * grids.GAP, 2 * (w * scale + grids.GAP) + 2)


def test_an_axis_reaches_the_floor_and_a_thousand_calls(tmp_path, drawn):
    """The floor far below every point, and far above; ticks as far as the points go; a cost that is not whole."""
    for floor in (1e-3, 1e4):
        points = [point("teacher", 1000, 2.0), dataclasses.replace(point("progressive", 4, 2.4), nfe=2.125)]
        shown = table(points, points[1].name, floor)
        charts.frontier(shown, tmp_path / "frontier.png")
        axes = drawn()
        low, high = axes.get_ylim()
        assert low < min(floor, 1.9)
        assert high > max(floor, 2.5)
        assert [text.get_text() for text in axes.get_xticklabels()] == [str(2**k) for k in range(1, 11)]
        (words,) = [text.get_text() for text in axes.texts if text.get_text().startswith("recommended")]
        assert "\n2.125 network calls, " in words


def test_the_cheapest_place_is_the_first_of_the_lowest_price_and_few_are_looked_at():
    """Prices k on a lower bound: those whose bound is above a price that was seen are never worked out."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        least = rng.integers(0, 40, 200).astype(float)
        prices = least + rng.integers(0, 3, 200)
        asked: list[int] = []
        best = charts._cheapest(least, lambda number, p=prices, a=asked: a.append(number) or float(p[number]))
        assert best == int(np.argmin(prices))
        assert len(asked) == len(set(asked)) == (least <= prices.min()).sum() < 50
