"""Random numbers by key: every name has its own, a part of a batch has its part of them, and no order is left in them."""

import itertools

import pytest
import torch

from diffcore.core import rng
from diffcore.core.rng import dice, draw, generator, noises, seed, some
from tests.conftest import labels_like

BATCH = torch.zeros(32, 2, 3)


def independent(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the correlation of two sets of numbers is within four of its standard errors of 0."""
    pair = torch.stack([one.flatten().double(), other.flatten().double()])
    return abs(float(torch.corrcoef(pair)[0, 1])) < 4 / pair.shape[1] ** 0.5


def test_uniform_numbers_come_in_no_order():
    """A part of a batch, which one process or one accumulated part sees, is as fair a sample as the whole."""
    drawn = torch.stack([draw(BATCH, 0, "train", step).u for step in range(400)])
    places = torch.arange(len(BATCH), dtype=torch.float64).expand(400, -1)
    assert independent(drawn, places)
    assert not (drawn[0].diff() > 0).all()


def test_every_name_has_dice_of_its_own():
    whole = draw(BATCH, 0, "train", 5)
    found = [whole, *(whole.fork(word) for word in ("level", "features", "step 0"))]
    found += [draw(BATCH, 0, "train", 6), draw(BATCH, 1, "train", 5), draw(BATCH, 0, "critic", 5)]
    for one, other in itertools.combinations(found, 2):
        assert independent(one.noise, other.noise)
        assert not torch.equal(one.u, other.u)


def test_names_do_not_run_together():
    starts = [generator(*words).initial_seed() for words in [(1, 23), (12, 3), (123,), ("1", "2", 3), (1, 2, "3x")]]
    assert len(set(starts)) == len(starts)
    assert seed(0, "teacher") != seed(0, "pd2") != seed(1, "pd2")


def test_a_fork_is_drawn_once_whoever_asks_for_it(monkeypatch):
    """A loss that asks twice, and every part of the batch, share the numbers of the whole."""
    drawn, make = [], rng.generator
    monkeypatch.setattr(rng, "generator", lambda *key, **where: drawn.append(key) or make(*key, **where))
    whole = draw(BATCH, 0, "train", 5)
    for each in (whole, whole[:4], whole[4:], whole[4:][:2], whole):
        each.fork("level").fork("again")
    assert drawn == [(0, "train", 5), (0, "train", 5, "level"), (0, "train", 5, "level", "again")]


def test_a_gpu_throws_its_own_dice_and_the_cpu_all_others():
    for device, right in (("cuda:1", "cuda:1"), ("cpu", "cpu"), ("meta", "cpu")):
        assert dice(torch.device(device)) == torch.device(right)


@pytest.mark.parametrize("rows", [slice(0, 8), slice(8, 24), slice(31, 32)])
def test_a_part_has_its_part_of_other_dice_too(rows):
    whole = draw(BATCH, 3, "train", 0)
    part = whole[rows].fork("level")
    torch.testing.assert_close(part.noise, whole.fork("level").noise[rows], rtol=0, atol=0)
    torch.testing.assert_close(part.u, whole.fork("level").u[rows], rtol=0, atol=0)


def test_noise_is_of_a_role_a_seed_and_a_number():
    start, step, other = (
        noises((3, 4), *key) for key in ((0, range(64), "start"), (0, range(64), "step 0"), (1, range(64)))
    )
    assert independent(start, step)
    assert independent(start, other)
    assert independent(start[:32], start[32:])
    assert torch.equal(start[10:20], noises((3, 4), 0, range(10, 20), "start"))
    assert noises((3, 4), 0, range(0)).shape == (0, 3, 4)


def test_some_places_are_different_ones():
    found = some(20, 50, 0, "likelihood")
    assert len(set(found.tolist())) == 20
    assert 0 <= int(found.min()) <= int(found.max()) < 50
    assert torch.equal(found[:10], some(10, 50, 0, "likelihood"))


def test_a_label_is_of_its_number_whatever_is_asked_besides():
    real = torch.arange(10).repeat_interleave(torch.arange(1, 11))
    many = labels_like(real, 2000, 0)
    assert torch.equal(labels_like(real, 7, 0), many[:7])
    assert not torch.equal(labels_like(real, 2000, 1), many)
    share = torch.bincount(many, minlength=10).double() / 2000
    wanted = torch.arange(1, 11).double() / 55
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / 2000).sqrt()).all()


def test_dice_lie_where_the_images_do_and_so_do_all_others_made_of_them():
    whole = draw(torch.zeros(4, 2, device="meta"), 0)
    for made in (whole, whole.fork("level"), whole[1:3], whole[1:3].fork("level")):
        assert made.u.device.type == made.noise.device.type == "meta"
        assert (made.u.dtype, made.noise.dtype) == (torch.float64, torch.float32)
