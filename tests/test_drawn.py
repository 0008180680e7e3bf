"""A teacher draws the data: each image from its own noise, class and prompt, in whatever batch, and whoever is killed."""

import copy
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints import from_diffusers
from diffcore.checkpoints.adopted import Stated
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.core.shapes import CLASS
from diffcore.data import drawn, prompt_file, read
from diffcore.data.config import Config, TeacherSampling
from diffcore.data.feed import to_uint8
from diffcore.data.manifest import Manifest
from diffcore.data.write import write
from diffcore.denoisers.reading import Reading
from diffcore.metrics.frontier import Frontier
from diffcore.noise.schedule import Linear
from diffcore.noise.trajectory import uniform
from diffcore.sampling import teacher_images
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.teacher_images import TeacherImages
from diffcore.texts.encoders.words import Words
from tasks import export, params, paths, rules, stages, undrawn
from tests import test_frontier
from tests.test_adopt import network, save, told_texts

ROOT = Path(__file__).parent.parent
IMAGE = (1, 8, 8)
FEW = TeacherSampling(steps=2)
PROMPTS = ("a bold seven", "a pale nine", "a thin two")


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(teacher_images, "FILE", 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with the code and parameters by which the teacher in `theirs` draws seven images; `set` changes some."""
    for name in ("diffcore", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    raw = copy.deepcopy(params.load_yaml(ROOT / "params.yaml"))
    raw["teachers"] = {"teacher": {"from": "theirs"}}
    raw["data"] |= {"source": "teacher:7", "draw": {"steps": 2}}

    def change(**sections):
        for section, values in sections.items():
            raw[section] |= values
        params.dump_yaml(json.loads(json.dumps(raw)), paths.PARAMS)
        return params.read()

    return change


def draw(found) -> np.ndarray:
    """The images that the stage has drawn, uint8 [n, h, w, c]."""
    from tasks import draw as stage

    stage.draw(found)
    return np.concatenate([np.load(path)["images"] for path in sorted(paths.DRAWN.glob("*.npz"))])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def images(count: int = 7, **change) -> TeacherImages:
    """Of the teacher in `theirs`."""
    usual = {"teacher": from_diffusers.read(Path("theirs")), "shape": IMAGE, "sampling": FEW, "count": count, "seed": 0}
    return TeacherImages(**usual | change)


# ------------------------------------------------------------------------------- the images


def test_an_image_is_what_the_teacher_s_own_sampler_makes_of_its_noise(workspace):
    save(Path("theirs"), clip_sample=False)
    seen = draw(workspace())
    denoiser = from_diffusers.read(Path("theirs")).denoiser
    start = noises(IMAGE, 0, range(7), "data start")
    wanted = Recipe(SOLVERS["ddim"]()).of_network(denoiser, uniform(2)).sample(start)
    assert np.array_equal(seen, to_uint8(wanted).permute(0, 2, 3, 1).numpy())
    assert len({each.tobytes() for each in seen}) == 7


def test_no_image_is_what_measuring_draws_from_the_same_seed(workspace):
    """Else a teacher would be compared with its own samples."""
    workspace()
    save(Path("theirs"), clip_sample=False)
    one = images()
    assert float((one.draw(range(7)) - one.sampler.draw(IMAGE, 7, 0)).abs().flatten(1).mean(1).min()) > 0.1


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_an_image_depends_on_no_batch_no_file_and_no_number_of_images(workspace, sampler, monkeypatch):
    workspace()
    save(Path("theirs"), clip_sample=False)
    ways = []
    for batch, file, count in ((1, 3, 7), (4, 3, 7), (4, 5, 9)):
        monkeypatch.setattr(teacher_images, "FILE", file)
        one = images(count, sampling=TeacherSampling(sampler=sampler, steps=3, batch=batch))
        rows = [rows for _, rows in teacher_images._files(count)]
        assert [i for each in rows for i in each] == list(range(count))
        ways.append(torch.cat([one.draw(each) for each in rows])[:7])
    for way in ways[1:]:
        torch.testing.assert_close(way, ways[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(to_uint8(ways[1]), to_uint8(ways[0]))


def test_a_teacher_s_limits_of_x0_are_heeded(workspace):
    workspace()
    save(Path("theirs"), clip_sample_range=0.25)
    assert float(images().draw(range(4)).abs().max()) <= 0.25
    assert images().by["recipe"] == {"sampler": "ddim", "clip": 0.25}


def test_classes_come_in_turn_and_each_image_is_of_its_own(workspace):
    save(Path("theirs"), network(num_class_embeds=4), clip_sample=False)
    found = workspace(teachers={"teacher": {"from": "theirs", "conditional": True}})
    seen = draw(found)
    labels = np.concatenate([np.load(path)["labels"] for path in sorted(paths.DRAWN.glob("*.npz"))])
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    one, two = (
        images(classes=("a", "b", "c")),
        images(classes=("a", "b", "c"), sampling=TeacherSampling(steps=2, guidance=3.0)),
    )
    assert one.known(range(2, 5))[CLASS].tolist() == [2, 0, 1]
    assert np.array_equal(to_uint8(one.draw(range(7))).permute(0, 2, 3, 1).numpy(), seen)
    assert float((two.draw(range(7)) - one.draw(range(7))).abs().max()) > 1e-4
    manifest = write(found.data, paths.DATA, drawn=paths.DRAWN)
    assert manifest.classes == ("0", "1", "2")


# ------------------------------------------------------------------------------- prompts


def texts(source: str = "prompts.txt") -> dict:
    return {
        "data": {"captions": source},
        "text": {"encoder": "words", "dimension": 8},
        "teachers": {"teacher": {"from": "theirs", "inputs": ["text", "text_mask"]}},
        "evaluate": {"teacher": [{"sampler": "ddim", "trajectory": "uniform", "steps": [2]}]},
    }


def test_an_image_is_drawn_from_the_prompt_whose_turn_it_is_and_keeps_it_as_its_caption(workspace):
    save(Path("theirs"), told_texts(), clip_sample=False)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    found = workspace(**texts())
    seen = draw(found)
    one = images(prompts=PROMPTS, encoder=Words(4, dimension=8), inputs=("text", "text_mask"))
    told, own = one.known(range(2, 5)), Words(4, dimension=8).encode([PROMPTS[2], PROMPTS[0], PROMPTS[1]])
    assert set(told) == {"text", "text_mask"}
    assert all(torch.equal(told[name], own[name]) for name in told)
    assert np.array_equal(to_uint8(one.draw(range(7))).permute(0, 2, 3, 1).numpy(), seen)
    write(found.data, paths.DATA, drawn=paths.DRAWN)
    assert list(itertools.chain.from_iterable(read.captions(paths.DATA))) == [PROMPTS[i % 3] for i in range(7)]
    turned = images(prompts=PROMPTS[::-1], encoder=Words(4, dimension=8), inputs=("text", "text_mask"))
    assert float((turned.draw(range(3)) - one.draw(range(3))).abs().max()) > 1e-4


TABLES = {
    "a.txt": "a cat\n\ta  dog \n",
    "a.csv": "prompt,seed\na cat,1\na dog,2\n",
    "b.csv:words": "words,prompt\na cat,1\na dog,2\n",
    "a.jsonl": '{"text": "a cat"}\n{"text": "a dog"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_prompts_come_from_lines_or_a_column(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name.partition(":")[0]).write_text(TABLES[name])
    assert prompt_file.is_file(name)
    assert prompt_file.read(name) == ["a cat", "a dog"]


def test_prompts_come_from_a_parquet_file(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"seed": [1, 2], "caption": ["a cat", "a dog"]}), tmp_path / "a.parquet")
    assert prompt_file.read(f"{tmp_path}/a.parquet") == ["a cat", "a dog"]
    with pytest.raises(UserError, match="has no column 'x'; it has seed, caption: name one, as in "):
        prompt_file.read(f"{tmp_path}/a.parquet:x")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        prompt_file.read(f"{tmp_path}/a.parquet")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", None, "there is no file a.txt; name one with a prompt on each line"),
        ("a.txt", "", "a.txt holds no prompt; write one on each line"),
        ("a.txt", "a\n\nb\n", "a.txt has nothing in row 2; write a prompt, or take the row out"),
        ("a.csv", "a,b\n1,2\n", "a.csv does not say which column holds the prompts; it has a, b: name one, as in "),
        ("a.csv:c", "a,b\n1,2\n", "a.csv has no column 'c'; it has a, b: name one, as in "),
        ("a.csv", "a,b\n1\n", "line 2 of a.csv has 1 fields, the first line 2: mend it"),
        ("a.jsonl", '{"text": 3}\n', "the caption of a.jsonl/1 is 3, no text: write it in words"),
    ],
)  # fmt: skip
def test_a_file_of_no_prompts_is_refused_in_one_line(tmp_path, monkeypatch, name, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name.partition(":")[0]).write_text(text)
    with pytest.raises(UserError) as caught:
        prompt_file.read(name)
    assert str(caught.value).startswith(f"data.captions: {words}")


# ------------------------------------------------------------------------------- the folder and the shards


def test_shards_hold_the_images_and_say_who_drew_them(workspace):
    save(Path("theirs"))
    found = workspace()
    seen = draw(found)
    manifest = write(found.data, paths.DATA, drawn=paths.DRAWN)
    pixels = read.load_resident(paths.DATA).pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, seen)
    files = from_diffusers.read(Path("theirs")).files
    who = {"name": "teacher", "folder": "theirs", "images": 7, "teacher": disk.digest(files)}
    how = {"recipe": {"sampler": "ddim", "clip": 1.0}, "trajectory": "uniform", "steps": 2, "seed": 0}
    assert manifest.drawn == {**who, **how}
    assert Manifest.read(paths.DATA) == manifest
    assert manifest.source == "teacher:7"
    elsewhere = write(Config(f"npz:{paths.DRAWN}/*.npz"), Path("elsewhere"))
    assert (elsewhere.digest, elsewhere.drawn) == (manifest.digest, None)  # what is trained on is the images alone


def test_a_student_learns_of_what_its_teacher_drew(workspace):
    from tasks import adopt, shard, train

    save(Path("theirs"))
    one = {"method": "progressive", "init": "teacher", "teacher": "teacher", "steps": 1, "iterations": 1}
    found = workspace(evaluate={"teacher": texts()["evaluate"]["teacher"]}, data={"flip": False})
    found = params.parse({**found.raw, "distill": {"one": one | LINE}}, "p")
    draw(found)
    shard.shard(found)
    adopt.take(found, "teacher")
    train.train(found, "one")
    manifest, card = Manifest.read(paths.DATA), checkpoints.read_card(paths.CHECKPOINTS / "one")
    assert card.data == manifest.digest
    root = checkpoints.read_card(paths.CHECKPOINTS / "teacher")
    assert root.parameters["digest"] == manifest.drawn["teacher"]
    assert card.teacher == root.digest


LINE = {"batch": 4, "lr": 1.0e-3, "ema": 0.9}


def test_who_drew_the_data_is_said_wherever_they_are_called_real(workspace):
    save(Path("theirs"))
    draw(found := workspace(data={"draw": {"steps": 2}}))
    manifest = write(found.data, paths.DATA, drawn=paths.DRAWN)
    digest = disk.digest(from_diffusers.read(Path("theirs")).files)[:12]
    assert manifest.drawn_by == f"7 images drawn by teacher ({digest}), ddim, 2 steps, seed 0"
    card = SimpleNamespace(data=manifest.digest)
    assert export._drawn(card) == f"They are not real: {manifest.drawn_by}. "
    assert export._drawn(SimpleNamespace(data="d" * 64)) == ""
    usual = test_frontier.DIGITS
    told = dataclasses.replace(usual, drawn=manifest.drawn_by)
    assert f"reference: {manifest.drawn_by}" in " ".join(told.table().split())
    assert Frontier.from_json(told.to_json()).drawn == manifest.drawn_by
    assert "reference" not in usual.table()
    assert "drawn" not in usual.to_json()["about"]
    assert Frontier.from_json(usual.to_json()) == usual
    guided = dataclasses.replace(manifest, drawn={**manifest.drawn, "recipe": {"sampler": "ddim", "guidance": 2.5}})
    assert guided.drawn_by.endswith("ddim, 2 steps, guidance 2.5, seed 0")


def test_what_was_drawn_for_another_source_or_was_changed_is_refused(workspace):
    save(Path("theirs"))
    draw(workspace())
    with pytest.raises(
        UserError, match=r"what teacher:7 drew, and data\.source is teacher:8; run the stage `draw` again"
    ):
        write(Config("teacher:8"), paths.DATA, drawn=paths.DRAWN)
    first = next(paths.DRAWN.glob("*.npz"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{first} is missing or was changed since it was drawn; run the stage `draw`"):
        write(Config("teacher:7"), paths.DATA, drawn=paths.DRAWN)


def test_a_killed_stage_goes_on_after_its_last_file_and_ends_with_the_same_bytes(workspace, monkeypatch, capsys):
    save(Path("theirs"))
    found, own, asked = workspace(), TeacherImages.draw, []
    draw(found)
    whole = content(paths.DRAWN)
    assert len(whole) == 4

    def dies(self, rows, *more):
        asked.append(rows.start)
        if asked == [0, 3]:
            raise KeyboardInterrupt
        return own(self, rows, *more)

    monkeypatch.setattr(TeacherImages, "draw", dies)
    disk._remove(paths.DRAWN)
    with pytest.raises(KeyboardInterrupt):
        draw(found)
    assert not paths.DRAWN.exists()
    draw(found)
    assert asked == [0, 3, 3, 6]
    assert "draw: goes on after 3 of 7 images\n" in capsys.readouterr().out
    assert content(paths.DRAWN) == whole
    assert not (paths.RESUME / "draw").exists()
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        draw(found)
    asked[:] = [9]
    draw(workspace(data={"draw": {"steps": 3}}))  # which goes on from no images of another sampling
    assert asked == [9, 0, 3, 6]
    assert (
        "draw: starts anew: the configuration or the code is not that of the work done before"
        in capsys.readouterr().out
    )


# ------------------------------------------------------------------------------- where none draws


def test_where_nothing_is_to_be_drawn_the_bytes_are_the_same_each_time(workspace):
    written = []
    for source in ("digits", "folder:x"):
        workspace(data={"source": source, "draw": None})
        assert undrawn.write()
        written.append(content(paths.DRAWN))
    assert written[0] == written[1]
    assert drawn.is_none(paths.DRAWN)
    with pytest.raises(UserError, match=r"holds what nobody drew, and data\.source is teacher:7"):
        write(Config("teacher:7"), paths.DATA, drawn=paths.DRAWN)
    workspace(data={"source": "teacher:7"})
    assert not undrawn.write()
    paths.PARAMS.write_text("data: [")
    assert not undrawn.write()  # the reader of it says what is wrong


def test_nothing_is_drawn_without_torch(workspace):
    workspace(data={"source": "digits", "draw": None})
    script = "import sys; from tasks import command; command.main(['draw']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": "."})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "draw: nothing to draw: data.source reads images that are there\n"
    assert drawn.is_none(paths.DRAWN)


def test_another_solver_makes_no_stage_stale_where_nothing_is_drawn(workspace, monkeypatch):
    """The stage `draw` depends on the solvers, and all else on what it writes."""
    graph = {"draw": (), "shard": ("draw",), "frontier": ("shard",)}
    graph = {name: stages.Stage(name, after, ()) for name, after in graph.items()}
    monkeypatch.setattr(stages, "_looked_at", lambda workspace: (graph, {"draw"}))
    workspace(data={"source": "digits", "draw": None})
    assert stages.stale(Path())[1] == set(graph)  # it has not said so yet
    undrawn.write()
    assert stages.stale(Path())[1] == {"draw"}
    workspace(data={"source": "teacher:7"})
    assert stages.stale(Path())[1] == set(graph)


# ------------------------------------------------------------------------------- refusals

TRAINED = params.load_yaml(ROOT / "params.yaml")["teachers"]["teacher"]
REFUSED = {
    "a trained teacher": (
        {"teachers": {"teacher": TRAINED}},
        "data.source: teacher:7 is drawn by a teacher that is there already, and teachers.teacher is trained on images; say",
    ),
    "none": (
        {"data": {"source": "teacher:0"}},
        "data: source teacher:N says how many images a teacher shall draw, 1 to 999999999, not '0'",
    ),
    "a word": ({"data": {"source": "teacher:ten"}}, "not 'ten'"),
    "prompts for the deaf": (
        {"data": {"captions": "prompts.txt"}},
        "data.captions: teachers.teacher, which draws the images, is told no text; leave it null, or give it inputs",
    ),
    "a name": (
        {"data": {"captions": "caption"}},
        "captions may be null, a file of prompts (.txt, .csv, .jsonl or .parquet) or a template with {class} for teacher",
    ),
    "no prompts": (
        {**texts(), "data": {"captions": None}, "text": {"encoder": None}},
        "data.captions: teachers.teacher is told text, text_mask; name a file of prompts, such as prompts.txt",
    ),
    "a solver": (
        {"data": {"draw": {"sampler": "ddin"}}},
        "data.draw.sampler: 'ddin' is unknown; did you mean 'ddim'?",
    ),
    "Gamma": (
        {"data": {"draw": {"sampler": "analytic"}}},
        "data.draw.sampler: analytic needs an estimate of Gamma, which needs images; name another",
    ),
    "guidance": (
        {"data": {"draw": {"guidance": 2.0}}},
        "data.draw.guidance: teachers.teacher is told no classes and no texts; leave it null",
    ),
    "no steps": ({"data": {"draw": {"steps": 0}}}, "data.draw: steps must be at least 1, not 0"),
    "another source": (
        {"data": {"source": "digits"}},
        "data.draw: is for source teacher:N, not digits; leave it null",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_as_params_yaml_is_read(workspace, name):
    changes, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        workspace(**changes)
    assert any(words in line for line in str(caught.value).splitlines()), str(caught.value)


def test_the_first_teacher_that_is_there_draws(workspace):
    found = workspace(teachers={"teacher": TRAINED, "second": {"from": "a"}, "third": {"from": "b"}})
    assert rules.drawing(found.teachers) == "second"


@pytest.mark.parametrize(
    ("net", "change", "words"),
    [
        ({}, {"data": {"size": 16}}, "data.size: 16, and the teacher in theirs draws 8; leave it null"),
        ({}, {"data": {"channels": 3}}, "data.channels: 3, and the teacher in theirs draws 1; leave it null"),
        ({"sample_size": None}, {}, "data.size: the teacher in theirs does not say for which size it was trained; set it"),
        ({"in_channels": 4, "out_channels": 4}, {}, "data.source: the teacher in theirs draws 4 channels; images have 1 or"),
        ({"num_class_embeds": 4}, {}, "teachers.teacher.conditional is false, but the teacher in theirs knows classes"),
    ],
)  # fmt: skip
def test_what_the_teacher_is_not_for_is_refused_before_anything_is_drawn(workspace, net, change, words):
    save(Path("theirs"), network(**net))
    with pytest.raises(UserError) as caught:
        draw(workspace(**change))
    assert str(caught.value).startswith(words)
    assert not paths.DRAWN.exists()


def test_latents_are_not_drawn(workspace):
    save(Path("theirs"))
    Path("theirs/vae").mkdir()
    with pytest.raises(UserError, match=r"draws latents, of which vae/ makes images and nothing here does yet"):
        draw(workspace())


def test_a_network_that_lies_alone_draws_by_what_its_line_says_of_it(workspace):
    save(Path("theirs"))
    shutil.copytree("theirs/unet", "alone")
    trained = {"schedule": "linear", "reading": "vp", "parameterization": "eps", "num_timesteps": 1000}
    drawn_here = draw(workspace(teachers={"teacher": {"from": "alone", "trained": trained}}))
    stated = Stated(schedule=Linear(), reading=Reading("eps", 1000))
    own = images(teacher=from_diffusers.read(Path("alone"), None, stated)).draw(range(7))
    assert np.array_equal(drawn_here, to_uint8(own).permute(0, 2, 3, 1).numpy())
    with pytest.raises(UserError, match="was trained on: give trained"):
        draw(workspace(teachers={"teacher": {"from": "alone"}}))


def test_a_teacher_of_any_size_draws_what_data_size_says(workspace):
    save(Path("theirs"), network(sample_size=None))
    assert draw(workspace(data={"size": 4})).shape == (7, 4, 4, 1)


def test_numbers_that_are_not_finite_are_no_images(workspace, monkeypatch):
    save(Path("theirs"))
    monkeypatch.setattr(TeacherImages, "draw", lambda self, rows, *more: torch.full((len(rows), *IMAGE), torch.nan))
    with pytest.raises(UserError, match=r"the teacher draws numbers that are not finite; raise data\.draw\.steps, or"):
        draw(workspace())
