"""What holds of every family of networks that can be trained from nothing."""

import itertools

import pytest
import torch

from diffcore.nets import FAMILIES, dit, unet

SHAPES = {
    "unet": unet.Shape((8, 16), 1, True, 8, 0.0, 12.0, conditional=True),
    "dit": dit.Shape(2, 16, 2, 2, conditional=True),
}
"""A small one of each."""


def test_every_family_is_asked():
    assert SHAPES.keys() == FAMILIES.keys()
    assert all(type(shape) is FAMILIES[word].shape for word, shape in SHAPES.items())


@pytest.mark.parametrize("family", SHAPES)
def test_weights_come_from_the_seed_alone(family):
    """The global generator is left as it was, another seed gives others, and no two layers begin alike."""

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return SHAPES[family].build((1, 8, 8), 3, seed).state_dict()

    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first = weights(3)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        again, other = weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = {name: tensor for name, tensor in first.items() if tensor.unique().numel() > 1}
    assert drawn
    assert not any(torch.equal(tensor, other[name]) for name, tensor in drawn.items())
    for one, two in itertools.combinations(drawn.values(), 2):
        assert one.shape != two.shape or not torch.equal(one, two)
