"""Batch k is a function of (data, seed, k): after a jump, on any machine, in any number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data import embeddings
from diffcore.data import feed as feeds
from diffcore.data.config import Config
from diffcore.data.feed import Order, ResidentFeed, StreamFeed, feed, to_float, to_uint8
from diffcore.data.manifest import Manifest
from diffcore.data.read import Images, load_resident
from diffcore.data.write import write

COUNT = 101


@pytest.fixture(scope="module", params=["block", "image"])
def data(request, tmp_path_factory) -> Path:
    """101 images in many shards: number i has i in every pixel of its left half, 255 - i in its right, and label i % 2."""
    root = tmp_path_factory.mktemp(request.param)
    for number in range(COUNT):
        pixels = np.full((4, 4, 3), number, np.uint8)
        pixels[:, 2:] = 255 - number
        path = root / "in" / str(number % 2) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffcore.data.write.BLOCK", 5)
        config = Config(f"folder:{root}/in", members=request.param)
        manifest = write(config, root / "out", shard_bytes=200)
    assert len(manifest.shards) > 2 * feeds.GROUP
    return root / "out"


def stream(data: Path, batch_size: int = 8, seed: int = 0, flip: bool = False) -> StreamFeed:
    return StreamFeed(data, Manifest.read(data), batch_size, seed, flip)


def resident(data: Path, batch_size: int = 8, seed: int = 0, flip: bool = False) -> ResidentFeed:
    return ResidentFeed(load_resident(data), batch_size, seed, flip)


def assert_same(batch: feeds.Batch, other: feeds.Batch) -> None:
    (x0, inputs), (x1, others) = batch, other
    assert torch.equal(x0, x1)
    assert inputs.keys() == others.keys()
    assert all(torch.equal(inputs[name], others[name]) for name in inputs)


def numbers(x0: torch.Tensor) -> list[int]:
    """Which images these are, mirrored or not."""
    pixels = to_uint8(x0)[:, 0, 0].int()
    return torch.minimum(pixels[:, 0], pixels[:, -1]).tolist()


def test_pixels_and_floats_invert_each_other():
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x0 = to_float(levels)
    assert (x0.dtype, float(x0.min()), float(x0.max())) == (torch.float32, -1.0, 1.0)
    assert torch.equal(to_uint8(x0), levels)
    assert torch.equal(to_uint8(x0 + 0.003), levels)
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
    exact = levels.double() / 127.5 - 1
    assert (x0.double() - exact).abs().max() < 1.2e-7


@pytest.mark.parametrize("make", [stream, resident])
@pytest.mark.parametrize("batch_size", [1, 7, 101, 230])
def test_each_image_comes_once_in_each_epoch(data, make, batch_size):
    made = make(data, batch_size)
    steps = -(-3 * COUNT // batch_size)
    batches = [made.batch(step) for step in range(steps)]
    seen = [number for x0, _ in batches for number in numbers(x0)]
    for epoch in range(3):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    assert seen[:COUNT] != seen[COUNT : 2 * COUNT]
    labels = torch.cat([inputs[CLASS] for _, inputs in batches])
    assert labels.tolist() == [number % 2 for number in seen]
    assert batches[0][0].shape == (batch_size, 3, 4, 4)


def test_both_feeds_give_the_same_batches(data):
    with stream(data, flip=True) as one:
        two = resident(data, flip=True)
        for step in (0, 1, 2, 12, 13, 25, 3):
            assert_same(one.batch(step), two.batch(step))
        assert (one.images, one.shape, one.classes) == (two.images, two.shape, two.classes)


@pytest.mark.parametrize("make", [stream, resident])
def test_a_batch_after_a_jump_is_the_one_in_sequence(data, make):
    walked = make(data, flip=True)
    batches = [walked.batch(step) for step in range(30)]
    for step in (29, 11, 0, 12):
        jumped = make(data, flip=True)
        assert torch.equal(jumped.batch(step)[0], batches[step][0])
        assert torch.equal(walked.batch(step)[1][CLASS], batches[step][1][CLASS])


@pytest.mark.parametrize("make", [stream, resident])
def test_processes_share_one_global_batch(data, make):
    whole, inputs = make(data, 12, flip=True).batch(17)
    for world in (2, 3):
        size = 12 // world
        parts = [make(data, 12, flip=True).batch(17, slice(r * size, (r + 1) * size)) for r in range(world)]
        assert torch.equal(torch.cat([x0 for x0, _ in parts]), whole)
        assert torch.equal(torch.cat([part[CLASS] for _, part in parts]), inputs[CLASS])


def test_seeds_and_flips(data):
    plain = resident(data, 64)
    assert not torch.equal(plain.batch(0)[0], resident(data, 64, seed=1).batch(0)[0])
    x0, mirrored = plain.batch(3)[0], resident(data, 64, flip=True).batch(3)[0]
    kept = (x0 == mirrored).flatten(1).all(1)
    turned = (x0.flip(-1) == mirrored).flatten(1).all(1)
    assert torch.equal(kept, ~turned)
    assert 16 <= int(turned.sum()) <= 48  # 32 expected, 4 standard deviations
    again = (plain.batch(4)[0] == resident(data, 64, flip=True).batch(4)[0]).flatten(1).all(1)
    assert not torch.equal(kept, again)


def test_nothing_is_drawn_from_the_global_generator(data):
    before = torch.get_rng_state()
    stream(data, flip=True).batch(0)
    resident(data, flip=True).batch(0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_mixes_all_its_images():
    # one group: a uniform permutation has displacement n/3 on average, and keeps 1 of n in place
    order = Order([50] * 4, 0)
    rows = np.concatenate([place.shards * 50 + place.rows for place in order.at(0, 200)])
    assert sorted(rows) == list(range(200))
    assert abs(np.abs(rows - np.arange(200)).mean() - 200 / 3) < 20
    assert (rows == np.arange(200)).sum() < 8


def test_the_images_of_one_shard_change_their_order_with_the_epoch():
    order = Order([50], 0)
    assert not np.array_equal(order.at(0, 50)[0].rows, order.at(50, 100)[0].rows)


def test_groups_change_with_the_epoch_and_hold_few_shards():
    order = Order([3] * 40, 7)
    groups = [[place.group for place in order.at(epoch * 120, (epoch + 1) * 120)] for epoch in range(2)]
    assert all(len(group) <= feeds.GROUP for group in groups[0] + groups[1])
    assert len(groups[0]) == 5
    assert {frozenset(group) for group in groups[0]} != {frozenset(group) for group in groups[1]}
    for epoch in range(2):
        assert sorted(shard for group in groups[epoch] for shard in group) == list(range(40))
    assert order.after(0) == groups[0][1]
    assert order.after(119) == groups[1][0]


def test_a_stream_holds_only_the_groups_it_needs_and_reads_the_next_ahead(data, monkeypatch):
    read = []
    real = feeds.open_shard

    def spy(folder, manifest, index):
        read.append(index)
        return real(folder, manifest, index)

    monkeypatch.setattr(feeds, "open_shard", spy)
    order = Order([shard.images for shard in Manifest.read(data).shards], 0)
    with stream(data, 2) as made:
        made.batch(40)
        made._preparing.submit(int).result()
        made._reading.submit(int).result()
        places = order.at(80, 84)
        needed = [shard for place in places for shard in place.group]
        assert read[: len(needed)] == needed
        assert set(order.after(83)) <= set(read) < set(range(len(order.counts)))
        for step in range(41, 80):
            made.batch(step)
        made._preparing.submit(int).result()
        assert len(made._opened) < len(order.counts)


def test_a_stream_reads_no_shard_twice_in_an_epoch(data, monkeypatch):
    """What was read ahead is still there when it is needed."""
    read, real = [], feeds.open_shard
    monkeypatch.setattr(feeds, "open_shard", lambda *words: read.append(words[2]) or real(*words))
    with stream(data, 4) as made:
        for step in range(COUNT // 4):
            made.batch(step)
        made._preparing.submit(int).result()
        made._reading.submit(int).result()
    first = read[: len(Manifest.read(data).shards)]
    assert len(set(first)) == len(first)
    assert len(read) - len(first) <= 2 * feeds.GROUP  # of the next epoch


def test_memory_chooses_the_feed_and_nothing_else(data):
    small, large = feed(data, 8, 0, True, COUNT * 48 - 1), feed(data, 8, 0, True, COUNT * 48)
    assert (type(small), type(large)) == (StreamFeed, ResidentFeed)
    assert torch.equal(small.batch(5)[0], large.batch(5)[0])
    small.close()


def test_a_streamed_batch_is_on_the_device_before_it_is_asked_for(data):
    """As uint8, and its labels too."""
    with StreamFeed(data, Manifest.read(data), 8, 0, True, "meta") as made:
        x0, inputs = made.batch(0)
        ahead, known = made._ahead[1].result()
        assert {each.device.type for each in (x0, inputs[CLASS], ahead, known[CLASS])} == {"meta"}
        assert ahead.dtype == torch.uint8


def test_a_shard_that_changes_while_streaming_is_named(data, tmp_path):
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made = stream(tmp_path, COUNT)
    content = bytearray((tmp_path / "000003.tar").read_bytes())
    content[600] ^= 1
    (tmp_path / "000003.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"000003\.tar is missing or not what"):
        made.batch(0)
    made.close()


def test_images_without_labels_or_shards():
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    made = ResidentFeed(Images(pixels, None, None), 10, 0, False)
    x0, inputs = made.batch(0)
    assert not inputs
    assert sorted(to_uint8(x0).flatten().tolist()) == list(range(10))
    with pytest.raises(ValueError, match="batch_size"):
        ResidentFeed(Images(pixels, None, None), 0, 0, False)
    with pytest.raises(ValueError, match="no images"):
        ResidentFeed(Images(pixels[:0], None, None), 1, 0, False)


def test_the_feed_that_is_chosen_is_told_the_seed_the_flip_and_the_batch_size(data):
    for memory in (0, COUNT * 48):
        for seed, flip, size in ((0, False, 8), (1, False, 8), (0, True, 8), (0, False, 9)):
            made = feed(data, size, seed, flip, memory)
            expected = resident(data, size, seed, flip).batch(3)
            assert_same(made.batch(3), expected)
            if memory == 0:
                made.close()


def test_rows_asked_for_after_others_are_those_rows(data):
    """What was prepared ahead is of the rows asked for before."""
    whole = resident(data, 12)
    with stream(data, 12) as made:
        asked = [slice(0, 6), slice(6, 12), slice(6, 11), slice(7, 11), slice(None, None, 2), slice(None), slice(0, 6)]
        for step, rows in enumerate(asked):
            x0, inputs = whole.batch(step)
            assert_same(made.batch(step, rows), (x0[rows], {name: part[rows] for name, part in inputs.items()}))


def test_a_stream_of_images_without_labels_gives_none(data, tmp_path):
    write(Config(f"shards:{data}/*.tar", labels="none"), tmp_path / "out", shard_bytes=200)
    with stream(tmp_path / "out") as made:
        x0, inputs = made.batch(1)
    assert not inputs
    assert made.classes is None
    assert torch.equal(x0, resident(tmp_path / "out").batch(1)[0])


def test_groups_and_the_order_in_them_go_by_the_seed():
    def groups(seed: int, epoch: int) -> list:
        return [place.group for place in Order([3] * 40, seed).at(epoch * 120, (epoch + 1) * 120)]

    def rows(seed: int, epoch: int, count: int = 50) -> list:
        return Order([count], seed).at(epoch * count, (epoch + 1) * count)[0].rows.tolist()

    for drawn in (groups, rows):
        found = [drawn(*where) for where in ((0, 0), (1, 0), (0, 1), (1, 1))]
        assert all(one != other for number, one in enumerate(found) for other in found[:number])
        assert drawn(1, 0) == found[1]
    alike = Order([8] * 16, 0)  # two groups of one size, and each an order of its own
    places = [Order.at(alike, first, first + 64)[0] for first in (0, 64)]
    ranks = [np.argsort([place.group.index(s) * 8 + r for s, r in zip(place.shards, place.rows)]) for place in places]
    assert not np.array_equal(*ranks)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("memory", [0, COUNT * 48])
def test_batches_lie_on_the_device_that_was_asked_for(data, tmp_path, memory, labelled, flip):
    """All parts of them: torch's `meta` device refuses, as a GPU does, to meet what lies on the CPU."""
    if not labelled:
        write(Config(f"shards:{data}/*.tar", labels="none"), tmp_path / "out", shard_bytes=200)
    made = feed(data if labelled else tmp_path / "out", 8, 0, flip, memory, "meta")
    for rows in (slice(None), slice(2, 5)):
        x0, inputs = made.batch(1, rows)
        assert (x0.device.type, x0.shape[1:]) == ("meta", (3, 4, 4))
        assert {name: part.device.type for name, part in inputs.items()} == ({CLASS: "meta"} if labelled else {})
    if memory == 0:
        made.close()


def test_the_mask_of_what_is_mirrored_follows_its_images():
    mirrored = feeds._mirrored(torch.empty(4, 1, 2, 2, device="meta"), feeds._flips(0, 0, 4))
    assert (mirrored.device.type, mirrored.shape) == ("meta", (4, 1, 2, 2))


def embedded(data: Path, folder: Path) -> embeddings.Embeddings:
    """Each image's number as its text [2, 3], with a mask; of each shard the table is turned round, so a row is no place."""
    manifest, images = Manifest.read(data), load_resident(data)
    shown = images.pixels[:, 0, 0].int()
    each = torch.minimum(shown[:, 0], shown[:, -1]).split(list(images.counts))

    def table(own: torch.Tensor) -> embeddings.Table:
        text = own.flip(0).float()[:, None, None].expand(-1, 2, 3)
        mask = torch.ones(len(own), 2, dtype=torch.bool)
        return embeddings.Table(torch.arange(len(own)).flip(0), {"text": text, "text_mask": mask})

    nothing = {"text": torch.zeros(2, 3), "text_mask": torch.zeros(2, dtype=torch.bool)}
    embeddings.write(folder, {"digest": "a"}, manifest, map(table, each), nothing)
    return embeddings.read(folder, manifest)


def test_every_image_comes_with_the_embeddings_of_its_own_caption(data, tmp_path):
    """From memory and from the disk, in any rows, on another device too."""
    texts = embedded(data, tmp_path)
    room = COUNT * 48 + texts.bytes
    with feed(data, 8, 3, True, room - 1, embeddings=texts) as streamed:
        held = feed(data, 8, 3, True, room, embeddings=texts)
        assert (type(streamed), type(held)) == (StreamFeed, ResidentFeed)
        for step, rows in enumerate((slice(None), slice(2, 7), slice(None), slice(0, 1))):
            x0, inputs = held.batch(step, rows)
            assert_same((x0, inputs), streamed.batch(step, rows))
            assert inputs["text"][:, 1, 2].tolist() == numbers(x0)
            assert set(inputs) == {"text", "text_mask", CLASS}
    away = feed(data, 8, 3, True, room, "meta", texts).batch(1)[1]
    assert {part.device.type for part in away.values()} == {"meta"}
