"""Embeddings beside the shards: each image is told its own caption, of these data, or nobody is told anything."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.data import embeddings
from diffcore.data.embeddings import Table, Unseen
from diffcore.data.manifest import Manifest, Shard

SIZES = (3, 1, 4)
ROWS = ([1, 0, 1], [0], [2, 2, 0, 1])
IMAGES = sum(SIZES)


def manifest(digest: str = "d" * 64) -> Manifest:
    shards = tuple(Shard(f"{place:06d}.tar", images, 1, "s") for place, images in enumerate(SIZES))
    return Manifest(
        1, "x", None, IMAGES, IMAGES, (), 0, 0, None, "lanczos", (1, 8, 8), None, "block", shards, digest
    )  # fmt: skip


def inputs(count: int, start: float) -> dict[str, torch.Tensor]:
    """Of `count` captions of two tokens: every number says which caption it is of."""
    own = start + torch.arange(count, dtype=torch.float32)
    mask = torch.tensor([[True, bool(number % 2)] for number in range(count)])
    return {"text": own[:, None, None].expand(count, 2, 3), "text_mask": mask, "pooled": own[:, None].expand(count, 4)}


TABLES = [Table(torch.tensor(rows), inputs(max(rows) + 1, 10.0 * place)) for place, rows in enumerate(ROWS)]
OWN = torch.tensor([10.0 * place + row for place, rows in enumerate(ROWS) for row in rows])
"""What the caption of each image is to say."""

NOTHING = {name: tensor[0] for name, tensor in inputs(1, -1.0).items()}
UNSEEN = Unseen(("a pale nine", "a dark one"), inputs(2, 90.0))


@pytest.fixture
def folder(tmp_path):
    embeddings.write(tmp_path, {"name": "words", "digest": "e" * 64}, manifest(), TABLES, NOTHING, UNSEEN)
    return tmp_path


def read(folder):
    return embeddings.read(folder, manifest())


def test_an_image_is_told_its_own_caption_in_whatever_order_images_are_asked_for(folder):
    order = np.array([7, 0, 3, 4, 4, 2, 1, 6, 5])
    told = read(folder).take(order)
    assert torch.equal(told["text"], OWN[order][:, None, None].expand(-1, 2, 3))
    assert torch.equal(told["pooled"], OWN[order][:, None].expand(-1, 4))
    assert torch.equal(told["text_mask"][:, 1], OWN[order] % 2 == 1)


def test_by_numbers_by_shards_and_as_a_whole_images_are_told_the_same(folder):
    found = read(folder)
    everything = np.arange(IMAGES)
    shards = np.repeat(np.arange(len(SIZES)), SIZES)
    rows = np.concatenate([np.arange(size) for size in SIZES])
    ways = [found.take(everything), found.at(shards, rows), found.whole().take(everything)]
    ways.append(
        {
            name: torch.cat([found.table(shard).take(slice(None))[name] for shard in range(len(SIZES))])
            for name in found.inputs
        }
    )
    for told in ways:
        assert {name: part.dtype for name, part in told.items()} == {
            "text": torch.float32,
            "text_mask": torch.bool,
            "pooled": torch.float32,
        }
        assert all(torch.equal(part, ways[0][name]) for name, part in told.items())


def test_what_stands_for_nothing_and_captions_of_no_image_are_there(folder):
    found = read(folder)
    assert all(torch.equal(found.nothing[name], NOTHING[name]) for name in ("text", "text_mask", "pooled"))
    assert found.unseen == ("a pale nine", "a dark one")
    assert torch.equal(found.unseen_inputs()["pooled"][:, 0], torch.tensor([90.0, 91.0]))
    assert found.inputs["text"] == embeddings.Shape((2, 3), "float32")
    assert found.encoder["name"] == "words"


def test_data_without_embeddings_say_so(tmp_path):
    embeddings.write_none(tmp_path, manifest())
    assert read(tmp_path) is None
    with pytest.raises(UserError, match="other captions than those of the data: run the encode stage again"):
        embeddings.read(tmp_path, manifest("f" * 64))


def test_embeddings_of_other_data_are_refused(folder):
    with pytest.raises(UserError, match="other captions than those of the data: run the encode stage again"):
        embeddings.read(folder, manifest("f" * 64))


@pytest.mark.parametrize(("name", "needs"), [
    ("000001.safetensors", lambda found: found.take([3])),
    ("000002.safetensors", lambda found: found.whole()),
    ("nothing.safetensors", lambda found: found.nothing),
    ("unseen.safetensors", lambda found: found.unseen_inputs()),
])  # fmt: skip
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "another's"])
def test_a_damaged_file_is_named_when_it_is_needed(folder, name, needs, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "another's":
        path.write_bytes((folder / "000000.safetensors").read_bytes())
    else:
        content[-1] ^= 1
        path.write_bytes(content)
    found = read(folder)
    assert torch.equal(found.take([0])["pooled"], OWN[:1, None].expand(1, 4))  # of a shard that is whole
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*: run the encode stage again"):
        needs(found)


def test_a_manifest_that_was_changed_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"words"', '"worse"'))
    with pytest.raises(UserError, match=r"manifest\.json was changed since it was written; run the encode stage again"):
        read(folder)


def test_another_encoder_and_other_embeddings_have_another_digest(folder, tmp_path_factory):
    def digest(tables, encoder):
        other = tmp_path_factory.mktemp("other")
        embeddings.write(other, {"name": "words", "digest": encoder}, manifest(), tables, NOTHING, UNSEEN)
        found = read(other)
        return found.digest, found.encoder["digest"]

    same = digest(TABLES, "e" * 64)
    assert same == (read(folder).digest, "e" * 64)
    moved = [dataclasses.replace(TABLES[0], rows=torch.tensor([0, 1, 1])), *TABLES[1:]]
    assert digest(moved, "e" * 64)[0] != same[0]
    assert digest(TABLES, "a" * 64)[1] != same[1]


def test_a_table_of_another_number_of_images_is_no_shards(tmp_path):
    with pytest.raises(ValueError, match=r"a table of 2 images is not that of 000000\.tar, of 3"):
        embeddings.write(tmp_path, {}, manifest(), [Table(torch.tensor([0, 0]), inputs(1, 0.0))] * 3, NOTHING)
