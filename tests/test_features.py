import dataclasses
import json

import pytest
import torch

from diffcore import features
from diffcore.features import Config, extract
from diffcore.mistake import Mistake
from tests.conftest import dice

CONFIG = Config(channels=8, dimension=16, iterations=60, batch=32, lr=3e-3, seed=0)


def stripes(n: int = 240, side: int = 8, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that differ in where they are bright, under noise."""
    labels = torch.arange(n) % 2
    x = torch.randint(0, 120, (n, channels, side, side), generator=dice(1))
    x[labels == 0, :, : side // 2] += 120
    x[labels == 1, :, :, : side // 2] += 120
    return x.to(torch.uint8), labels


@pytest.fixture(scope="module")
def network():
    return features.train(*stripes(), CONFIG)


def test_it_learns_the_classes_and_says_so_on_held_out_images(network):
    assert network.card.task == "classes"
    assert network.card.held_out == 24
    assert network.card.accuracy > 0.9


def test_without_labels_it_learns_rotations():
    images, _ = stripes()
    found = features.train(images[::2], None, CONFIG)
    assert (found.card.task, found.card.outputs) == ("rotations", 4)
    assert found.card.accuracy > 0.5


def test_equal_arguments_give_equal_networks(network):
    torch.rand(3)  # the global generator has no say
    assert features.train(*stripes(), CONFIG).digest == network.digest
    assert features.train(*stripes(), dataclasses.replace(CONFIG, seed=1)).digest != network.digest


def test_features_do_not_depend_on_their_batch(network):
    x = stripes()[0].float() / 127.5 - 1
    torch.testing.assert_close(extract(network, x, 240), extract(network, x, 7), rtol=0, atol=1e-5)


def test_features_are_centred_and_scaled_on_the_data(network):
    found = extract(network, stripes()[0].float() / 127.5 - 1)
    assert found.mean(0).abs().max() < 0.05  # nine tenths of these images it learned from
    assert float(found.var(0).mean()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (16, 3), (20, 1)])
def test_any_size_will_do(side, channels):
    found = features.train(*stripes(40, side, channels), dataclasses.replace(CONFIG, iterations=2))
    assert extract(found, torch.zeros(3, channels, side, side)).shape == (3, 16)


def test_another_number_of_channels_is_a_mistake(network):
    with pytest.raises(Mistake, match="images of 1 channels and is shown 3"):
        extract(network, torch.zeros(2, 3, 8, 8))


def test_what_is_loaded_is_what_was_saved(network, tmp_path):
    features.save(network, tmp_path / "f")
    again = features.load(tmp_path / "f")
    assert again.digest == network.digest
    assert again.card == network.card
    x = torch.rand(3, 1, 8, 8, generator=dice(2))
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("damage", ["weights", "card", "missing", "digest"])
def test_damage_is_a_mistake_with_the_remedy(network, tmp_path, damage):
    folder = tmp_path / "f"
    features.save(network, folder)
    weights, card = folder / features.WEIGHTS, folder / features.CARD
    if damage == "weights":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 8
        weights.write_bytes(content)
    elif damage == "card":
        card.write_text(card.read_text()[:50])
    elif damage == "missing":
        card.unlink()
    else:
        card.write_text(json.dumps({**json.loads(card.read_text()), "digest": "0"}))
    with pytest.raises(Mistake, match="stage `features`"):
        features.load(folder)


@pytest.mark.parametrize("wrong", [{"channels": 9}, {"dimension": 0}, {"iterations": 0}, {"lr": 0.0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(CONFIG, **wrong)
