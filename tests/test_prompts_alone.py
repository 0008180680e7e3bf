"""Prompts without images: told to methods whose loss looks at no image, and to nobody else."""

import dataclasses
import json
import math
import shutil
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore import methods
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import embeddings, prompt_file
from diffcore.data.config import Config
from diffcore.data.embeddings import Joined, Prompts, Table
from diffcore.data.feed import Feed, Order
from diffcore.data.manifest import Manifest
from diffcore.data.text_feed import TextFeed
from diffcore.data.write import write
from diffcore.methods import Roles, distribution_matching
from diffcore.texts.encoders import words
from diffcore.training.config import Training
from diffcore.training.loop import Job, Stopped, fit
from diffcore.training.resume import Resume
from tasks import encode, params, paths
from tests.test_captioned import NOTHING, TEXT, denoiser, manifest_of
from tests.test_embeddings import IMAGES, OWN, SIZES, TABLES
from tests.test_embeddings import NOTHING as NUMBERED
from tests.test_embeddings import inputs as numbered
from tests.test_embeddings import manifest as of_shards
from tests.test_fit import COMPUTE, stop_at
from tests.test_methods import CASES, cast_of
from tests.test_params import ROOT
from tests.test_pipeline import call, make
from tests.test_texts import Dying

SHAPE = (1, 4, 4)
TEXTS = [f"prompt {number}" for number in range(5)]
PROMPTED = 100 + torch.arange(5.0)
"""What each of the prompts says, beside what captions say (test_embeddings)."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 2)


@pytest.fixture
def rows(tmp_path) -> Joined:
    """Eight captions in three tables and five prompts in three more; each says its own number."""
    for name in ("text", "prompts"):
        (tmp_path / name).mkdir()
    about, data, alone = {"digest": "e" * 64}, of_shards(), Prompts(TEXTS)
    tables = [
        Table(torch.arange(part.rows), numbered(part.rows, 100.0 + 2 * place)) for place, part in enumerate(alone.parts)
    ]
    embeddings.write(tmp_path / "text", about, data, TABLES, NUMBERED)
    embeddings.write(tmp_path / "prompts", about, alone, tables, NUMBERED)
    texts = embeddings.read(tmp_path / "text", data)
    return Joined(texts, embeddings.read_prompts(tmp_path / "prompts", texts))


def said(batch) -> torch.Tensor:
    """Which caption or prompt each row is told."""
    return batch[1]["pooled"][:, 0]


# the rows


def test_each_caption_of_an_image_and_each_prompt_comes_once_in_an_epoch(rows):
    """As often as images have it; the order is that of an epoch over all of them."""
    feed = TextFeed(rows, SHAPE, 13, 3, 2**30)
    own = torch.cat([OWN, PROMPTED])
    for step in range(3):
        assert torch.equal(said(feed.batch(step)).sort().values, own.sort().values)
    assert not torch.equal(said(feed.batch(0)), said(feed.batch(1)))
    assert feed.images == IMAGES + 5
    assert isinstance(feed, Feed)


def test_a_row_is_where_the_order_of_images_would_have_it(rows):
    """One order, drawn for the seed and the counts alone; here counted by hand."""
    feed, starts = TextFeed(rows, SHAPE, 4, 7, 2**30), np.cumsum([0, *rows.counts])
    own = torch.cat([OWN, PROMPTED])
    order = Order((*SIZES, 2, 2, 1), 7)
    for step in range(8):
        places = order.at(4 * step, 4 * step + 4)
        index = np.concatenate([starts[place.shards] + place.rows for place in places])
        assert torch.equal(said(feed.batch(step)), own[index])


def test_rows_in_memory_and_in_mapped_files_make_the_same_batches(rows):
    resident, mapped = TextFeed(rows, SHAPE, 6, 1, rows.bytes), TextFeed(rows, SHAPE, 6, 1, rows.bytes - 1)
    assert resident._table is not None
    assert mapped._table is None
    for step in range(5):
        for part in (slice(None), slice(1, 4), slice(5, 6)):
            one, other = resident.batch(step, part)[1], mapped.batch(step, part)[1]
            assert one.keys() == other.keys() == {"text", "text_mask", "pooled"}
            assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_each_process_has_its_rows_of_the_batch(rows):
    feed = TextFeed(rows, SHAPE, 6, 1, 0)
    whole = feed.batch(2)
    parts = [feed.batch(2, slice(0, 2)), feed.batch(2, slice(2, 6))]
    for name, part in whole[1].items():
        assert torch.equal(part, torch.cat([each[1][name] for each in parts]))
    assert [len(each[0]) for each in parts] == [2, 4]


def test_there_is_no_image_to_look_at(rows):
    x0, told = TextFeed(rows, SHAPE, 6, 1, 0).batch(0)
    assert x0.shape == (6, *SHAPE)
    assert x0.isnan().all()
    assert "class_labels" not in told


# the methods

OPTIONS = [
    distribution_matching.DistributionMatching(steps=2),
    distribution_matching.DistributionMatching(adversarial=0.1),
]


def values(method: methods.Method, x0: torch.Tensor, cast: Roles, drawn) -> list[torch.Tensor]:
    """The loss with its gradient in the student, and the critic's with that in the critic, where there is one."""
    cast.student.zero_grad()
    loss = method.loss(cast, x0, drawn, 0.5)
    loss.sum().backward()
    made = [loss.detach(), *(part.grad.clone() for part in cast.student.parameters())]
    if cast.critic is not None:
        cast.critic.requires_grad_(True).zero_grad()
        loss = method.critic_loss(cast, x0, drawn, 0.5)
        loss.sum().backward()
        made += [loss.detach(), *(part.grad.clone() for part in cast.critic.parameters() if part.grad is not None)]
    return made


def check_looks(method: methods.Method) -> None:
    """What it says of itself is what it does, by numbers that are none."""
    cast, x0, drawn = cast_of(method)
    real, none = values(method, x0, cast, drawn), values(method, x0 * math.nan, cast, drawn)
    if method.needs_images:
        assert not all(part.isfinite().all() for part in none)
        return
    for one, other in zip(real, none, strict=True):
        assert torch.equal(one, other)


@CASES
def test_a_method_that_needs_no_image_is_the_same_without_one_and_one_that_does_is_not(name, config):
    check_looks(config)


@pytest.mark.parametrize("method", OPTIONS, ids=str)
def test_so_is_each_choice_of_distribution_matching(method):
    check_looks(method)
    assert method.needs_images == bool(method.adversarial)


def told(count: int, start: float) -> dict[str, torch.Tensor]:
    text = start + torch.arange(float(count))[:, None, None].expand(count, 3, 5) / 10
    return {"text": text, "text_mask": torch.ones(count, 3, dtype=torch.bool)}


@pytest.fixture
def texts(tmp_path) -> Joined:
    """Of the transformer of test_captioned: seven captions and five prompts."""
    data, alone, about = manifest_of((4, 3)), Prompts(TEXTS), {"digest": "e" * 64}
    for name in ("text", "prompts"):
        (tmp_path / name).mkdir()
    tables = [Table(torch.arange(n), told(n, float(n))) for n in (4, 3)]
    embeddings.write(tmp_path / "text", about, data, tables, NOTHING)
    tables = [Table(torch.arange(part.rows), told(part.rows, -3.0 - i)) for i, part in enumerate(alone.parts)]
    embeddings.write(tmp_path / "prompts", about, alone, tables, NOTHING)
    own = embeddings.read(tmp_path / "text", data)
    return Joined(own, embeddings.read_prompts(tmp_path / "prompts", own))


def trained(rows, tmp_path, **more):
    job = Job(
        distribution_matching.DistributionMatching(critic_updates=1),
        Training(iterations=4, batch=6, lr=1e-3, ema=0.5, label_dropout=0.3),
        TextFeed(rows, SHAPE, 6, 0, more.pop("memory", 2**30)),
        0,
    )
    return fit(job, denoiser(), denoiser().requires_grad_(False), COMPUTE, **more).net.state_dict()


def test_a_training_on_prompts_is_finite_resumes_to_the_bit_and_does_not_ask_how_much_memory_there_is(texts, tmp_path):
    whole = trained(texts, tmp_path)
    assert all(part.isfinite().all() for part in whole.values())
    with pytest.raises(Stopped):
        trained(texts, tmp_path, resume=Resume(tmp_path / "r", "x", {"job": "f"}), stop=stop_at(2))
    again = trained(texts, tmp_path, resume=Resume(tmp_path / "r", "x", {"job": "f"}))
    streamed = trained(texts, tmp_path, memory=0)
    captions = trained(texts._tables[0][0], tmp_path)
    for name, part in whole.items():
        assert torch.equal(part, again[name])
        assert torch.equal(part, streamed[name])
    assert any(not torch.equal(part, captions[name]) for name, part in whole.items())


# the stage


NETWORK = {"family": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2}


def set_to(prompts: str | None = None, line=MappingProxyType({}), network=MappingProxyType({"text": True}), **text):
    """The shipped parameters with a transformer that is told words, and dm1 changed by `line`."""
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["text"] |= {"encoder": "words", "dimension": 6} | text
    raw["data"] |= {"captions": "caption", "prompts": prompts}
    raw["teachers"]["teacher"]["network"] = NETWORK | network
    raw["distill"]["dm1"] |= line
    raw["evaluate"]["teacher"] = raw["evaluate"]["teacher"][:1]
    return params.parse(raw, "params.yaml")


CAPTIONS = [["a bold seven", "a pale two", "a bold seven"], ["a thin one"]]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Shards with four captions, a file of five prompts, and an encode stage of small tables."""
    for name in ("diffcore", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    from diffcore.data import read

    data = dataclasses.replace(manifest_of((3, 1)), captions=True, unseen=("a dark nine",))
    monkeypatch.setattr(Manifest, "read", lambda folder, verify=True: data)
    monkeypatch.setattr(read, "captions", lambda folder: iter(CAPTIONS))
    (tmp_path / "p.txt").write_text(
        "\n".join(["a very long thin prompt of seven", "a thin one", "b", "a dark nine", "b"])
    )
    return data


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stored(data):
    texts = embeddings.read(paths.TEXT, data)
    return texts, embeddings.read_prompts(paths.PROMPTS, texts)


def test_the_stage_writes_what_each_prompt_is_told(workspace, capsys):
    encode.encode(set_to("p.txt"))
    texts, alone = stored(workspace)
    lines = prompt_file.read("p.txt")
    assert alone.counts == (2, 2, 1)
    assert alone.data == disk.digest(lines)
    own = dataclasses.replace(words.encoder_of("", 6), length=8)
    for name, part in own.encode(lines).items():
        assert torch.equal(alone.take(np.arange(5))[name], part)
    assert alone.encoder == texts.encoder
    assert texts.encoder["length"] == 8  # the longest prompt, with what begins it
    said = capsys.readouterr().out
    assert f"encode: 5 prompts without images; prompts {alone.data[:12]}\n" in said
    assert "encode: 1 captions of data.unseen are among the prompts: lines that train on these have seen them\n" in said


def test_prompts_that_are_cut_are_counted(workspace, capsys):
    encode.encode(set_to("p.txt", length=3))
    assert "encode: 5 prompts without images, 3 of them cut to 3 tokens; " in capsys.readouterr().out


def test_no_prompts_change_no_byte_of_what_images_are_told(workspace):
    encode.encode(set_to(length=8))
    plain = content(paths.TEXT)
    assert stored(workspace)[1] is None
    encode.encode(set_to("p.txt"))
    assert content(paths.TEXT) == plain


def test_other_prompts_have_another_digest_and_the_same_ones_the_same_bytes(workspace):
    encode.encode(set_to("p.txt"))
    first, digest = content(paths.PROMPTS), stored(workspace)[1].digest
    encode.encode(set_to("p.txt"))
    assert content(paths.PROMPTS) == first
    shutil.copy("p.txt", "q.txt")
    encode.encode(set_to("q.txt"))
    assert content(paths.PROMPTS) == first
    with open("q.txt", "a") as file:
        file.write("\none more")
    encode.encode(set_to("q.txt"))
    assert stored(workspace)[1].digest != digest
    encode.encode(set_to())
    assert stored(workspace)[1] is None


def test_a_killed_stage_makes_no_table_of_prompts_again_that_was_whole(workspace, monkeypatch, capsys):
    real, wanted = words.Words.encode, set_to("p.txt")
    encode.encode(wanted)
    whole = content(paths.TEXT), content(paths.PROMPTS)
    for folder in (paths.TEXT, paths.PROMPTS):
        disk._remove(folder)
    # four captions, what stands for nothing twice, and the first two of three tables of prompts
    dying, asked = Dying(real, 4 + 2 + 4), Dying(real, 10**9)
    monkeypatch.setattr(words.Words, "encode", lambda self, captions: dying(self, captions))
    with pytest.raises(KeyboardInterrupt):
        encode.encode(wanted)
    assert not paths.TEXT.exists()
    assert not paths.PROMPTS.exists()
    monkeypatch.setattr(words.Words, "encode", lambda self, captions: asked(self, captions))
    encode.encode(wanted)
    assert "encode: goes on after 2 of 3 tables of prompts" in capsys.readouterr().out
    assert (content(paths.TEXT), content(paths.PROMPTS)) == whole
    assert [each for each in asked.captions if each] == ["a dark nine", "b"]


def test_a_killed_stage_goes_on_after_no_table_of_other_prompts(workspace, monkeypatch, capsys):
    real = words.Words.encode
    dying = Dying(real, 4 + 2 + 4)
    with monkeypatch.context() as patch:
        patch.setattr(words.Words, "encode", lambda self, captions: dying(self, captions))
        with pytest.raises(KeyboardInterrupt):
            encode.encode(set_to("p.txt"))
    text = (paths.ARTIFACTS.parent / "p.txt").read_text()
    (paths.ARTIFACTS.parent / "p.txt").write_text(text.replace("a thin one", "a thin two"))
    encode.encode(set_to("p.txt"))
    assert "goes on after" not in capsys.readouterr().out
    told = stored(workspace)[1].take([1])["pooled"]
    own = dataclasses.replace(words.encoder_of("", 6), length=8)
    assert torch.equal(told, own.encode(["a thin two"])["pooled"])


def test_embeddings_of_prompts_by_another_encoder_are_refused(workspace):
    encode.encode(set_to("p.txt"))
    paths.PROMPTS.rename("old")
    encode.encode(set_to("p.txt", dimension=5))
    disk._remove(paths.PROMPTS)
    paths.ARTIFACTS.parent.joinpath("old").rename(paths.PROMPTS)
    with pytest.raises(
        UserError, match=r"artifacts/prompts holds embeddings by another encoder .*: run the encode stage"
    ):
        stored(workspace)


# what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file p.csv; name one with a prompt on each line"),
        ("a,b\n1\n", "line 2 of p.csv has 1 fields, the first line 2: mend it"),
        ("a,b\n1,2\n", "p.csv does not say which column holds the prompts; it has a, b: name one, as in p.csv:COLUMN"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_of_data_prompts(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        prompt_file.read("p.csv", "data.prompts")
    assert str(caught.value) == f"data.prompts: {words}"


def test_what_is_no_file_of_prompts_or_has_no_image_to_copy_is_refused():
    for named in ("prompts", "a {class}.txt", "a.json", ""):
        with pytest.raises(ValueError, match=r"prompts must be null or a file of prompts \(\.txt, \.csv, "):
            Config("digits", prompts=named)
    with pytest.raises(ValueError, match="prompts: they have no image to copy for image_condition; set one of the two"):
        Config("digits", prompts="a.txt", image_condition="grey")


def test_a_row_without_an_image_is_refused_and_pointed_to_the_file_of_prompts(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n{"text": "b"}\n')
    with pytest.raises(
        UserError, match=r"row 2 of metadata\.jsonl has no file_name: mend it, or .* data\.prompts names"
    ):
        write(Config(f"folder:{tmp_path}", captions="text"), tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "network", "line", "words"),
    [
        ({"encoder": None}, {}, {}, "text.encoder is null; name what encodes the prompts, or leave data.prompts null"),
        ({}, {}, {}, "no line trains on them; add one by distribution_matching without adversarial"),
        ({}, {"text": True}, {"adversarial": 0.1}, "no line trains on them; add one by distribution_matching"),
        ({}, {"text": True, "conditional": True}, {}, "distill.dm1 is told a class too, and a prompt has none; set "),
    ],
)  # fmt: skip
def test_prompts_that_nobody_can_train_on_are_refused_as_params_is_read(text, network, line, words):
    with pytest.raises(UserError) as caught:
        set_to("p.txt", line, network, **text)
    assert str(caught.value).splitlines()[0].startswith(f"params.yaml: data.prompts: {words}")


# the whole way


@pytest.mark.slow
def test_only_the_line_that_needs_no_image_trains_on_prompts_and_says_so(tmp_path):
    """By the command, with no embeddings of prompts, with some, and without again: nobody else is touched by a bit."""
    folder = make(tmp_path / "here", *TEXT)
    (folder / "p.txt").write_text("a bold dark seven\na thin pale three\n")
    plain = (folder / "params.yaml").read_text()
    assert plain.count("\n  prompts: null") == 1
    seen = []
    for prompts in (plain, plain.replace("\n  prompts: null", "\n  prompts: p.txt"), plain):
        (folder / "params.yaml").write_text(prompts)
        lines = []
        for stage in (["shard"], ["encode"], ["train", "teacher"], ["train", "cd"], ["train", "dm1"]):
            done = call(folder, "./stage", *stage)
            assert done.returncode == 0, done.stdout + done.stderr
            lines += done.stdout.splitlines()
        cards = {
            path.parent.name: json.loads(path.read_text()) for path in folder.glob("artifacts/checkpoints/*/card.json")
        }
        seen.append((lines, cards))
    (_, first), (lines, second), (_, third) = seen
    assert first == third
    assert {name for name in first if first[name] != second[name]} == {"dm1"}
    assert second["dm1"]["prompts"] == disk.digest(["a bold dark seven", "a thin pale three"])
    assert "prompts" not in first["dm1"]
    assert first["dm1"]["digest"] != second["dm1"]["digest"]
    assert "dm1: trains on 1691 captions and 2 prompts without images" in lines
    assert "encode: 2 captions of data.unseen are among the prompts: lines that train on these have seen them" in lines
