"""A caption on its way from the data to a network, and back by measuring what was drawn for it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints.encoded import embeddings_for, embeddings_of
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data import attributes, embeddings, prompts
from diffcore.data.feed import ResidentFeed, to_float
from diffcore.data.manifest import Manifest, Shard
from diffcore.data.read import Images
from diffcore.data.sources import digits
from diffcore.data.text_feed import TextFeed
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods.denoising import Denoising
from diffcore.metrics.measures.caption_accuracy import caption_accuracy
from diffcore.nets import dit, module
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.solvers import SOLVERS
from diffcore.search import gamma
from diffcore.training.config import Training
from diffcore.training.loop import Job, Loop, Stopped, fit
from diffcore.training.resume import Resume
from tasks.planned_data import planned_data
from tests import test_inputs
from tests.conftest import randn, seeded
from tests.test_dit import stirred
from tests.test_fit import COMPUTE, stop_at
from tests.test_pipeline import call, digests, make, wait_for
from tests.test_quality import Flat

SHAPE = dit.Shape(2, 16, 2, 2, text=True)
INPUTS = {"text": (3, 5), "text_mask": (3,)}
NOTHING = {"text": torch.zeros(3, 5), "text_mask": torch.tensor([True, False, False])}


def told(count: int = 4, words: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Texts of 1 to `words` words; what is beyond them is no word, whatever stands there."""
    mask = torch.arange(words) <= (torch.arange(count) % words)[:, None]
    return {"text": randn(count, words, 5, seed=seed).float(), "text_mask": mask}


def network() -> dit.DiT:
    return stirred(SHAPE.config((1, 4, 4), None, inputs=INPUTS))


X, TIMES = randn(4, 1, 4, 4).float(), torch.tensor([10.0, 300.0, 600.0, 1000.0])


# the transformer


def test_a_word_that_is_not_there_changes_nothing_and_one_that_is_does():
    net, text = network(), told()
    out = net(X, TIMES, **text)
    beyond = torch.where(text["text_mask"][..., None], text["text"], -50.0)
    mask = torch.nn.functional.pad(text["text_mask"], (0, 2))
    longer = {"text": torch.cat([beyond, randn(4, 2, 5).float()], 1), "text_mask": mask}
    for same in ({**text, "text": beyond}, longer):
        torch.testing.assert_close(net(X, TIMES, **same), out, rtol=1e-5, atol=1e-6)
    for another in (told(seed=1), {**text, "text": text["text"].flip(1), "text_mask": text["text_mask"] | True}):
        assert float((net(X, TIMES, **another) - out).abs().flatten(1).amax(1).min()) > 1e-3


def test_each_sample_is_told_its_own_text():
    net, text = network(), told()
    alone = [net(X[i : i + 1], TIMES[i : i + 1], **{k: v[i : i + 1] for k, v in text.items()}) for i in range(4)]
    torch.testing.assert_close(net(X, TIMES, **text), torch.cat(alone), rtol=1e-4, atol=1e-5)
    features = net.features(X, TIMES, **text)
    assert [list(each.shape) for each in features] == [[4, 16, 2, 2]] * 2


def test_the_order_of_words_is_seen():
    net, text = network(), told() | {"text_mask": torch.ones(4, 3, dtype=torch.bool)}
    turned = {**text, "text": text["text"].flip(1)}
    assert float((net(X, TIMES, **turned) - net(X, TIMES, **text)).abs().max()) > 1e-3


def test_a_transformer_without_a_text_is_the_one_that_it_was():
    """Its config says nothing of texts, and one that says so is opened."""
    config = dit.Shape(2, 16, 2, 2).config((1, 4, 4))
    plain = dit.build(config, 0)
    assert "text_features" not in plain.config_json()
    with pytest.raises(UserError, match="told no text"):
        plain(X, TIMES, **told())
    with pytest.raises(UserError, match="told a text"):
        network()(X, TIMES)


def test_a_network_is_refused_where_the_data_say_nothing():
    with pytest.raises(
        UserError, match=r"told text, and the data have nothing of the kind; set data\.captions and text\.encoder"
    ):
        SHAPE.build((1, 4, 4), None, 0)
    with pytest.raises(UserError, match="told text_mask, and the data have only text;"):
        SHAPE.build((1, 4, 4), None, 0, inputs={"text": (3, 5)})


class Worded(torch.nn.Module):
    """A user's own: it says the mean of the words that are there, everywhere."""

    def __init__(self, width: int = 1):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, x, timestep, *, text, text_mask):
        words = text_mask[..., None].float()
        mean = (text * words).sum((1, 2)) / words.sum((1, 2))
        return self.scale * mean[:, None, None, None].expand_as(x)


def test_a_module_of_the_user_s_own_is_told_what_it_names(tmp_path):
    inputs = ("text", "text_mask")
    shape = module.Shape("tests.test_captioned:Worded", inputs=inputs)
    net = shape.build((1, 4, 4), None, 0, inputs=INPUTS)
    out = NetDenoiser(net, Cosine(), nothing=NOTHING).with_condition(Condition(told()))(X, torch.full((4,), 0.5))
    words = told()["text_mask"][..., None].float()
    mean = (told()["text"] * words).sum((1, 2)) / words.sum((1, 2))
    torch.testing.assert_close(out.v, mean[:, None, None, None].expand_as(X))
    assert shape.keys()["inputs"] == list(inputs)
    with pytest.raises(UserError, match=r"told text, and the data have nothing of the kind"):
        shape.build((1, 4, 4), None, 0)
    with pytest.raises(
        UserError, match=r"cannot be called as forward\(x \[2, 1, 4, 4\], timestep \[2\], pooled \[2, 5\]\)"
    ):
        dataclasses.replace(shape, inputs=("pooled",)).build((1, 4, 4), None, 0, inputs={"pooled": (5,)})


# training, Gamma, prompts


def denoiser(seed: int = 0, dropout: float = 0.0) -> NetDenoiser:
    config = dataclasses.replace(SHAPE, dropout=dropout).config((1, 4, 4), None, inputs=INPUTS)
    return NetDenoiser(stirred(config, seed), Cosine(), nothing=NOTHING)


def captioned(batch: int = 8) -> ResidentFeed:
    """Forty images with five captions among them."""
    pixels = torch.randint(0, 256, (40, 1, 4, 4), generator=seeded(9)).to(torch.uint8)
    table = embeddings.Table(torch.arange(40) % 5, told(5))
    return ResidentFeed(Images(pixels, None, None), batch, 0, False, embeddings=table)


class Kept(embeddings.Tables):
    """Tables in memory."""

    def __init__(self, *tables: embeddings.Table):
        self.tables, self.counts, self.bytes = tables, tuple(len(each.rows) for each in tables), 0
        parts = tables[0].inputs.items()
        self.inputs = {n: embeddings.Shape(tuple(p.shape[1:]), str(p.dtype).removeprefix("torch.")) for n, p in parts}

    def table(self, number: int) -> embeddings.Table:
        return self.tables[number]


def texts_alone(batch: int = 8) -> TextFeed:
    """Thirteen rows of two tables."""
    tables = [embeddings.Table(torch.arange(8) % 5, told(5)), embeddings.Table(torch.arange(5) % 3, told(3, seed=4))]
    return TextFeed(Kept(*tables), (1, 4, 4), batch, 0, 0)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_training_by_captions_learns_from_them_and_resumes_to_the_bit(tmp_path, precision):
    """In whole numbers of updates, with dropped captions; in bfloat16 too."""
    training = Training(iterations=6, batch=8, lr=1e-2, ema=0.5, label_dropout=0.3)
    job = Job(Denoising(), training, captioned(), 0)
    compute = dataclasses.replace(COMPUTE, precision=precision)
    student = denoiser()
    whole = fit(job, student, None, compute).net.state_dict()
    with pytest.raises(Stopped):
        fit(job, student, None, compute, Resume(tmp_path, "x", {"job": "f"}), stop=stop_at(3))
    again = fit(job, student, None, compute, Resume(tmp_path, "x", {"job": "f"})).net.state_dict()
    assert all(torch.equal(part, again[name]) for name, part in whole.items())
    assert float((whole["text_in.weight"] - student.net.state_dict()["text_in.weight"]).abs().max()) > 1e-4
    silent = ResidentFeed(Images(job.feed._pixels, None, None), 8, 0, False)
    bare = fit(dataclasses.replace(job, feed=silent), student, None, compute).net.state_dict()
    assert not torch.equal(bare["blocks.0.attention.qkv.weight"], whole["blocks.0.attention.qkv.weight"])


def test_a_batch_is_told_its_captions_and_some_of_it_nothing():
    """What is dropped is what stands for nothing; by chance of the sample's place in the global batch."""
    training = types.SimpleNamespace(batch=64, label_dropout=0.4)
    trainer = types.SimpleNamespace(job=types.SimpleNamespace(training=training, guidance=None, seed=0), step=3)
    text = told(64)
    whole = Loop._condition(trainer, text, slice(0, 64))
    assert 10 < int(whole.dropped.sum()) < 45
    part = Loop._condition(trainer, {name: each[16:48] for name, each in text.items()}, slice(16, 48))
    assert torch.equal(part.dropped, whole.dropped[16:48])
    net = network()
    denoiser = NetDenoiser(net, Cosine(), nothing=NOTHING)
    x, t = randn(64, 1, 4, 4).float(), torch.full((64,), 0.5)
    v = denoiser.with_condition(whole)(x, t).v
    bare, full = denoiser(x, t).v, denoiser.with_condition(Condition(text))(x, t).v
    expected = torch.where(whole.dropped[:, None, None, None], bare, full)
    torch.testing.assert_close(v, expected, rtol=1e-5, atol=1e-6)


def test_gamma_of_texts_is_that_of_what_they_leave_open():
    """Of N(mean(text), VARIANCE) the covariance left at t is 1 / (1/VARIANCE + SNR), whatever the texts."""
    text = test_inputs.texts(600, 3)
    x0 = test_inputs.mean(text["text"], text["text_mask"], text["pooled"])
    x0 = x0 + test_inputs.VARIANCE**0.5 * randn(600, 2, seed=5)
    config = gamma.Config(steps=10, images=600, batch=256, seed=0)
    estimate = gamma.estimate(test_inputs.denoiser(), x0, config, inputs=text)
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    snr = (Cosine().alpha(t) / Cosine().sigma(t)) ** 2
    expected = 1 / (1 / test_inputs.VARIANCE + snr)
    torch.testing.assert_close(estimate.covariance("residual").values, expected, rtol=0.15, atol=0)


def manifest_of(counts: tuple[int, ...]) -> Manifest:
    """Of shards with so many images, of which nothing else matters."""
    shards = tuple(Shard(f"{number:06d}.tar", count, 1, "") for number, count in enumerate(counts))
    total, facts = sum(counts), {"license": None, "quarantined": (), "enlarged": 0, "ignored": 0, "splits": None}
    return Manifest(
        schema=1, source="", found=total, images=total, filter="", shape=(1, 4, 4), classes=("a", "b"), members="block",
        shards=shards, digest="d", **facts,
    )  # fmt: skip


def written(folder: Path) -> tuple[embeddings.Embeddings, Images]:
    """Seven images of two classes, the text of each its number."""
    images = Images(torch.zeros(7, 1, 4, 4, dtype=torch.uint8), torch.arange(7) % 2, ("a", "b"), (4, 3))
    numbers = torch.arange(7.0)[:, None, None].expand(7, 3, 5)
    tables = [
        embeddings.Table(
            torch.arange(len(part)), {"text": part, "text_mask": torch.ones(len(part), 3, dtype=torch.bool)}
        )
        for part in numbers.split([4, 3])
    ]
    manifest = manifest_of((4, 3))
    folder.mkdir(exist_ok=True)
    embeddings.write(folder, {"digest": "e" * 64}, manifest, tables, NOTHING)
    return embeddings.read(folder, manifest), images


def test_samples_are_asked_to_be_what_images_are_as_often_as_they_are(tmp_path):
    texts, images = written(tmp_path)
    inputs = prompts.like(images, texts, 2000, 3)
    places = inputs["text"][:, 0, 0].long()
    assert torch.equal(inputs[CLASS], places % 2)
    shares = torch.bincount(places, minlength=7) / 2000
    assert float((shares - 1 / 7).abs().max()) < 5 * (6 / 49 / 2000) ** 0.5
    few = prompts.like(images, texts, 9, 3)
    assert all(torch.equal(part, inputs[name][:9]) for name, part in few.items())
    assert prompts.like(dataclasses.replace(images, labels=None), None, 9, 3) == {}


def saved(folder: Path, encoder: str) -> checkpoints.Checkpoint:
    denoiser = NetDenoiser(network(), Cosine(), nothing=NOTHING)
    checkpoints.save(folder, denoiser, (1, 4, 4), test_inputs.ABOUT | {"encoder": encoder})
    return checkpoints.load(folder)


def test_embeddings_of_another_encoder_are_refused(tmp_path):
    texts, _ = written(tmp_path)
    manifest = manifest_of((4, 3))
    card, other = (saved(tmp_path / name, name * 64).card for name in "ef")
    assert embeddings_of(card, tmp_path, manifest).digest == texts.digest
    words = r"s is told the embeddings of the encoder f{12}, and .* of e{12}; set the section text"
    with pytest.raises(UserError, match=words):
        embeddings_of(other, tmp_path, manifest)
    with pytest.raises(UserError, match="told pooled, and the data have only text, text_mask"):
        embeddings_for(["text", "pooled"], tmp_path, manifest)
    assert embeddings_for([], tmp_path / "absent", manifest) is None


def test_a_recipe_tells_a_network_what_it_has_an_input_for(tmp_path):
    checkpoint = saved(tmp_path / "s", "e")
    known = told() | {CLASS: torch.arange(4), "pooled": torch.zeros(4, 2)}
    condition = Recipe(SOLVERS["ddim"](), guidance=2.0).condition(checkpoint, known)
    assert set(condition.inputs) == {"text", "text_mask"}
    assert condition.guidance.tolist() == [2.0] * 4
    with pytest.raises(UserError, match="s is told texts, and negative 1 is none; write it in words"):
        Recipe(SOLVERS["ddim"](), guidance=2.0, negative=1).condition(checkpoint, known)


def test_guidance_leads_away_from_a_text(tmp_path):
    """By its embedding, whatever stands for nothing; where that is not there it is refused."""
    checkpoint = saved(tmp_path / "s", "e")
    away = told(1, seed=9)
    recipe = Recipe(SOLVERS["ddim"](), guidance=2.0, negative="a pale one")
    condition = recipe.condition(checkpoint, told(), away)
    assert set(condition.negative) == {"text", "text_mask"}
    assert all(torch.equal(part, away[name].expand_as(part)) for name, part in condition.negative.items())
    guided = recipe.sampler(checkpoint, uniform(4)).denoiser
    x, t = X, torch.full((4,), 0.6, dtype=torch.float64)
    own = checkpoint.denoiser
    to, back = (own.with_condition(Condition(part))(x, t).eps for part in (told(), condition.negative))
    torch.testing.assert_close(guided.with_condition(condition)(x, t).eps, back + 2 * (to - back), rtol=1e-4, atol=1e-5)
    nothing = Recipe(SOLVERS["ddim"](), guidance=2.0).condition(checkpoint, told())
    assert not torch.allclose(guided.with_condition(nothing)(x, t).eps, guided.with_condition(condition)(x, t).eps)
    with pytest.raises(
        UserError, match="negative 'a pale one' is a text, and its embedding is not there; leave it out"
    ):
        recipe.condition(checkpoint, told())
    assert recipe.name_parts()[-1] == "not-a-pale-one"


def test_nothing_is_planned_of_captions_that_are_not_encoded_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = types.SimpleNamespace(teachers={"teacher": types.SimpleNamespace(inputs=("text",))})
    with pytest.raises(UserError, match="is counted by the stage `encode`; run"):
        planned_data(params)


# what was drawn, measured again


class Knows(Flat):
    """Feature network that recognises each digit, or takes it for the next one."""

    def __init__(self, labels: list[int], away: int = 0, task: str = "classes"):
        super().__init__()
        self.labels, self.away = iter(labels), away
        self.card = dataclasses.replace(self.card, task=task, outputs=10)

    def logits(self, samples: torch.Tensor) -> torch.Tensor:
        digits = torch.tensor([(next(self.labels) + self.away) % 10 for _ in samples])
        return torch.nn.functional.one_hot(digits, 10).float()


def test_real_digits_are_what_their_captions_say_and_shuffled_ones_are_not():
    source = digits.Digits().find("", None, None)
    pixels, labels = source.entries[0].read()[:2]
    pixels, labels = np.stack(pixels), list(labels)
    captions = attributes.captions(pixels, labels)
    samples = to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert caption_accuracy(samples, captions, Knows(labels)).value == 1
    assert caption_accuracy(samples, captions, Knows(labels, away=1)).value == 0
    turned = [captions[(i + 1) % len(captions)] for i in range(len(captions))]
    estimate = caption_accuracy(samples, turned, Knows(labels))
    exact = np.mean([one == other for one, other in zip(captions, turned)])
    assert estimate.value == pytest.approx(exact)
    assert estimate.se == pytest.approx((exact * (1 - exact) / (len(captions) - 1)) ** 0.5)
    assert caption_accuracy(samples, captions, Knows(labels, task="rotations")) is None
    assert caption_accuracy(samples, ["a cat", *captions[1:]], Knows(labels)) is None


# the whole way

TEXT = (
    "data.captions=caption",
    "data.unseen=[a bold dark seven, a thin pale three]",
    "text.encoder=words",
    "text.dimension=8",
    "teachers.teacher.network={family: dit, patch: 2, width: 16, depth: 1, heads: 2, text: true}",
    "teachers.teacher.label_dropout=0.1",
    "evaluate.teacher=[{sampler: ddim, trajectory: uniform, steps: [4]}, "
    "{sampler: ddim, trajectory: uniform, steps: [2], guidance: 2.0, negative: a thin one}]",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = make(tmp_path_factory.mktemp("captioned") / "first", *TEXT)
    done = call(folder, "./stage", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "caption_accuracy" in done.stdout
    return folder


@pytest.mark.slow
def test_every_point_says_how_often_it_is_what_was_asked_for(finished):
    table = json.loads((finished / "artifacts/frontier.json").read_text())
    assert 0 <= table["floor"]["metrics"]["caption_accuracy"]["value"] <= 1
    points = table["points"]
    assert {point["checkpoint"] for point in points} == {"teacher", "pd4", "pd2", "pd1", "cd", "dm1"}
    for point in points:
        for name in ("caption_accuracy", "caption_accuracy_unseen"):
            assert 0 <= point["metrics"][name]["value"] <= 1, point["name"]
        assert "accuracy" not in point["metrics"]  # no class was asked for
    cards = [
        json.loads((finished / f"artifacts/checkpoints/{name}/card.json").read_text()) for name in ("teacher", "pd1")
    ]
    manifest = json.loads((finished / "artifacts/text/manifest.json").read_text())
    assert [card["inputs"] for card in cards] == [["text", "text_mask"]] * 2
    assert [card["encoder"] for card in cards] == [manifest["encoder"]["digest"]] * 2


@pytest.mark.slow
def test_prompts_are_drawn_by_the_encoder_that_the_checkpoint_knows(finished):
    words = ["sample", "pd4", "--images", "4", "--prompt", "a thin dark one", "--prompt", "a bold pale two"]
    done = call(finished, "./stage", *words, "--out", "drawn.npz")
    point = call(
        finished, "./stage", "sample", "teacher-ddim-g2-not-a-thin-one-uniform-2", "--images", "2", "--out", "a.npz"
    )
    assert point.returncode == 0, point.stdout + point.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    arrays = np.load(finished / "drawn.npz")
    drawn = arrays["arr_0"]
    assert list(arrays["captions"]) == ["a thin dark one", "a bold pale two"] * 2
    usual = call(finished, "./stage", "sample", "pd4", "--images", "4", "--out", "usual.npz")
    assert usual.returncode == 0, usual.stdout + usual.stderr
    assert not np.array_equal(drawn, np.load(finished / "usual.npz")["arr_0"])


@pytest.mark.slow
def test_a_student_is_told_no_embeddings_of_another_encoder(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    text = (copy / "params.yaml").read_text()
    assert text.count("dimension: 8\n") == 1
    (copy / "params.yaml").write_text(text.replace("dimension: 8\n", "dimension: 9\n"))
    shutil.rmtree(copy / "artifacts/text")
    assert call(copy, "./stage", "encode").returncode == 0
    for words in (
        ["train", "pd4"],
        ["gamma"],
        ["measure", "pd4"],
        ["sample", "pd4", "--prompt", "a", "--out", "x.png"],
    ):
        done = call(copy, "./stage", *words)
        assert done.returncode == 2, words
        assert "is told the embeddings of the encoder" in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_training_by_captions_loses_nothing(finished, tmp_path):
    """The same command again resumes it where it was, and ends with the same bytes."""
    folder = make(tmp_path / "killed", *TEXT)
    for stage in ("shard", "encode"):
        assert call(folder, "./stage", stage).returncode == 0
    run = subprocess.Popen(
        ["./stage", "train", "teacher"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    saved = ".resume/teacher-*/step-*/state.json"
    wait_for(lambda: any(int(each.parent.name.removeprefix("step-")) > 1 for each in folder.glob(saved)), run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert "teacher" not in digests(folder)
    again = call(folder, "./stage", "train", "teacher")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "teacher: goes on after" in again.stdout + again.stderr
    assert digests(folder)["teacher"] == digests(finished)["teacher"]
