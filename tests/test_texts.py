"""Encoders of texts: laws of all of them, each against what it is made of, and the stage that runs one."""

import contextlib
import json
import math
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import embeddings, manifest, read
from diffcore.data.config import Config as DataConfig
from diffcore.data.split import Split
from diffcore.data.write import write
from diffcore.texts import encoder as encoding
from diffcore.texts import encoders, layouts, stored
from diffcore.texts.config import Config
from diffcore.texts.encoders import wordllama
from diffcore.texts.encoders import words as words_file
from tasks import encode, params, paths
from tests import text_folders
from tests.test_params import ROOT

CAPTIONS = ["a bold dark seven", "", "A pale nine", "a dark, dark a", "a"]
CPU = torch.device("cpu")
TOLERANCE = 1e-6
"""Between sums that a batch of another size may take in another order."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By name, a folder with one encoder or a whole pipeline."""
    root = tmp_path_factory.mktemp("texts")
    for name, save in text_folders.SINGLE.items():
        save(root / name)
    for name, (pipeline, _) in text_folders.PIPELINES.items():
        pipeline().save_pretrained(root / name)
    return root


OPENED = {"words": "words", "wordllama": "wordllama"}
OPENED |= {name: f"folder:{{}}/{name}" for name in (*text_folders.SINGLE, *text_folders.PIPELINES)}
"""By case, text.encoder."""


def opened(word: str, dimension: int = 16):
    return encoders.encoder_of(word, dimension, CPU, "float32")


@pytest.fixture(params=OPENED)
def encoder(request, folders):
    """Each encoder, for captions as long as it is meant for or as the longest here."""
    found = opened(OPENED[request.param].format(folders))
    return found.of_length(None, max(found.counts(CAPTIONS)))


# ---- laws of all


def test_every_encoder_and_every_layout_has_a_case():
    assert {word.partition(":")[0] for word in OPENED.values()} == set(encoders.names())
    named = {kind.__name__ for kind in layouts.layouts()} - {"Single"}
    assert named == {name.partition(",")[0] for name in text_folders.PIPELINES}


def test_a_caption_has_the_same_rows_whatever_stands_beside_it(encoder):
    together = encoder.encode(CAPTIONS)
    mixed = encoder.encode([*reversed(CAPTIONS), "a dark seven"])
    for place, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        for name, told in together.items():
            torch.testing.assert_close(alone[name][0], told[place], rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(mixed[name][len(CAPTIONS) - 1 - place], told[place], rtol=0, atol=TOLERANCE)


def test_what_a_network_is_told_has_the_shapes_that_are_said(encoder):
    told, length = encoder.encode(CAPTIONS), encoder.length
    assert {"text"} <= told.keys() <= {"text", "text_mask", "pooled"}
    for name, tensor in told.items():
        kind = encoder.inputs[name]
        assert (tuple(tensor.shape), str(tensor.dtype)) == ((len(CAPTIONS), *kind.shape), f"torch.{kind.dtype}")
        assert tensor.dtype == (torch.bool if name == "text_mask" else torch.float32)
    assert told["text"].shape[1] >= length
    assert told.keys() == encoder.nothing().keys()
    assert all(tensor.isfinite().all() for tensor in told.values())


def test_a_mask_is_there_for_the_tokens_of_a_caption_and_for_one_at_least(encoder):
    told, counts = encoder.encode(CAPTIONS), encoder.counts(CAPTIONS)
    if "text_mask" in told:
        assert told["text_mask"].sum(1).tolist() == [min(count, encoder.length) for count in counts]
        assert bool(told["text_mask"][:, 0].all())
        assert torch.equal(told["text_mask"], told["text_mask"].sort(1, descending=True).values)
    assert min(counts) >= 1


@pytest.mark.parametrize("name", OPENED)
def test_no_encoder_asks_the_network(folders, monkeypatch, name):
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: asked.append(words) or [])
    encoded(OPENED[name].format(folders))
    assert asked == []


def test_code_that_a_folder_brings_is_not_run(folders, tmp_path):
    shutil.copytree(folders / "T5", tmp_path / "own")
    (tmp_path / "own" / "code.py").write_text(
        f"open({str(tmp_path / 'run')!r}, 'w')\nclass Tokenizer: ...\nclass Net: ...\n"
    )
    brought = {
        "config.json": {"AutoModel": "code.Net"},
        "tokenizer_config.json": {"AutoTokenizer": ["code.Tokenizer", None]},
    }
    for file, classes in brought.items():
        content = json.loads((tmp_path / "own" / file).read_text())
        (tmp_path / "own" / file).write_text(json.dumps(content | {"auto_map": classes}))
    with contextlib.suppress(UserError):
        encoded(f"folder:{tmp_path}/own")
    assert not (tmp_path / "run").exists()


def test_other_captions_are_told_otherwise(encoder):
    told = encoder.encode(["a bold seven", "a pale nine"])
    for name in told.keys() - {"text_mask"}:
        assert not torch.equal(told[name][0], told[name][1])


def test_nothing_is_the_empty_caption_but_where_a_pipeline_has_zeros(encoder):
    empty, zeros = encoder.encode([""]), encoder.about.get("settings", {}).get("force_zeros_for_empty_prompt")
    for name, tensor in encoder.nothing().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if zeros else empty[name][0])


def test_a_longer_caption_is_cut_and_never_wraps(encoder):
    short = opened_again(encoder, 2)
    counts = short.counts(CAPTIONS)
    assert max(counts) > 2
    told = short.encode(CAPTIONS)
    if "text_mask" in told:
        assert told["text_mask"].shape[1] == 2
        assert told["text_mask"].sum(1).tolist() == [min(2, count) for count in counts]


def opened_again(encoder, length: int):
    return encoder.of_length(length, length)


def test_more_tokens_than_a_model_has_places_for_are_refused(folders):
    clip = opened(f"folder:{folders}/CLIP")
    assert (clip.most, clip.usual) == (text_folders.MOST, text_folders.MOST)
    with pytest.raises(
        UserError, match=r"text\.length: 13 is more than the 12 tokens that the encoder takes; lower it"
    ):
        clip.of_length(13, 5)
    assert opened(f"folder:{folders}/T5").of_length(99, 5).length == 99
    assert [opened(f"folder:{folders}/{name}").usual for name in ("PixArtAlpha", "PixArtSigma", "Flux")] == [
        120,
        300,
        512,
    ]


# ---- digests


def test_an_encoder_is_known_by_what_makes_it_another_one(encoder):
    digest = encoder.content["digest"]
    assert opened_again(encoder, 2).content["digest"] != digest
    assert json.loads(json.dumps(encoder.content)) == encoder.content


def test_the_dimension_of_words_is_part_of_the_digest():
    digests = {opened("words", dimension).of_length(5, 5).content["digest"] for dimension in (8, 9)}
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["CLIP", "StableDiffusionXL", "StableDiffusion3"])
def test_a_folder_is_known_by_the_bytes_of_its_files_wherever_it_lies(folders, tmp_path, name):
    def digest(folder):
        return opened(f"folder:{folder}").of_length(4, 4).content["digest"]

    own = digest(folders / name)
    shutil.copytree(folders / name, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("of no meaning")
    (tmp_path / "copy" / "unet").mkdir()
    (tmp_path / "copy" / "unet" / "config.json").write_text("{}")
    assert digest(tmp_path / "copy") == own
    used = [path for path in sorted((folders / name).rglob("*")) if path.is_file() and path.name != "model_index.json"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in used
    }
    for path in used:
        copy = tmp_path / "copy" / path.relative_to(folders / name)
        content = copy.read_bytes()
        copy.write_bytes(content + b" ")
        assert digest(tmp_path / "copy") != own, path
        copy.write_bytes(content)


def test_what_stands_for_nothing_is_part_of_the_digest(folders):
    one, other = (opened(f"folder:{folders}/{name}") for name in ("StableDiffusionXL", "StableDiffusionXL, empty"))
    assert one.about["files"] == other.about["files"]
    assert one.of_length(4, 4).content["digest"] != other.of_length(4, 4).content["digest"]


# ---- each


def test_words_are_standard_normal_vectors_of_their_letters_alone():
    words = opened("words", 4096)
    told = words.of_length(None, 5).encode(["a bold dark seven", "Dark,  BOLD!", "seven-a"])
    a, bold, dark, seven = told["text"][0, 1:]
    assert torch.equal(told["text"][1, 1:3], torch.stack([dark, bold]))
    assert torch.equal(told["text"][2, 1:3], torch.stack([seven, a]))
    assert not told["text"][1, 3:].any()
    assert torch.equal(told["text"][:, 0], told["text"][:1, 0].expand(3, -1))  # the beginning
    torch.testing.assert_close(told["pooled"][1], (dark + bold) / 2)
    torch.testing.assert_close(told["pooled"][0], (a + bold + dark + seven) / 4)
    vectors = told["text"][0]
    assert abs(vectors.mean()) < 5 / math.sqrt(vectors.numel())
    products = vectors @ vectors.T / 4096  # 1 with itself, and 0 +- 1/64 with another
    torch.testing.assert_close(products, torch.eye(5), rtol=0, atol=6 * math.sqrt(2) / 64)


def test_words_in_two_forms_of_unicode_are_the_same_word():
    composed, apart = "caf\u00e9", "cafe\u0301"
    words = opened("words").of_length(3, 3)
    told = words.encode([composed, apart, "cafe"])["text"]
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2])


def test_the_empty_caption_has_a_token_and_no_words():
    nothing = opened("words").of_length(4, 4).nothing()
    assert nothing["text_mask"].tolist() == [True, False, False, False]
    assert nothing["text"][0].any()
    assert not nothing["pooled"].any()


def test_wordllama_tells_the_rows_of_its_table():
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    found = opened("wordllama")
    ids = Tokenizer.from_file(str(found.tokenizer)).encode("a bold dark seven").ids
    table = load_file(found.table)["embedding.weight"].float()
    told = found.of_length(None, 9).encode(["a bold dark seven"])
    assert torch.equal(told["text"][0, : len(ids)], table[ids])
    torch.testing.assert_close(told["pooled"][0], table[ids[1:]].mean(0))
    assert "wordllama" not in sys.modules


def test_wordllama_finds_a_bold_seven_more_like_a_thick_one_than_like_a_train():
    told = (
        opened("wordllama")
        .of_length(None, 9)
        .encode(["a bold dark seven", "a thick black 7", "a train leaves"])["pooled"]
    )
    alike = torch.nn.functional.cosine_similarity(told[:1], told[1:])
    assert alike[0] > alike[1]


@pytest.mark.parametrize("name", text_folders.PIPELINES)
def test_a_pipeline_tells_its_network_what_its_own_encode_prompt_does(folders, name):
    pipeline, told = text_folders.PIPELINES[name]
    found = opened(f"folder:{folders}/{name}").of_length(None, 1)
    with torch.no_grad():
        wanted, of_nothing = told(pipeline(), CAPTIONS)
    got, nothing = found.encode(CAPTIONS), found.nothing()
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(nothing[key], of_nothing[key][0], rtol=0, atol=TOLERANCE)


def test_a_folder_of_one_encoder_tells_its_last_layer(folders):
    clip, t5 = (opened(f"folder:{folders}/{name}").of_length(7, 7) for name in text_folders.SINGLE)
    tokens = text_folders.letters()(CAPTIONS, padding="max_length", max_length=7, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = text_folders.clip(8)(tokens["input_ids"])
    told = clip.encode(CAPTIONS)
    torch.testing.assert_close(told["text"], wanted.last_hidden_state, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(told["pooled"], wanted.pooler_output, rtol=0, atol=TOLERANCE)
    tokens = text_folders.words()(CAPTIONS, padding="max_length", max_length=7, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = text_folders.t5()(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    told = t5.encode(CAPTIONS)
    torch.testing.assert_close(told["text"], wanted.last_hidden_state, rtol=0, atol=TOLERANCE)
    assert torch.equal(told["text_mask"], tokens["attention_mask"].bool())


@pytest.mark.parametrize("size", ["1GB", "2KB"])
def test_weights_of_a_variant_are_taken_where_no_others_are_there(folders, tmp_path, size):
    model = text_folders.clip(8).half()
    model.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=size)
    text_folders.letters().save_pretrained(tmp_path / "half")
    assert (len(list((tmp_path / "half").glob("*.safetensors"))) > 1) == (size == "2KB")
    half = opened(f"folder:{tmp_path}/half").of_length(None, 1)
    error = (
        half.encode(CAPTIONS)["text"] - opened(f"folder:{folders}/CLIP").of_length(None, 1).encode(CAPTIONS)["text"]
    ).abs()
    assert 0 < error.max() < 0.01
    before = half.content["digest"]
    for path in sorted((tmp_path / "half").glob("*.safetensors")):
        shutil.copytree(tmp_path / "half", tmp_path / path.name)
        (tmp_path / path.name / path.name).write_bytes(path.read_bytes() + b" ")
        assert opened(f"folder:{tmp_path / path.name}").of_length(None, 1).content["digest"] != before


def test_in_bf16_a_model_says_about_the_same(folders):
    word = f"folder:{folders}/StableDiffusionXL"
    half = encoders.encoder_of(word, 1, CPU, "bf16").of_length(None, 1)
    whole = opened(word).of_length(None, 1)
    assert half.content["digest"] == whole.content["digest"]
    assert half.content["numbers"] == "bf16"
    for name, tensor in whole.encode(CAPTIONS).items():
        error = (half.encode(CAPTIONS)[name] - tensor).abs().max() / tensor.abs().max()
        assert 0 < error < 0.05


# ---- what is refused


def test_a_word_that_is_no_encoder_is_refused_with_all_that_are():
    with pytest.raises(ValueError, match=r"encoder must be null, folder:PATH, wordllama or words, not 'word'"):
        Config("word")
    for wrong in ("words:x", "folder", "folder:", "folder: "):
        with pytest.raises(ValueError, match="encoder must be"):
            Config(wrong)
    for key in ("length", "dimension"):
        with pytest.raises(ValueError, match=f"{key} must be at least 1, not 0"):
            Config("words", **{key: 0})


def emptied(folder):
    (folder / "config.json").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def two_variants(folder):
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "model.safetensors").rename(folder / "model.fp8.safetensors")


def renamed(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "clop"}))


def taken_apart(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layer_norm1.weight")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


WRONG = {
    "no config": (emptied, "is no text encoder, it has no config.json"),
    "no model type": (lambda folder: (folder / "config.json").write_text("[1]"), "its config.json names no model_type"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "a pickle": (
        pickled,
        r"has pickled weights alone \(pytorch_model.bin\); write it with save_pretrained, as safetensors",
    ),
    "two variants": (two_variants, "has weights in several variants, fp16, fp8; leave one of them there"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "the tokenizer in .* cannot be read",
    ),
    "an unknown type": (renamed, "cannot be read"),
    "torn weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999]),
        "the text encoder in .* cannot be read",
    ),
    "a weight too few": (taken_apart, "lacks 1 weights, .*layer_norm1.weight; copy it again"),
    "not there": (shutil.rmtree, "is not there; name a folder of transformers or of a whole pipeline"),
    "another pipeline": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "DiTPipeline"}'),
        "is a DiTPipeline, of which only these are known: .*PixArtAlphaPipeline",
    ),
    "no pipeline": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        "model_index.json names no pipeline",
    ),
    "a pipeline's part": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
        r"text_encoder is not there",
    ),
}


def encoded(word: str) -> None:
    found = opened(word)
    found.of_length(None, max(found.counts(CAPTIONS))).encode(CAPTIONS)


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_no_text_encoder_is_refused_in_a_line(folders, tmp_path, name):
    damage, words = WRONG[name]
    shutil.copytree(folders / "CLIP", tmp_path / "own")
    damage(tmp_path / "own")
    with pytest.raises(UserError, match=words) as caught:
        encoded(f"folder:{tmp_path}/own")
    assert str(caught.value).startswith("text.encoder: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("word", "package"), [
    ("wordllama", "wordllama"), ("wordllama", "tokenizers"), ("folder:/x", "transformers"),
])  # fmt: skip
def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, word, package):
    real = wordllama.importlib.util.find_spec
    monkeypatch.setattr(wordllama.importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install 'distill\[text\]'"):
        opened(word)


# ---- the stage

COUNT = 90
"""Images to train on, and as many that are held out."""

UNSEEN = ("a bold three!", "a long caption that no image has")


def caption_of(place: int) -> str:
    return f"a {('bold', 'pale')[place % 2]} {('one', 'two', 'three')[place % 3]}"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Digits in several shards, as many of them held out, each with a caption."""
    monkeypatch.chdir(tmp_path)
    for name in ("diffcore", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(Path(__file__).parent.parent / name)
    write(DataConfig("digits", limit=COUNT, split=Split(holdout=0.2), members="image"), paths.DATA, 1, shard_bytes=3000)
    monkeypatch.setattr(stored, "Manifest", Captioned)
    monkeypatch.setattr(read, "captions", captions_of, raising=False)
    return tmp_path


def fixed(value):
    """A field that always says this, whatever it is set to."""
    return property(lambda self: value, lambda self, other: None)


class Captioned(manifest.Manifest):
    """Of images that have captions, which here come from `captions_of`."""

    captions, unseen = fixed(True), fixed(UNSEEN)

    @classmethod
    def read(cls, folder, verify=True):
        return cls(**vars(manifest.Manifest.read(folder, verify)))


class Captionless(Captioned):
    captions, unseen = fixed(False), fixed(())


def captions_of(folder):
    """As they would lie in the shards: those held out in another order."""
    shards, first = manifest.Manifest.read(folder).shards, 5 * (folder == paths.HOLDOUT)
    for shard in shards:
        yield [caption_of(first + place) for place in range(shard.images)]
        first += shard.images


def set_to(**text):
    """The shipped parameters with another section `text`."""
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["text"] |= text
    raw["data"]["captions"] = "caption"
    return params.parse(raw, "params.yaml")


def stored_of(folder):
    return embeddings.read(paths.TEXT / folder.relative_to(paths.DATA), manifest.Manifest.read(folder))


def test_the_stage_writes_what_each_image_is_told(workspace, capsys):
    encode.encode(set_to(encoder="words", dimension=6))
    words = opened("words", 6).of_length(None, 8)  # the longest of no image
    for folder in (paths.DATA, paths.HOLDOUT):
        found = stored_of(folder)
        captions = [caption for shard in captions_of(folder) for caption in shard]
        told, wanted = found.take(range(len(captions))), words.encode(captions)
        assert all(torch.equal(told[name], wanted[name]) for name in wanted)
        assert all(torch.equal(found.nothing[name], part) for name, part in words.nothing().items())
        assert found.unseen == UNSEEN
        assert all(torch.equal(found.unseen_inputs()[name], part) for name, part in words.encode(UNSEEN).items())
        assert found.encoder == words.content
        distinct = [len(set(captions)) for captions in captions_of(folder)]
        assert [len(found.table(shard).inputs["text"]) for shard in range(len(distinct))] == distinct
    assert len(manifest.Manifest.read(paths.DATA).shards) > 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("encode: ")
    assert f"text 8x6, text_mask 8, pooled 6; encoder {words.content['digest'][:12]}" in lines[-1]
    assert not any("cut" in line for line in lines)


def test_it_says_how_many_captions_are_cut(workspace, capsys):
    encode.encode(set_to(encoder="words", dimension=6, length=3))
    assert stored_of(paths.DATA).inputs["text"].shape == (3, 6)
    assert (
        f"encode: the captions of {2 * COUNT} of {2 * COUNT} images are cut to 3 tokens, the longest had 8"
        in capsys.readouterr().out
    )


def test_it_names_a_longest_text_beside_which_the_others_are_short(workspace, capsys):
    encode.encode(set_to(encoder="words", dimension=6))
    assert "filled up" not in capsys.readouterr().out
    survey = stored.Survey(4, {2: 3, 3: 4, 9: 2}, {3: 1, 900: 1})
    assert (survey.longest, survey.usual) == (900, 3)
    assert [stored.Survey(1, counts).usual for counts in ({5: 1}, {1: 1, 2: 1}, {1: 1, 2: 2}, {0: 0, 4: 2})] == [
        5,
        1,
        2,
        4,
    ]
    encode._tell_odd(survey)
    assert (
        "the longest text has 900 tokens, to which all are filled up, and half of them have 3 at"
        in capsys.readouterr().out
    )
    encode._tell_odd(stored.Survey(4, {2: 3, 16: 1}))
    assert not capsys.readouterr().out


def test_numbers_of_half_the_size_are_stored_where_they_are_asked_for(workspace):
    encode.encode(set_to(encoder="words", precision="float16"))
    found = stored_of(paths.DATA)
    told = opened("words", 64).of_length(None, 8).encode([caption_of(0)])
    assert {name: kind.dtype for name, kind in found.inputs.items()} == {
        "pooled": "float16",
        "text": "float16",
        "text_mask": "bool",
    }
    torch.testing.assert_close(found.take([0])["text"].float(), told["text"], rtol=1e-3, atol=1e-4)


def test_numbers_that_half_the_size_cannot_hold_are_refused(workspace, monkeypatch):
    real = words_file.Words.vectors
    monkeypatch.setattr(words_file.Words, "vectors", lambda self, tokens: 1e5 * real(self, tokens))
    with pytest.raises(
        UserError, match=r"text\.precision: float16 cannot hold .*, the largest number of text; take float32"
    ):
        encode.encode(set_to(encoder="words", precision="float16"))
    assert not paths.TEXT.exists()


def test_without_an_encoder_it_says_that_there_are_none(workspace, monkeypatch, capsys):
    monkeypatch.delattr(read, "captions")
    encode.encode(set_to())
    assert capsys.readouterr().out == "encode: no texts: text.encoder is null\n"
    assert stored_of(paths.DATA) is None
    assert stored_of(paths.HOLDOUT) is None


def test_it_is_the_same_to_the_byte_each_time(workspace):
    def written():
        encode.encode(set_to(encoder="words"))
        return {path.name: disk.sha256(path) for path in sorted(paths.TEXT.rglob("*")) if path.is_file()}

    assert written() == written()


def test_data_without_captions_have_none_to_encode(workspace, monkeypatch):
    monkeypatch.setattr(stored, "Manifest", Captionless)
    with pytest.raises(UserError, match=r"text\.encoder: the images have no captions; say in data\.captions"):
        encode.encode(set_to(encoder="words"))


def test_no_more_than_one_shard_is_in_memory(workspace, monkeypatch):
    """A shard's captions are asked for when the embeddings of those before are written."""
    events, real = [], embeddings._saved
    monkeypatch.setattr(embeddings, "_saved", lambda path, parts: events.append(path.name) or real(path, parts))

    def asked(folder):
        for place, captions in enumerate(captions_of(folder)):
            events.append(place)
            yield captions

    monkeypatch.setattr(read, "captions", asked)
    encode.encode(set_to(encoder="words"))
    shards = len(manifest.Manifest.read(paths.DATA).shards)
    writing = events[events.index("000000.safetensors") - 1 :][: 2 * shards]
    assert writing == [event for place in range(shards) for event in (place, f"{place:06d}.safetensors")]


def test_a_stage_that_fails_leaves_the_last_embeddings(workspace, monkeypatch):
    encode.encode(set_to(encoder="words"))
    before = stored_of(paths.DATA).digest
    monkeypatch.setattr(stored._Encoding, "nothing", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode.encode(set_to(encoder="words", dimension=3))
    assert stored_of(paths.DATA).digest == before


def test_captions_are_encoded_in_batches_and_each_shards_once(workspace, monkeypatch):
    sizes, calls = [], []
    real = words_file.Words.encode
    monkeypatch.setattr(encoding, "BATCH", 4)
    monkeypatch.setattr(
        words_file.Words, "encode", lambda self, captions: sizes.append(len(captions)) or real(self, captions)
    )
    monkeypatch.setattr(encode, "Progress", lambda *words: lambda done, total: calls.append((done, total)))
    encode.encode(set_to(encoder="words"))
    shards = [len(set(captions)) for folder in (paths.DATA, paths.HOLDOUT) for captions in captions_of(folder)]
    distinct = sum(shards) + 2 * len(UNSEEN)
    assert max(sizes) == 4
    assert calls[-1] == (distinct, distinct)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


class Dying:
    """Encodes, and dies at the caption of this number."""

    def __init__(self, real, death: int):
        self.real, self.left, self.captions = real, death, []

    def __call__(self, encoder, captions):
        self.left -= len(captions)
        if self.left < 0 and captions != [""]:
            raise KeyboardInterrupt
        self.captions += captions
        return self.real(encoder, captions)


def test_a_killed_stage_makes_no_table_again_that_was_whole_and_ends_with_the_same_bytes(
    workspace, monkeypatch, capsys
):
    def content():
        return {str(p.relative_to(paths.TEXT)): p.read_bytes() for p in sorted(paths.TEXT.rglob("*")) if p.is_file()}

    real, found = words_file.Words.encode, set_to(encoder="words")
    encode.encode(found)
    whole, captions = content(), list(captions_of(paths.DATA))
    held = list(captions_of(paths.HOLDOUT))
    disk._remove(paths.TEXT)
    assert len(captions) > 2
    dying, asked = Dying(real, len(set(captions[0])) + 3), Dying(real, 10**9)
    monkeypatch.setattr(words_file.Words, "encode", lambda self, captions: dying(self, captions))
    with pytest.raises(KeyboardInterrupt):
        encode.encode(found)
    assert not paths.TEXT.exists()
    monkeypatch.setattr(words_file.Words, "encode", lambda self, captions: asked(self, captions))
    encode.encode(found)
    assert f"encode: goes on after 1 of {len(captions)} tables" in capsys.readouterr().out
    left = sum(len(set(each)) for each in captions[1:] + held) + 2 * len(UNSEEN)
    assert len([caption for caption in asked.captions if caption]) == left
    assert content() == whole
    assert not (paths.RESUME / "encode").exists()


@pytest.mark.parametrize("change", [{"dimension": 3}, {"precision": "float16"}, {"length": 2}])
def test_tables_of_other_settings_are_made_again(workspace, monkeypatch, capsys, change):
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_write_manifest", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode.encode(set_to(encoder="words"))
    assert (paths.RESUME / "encode/000000.safetensors").exists()
    encode.encode(set_to(encoder="words", **change))
    assert "encode: starts anew: the configuration or the code is not that" in capsys.readouterr().out
    again = {p.name: disk.sha256(p) for p in sorted(paths.TEXT.glob("*")) if p.is_file()}
    encode.encode(set_to(encoder="words", **change))
    assert {p.name: disk.sha256(p) for p in sorted(paths.TEXT.glob("*")) if p.is_file()} == again
