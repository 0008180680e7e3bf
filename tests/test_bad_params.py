"""No params.yaml hangs, ends in a traceback, or is taken and fails hours later."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffcore.core.errors import UserError
from diffcore.data.split import Split
from diffcore.nets import dit, memory
from diffcore.nets.unet import Shape
from tasks import bounds, params, sections, strict_yaml, typed, workspace
from tests import bad_params

ROOT = Path(__file__).parent.parent

WALK = [case for place, case in enumerate(bad_params.numbers()) if place % 23 == 0]
"""Some of the walk over all values; `bad_params.cases` has all."""


def refusal(folder: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        params.read(folder / "params.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("case", [*bad_params.texts(), *bad_params.places(), *WALK], ids=lambda case: case.name)
def test_a_file_that_is_not_in_order_is_refused_in_a_line_for_each_fault(tmp_path, case):
    case.lay(tmp_path)
    lines = refusal(tmp_path)
    assert any(case.words in line for line in lines), lines
    assert all(
        line.startswith(f"{tmp_path / 'params.yaml'}") and len(line) < 700 and line.isprintable() for line in lines
    )


def test_there_are_enough_of_them():
    assert len(list(bad_params.cases())) >= 600


@pytest.mark.parametrize("name", bad_params.GOOD)
def test_what_only_looks_odd_is_taken(tmp_path, name):
    (tmp_path / "params.yaml").write_bytes(bad_params.GOOD[name])
    assert params.read(tmp_path / "params.yaml").distill


NUMBERS = {(*where, name, kind.__name__): (where, name, kind) for where, name, kind in bad_params.fields_of_all()}


def of_kind(word: str) -> list[tuple]:
    return [place for place in NUMBERS if place[-1] == word]


def named(place: tuple) -> str:
    return ".".join(map(str, place[:-1]))


def refused(where: bad_params.Where, name: str, value: object, alone: bool = False) -> str:
    """What is said of a number at its place; alone: in a file of that section only, which is quicker to read."""
    raw = bad_params.raw_with(where, name, value)
    with pytest.raises(UserError) as caught:
        params.parse({where[0]: raw[where[0]]} if alone else raw, "p")
    return str(caught.value)


@pytest.mark.parametrize(
    "place", [place for place in NUMBERS if place[-1] == "float"], ids=lambda place: ".".join(map(str, place))
)
def test_every_number_with_a_point_must_be_finite(place):
    where, name, _ = NUMBERS[place]
    for value in (float("nan"), float("inf"), float("-inf")):
        assert f"p: {bad_params.path_of(where, name)}: must be a finite number, got {value}" in refused(
            where, name, value
        )
    assert f"{bad_params.path_of(where, name)}: 1e+30 is beyond all use" in refused(where, name, 1e30)


ANY = {"seed", "limit"}
"""Whole numbers of which any is in order."""


@pytest.mark.parametrize(
    "place", [place for place in NUMBERS if place[-1] == "int"], ids=lambda place: ".".join(map(str, place))
)
def test_every_whole_number_has_a_largest_value(place):
    where, name, _ = NUMBERS[place]
    if name in ANY:
        assert "more than 64 bits" in refused(where, name, 10**20)
    else:
        huge = [10**13] if name == "channels" and where[-1] == "network" else 10**13
        assert name in refused(where, name, huge)


@pytest.mark.parametrize("key", [*bounds.LIMITS, "any other"])
def test_the_largest_number_is_in_order_and_the_next_is_not(key):
    most = bounds.LIMITS.get(key, (bounds.MOST, ""))[0]
    for sign in (1, -1):
        assert list(bounds.of_numbers("section", {key: [sign * most]})) == []
        (line,) = bounds.of_numbers("section", {key: [sign * (most + 1)]})
        assert line.startswith(f"section.{key}.0: {sign * (most + 1)} is more than {most}: ")
        assert list(bounds.of_numbers("section", {key: sign * bounds.LARGEST})) == []
        assert list(bounds.of_numbers("section", {key: sign * 1.01 * bounds.LARGEST})) != []


MACHINE = ("seed", "limit", "batch", "accumulate", "channels", "groups", "dimension", "threads")


@pytest.mark.parametrize("key", MACHINE)
def test_what_the_machine_or_the_user_decides_has_no_largest_value_of_its_own(key):
    assert list(bounds.of_numbers("section", {key: 5 * bounds.MOST, "list": {key: [50_000, 10**7]}})) == []


def test_the_walk_over_all_numbers_reaches_them():
    names = {".".join(map(str, place[:-1])) for place in NUMBERS}
    assert len(NUMBERS) > 100
    assert {"compute.memory_gb", "evaluate.fitted.late", "publish.tolerance"} <= names
    assert {"teachers.teacher.clip", "teachers.teacher.network.channels", "teachers.teacher.gamma"} <= names
    assert {"distill.consistency.huber", "distill.phased.critic_lr", "evaluate.teacher.0.options.edm.s_max"} <= names
    assert {"evaluate.teacher.0.deepcache.power", "evaluate.teacher.0.skip.bottom", "distill.guided.lr"} <= names


# ------------------------------------------------------------------------------- memory

SHAPES = [
    (Shape((16, 32), 1, False, 8, 0.0, 12.0), 1),
    (Shape((8,), 2, False, 8, 0.0, 12.0, parameterization="x0_eps"), 3),
    (Shape((16, 32, 48), 2, True, 8, 0.0, 12.0), 3),
    (Shape((8, 8), 3, True, 4, 0.0, 12.0, parameterization="x0"), 1),
    (dit.Shape(2, 32, 3, 4), 1),
    (dit.Shape(4, 16, 1, 2, dropout=0.2, parameterization="x0_eps"), 3),
    (dit.Shape(1, 64, 4, 8, parameterization="flow"), 3),
]


@pytest.mark.parametrize(("shape", "channels"), SHAPES)
def test_parameters_are_counted_without_a_network(shape, channels):
    net = shape.build((channels, 16, 16), None, 0)
    assert shape.parameters(channels) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("shape", "channels"), SHAPES)
def test_what_is_kept_for_the_way_back_is_no_less_and_not_far_more_than_counted(shape, channels):
    import torch

    net, storages = shape.build((channels, 16, 16), None, 0), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = net(torch.randn(2, channels, 16, 16), torch.zeros(2))
    assert alive.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = sum(size for place, size in storages.items() if place not in weights) / 4 / 2
    counted = shape.kept((channels, 16, 16))
    assert counted <= kept <= 2 * counted


def with_memory(monkeypatch, count: float, **changes) -> list[str]:
    """What is said of the shipped file with these changes on a machine of so many bytes."""
    monkeypatch.setattr(memory, "of_machine", lambda: int(count))
    raw = bad_params.shipped()
    for path, value in changes.items():
        section, key = path.split("__")
        line = raw["teachers"]["teacher"]
        (line["network"] if section == "network" else line)[key] = value
    try:
        params.parse(raw, "p")
    except UserError as error:
        return str(error).splitlines()
    return []


def test_a_batch_is_refused_where_memory_is_far_too_small_and_taken_otherwise(monkeypatch):
    shape = Shape((16, 32), 1, False, 8, 0.0, 12.0)
    needs = memory.of_batch(shape, (1, 8, 8), 10**6, 10**6)
    assert needs == 10**6 * (2 * 4 * 64 + 4 * shape.kept((1, 8, 8)))
    (line,) = with_memory(monkeypatch, needs / 4 - 1, teacher__batch=10**6, teacher__cores=1)
    assert line == (
        f"p: teachers.teacher.batch: a batch of 1000000 images of 1x8x8 needs about {memory.readable(needs)} of memory at "
        f"the very least, and this machine has {memory.readable(int(needs / 4 - 1))}; lower it, or raise accumulate"
    )
    assert with_memory(monkeypatch, needs / 4 + 1, teacher__batch=10**6) == []
    assert with_memory(monkeypatch, needs / 40, teacher__batch=10**6, teacher__accumulate=100) == []  # in parts


def test_a_network_is_refused_where_memory_is_far_too_small_and_taken_otherwise(monkeypatch):
    needs = memory.of_weights(Shape((512, 1024), 1, False, 8, 0.0, 12.0), 1, copies=2)
    assert needs == 4 * (3 + 2) * Shape((512, 1024), 1, False, 8, 0.0, 12.0).parameters(1) > 4e8
    lines = with_memory(monkeypatch, needs / 4 - 1, network__channels=[512, 1024])
    assert lines[0].startswith("p: teachers.teacher.network.channels: a training of this network needs about ")
    assert not with_memory(monkeypatch, needs, network__channels=[512, 1024])


def test_a_transformer_that_is_too_large_is_made_smaller_by_its_own_keys(monkeypatch):
    raw = bad_params.shipped()
    keys = {"patch": 2, "width": 4096, "depth": 40, "heads": 4}
    raw["teachers"]["teacher"]["network"] = {"family": "dit", **keys}
    needs = memory.of_weights(dit.Shape(**keys), 1, copies=2)
    monkeypatch.setattr(memory, "of_machine", lambda: needs // 4 - 1)
    raw["evaluate"]["teacher"] = raw["evaluate"]["teacher"][:1]
    with pytest.raises(UserError) as caught:
        params.parse(raw, "p")
    (line,) = (line for line in str(caught.value).splitlines() if "network" in line.partition(" ")[2].partition(":")[0])
    assert line.startswith("p: teachers.teacher.network.width: a training of this network needs about ")
    assert line.endswith("; take less of width or depth")


def test_of_a_network_from_elsewhere_only_the_images_count(monkeypatch):
    assert with_memory(monkeypatch, 1e6, network__channels=[512, 1024])
    raw = bad_params.shipped()
    raw["teachers"]["teacher"] = {"from": "there"}
    params.parse(raw, "p")


def test_bfloat16_takes_half_of_what_is_kept():
    shape = Shape((16, 32), 1, False, 8, 0.0, 12.0)
    compute = params.read(ROOT / "params.yaml").compute
    found = dataclasses.replace(compute, precision="bf16"), dataclasses.replace(compute, precision="no")
    config = params.read(ROOT / "params.yaml").teachers["teacher"].fit
    half, whole = (bounds._training("teacher", config, shape, (1, 8, 8), each)[1] for each in found)
    images = memory.of_batch(None, (1, 8, 8), config.batch, config.batch)
    assert whole - images == 2 * (half - images) > 0


def test_a_machine_has_all_its_memory_however_much_of_it_is_free(monkeypatch):
    """A busy one takes the same parameters as an idle one."""
    says = {"SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096, "SC_PAGESIZE": 4096}
    monkeypatch.setattr(memory.os, "sysconf", says.__getitem__)
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    assert memory.of_machine() == 4_096_000


def test_the_gpus_of_a_machine_count_together_where_they_have_more(monkeypatch):
    import torch

    own = memory.of_machine()
    assert own > 10**8
    each = SimpleNamespace(total_memory=2 * own)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: each)
    assert memory.of_machine() == 6 * own
    each.total_memory = 1
    assert memory.of_machine() == own


def parts_of_all() -> dict:
    """The shipped parameters by section, every number that memory depends on another than the rest."""
    found = vars(params.read(ROOT / "params.yaml")).copy()

    def change(section: str, **values) -> None:
        found[section] = dataclasses.replace(found[section], **values)

    change("data", channels=3, size=5)
    change("text", dimension=7)
    change("features", channels=8, dimension=11, batch=13)
    change("evaluate", images=17, batch=19, fitted=dataclasses.replace(found["evaluate"].fitted, points=23, batch=29))
    change("gamma", batch=31)
    change("compute", precision="no")
    found["teachers"] = {"teacher": with_fit(found["teachers"]["teacher"], batch=42, accumulate=3, cores=2)}
    found["distill"] = {"cd": with_fit(found["distill"]["cd"], batch=52, accumulate=4)}
    return found


def with_fit(line, **numbers):
    return dataclasses.replace(line, fit=dataclasses.replace(line.fit, **numbers))


def shapes(found: dict) -> dict:
    return params._shapes(found["teachers"], found["distill"])


def test_what_every_number_takes_of_memory_is_counted():
    found = parts_of_all()
    shape, image = found["teachers"]["teacher"].network, (3, 5, 5)
    needs = {path: count for path, count, _, _ in bounds._needs(found, shapes(found))}
    assert needs == {
        "teachers.teacher.network.channels": memory.of_weights(shape, 3, copies=2),
        "teachers.teacher.batch": memory.of_batch(shape, image, 42, 7),
        "distill.cd.batch": memory.of_batch(shape, image, 52, 13),
        "text.dimension": 4 * 7,
        "features.channels": 16 * 19 * 8 * 8,
        "features.dimension": 16 * 11 * 11,
        "features.batch": 13 * (4 * 2 * 8 * 25 + 2 * 300),
        "evaluate.images": 17 * (2 * 300 + 8 * 11),
        "evaluate.batch": 19 * 4 * 300,
        "data.draw.batch": 64 * 4 * 300,
        "evaluate.fitted.points": 8 * 23 * 23,
        "evaluate.fitted.batch": 29 * 23 * 300,
        "gamma.batch": 31 * 4 * 300,
    }
    own = {"cd": dataclasses.replace(found["distill"]["cd"], network={"channels": (64,)})}
    needs = {
        path: count for path, count, _, _ in bounds._needs(found | {"distill": own}, shapes(found | {"distill": own}))
    }
    smaller = dataclasses.replace(shape, channels=(64,))
    assert needs["distill.cd.network.channels"] == memory.of_weights(smaller, 3, copies=2)
    assert needs["distill.cd.batch"] == memory.of_batch(smaller, image, 52, 13)
    found["teachers"] = {"teacher": sections.Adopted(name="teacher", folder="there", conditional=False)}
    assert not [path for path, *_ in bounds._needs(found, shapes(found)) if "network" in path]
    assert bounds._trainings(found).keys() == {"distill.cd"}


def test_whatever_takes_more_than_four_times_the_memory_is_refused_by_its_name(monkeypatch):
    found = parts_of_all()
    for path, needs, _, remedy in bounds._needs(found, shapes(found)):
        for has, refused in (((needs - 1) // 4, True), (-(-needs // 4), False)):
            monkeypatch.setattr(memory, "of_machine", lambda has=has: has)
            lines = {line.partition(": ")[0]: line for line in bounds.of_machine(found, shapes(found))}
            assert (path in lines) == refused
            assert not refused or lines[path].endswith(f"and this machine has {memory.readable(has)}; {remedy}")


def test_images_are_as_large_as_can_be_known():
    data = params.read(ROOT / "params.yaml").data
    known = {"source": "digits"}, {"source": "folder:x"}, {"source": "folder:x", "size": 9}
    known += {"source": "digits", "channels": 3, "size": 16}, {"source": "shards:x", "channels": 3}
    sizes = [bounds._image(dataclasses.replace(data, **each)) for each in known]
    assert sizes == [(1, 8, 8), (1, 1, 1), (1, 9, 9), (3, 16, 16), (3, 1, 1)]


@pytest.mark.parametrize(("processors", "most"), [(None, 64), (2, 64), (8, 64), (9, 72), (100, 800)])
def test_threads_are_as_many_as_processors_could_use(monkeypatch, processors, most):
    monkeypatch.setattr(bounds.os, "cpu_count", lambda: processors)
    found = {**vars(params.read(ROOT / "params.yaml")), "distill": {}}
    for threads, count in ((most, 0), (most + 1, 1)):
        found["compute"] = dataclasses.replace(found["compute"], threads=threads)
        lines = list(bounds.of_machine(found, shapes(found)))
        assert len(lines) == count
        assert all(line.startswith(f"compute.threads: {most + 1} threads") for line in lines)


def test_the_batch_of_every_training_divides_into_its_parts():
    found = parts_of_all()
    found["teachers"] = {"teacher": with_fit(found["teachers"]["teacher"], accumulate=5)}
    found["distill"] = {"cd": with_fit(found["distill"]["cd"], accumulate=3)}
    assert [line.partition(" images")[0] for line in bounds.of_machine(found, shapes(found))] == [
        "teachers.teacher.accumulate: 42",
        "distill.cd.accumulate: 52",
    ]


def test_every_try_of_every_way_is_a_point(monkeypatch):
    """Lists are tried in all their combinations."""
    sampling = SimpleNamespace(steps=[], trajectory="own", deepcache=None, skip=None, guidance=None)
    full = {"steps": [1, 2], "trajectory": ["uniform"] * 3, "deepcache": [0] * 5, "skip": [0] * 7, "guidance": [0] * 11}
    for names in [(name,) for name in full] + [tuple(full)]:
        samplings = [
            ("a", "", sampling),
            ("b", "", SimpleNamespace(**vars(sampling) | {name: full[name] for name in names})),
        ]
        points = 1 + math.prod(len(full[name]) for name in names)
        for most, told in ((points, []), (points - 1, ["b"])):
            monkeypatch.setattr(bounds, "POINTS", most)
            assert [line.partition(":")[0] for line in bounds.of_samplings(iter(samplings))] == told
    monkeypatch.setattr(bounds, "POINTS", 1)
    assert len(list(bounds.of_samplings(iter([("a", "", sampling), ("b", "", sampling), ("c", "", sampling)])))) == 1


def test_bytes_are_said_as_people_say_them():
    said = {0: "0 bytes", 999: "999 bytes", 25_300_000_000: "25.3 GB", 3_200_000_000_000: "3.2 TB", 10**18: "1e+03 PB"}
    assert {count: memory.readable(count) for count in said} == said


# ------------------------------------------------------------------------------- ways in


@pytest.mark.parametrize(
    "text",
    [
        "compute.memory_gb=.inf",
        "teacher.lr=.nan",
        "seed=[[[",
        "seed=*x",
        "a..b=1",
        "=1",
        "seed",
        "publish.model=a/b",
        "7=1",
    ],
)
def test_a_change_on_the_command_line_is_refused_as_in_the_file(tmp_path, monkeypatch, text):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        workspace.make(tmp_path / "w", None, [text])
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a list", "a picture", "deep braces", "a bomb of aliases", "a day that is none"])
def test_a_preset_is_read_as_strictly(tmp_path, monkeypatch, name):
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "odd.yaml").write_bytes(bad_params.FILES[name][0])
    monkeypatch.setattr(workspace, "PRESETS", presets)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        workspace.make(tmp_path / "w", "odd", [])
    assert str(caught.value).isprintable()
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_the_command_line_survives_the_worst_of_them(tmp_path):
    (tmp_path / "params.yaml").write_bytes(bad_params.FILES["deep brackets"][0])
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "error: params.yaml is nested more than 40 deep; no parameters are\n")


@pytest.mark.parametrize("value", ["test", "0.1", True, {}])
def test_a_value_that_may_be_of_several_kinds_is_refused_in_one_line(value):
    faults = []
    typed.typed(Split, {"holdout": value}, "data.split", faults)
    (line,) = faults
    assert line.startswith("data.split.holdout: ")
    assert "array" in line
    assert "number" in line


# ------------------------------------------------------------------------------- just within


def test_a_file_of_the_greatest_length_is_read_and_a_longer_one_is_not(tmp_path):
    path = tmp_path / "p.yaml"
    text = "a: 1\n#"
    path.write_text(text + "x" * (strict_yaml.LONGEST - len(text)))
    assert strict_yaml.load_yaml(path) == {"a": 1}
    path.write_text(text + "x" * (strict_yaml.LONGEST - len(text) + 1))
    with pytest.raises(UserError, match=f"is longer than {2**18} bytes"):
        strict_yaml.load_yaml(path)


def test_brackets_within_brackets_are_counted():
    deep = strict_yaml.DEEPEST - 1
    assert strict_yaml.parse_yaml("[" * deep + "]" * deep, "x") is not None
    for text in ("[" * (deep + 1) + "]" * (deep + 1), "{a: " * (deep + 1) + "1" + "}" * (deep + 1)):
        with pytest.raises(UserError, match=r"^x is nested more than 40 deep"):
            strict_yaml.parse_yaml(text, "x")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (2**63 - 1, None),
        (2**63, "is a number of more than 64 bits"),
        (-(2**63), None),
        (-(2**63) - 1, "is a number of more than 64 bits"),
        ("a\nb\tc \u30c6", None),
        ("a\rb", "holds a control character"),
        ("\x00", "holds a control character"),
        (1e308, None),
        (None, None),
        (True, None),
        (b"x", "is a bytes"),
    ],
)
def test_what_a_parameter_may_be(value, fault):
    """Wherever it stands."""
    for path, inside in (("s", value), ("s.a", {"a": value}), ("s.a.1.b", {"a": [0, {"b": value}]})):
        found = list(strict_yaml.strange("s", inside))
        assert len(found) == (fault is not None)
        assert all(line.startswith(f"{path}: {fault}") for line in found)


@pytest.mark.parametrize(
    ("key", "fine"), [("a", True), ("k" * 100, True), ("k" * 101, False), ("", False), ("a\n", False), (1, False)]
)
def test_what_a_key_may_be(key, fine):
    assert (strict_yaml.bad_key(key) is None) == fine
    assert (list(strict_yaml.strange("s", [{"a": {key: 1}}])) == []) == fine
    assert fine or next(strict_yaml.strange("s", [{"a": {key: 1}}])).startswith("s.0.a: the key ")


def test_what_is_written_is_read_again_in_its_own_order_and_tongue(tmp_path):
    value = {"z": 1, "a": {"y": [1.5, None, True, "on", "1e-4"], "b": "\u30c6: #"}, "m": {}}
    strict_yaml.dump_yaml(value, tmp_path / "p.yaml")
    found = strict_yaml.load_yaml(tmp_path / "p.yaml")
    assert found == value
    assert [list(found), list(found["a"])] == [["z", "a", "m"], ["y", "b"]]
    assert len((tmp_path / "p.yaml").read_text().splitlines()) > 5  # a line for each, as people write it
