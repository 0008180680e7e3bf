"""A copy of each image that a network is told: what it is, that it is told with its image, and a whole run of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore.core.errors import UserError
from diffcore.data import embeddings, feed
from diffcore.data.config import Config
from diffcore.data.feed import to_float, to_uint8
from diffcore.data.image_condition import files, of_files, spoiled
from diffcore.data.manifest import Manifest
from diffcore.data.read import load_resident
from diffcore.data.write import write
from diffcore.nets import dit
from diffcore.texts import stored
from diffcore.texts.encoders import encoder_of
from tests.conftest import randn
from tests.test_dit import stirred
from tests.test_pipeline import call, make

COLOURS = randn(3, 3, 4, 6).float()


def test_a_smaller_copy_is_the_mean_of_each_block():
    copies = spoiled("downscale:2", COLOURS)
    assert copies.shape == COLOURS.shape
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            block = COLOURS[:, :, row : row + 2, column : column + 2].mean((2, 3))
            part = copies[:, :, row : row + 2, column : column + 2]
            torch.testing.assert_close(part, block[:, :, None, None].expand(-1, -1, 2, 2))
    torch.testing.assert_close(spoiled("downscale:2", copies), copies)


def test_a_grey_copy_is_the_luma_that_pillow_makes():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    expected = to_float(torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))))
    copy = spoiled("grey", to_float(torch.from_numpy(pixels).permute(2, 0, 1))[None])
    assert copy.shape == (1, 1, 5, 4)
    torch.testing.assert_close(copy[0, 0], expected, rtol=0, atol=1.01 / 127.5)  # Pillow rounds to a level


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("downscale:4", "downscale:4 needs sides that divide by 4, and the images are 4 x 6"),
        ("grey", "grey is made of three channels, and the images have 1"),
    ],
)
def test_images_of_which_there_is_no_such_copy_are_refused(word, says):
    images = COLOURS if word != "grey" else COLOURS[:, :1]
    with pytest.raises(UserError, match=says):
        spoiled(word, images)


@pytest.mark.parametrize("word", ["downscale", "downscale:1", "downscale:0", "downscale:-2", "grey:2", "blur", ""])
def test_what_is_no_such_word_is_refused(word):
    if word:
        with pytest.raises(ValueError, match=r"image_condition must be null, grey or downscale:F"):
            Config("digits", image_condition=word)
    with pytest.raises(ValueError, match="unseen: such captions have no image to copy"):
        Config("digits", captions="caption", unseen=["a"], image_condition="grey")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six hundred digits with captions, in several shards."""
    folder = tmp_path_factory.mktemp("data")
    config = Config("digits", limit=600, captions="{class}", image_condition="downscale:2")
    write(config, folder / "data", shard_bytes=4096)
    assert len(Manifest.read(folder / "data").shards) > 1
    return folder / "data"


def encoded(shards, folder, encoder=None, word="downscale:2", precision="float32"):
    own = encoder and encoder_of(encoder, 8, torch.device("cpu"), "float32")
    stored.write(shards, folder / "told", own, None, precision, lambda *_: None, image=word)
    return embeddings.read(folder / "told", Manifest.read(shards))


@pytest.mark.parametrize("encoder", [None, "words"])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_each_image_of_a_batch_is_told_its_own_copy_mirrored_as_it_is(shards, tmp_path, encoder, memory):
    texts = encoded(shards, tmp_path, encoder)
    batches = feed.feed(shards, 16, 0, True, memory, embeddings=texts)
    for step in range(5):
        x0, inputs = batches.batch(step)
        torch.testing.assert_close(inputs["image"], spoiled("downscale:2", x0))
        assert ("text" in inputs) == (encoder is not None)
    plain = feed.feed(shards, 16, 0, False, memory).batch(0)[0]
    assert not torch.equal(batches.batch(0)[0], plain)  # some were mirrored


def test_nothing_is_a_grey_image_and_the_digest_names_the_copy(shards, tmp_path):
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
    two, four, both, text = (
        encoded(shards, folder, encoder, word)
        for folder, encoder, word in zip(
            folders, (None, None, "words", "words"), ("downscale:2", "downscale:4", "downscale:2", None)
        )
    )
    assert {name: tuple(part.shape) for name, part in two.nothing.items()} == {"image": (1, 8, 8)}
    assert not two.nothing["image"].any()
    assert len({each.encoder["digest"] for each in (two, four, both, text)}) == 4
    assert torch.equal(both.take(range(600))["text"], text.take(range(600))["text"])
    half = encoded(shards, folders[4], precision="float16").take([3])["image"]
    torch.testing.assert_close(half.float(), two.take([3])["image"], rtol=0, atol=1e-3)
    pixels = to_float(load_resident(shards).pixels)
    assert torch.equal(two.take(range(600))["image"], spoiled("downscale:2", pixels))


def test_a_transformer_is_told_an_image_and_refuses_none():
    shape = dit.Shape(2, 16, 1, 2, image=True)
    net = stirred(shape.config((3, 4, 6), None, inputs={"image": (1, 4, 6)}))
    t, grey = torch.tensor([1.0, 500.0, 900.0]), spoiled("grey", COLOURS)
    out = net(COLOURS, t, image=grey)
    assert out.shape == COLOURS.shape
    assert not torch.allclose(out, net(COLOURS, t, image=grey.roll(1, 0)))
    with pytest.raises(UserError, match="is told an image: give image"):
        net(COLOURS, t)
    with pytest.raises(UserError, match="is told no image: leave image out"):
        stirred(dit.Shape(2, 16, 1, 2).config((3, 4, 6)))(COLOURS, t, image=grey)
    with pytest.raises(
        UserError, match=r"told image, and the data have nothing of the kind; set data\.image_condition"
    ):
        shape.config((3, 4, 6))


TOLD = (
    "data.image_condition=downscale:2",
    "teachers.teacher.network={family: dit, patch: 2, width: 16, depth: 1, heads: 2, image: true}",
    "teachers.teacher.label_dropout=0.1",
)


def saved(image, path):
    """A tensor [c, h, w] of whole levels in [-1, 1] as a PNG."""
    pixels = to_uint8(image).permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
    return path


LEVELS = to_float(torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).to(torch.uint8))


@pytest.mark.parametrize("word", ["downscale:2", "grey"])
def test_of_an_image_file_the_network_is_told_what_the_stage_makes_of_such_an_image(tmp_path, word):
    paths = [saved(image, tmp_path / f"{number}.png") for number, image in enumerate(LEVELS)]
    assert files(tmp_path) == paths
    told = of_files(word, paths, (3, 4, 6))
    torch.testing.assert_close(told, spoiled(word, LEVELS))


def test_a_small_image_is_told_as_the_copy_that_it_is(tmp_path):
    small = saved(LEVELS[0][:, :2, :3], tmp_path / "small.png")
    told = of_files("downscale:2", [small], (3, 4, 6))
    assert told.shape == (1, 3, 4, 6)
    torch.testing.assert_close(told, spoiled("downscale:2", told))
    assert torch.equal(told[0, :, ::2, ::2], LEVELS[0][:, :2, :3])
    grey = saved(LEVELS[0][:1], tmp_path / "grey.png")
    torch.testing.assert_close(of_files("grey", [grey], (3, 4, 6))[0], LEVELS[0][:1])


def test_an_image_file_that_cannot_be_such_a_copy_is_refused(tmp_path):
    wide = saved(LEVELS[0][:, :, :5], tmp_path / "wide.png")
    with pytest.raises(
        UserError, match=r"wide.png is 5 x 4 and must be 6 x 4, or 3 x 2 of a copy; bring it to that size"
    ):
        of_files("downscale:2", [wide], (3, 4, 6))
    with pytest.raises(UserError, match=r"wide.png is 5 x 4 and must be 6 x 4; bring it"):
        of_files("grey", [wide], (3, 4, 6))
    wide.write_bytes(wide.read_bytes()[:40])
    with pytest.raises(UserError, match=r"--condition: .*wide.png cannot be read \(.*\); give another image"):
        of_files("grey", [wide], (3, 4, 6))
    with pytest.raises(UserError, match=r"there.png cannot be read \(FileNotFoundError"):
        of_files("grey", files(tmp_path / "not-there.png"), (3, 4, 6))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"there is no image in .*none; name a file"):
        files(tmp_path / "none")


@pytest.mark.slow
def test_a_whole_run_is_told_copies_and_no_others(tmp_path):
    folder = make(tmp_path / "told", *TOLD)
    done = call(folder, "./stage", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((folder / "artifacts/text/manifest.json").read_text())
    for name in ("teacher", "pd1", "cd", "dm1"):
        card = json.loads((folder / f"artifacts/checkpoints/{name}/card.json").read_text())
        assert (card["inputs"], card["encoder"]) == (["image"], manifest["encoder"]["digest"])
    drawn = call(folder, "./stage", "sample", "pd1", "--images", "4", "--out", "drawn.npz")
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    refused = call(folder, "./stage", "sample", "pd1", "--prompt", "a", "--out", "x.png")
    assert (refused.returncode, "leave --prompt out" in refused.stderr) == (2, True), refused.stderr
    for name, level in (("dark", 0), ("light", 200)):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(folder / f"{name}.png")
        words = ["sample", "pd1", "--images", "2", "--condition", f"{name}.png", "--out", f"{name}.npz"]
        of_mine = call(folder, "./stage", *words)
        assert of_mine.returncode == 0, of_mine.stdout + of_mine.stderr
    dark, light = (np.load(folder / f"{name}.npz")["arr_0"] for name in ("dark", "light"))
    assert dark.shape == (2, 8, 8, 1)
    assert not np.array_equal(dark, light)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("downscale:2", "downscale:4"))
    assert call(folder, "./stage", "encode").returncode == 0
    sample = ["sample", "pd1", "--condition", "dark.png", "--out", "y.png"]
    for words in (["train", "pd1"], ["measure", "pd1"], ["gamma"], sample):
        other = call(folder, "./stage", *words)
        assert other.returncode == 2, words
        assert "set the section text, and data.image_condition, to what it was trained with" in other.stderr
