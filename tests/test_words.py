"""The verbs that look at, draw, compare, promote and hand out what was trained."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from diffcore import checkpoints, exports
from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.denoisers.condition import CLASS, of_classes
from diffcore.denoisers.network import NetDenoiser
from diffcore.exports import onnx
from diffcore.metrics import bootstrap, measured
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.nets.conditioned import with_guidance
from diffcore.noise.schedule import Cosine
from diffcore.sampling import sampler_of
from tasks import card, command, compare, export, named, params, paths, report, sample
from tasks.pictures import grids
from tasks.tracking import registered
from tasks.tracking.artifacts import Artifacts
from tasks.tracking.artifacts import read as artifacts_of
from tasks.tracking.client import explained, open_experiment
from tasks.tracking.models import register, with_weights
from tests.conftest import seeded
from tests.test_checkpoint import ABOUT
from tests.test_measure import up_to_frontier
from tests.test_tracking import free_port
from tests.test_unet import FAMILY, stirred


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> tuple[Path, params.Params]:
    """A project of conditional checkpoints up to its frontier."""
    folder = tmp_path_factory.mktemp("project")
    return folder, up_to_frontier(folder, 2, True)


@pytest.fixture
def here(project, monkeypatch) -> params.Params:
    monkeypatch.chdir(project[0])
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    return project[1]


def refused(*words: str, capsys) -> str:
    """The one line with which the command line refuses; nothing lies anywhere that did not before."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if "__pycache__" not in path.parts}
    capsys.readouterr()
    assert command.main(list(words)) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1, printed.err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if "__pycache__" not in path.parts} == before
    return printed.err.strip()


# ------------------------------------------------------------------------------- report, card


@pytest.mark.slow
def test_the_frontier_as_json_is_what_the_file_holds_and_where_to_look(here, capsys):
    assert command.main(["report", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    frontier = Frontier.read(paths.FRONTIER, "")
    assert Frontier.from_json(value) == frontier
    with Image.open(value["picture"]) as picture:
        assert picture.width > 100
    assert Path(value["samples"]).is_file()
    assert checkpoints.read_card(Path(value["checkpoint"])).digest == frontier.recommended.point.checkpoint_digest
    report.report()
    assert value["picture"] in capsys.readouterr().out


def test_a_card_is_printed_after_every_file_was_checked(here, capsys, tmp_path):
    assert command.main(["card", "v", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((paths.CHECKPOINTS / "v/card.json").read_text())
    card.show("v-ddim-uniform-3")
    text = capsys.readouterr().out
    assert "artifacts/checkpoints/v: whole" in text
    assert "  classes           class0, class1\n" in text
    weights = paths.CHECKPOINTS / "v" / checkpoints.verified.WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert "is damaged: its sha256 does not fit the card" in refused("card", "v", capsys=capsys)
    finally:
        weights.write_bytes(content)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("cd-multistep-consistency-fited-2", "did you mean cd-multistep-consistency-fitted-2?"),
        ("teachr", "did you mean teacher?"),
        ("artifacts", "is not a checkpoint: it has no card.json"),
        ("nowhere/at/all", "there is no point, checkpoint or folder 'nowhere/at/all'"),
    ],
)
def test_what_is_called_otherwise_is_refused_with_the_nearest_name(here, capsys, word, line):
    for words in (["card", word], ["sample", word, "--out", "x.png"], ["export", word, "x"], ["compare", "v", word]):
        assert line in refused(*words, capsys=capsys)


def test_a_point_a_checkpoint_and_a_folder_are_told_apart(here):
    assert named.find("v").point is None
    assert named.find("artifacts/checkpoints/v").folder == Path("artifacts/checkpoints/v")
    assert named.find("v-ddim-uniform-3").point.name == "v-ddim-uniform-3"


# ------------------------------------------------------------------------------- sample


def drawn(*words: str) -> np.ndarray:
    Path("out.npz").unlink(missing_ok=True)
    try:
        assert command.main(["sample", *words, "--out", "out.npz"]) == 0
        with np.load("out.npz") as arrays:
            return arrays["arr_0"]
    finally:
        Path("out.npz").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name",
    [
        "teacher-analytic-least-cost-2",
        "teacher-ddim-cache2b0-uniform-4",
        "v-ddim-fitted-3",
        "cd-multistep-consistency-fitted-2",
    ],
)
def test_a_point_is_drawn_as_it_was_measured(here, name):
    """Noise that a solver adds, what a cache keeps, times that were fitted."""
    first = measured.read(paths.POINTS / name.partition("-")[0], "")[2][name].numpy()
    np.testing.assert_array_equal(drawn(name, "--images", str(here.evaluate.images))[: len(first)], first)


def test_a_seed_is_another_noise_and_the_first_images_do_not_depend_on_how_many(here):
    few, many = drawn("v-ddim-uniform-3", "--images", "3"), drawn("v-ddim-uniform-3", "--images", "7")
    np.testing.assert_array_equal(few, many[:3])
    assert not np.array_equal(few, drawn("v-ddim-uniform-3", "--images", "3", "--seed", "1"))


def test_classes_are_asked_for_by_name_or_number_in_turn(here, capsys):
    by_name = drawn("v", "--steps", "2", "--images", "4", "--classes", "class1,class0")
    np.testing.assert_array_equal(by_name, drawn("v", "--steps", "2", "--images", "4", "--classes", "1, 0"))
    checkpoint = checkpoints.load(paths.CHECKPOINTS / "v")
    condition = sample.Drawable("v", checkpoint, sample.recipes.own_recipe(checkpoint), sampler_of(checkpoint, 2))
    ours = condition.draw(here, 4, here.evaluate.seed, {CLASS: torch.tensor([1, 0, 1, 0])})
    np.testing.assert_array_equal(by_name, sample.feed.to_uint8(ours).permute(0, 2, 3, 1).numpy())
    assert "knows no class 'class2'; there are class0, class1" in refused(
        "sample", "v", "--steps", "2", "--out", "x.png", "--classes", "class2", capsys=capsys
    )


def test_guidance_of_one_changes_nothing_and_more_does(here):
    plain = drawn("v", "--steps", "2", "--images", "3")
    np.testing.assert_allclose(
        plain.astype(int), drawn("v", "--steps", "2", "--images", "3", "--guidance", "1"), atol=1
    )
    assert not np.array_equal(plain, drawn("v", "--steps", "2", "--images", "3", "--guidance", "4"))


def test_a_grid_a_folder_and_arrays_hold_the_same_images(here, tmp_path):
    for target in (tmp_path / "a.png", tmp_path / "a.npz", tmp_path / "a"):
        assert command.main(["sample", "v-ddim-uniform-3", "--images", "5", "--out", str(target)]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (5, 4, 4, 1)
    assert set(labels) <= {0, 1}
    np.testing.assert_array_equal(grids.tiles(tmp_path / "a.png"), images)
    files = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in files] == [f"{number:06d}.png" for number in range(5)]
    for path, image in zip(files, images, strict=True):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture)[..., None], image)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["teacher"], "teacher is valid at any time; say how many steps (--steps K)"),
        (["v-ddim-uniform-3", "--steps", "3"], "is a point and has its own steps"),
        (["v-ddim-uniform-3", "--guidance", "2"], "is a point and has its own guidance"),
        (["v", "--steps", "2", "--format", "gif"], "--format gif: there are grid, png, npz"),
        (["v", "--steps", "2", "--images", "0"], "invalid value for '--images'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(here, capsys, words, line):
    assert line in refused("sample", *words, "--out", "x.png", capsys=capsys)


@pytest.mark.parametrize("words", [["sample", "v", "--steps", "2", "--out"], ["export", "v"]])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_target_that_exists_stays_as_it_is(here, capsys, words, kind, tmp_path):
    target = tmp_path / "there"
    {"file": target.touch, "folder": target.mkdir, "link": lambda: target.symlink_to("nowhere")}[kind]()
    assert f"{target} exists and is not replaced" in refused(*words, str(target), capsys=capsys)


# ------------------------------------------------------------------------------- compare


def test_two_points_are_compared_as_they_were_measured(here, capsys):
    first, second = "teacher-ddim-uniform-3", "v-ddim-uniform-3"
    assert command.main(["compare", first, second]) == 0
    text = capsys.readouterr().out
    points = named.points()
    for name in ("fd", "kid"):
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:3] == [points[each].metrics[name].plus_minus() for each in (first, second)]
    assert text.splitlines()[-1].startswith((first, second, "no difference beyond error"))


def test_a_comparison_as_json_is_what_the_table_says(here, capsys):
    words = ["compare", "teacher-ddim-uniform-3", "v-ddim-uniform-3", "--images", "12", "--seed", "5"]
    assert command.main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (value["names"], value["images"], value["seed"]) == (words[1:3], 12, 5)
    assert lines[0] == (
        f"12 samples each from noise seed 5, {value['real_images']} real images, feature network {value['features'][:12]}"
    )
    assert lines[-1] == value["verdict"]
    for name, each in value["distances"].items():
        line = next(line for line in lines if line.split()[:1] == [name])
        numbers = [Estimate(**each[key]).plus_minus() for key in ("first", "second", "difference")]
        assert [cell.removeprefix("+") for cell in line.split()[1:]] == numbers
    assert lines[-3].endswith(Estimate(**value["rmse"]).plus_minus())


def test_a_checkpoint_against_itself_is_no_difference(here, capsys):
    compare.compare(here, ("v", "v-ddim-uniform-3"), steps=3)
    assert capsys.readouterr().out.splitlines()[-1] == "no difference: v and v-ddim-uniform-3 make the same images"


def other(folder: Path, **changes) -> Path:
    """A copy of a checkpoint whose card says something else, sealed."""
    shutil.copytree(paths.CHECKPOINTS / "v", folder)
    changed = dataclasses.replace(checkpoints.read_card(folder), **changes)
    changed = dataclasses.replace(changed, seal=changed.sealed())
    (folder / "card.json").write_text(json.dumps(dataclasses.asdict(changed)))
    return folder


def test_what_is_not_comparable_is_refused(here, capsys, tmp_path):
    smaller, elsewhere = other(tmp_path / "a", image=[1, 2, 2]), other(tmp_path / "b", data="0" * 64)
    line = refused("compare", "v", str(smaller), "--steps", "2", capsys=capsys)
    assert "v makes images of shape [1, 4, 4]" in line
    line = refused("compare", "v", str(elsewhere), "--steps", "2", capsys=capsys)
    assert f"{elsewhere} was trained on other images (000000000000)" in line
    line = refused("compare", "v-ddim-uniform-3", "v-ddim-uniform-2", "--steps", "2", capsys=capsys)
    assert "have steps of their own; leave --steps out" in line


# ------------------------------------------------------------------------------- export


TRACED = [
    pytest.param(form, marks=pytest.mark.slow) for form in ("torch_export", "onnx")
]  # torch takes seconds to trace


@pytest.mark.parametrize("form", ["safetensors", *TRACED])
def test_an_export_says_what_our_network_says_for_any_number_of_images(here, tmp_path, form, capsys):
    target = tmp_path / "out"
    export.export(here, "v", target, form)
    assert "outputs differ by" in capsys.readouterr().out
    checkpoint = checkpoints.load(paths.CHECKPOINTS / "v")
    call = exports.formats()[form].open(checkpoint, target)
    with torch.inference_mode():
        for count in (1, 5):
            inputs = exports.example(checkpoint, count)
            torch.testing.assert_close(call(*inputs), checkpoint.denoiser.net(*inputs), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_for_diffusers_is_a_whole_checkpoint_with_a_model_card(here, tmp_path):
    target = tmp_path / "out"
    export.export(here, "v-ddim-uniform-3", target)
    assert checkpoints.verify(target) == checkpoints.read_card(paths.CHECKPOINTS / "v")
    text = (target / "README.md").read_text()
    point = named.points()["v-ddim-uniform-3"]
    assert f"| {point.nfe:g} | {point.metrics['fd'].plus_minus(' +- ')} |" in text
    assert "The licence of the data is not stated." in text
    assert point.checkpoint_digest in text
    assert (target / "frontier.png").read_bytes() == export.PICTURE.read_bytes()
    assert "](frontier.png)" in text
    assert "Licence of the data: CC0." in export.readme(named.find("v"), "CC0")


@pytest.mark.parametrize("says", ["flow", "x0_eps"])
def test_a_model_card_names_no_pipeline_that_would_refuse_to_sample(here, monkeypatch, says):
    """But a loop of its own, at the times of the point."""
    each = named.find("v-ddim-uniform-3")
    plain = dataclasses.replace(each.card, classes=None)
    monkeypatch.setattr(named.Named, "card", property(lambda _: plain))
    assert "images = pipeline(batch_size=16, num_inference_steps=3).images" in export.readme(each, None)
    says_so = dataclasses.replace(plain, parameterization=says)
    monkeypatch.setattr(named.Named, "card", property(lambda _: says_so))
    text = export.readme(each, None)
    assert "Pipeline" not in text
    assert text.count("\n    (") == 3
    assert 'UNet2DModel.from_pretrained("PATH", subfolder="unet")' in text


def test_a_model_card_of_a_network_that_diffusers_lacks_says_how_it_is_called(here, monkeypatch):
    each = named.find("v-ddim-uniform-3")
    plain = dataclasses.replace(each.card, classes=None)
    monkeypatch.setattr(named.Named, "card", property(lambda _: plain))
    assert "library_name: diffusers\n" in export.readme(each, None)
    monkeypatch.setattr(export.nets, "read_config", lambda folder: {"_class_name": "DiT"})
    text = export.readme(each, None)
    assert "library_name" not in text
    assert "Pipeline" not in text
    assert "diffusers has no class for a `DiT`. Call the network as `net(x, timestep)`; timestep is 1024 t - 1." in text
    informed = dataclasses.replace(plain, classes=["a"], guidance=dataclasses.asdict(checkpoints.Guidance(1.0, 2.0)))
    monkeypatch.setattr(named.Named, "card", property(lambda _: informed))
    assert "`net(x, timestep, class_labels, guidance)`" in export.readme(each, None)


@pytest.mark.parametrize("form", ["diffusers", "safetensors", *TRACED])
def test_an_export_that_says_something_else_is_removed_and_says_by_how_much(here, tmp_path, monkeypatch, form):
    kind = type(exports.formats()[form])
    whole = kind.open

    def off(self, checkpoint, new):
        call = whole(self, checkpoint, new)
        return lambda *inputs: call(*inputs) * (1 + 3e-5)

    monkeypatch.setattr(kind, "open", off)
    with pytest.raises(UserError, match="differs from it by 3e-05 of its largest output, more than 1e-05; nothing was"):
        export.export(here, "v", tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused_with_the_nearest(here, capsys):
    line = refused("export", "v", "x", "--format", "difusers", capsys=capsys)
    assert "there are diffusers, onnx, safetensors, torch_export; did you mean diffusers?" in line


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_its_packages_is_one_line_with_the_command(here, capsys, monkeypatch, name):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda package: None if package == name else True)
    line = refused("export", "v", "x.onnx", "--format", "onnx", capsys=capsys)
    assert f"--format onnx needs {name}, which is not installed: pip install 'distill[onnx]'" in line


def test_a_network_that_no_onnx_file_can_hold_is_refused(here, capsys, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    assert "and an ONNX file holds 2 at most; choose another" in refused(
        "export", "v", "x.onnx", "--format", "onnx", capsys=capsys
    )


def guided(folder, classes: int | None = 4) -> NetDenoiser:
    """A student of weights from 1 to 4, as a checkpoint."""
    net = with_guidance(stirred(FAMILY["classes" if classes else "default"]))
    with torch.no_grad():
        for parameter in net.guidance_embedding.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    denoiser = NetDenoiser(net.eval(), Cosine(), classes=classes, takes_guidance=True)
    guidance = dataclasses.asdict(checkpoints.Guidance(1.0, 4.0))
    about = {**ABOUT, "classes": classes and [*"abcd"], "guidance": guidance, "name": "x", "solver": "ddim"}
    checkpoints.save(folder, denoiser, (1, 8, 8), about)
    return denoiser


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_one_weight_of_guidance_is_built_into_an_export(here, tmp_path, weight):
    """diffusers opens it and says what the student says at that weight; the checkpoint in the folder stays."""
    student = guided(paths.CHECKPOINTS / "x")
    before = checkpoints.read_card(paths.CHECKPOINTS / "x")
    export.export(here, "x", tmp_path / "out", guidance=weight)
    card_ = checkpoints.read_card(tmp_path / "out")
    assert card_.guidance == {"low": weight, "high": weight, "convention": card_.guidance["convention"]}
    assert (card_.parent, card_.name, card_.cost) == (before.digest, "x", before.cost)
    assert checkpoints.read_card(paths.CHECKPOINTS / "x") == before
    assert "as an input" not in (tmp_path / "out/README.md").read_text()
    x, t, labels = torch.randn(3, 1, 8, 8, generator=seeded(2)), torch.tensor([0.2, 0.6, 1.0]), torch.tensor([0, 3, -1])
    told = student.with_condition(of_classes(labels, torch.full((3,), weight).double()))
    plain = checkpoints.load(tmp_path / "out").denoiser.with_condition(of_classes(labels))
    torch.testing.assert_close(plain(x, t.double()).x0, told(x, t.double()).x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("weight", "fault"), [(9.0, "guidance weight of 1 to 4, not for 9"), (0.5, "not for 0.5")])
def test_a_weight_that_was_not_learned_is_built_into_nothing(here, tmp_path, weight, fault):
    guided(paths.CHECKPOINTS / "x")
    with pytest.raises(UserError, match=fault):
        export.export(here, "x", tmp_path / "out", guidance=weight)
    with pytest.raises(UserError, match="v takes no weight of guidance as an input, so none can be built in"):
        export.export(here, "v", tmp_path / "out", guidance=weight)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, 4])
def test_onnx_names_its_inputs_and_carries_the_card(tmp_path, classes):
    """A network with a guidance weight as an input, which diffusers has no class for."""
    import onnxruntime

    guided(tmp_path / "x", classes)
    card_ = checkpoints.read_card(tmp_path / "x")
    assert exports.export(tmp_path / "x", tmp_path / "x.onnx", "onnx", "read me") < exports.TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    names = ["x", "timestep", *(["class_labels"] if classes else []), "guidance"]
    assert [each.name for each in session.get_inputs()] == names
    assert all(isinstance(each.shape[0], str) for each in session.get_inputs())
    words = session.get_modelmeta().custom_metadata_map
    assert (json.loads(words["card"])["digest"], words["readme"]) == (card_.digest, "read me")


def test_a_network_that_makes_another_shape_is_no_export_at_all(here):
    checkpoint = checkpoints.load(paths.CHECKPOINTS / "v")
    assert exports.largest_gap(checkpoint, lambda x, *others: to_float(torch.zeros(1))) == float("inf")


# ------------------------------------------------------------------------------- aliases of the registered model


HELD = {"challenger": "v-ddim-fitted-3", "best_quality": "teacher-analytic-least-cost-2", "cd": "v-ddim-fitted-3"}
"""Aliases with their points; one is called as a checkpoint is."""


class Picked(Artifacts):
    """What was picked, whatever the rule says."""

    @property
    def picks(self):
        by_name = {point.name: point for point in self.frontier.points}
        return {alias: by_name[name] for alias, name in HELD.items()}


@pytest.fixture(scope="module")
def store(project, tmp_path_factory, fresh_store) -> str:
    """The address of a database in which the points of HELD are registered as `publish` registers them."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(fresh_store, folder / "mlflow.db")
    address = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project[0])
        patch.setenv("MLFLOW_TRACKING_URI", address)
        whole = artifacts_of(Path("artifacts"), project[1].raw)
        artifacts = Picked(**vars(whole))
        with explained(address):
            experiment = open_experiment(address, "distill", [])
            with mlflow.start_run(experiment_id=experiment.id):
                models = {p.name: mlflow.get_logged_model(with_weights(artifacts, p)) for p in artifacts.picks.values()}
            experiment.client.create_registered_model("sampler")
            register(experiment, artifacts, "sampler", models)
    return address


@pytest.fixture
def aliases(here, store, monkeypatch) -> params.Params:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return here


def seen_by(monkeypatch) -> list[str]:
    """What is asked of a store from here on, as if it were on another machine."""
    import mlflow.artifacts

    asked, plain = [], mlflow.artifacts.download_artifacts
    monkeypatch.setattr(registered, "local_folder", lambda location: None)
    monkeypatch.setattr(
        mlflow.artifacts, "download_artifacts", lambda **words: asked.append(words["artifact_uri"]) or plain(**words)
    )
    return asked


mlflows = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore:unclosed database:ResourceWarning",
)


@pytest.mark.slow
@mlflows
@pytest.mark.parametrize("alias", ["challenger", "@challenger", "@cd", "best_quality"])
def test_an_alias_is_drawn_as_its_point_and_as_mlflow_serves_it(aliases, alias):
    import mlflow

    name = HELD[alias.removeprefix("@")]
    words = ["--images", "6", "--seed", "4", "--classes", "0,1"]
    ours = drawn(alias, *words)
    np.testing.assert_array_equal(ours, drawn(name, *words))
    served = mlflow.pyfunc.load_model(f"models:/sampler@{alias.removeprefix('@')}")
    np.testing.assert_array_equal(ours, served.predict({"num_images": [6]}, {"seed": 4}))
    assert not np.array_equal(ours, drawn(name, *words[:2], "--seed", "5", *words[4:]))


@mlflows
def test_what_lies_here_comes_before_an_alias_of_the_same_name(aliases):
    assert named.find("cd").registered is None
    assert named.find("cd").folder == paths.CHECKPOINTS / "cd"
    alias = named.find("@cd")
    assert (alias.registered.tags["point"], alias.point.name) == ("v-ddim-fitted-3", "v-ddim-fitted-3")


@mlflows
def test_the_other_verbs_take_an_alias_and_say_what_it_stands_for(aliases, capsys, tmp_path):
    stands = "'sampler', v-ddim-fitted-3"
    assert command.main(["card", "challenger"]) == 0
    assert stands in capsys.readouterr().out.splitlines()[0]
    assert command.main(["export", "challenger", str(tmp_path / "out")]) == 0
    assert stands in capsys.readouterr().out
    assert checkpoints.verify(tmp_path / "out") == checkpoints.read_card(paths.CHECKPOINTS / "v")
    assert "Point `v-ddim-fitted-3`, " in (tmp_path / "out/README.md").read_text()
    assert command.main(["compare", "challenger", "v-ddim-fitted-3", "--images", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(stands)
    assert lines[-1] == "no difference: challenger and v-ddim-fitted-3 make the same images"


@mlflows
def test_a_model_of_a_store_elsewhere_is_fetched_once(aliases, monkeypatch, tmp_path):
    wanted = drawn("challenger")
    monkeypatch.setattr(registered, "FETCHED", tmp_path / "registered")
    asked = seen_by(monkeypatch)
    for _ in range(2):
        np.testing.assert_array_equal(drawn("challenger"), wanted)
    assert len(asked) == 1
    assert named.find("challenger").folder.is_relative_to(tmp_path / "registered")


@mlflows
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("production", "there is no point, checkpoint or folder 'production'; there are "),
        ("@production", "no version holds the alias 'production'; "),
    ],
)
def test_an_alias_that_nobody_holds_is_refused_with_those_that_there_are(aliases, capsys, word, line):
    listing = "the aliases of 'sampler' in MLflow are best_quality, cd, challenger"
    for words in (["card", word], ["sample", word, "--out", "x.png"], ["export", word, "x"], ["compare", "v", word]):
        refusal = refused(*words, capsys=capsys)
        assert line in refusal
        assert refusal.endswith(listing)
    assert "is an alias and has its own steps; leave --steps out, or name the checkpoint v" in refused(
        "sample", "challenger", "--out", "x.png", "--steps", "3", capsys=capsys
    )


@mlflows
def test_an_mlflow_that_has_no_model_or_does_not_answer_is_one_line(here, capsys, monkeypatch, tmp_path, fresh_store):
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert "the aliases of 'sampler' in MLflow are none yet" in refused("card", "production", capsys=capsys)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for word in ("production", "@production"):
        assert "does not answer" in refused("card", word, capsys=capsys)
    assert command.main(["card", "v"]) == 0  # of what lies here nobody is asked


@mlflows
@pytest.mark.parametrize(
    ("file", "before", "after"),
    [("MLmodel", b"times:", b"times: "), ("artifacts/v/card.json", b'"name"', b'"Name"')],
)
def test_a_damaged_model_is_not_drawn(aliases, capsys, file, before, after):
    folder = named.find("challenger").folder.parents[1]
    content = (folder / file).read_bytes()
    assert before in content
    (folder / file).write_bytes(content.replace(before, after, 1))
    try:
        line = refused("sample", "challenger", "--out", "x.png", capsys=capsys)
        assert "of 'sampler' is damaged in MLflow (a file of it was changed); run `distill publish`" in line
    finally:
        (folder / file).write_bytes(content)


@mlflows
@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ({"digest": "0" * 64}, "is damaged in MLflow (its card is another than was registered)"),
        ({"recipe": "{}"}, "is damaged in MLflow (its recipe is another than was registered)"),
        ({"damaged": "yes"}, "is damaged in MLflow; run `distill publish`"),
        ({"point": None}, "is no sampler that `distill publish` registered"),
    ],
)
def test_a_version_that_is_not_what_it_says_is_refused(aliases, monkeypatch, tags, line):
    version = named.find("challenger").registered
    changed = {key: value for key, value in (version.tags | tags).items() if value is not None}
    from mlflow import MlflowClient

    plain = MlflowClient.get_model_version

    def other_tags(*words):
        there = plain(*words)
        there.tags.clear()
        there.tags.update(changed)
        return there

    monkeypatch.setattr(MlflowClient, "get_model_version", other_tags)
    with pytest.raises(UserError) as caught:
        named.find("challenger")
    assert line in str(caught.value)


# ------------------------------------------------------------------------------- the registered model elsewhere


LISTED_ALONE = """
import json, sys
from importlib.metadata import packages_distributions
from pathlib import Path

listed, folder = set(json.loads(sys.argv[1])), Path(sys.argv[2])
there = {name: {each.lower().replace("_", "-") for each in owners} for name, owners in packages_distributions().items()}
hidden = {name for name, owners in there.items() if not owners & listed} - {"diffcore"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "")]
sys.path[:] = [path for path in sys.path if not (Path(path or ".") / "diffcore").exists()]
import mlflow, numpy
images = mlflow.pyfunc.load_model(str(folder)).predict({"num_images": [4]}, {"seed": 2})
import diffcore
assert Path(diffcore.__file__).is_relative_to(folder), diffcore.__file__
numpy.save(sys.argv[3], images)
"""


def required(names: list[str]) -> set[str]:
    """Distributions and all that they require, without extras."""
    todo, done = list(names), set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in done:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        done.add(name)
        wanted = map(Requirement, lines)
        todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return done


def loaded_with(names: list[str], folder: Path, target: Path) -> subprocess.CompletedProcess:
    """Another process loads the model and draws, with nothing to import but these packages and what they require."""
    words = [json.dumps(sorted(required(names))), str(folder), str(target)]
    surroundings = {"PATH": os.defpath, "HOME": str(target.parent)}
    return subprocess.run(
        [sys.executable, "-c", LISTED_ALONE, *words],
        cwd=target.parent,
        env=surroundings,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@mlflows
def test_a_registered_model_loads_where_nothing_is_but_what_it_lists(aliases, tmp_path):
    folder = named.find("challenger").folder.parents[1].resolve()
    listed = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    done = loaded_with(listed, folder, tmp_path / "theirs.npy")
    assert done.returncode == 0, done.stderr
    ours = drawn("challenger", "--images", "4", "--seed", "2", "--classes", "0,1")
    np.testing.assert_array_equal(np.load(tmp_path / "theirs.npy"), ours)


@mlflows
@pytest.mark.slow
def test_the_test_above_can_fail(aliases, tmp_path):
    folder = named.find("challenger").folder.parents[1].resolve()
    missing = loaded_with(["mlflow", "torch", "numpy"], folder, tmp_path / "none.npy")
    assert "No module named 'safetensors'" in missing.stderr
