"""The report: what stands in it is parsed back, and it asks the network for nothing."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.metrics import measured, order, recommendation
from diffcore.metrics.diversity import MEASURES
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.measures import METRICS
from tasks import workspace
from tasks.pictures import page
from tasks.pictures.page import ancestry, content, strips
from tests.test_pictures import but, of, point, ramp, small_table, table

ROOT = Path(__file__).parent.parent
VOID = {"meta", "input", "img", "br", "link"}
HOSTILE = """</script><img src=x onerror=alert(1)>&"'<!--"""


class Parsed(html.parser.HTMLParser):
    """Each element with its attributes, the text of each kind of element, and whether every one was closed in turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def values(self, *keys: str) -> list[str]:
        return [each[key] for _, each in self.elements for key in keys if each.get(key) is not None]


def csv_text(rows: int) -> str:
    return "step,images,loss,grad_norm,lr\n" + "".join(f"{k},{k * 128},{1 / k},1.0,0.001\n" for k in range(1, rows + 1))


def report(frontier: Frontier | None = None, side: int = 8, count: int = 16) -> page.Report:
    """Of a small table; no two samples are alike."""
    frontier = frontier or small_table()
    names = [each.name for each in frontier.points]
    samples = {
        name: np.roll(ramp(count, side, side, 1), number, axis=0) for number, name in enumerate([*names, measured.REAL])
    }
    checkpoints = list(dict.fromkeys(each.checkpoint for each in frontier.points))
    methods = {each.checkpoint: each.method for each in frontier.points}
    lines = [
        page.Line(
            name,
            methods[name],
            None if name == checkpoints[0] else checkpoints[0],
            None if name == checkpoints[0] else checkpoints[0],
            {"iterations": 50, "images": 6400, "network_calls": 12800, "seconds": 3.5 + number},
        )
        for number, name in enumerate(checkpoints)
    ]
    curves = {name: csv_text(300) for name in checkpoints[1:]}
    return page.Report(frontier, Estimate(0.9, 0.1), samples, lines, curves)


def inlined(parsed: Parsed) -> dict:
    """What the page's script draws."""
    places = [k for k, (tag, _) in enumerate(parsed.elements) if tag == "script"]
    first = [parsed.elements[k][1] for k in places].index({"type": "application/json", "id": "data"})
    return json.loads(parsed.texts["script"][first])


@pytest.fixture(scope="module")
def text() -> str:
    return page.html_of(report())


@pytest.fixture(scope="module")
def parsed(text) -> Parsed:
    return Parsed(text)


def test_it_refers_to_nothing_but_itself(parsed, text):
    """And the browser is told to fetch nothing else, whatever a name might smuggle in."""
    assert parsed.values("src")
    assert all(value.startswith("data:image/png;base64,") for value in parsed.values("src"))
    assert all(value.startswith("#") for value in parsed.values("href"))
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.elements}
    assert not re.findall(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", text)
    hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}\S*", re.sub(r"data:[^\"]*", "", text)))
    assert {host.rstrip('";') for host in hosts} <= {"http://www.w3.org/2000/svg"}  # a name of SVG, not an address
    (policy,) = (each["content"] for _, each in parsed.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_all_that_refers_to_one_finds_it(parsed):
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    anchors = [value[1:] for value in parsed.values("href") if "=" not in value]
    assert set(anchors) | set(parsed.values("aria-labelledby")) <= set(ids)
    wanted = re.findall(r'\$\("(\w+)"\)', (ROOT / "tasks/pictures/page/page.js").read_text())
    assert set(wanted) <= set(ids)


def test_every_point_is_in_the_table_the_chart_and_the_samples_with_its_numbers(parsed):
    frontier = small_table()
    rows = [
        each["data-value"]
        for tag, each in parsed.elements
        if tag == "th" and each.get("scope") == "row" and "data-value" in each
    ]
    assert sorted(rows) == sorted(each.name for each in frontier.points)
    data = inlined(parsed)
    drawn = {each["name"]: each for each in data["points"]}
    assert set(drawn) == {each.name for each in frontier.points}
    for each in frontier.points:
        wanted = {name: [number.value, number.se] for name, number in each.metrics.items()}
        wanted["ms_per_image"] = [each.ms_per_image, 0.0]
        assert {name: value[:2] for name, value in drawn[each.name]["values"].items()} == wanted
        assert drawn[each.name]["nfe"] == each.nfe
        assert each.recipe in dict(drawn[each.name]["facts"])["recipe"]
        assert drawn[each.name]["front"] == (each in frontier.non_dominated())
    assert data["recommended"] == frontier.recommended.point.name
    assert data["floor"]["fd"] == [frontier.floor.fd, frontier.floor.fd_se]
    assert data["bar"] == {"fd": 0.9}
    grids = [each["data-name"] for _, each in parsed.elements if "data-name" in each]
    assert sorted(grids) == sorted([*drawn, measured.REAL])


def test_each_curve_is_that_of_the_picture_and_has_all_tries(parsed):
    points = [
        point("teacher", 4, 9.0),
        point("teacher", 4, 9.5, best=False, trajectory="karras", curve="teacher ddim uniform"),
    ]
    points += [point("progressive", 1, 2.0)]
    curves = inlined(Parsed(page.html_of(report(table(points, "pd1-ddim-uniform-1")))))["curves"]
    assert [(each["name"], each["points"], each["tries"]) for each in curves] == [
        ("teacher ddim uniform", ["teacher-ddim-uniform-4"], ["teacher-ddim-karras-4"]),
        ("progressive", ["pd1-ddim-uniform-1"], []),
    ]
    whole = [name for each in inlined(parsed)["curves"] for name in each["points"]]
    assert sorted(whole) == sorted(each.name for each in small_table().points)


def test_what_names_and_sentences_hold_is_text_and_no_markup(parsed):
    frontier = but(
        small_table(), 0, curve=f"curve {HOSTILE}", recipe=json.dumps({"sampler": HOSTILE}), trajectory=HOSTILE
    )
    points = [dataclasses.replace(each, name=f"{each.name}{HOSTILE}") for each in frontier.points]
    chosen = next(each for each in points if each.name.startswith(frontier.recommended.point.name))
    named = recommendation.Recommendation(chosen, f"reason {HOSTILE}", (f"warning {HOSTILE}",))
    hostile = report(dataclasses.replace(frontier, points=tuple(points), recommended=named))
    lines = [dataclasses.replace(each, name=each.name, method=HOSTILE) for each in hostile.lines]
    document = Parsed(page.html_of(dataclasses.replace(hostile, lines=lines)))
    assert {tag for tag, _ in document.elements} <= {tag for tag, _ in parsed.elements} | {"ul", "li"}
    assert "onerror" not in {key for _, each in document.elements for key in each}
    assert [tag for tag, _ in document.elements].count("script") == 2
    assert len(document.comments) == 1  # the seal
    assert document.texts["h1"] == [chosen.name]
    assert document.texts["li"] == [f"warning {HOSTILE}."]
    assert {each["name"] for each in inlined(document)["points"]} == {each.name for each in points}


def test_the_same_report_gives_the_same_bytes_and_any_change_of_a_page_is_seen(text):
    assert page.html_of(report()) == text
    assert page.is_whole(text)
    assert not page.is_whole("")
    for place in (0, len(text) // 2, len(text) - 2):
        assert not page.is_whole(text[:place] + "~" + text[place + 1 :])
    assert not page.is_whole(text[: len(text) // 2])
    assert not page.is_whole(f"{text} ")


def test_without_its_script_all_of_the_table_and_the_samples_is_visible(parsed):
    hidden = [each for tag, each in parsed.elements if "hidden" in each]
    assert {each.get("id") for each in hidden} == {"panel", "looks"}


def test_a_strip_holds_the_samples_themselves_with_a_gap_between(parsed):
    wanted = report().samples[measured.REAL]
    uri = next(each["src"] for tag, each in parsed.elements if tag == "img" and each["alt"] == "samples of real")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert picture.shape == (8, 16 * 9 - 1, 2)
    for number, image in enumerate(wanted):
        tile = picture[:, number * 9 : number * 9 + 8]
        assert np.array_equal(tile[..., 0], image[..., 0])
        assert (tile[..., 1] == 255).all()
    assert (picture[:, 8::9, 1] == 0).all()


def test_samples_of_many_points_stay_within_their_room_and_those_that_matter_are_kept(monkeypatch):
    noise = np.random.default_rng(0)
    samples = {f"p{k}": noise.integers(0, 256, (16, 20, 20, 3), np.uint8) for k in range(30)}
    whole, count = strips.strips(samples, ["p3"])
    assert (len(whole), count) == (30, 16)
    total = sum(len(base64.b64decode(uri.partition(",")[2])) for uri in whole.values())
    monkeypatch.setattr(strips, "ROOM", total * 0.6)
    fewer, count = strips.strips(samples, ["p3"])
    assert (len(fewer), count) == (30, 8)
    monkeypatch.setattr(strips, "ROOM", total * 0.1)
    first, count = strips.strips(samples, ["p3", "p7"])
    assert (list(first), count) == (["p3", "p7"], 4)
    monkeypatch.setattr(strips, "ROOM", total / 30 / 3)
    least, count = strips.strips(samples, ["p3", "p7"])
    assert (list(least), count) == (["p3", "p7"], 2)
    for uris in (fewer, first, least):
        assert sum(len(base64.b64decode(uri.partition(",")[2])) for uri in uris.values()) <= total * 0.6


def test_what_is_left_out_is_said(monkeypatch, parsed):
    assert "There was no room" not in " ".join(parsed.texts["p"])
    monkeypatch.setattr(strips, "ROOM", 400)
    small = Parsed(page.html_of(report()))
    (line,) = (each for each in small.texts["p"] if "There was no room" in each)
    frontier = {each["data-name"] for _, each in small.elements if "data-name" in each}
    left = {each.name for each in small_table().points} - frontier
    assert f"no room for {len(left)} points" in line
    assert small_table().recommended.point.name in frontier
    assert {each.name for each in small_table().non_dominated()} <= frontier


def test_large_samples_are_made_smaller_and_keep_their_shape():
    samples = {"a": np.full((3, 128, 256, 3), 90, np.uint8)}
    (uri,) = strips.strips(samples, [])[0].values()
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size[1] == 32
        assert picture.size[0] == pytest.approx(3 * 64 + 2 * 4, abs=1)


@pytest.mark.parametrize("name", sorted(content.WORDS.keys() & METRICS.keys()))
def test_the_page_says_of_a_metric_which_way_is_better_as_the_metric_does(name):
    assert content.WORDS[name].better == METRICS[name].better


def test_every_metric_that_was_measured_is_in_the_chooser_under_some_name():
    frontier = small_table()
    more = {"swd": Estimate(0.2, 0.01), "fd_inception": Estimate(20.0, 1.0)}
    frontier = of(frontier, [dataclasses.replace(each, metrics=each.metrics | more) for each in frontier.points])
    document = Parsed(page.html_of(report(frontier)))
    options = [each["value"] for tag, each in document.elements if tag == "option"]
    assert set(frontier.points[-1].metrics) | {"ms_per_image"} <= set(options)
    assert options[:3] == ["fd", "kid", "ms_per_image"]
    assert content.REAL == measured.REAL
    assert set(content.WORDS) <= {*order.COLUMNS, content.TIME}


def test_lineage_stands_without_a_box_on_another_and_every_start_is_to_its_left():
    names = ["root", "a", "b", "c", "d", "e" * 60, "other"]
    above = [None, "root", "a", "a", "root", "d", None]
    lines = [page.Line(name, "m", init, "root" if init else None, {}) for name, init in zip(names, above)]
    drawn = Parsed(ancestry.ancestry(lines))
    boxes = [
        {key: float(each[key]) for key in ("x", "y", "width", "height")}
        for tag, each in drawn.elements
        if tag == "rect"
    ]
    assert len(boxes) == len(names)
    place = dict(zip(names, boxes))
    for k, one in enumerate(boxes):
        for two in boxes[k + 1 :]:
            apart = one["x"] + one["width"] <= two["x"] or two["x"] + two["width"] <= one["x"]
            assert apart or one["y"] + one["height"] <= two["y"] or two["y"] + two["height"] <= one["y"]
    for name, init in zip(names, above):
        assert init is None or place[init]["x"] + place[init]["width"] < place[name]["x"]
    kinds = [each["class"] for tag, each in drawn.elements if tag == "path"]
    assert (kinds.count("init"), kinds.count("teacher")) == (5, 3)  # of b, c and e


def test_the_cost_table_has_every_line_and_their_sum(text):
    rows = re.findall(r'<th scope="row">(\w+)</th>((?:<td>[^<]*(?:<span[^>]*>-</span>)?</td>)+)', text)
    costs = {name: re.findall(r"<td>([^<]*)", cells) for name, cells in rows}
    assert costs["pd4"] == ["teacher", "teacher", "50", "6,400", "12,800", "4.5"]
    assert costs["all"][2:] == ["250", "32,000", "64,000", "27.5"]


def test_a_line_that_was_not_trained_here_has_no_curve_and_no_cost():
    frontier = report()
    bare = [dataclasses.replace(line, cost={}) for line in frontier.lines]
    document = Parsed(
        page.html_of(dataclasses.replace(frontier, lines=bare, curves={"teacher": "step,images,loss,grad_norm,lr\n"}))
    )
    assert inlined(document)["trainings"] == []
    assert not {"losses", "looks"} & set(document.values("id"))
    assert any("Nothing was trained here" in each for each in document.texts["p"])


def test_a_training_curve_is_thinned_to_means_and_keeps_its_end(parsed):
    (training, *_) = inlined(parsed)["trainings"]
    assert len(training["loss"]) <= content.CURVE_ROWS
    images, loss = training["loss"][0]
    assert images == pytest.approx(128 * 2)  # the mean of 1, 2 and 3
    assert loss == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, rel=1e-3)


def test_the_page_s_parts_are_in_the_package_and_in_every_workspace(monkeypatch):
    """Whatever is no Python and lies in a package is named as its data, or an install that copies would lack it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    parts = [path for path in (ROOT / "tasks").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {path.name for path in parts} >= {"page.html", "page.css", "page.js"}
    for path in parts:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert any(fnmatch(path.name, pattern) for pattern in data.get(package, ())), path
    monkeypatch.chdir(ROOT)
    assert {str(path.relative_to(ROOT)) for path in parts} <= set(workspace._code())


def test_what_a_point_may_have_lost_stands_in_the_table_from_the_start():
    assert all(content.words(name).core for name in MEASURES)
