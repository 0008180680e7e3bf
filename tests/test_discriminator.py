"""The critic on frozen features: its random numbers, its shapes, its losses by hand, what it may ask of a teacher."""

import pytest
import torch
import torch.nn.functional as F

from diffcore.core.errors import UserError
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods.parts.discriminator import Discriminator, Head, fooling, hinge, widths
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from tests.conftest import ToyNet, gaussian, randn, toy_denoiser


def maps(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    return [randn(*shape, seed=seed + k) for k, shape in enumerate(shapes)]


# ------------------------------------------------------------------------------------------- weights


def test_it_is_made_of_its_seed_alone():
    before = torch.get_rng_state()
    one = Discriminator((8, 12), 2, 5).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)  # what others drew in between
    again, other = Discriminator((8, 12), 2, 5).state_dict(), Discriminator((8, 12), 2, 6).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = [name for name in one if "conv" in name or "out" in name]
    assert len(drawn) == 4 * 6
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_heads_of_one_map_begin_apart_and_a_further_map_moves_none():
    one, wider = Discriminator((8,), 2, 0).state_dict(), Discriminator((8, 8), 2, 0).state_dict()
    assert all(torch.equal(value, wider[name]) for name, value in one.items())
    assert not torch.equal(one["heads.0.conv1.weight"], one["heads.1.conv1.weight"])
    assert not torch.equal(wider["heads.0.conv1.weight"], wider["heads.2.conv1.weight"])
    bound = (9 * 8) ** -0.5
    assert 0.9 * bound < float(one["heads.0.conv1.weight"].abs().max()) <= bound


# ------------------------------------------------------------------------------------------- heads


def test_a_head_by_hand():
    """Normalised in groups of a quarter of the channels, by sums written out; the second convolution around a skip."""
    head, x = Discriminator((8,), 1, 0).double().heads[0], randn(2, 8, 3, 3)

    def block(h, conv, groups: int = 2):
        h = F.conv2d(h, conv.weight, conv.bias, padding=1).reshape(2, groups, -1)
        mean, square = h.mean(2, keepdim=True), h.square().mean(2, keepdim=True)
        h = ((h - mean) / (square - mean**2 + 1e-5).sqrt()).reshape(2, 8, 3, 3)
        return torch.where(h > 0, h, 0.01 * h)

    first = block(x, head.conv1)
    both = first + block(first, head.conv2)
    by_hand = torch.einsum("bchw,c->bhw", both, head.out.weight[0, :, 0, 0]) + head.out.bias
    torch.testing.assert_close(head(x)[:, 0], by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("width", "groups"), [(3, 1), (8, 2), (12, 1), (64, 16), (320, 16), (1280, 32)])
def test_no_group_is_of_one_channel(width, groups):
    assert Head(width).norm1.num_groups == groups
    assert width // groups >= 3


def test_one_logit_for_each_place_of_each_map_and_head():
    critic = Discriminator((8, 3), 2, 0).double()
    found = critic(maps((2, 8, 4, 4), (2, 3, 2, 2)))
    assert [tuple(logit.shape) for logit in found] == [(2, 1, 4, 4)] * 2 + [(2, 1, 2, 2)] * 2
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("shapes", "listed"),
    [
        ([(2, 8, 4, 4)], "not of 8;"),
        ([(2, 3, 4, 4), (2, 8, 4, 4)], "not of 3, 8;"),
        ([(2, 8, 4, 4), (2, 3, 2, 2), (2, 3, 1, 1)], "not of 8, 3, 3;"),
    ],
)
def test_features_of_another_shape_are_refused(shapes, listed):
    with pytest.raises(UserError, match=f"features of 8, 3 channels, {listed}"):
        Discriminator((8, 3), 2, 0).double()(maps(*shapes))


# ------------------------------------------------------------------------------------------- losses


def test_the_hinge_by_hand():
    """The mean over places, then over maps: a map of four places counts no more than a map of one."""
    real = [torch.tensor([0.5, 2.0, -1.0, 1.0]).reshape(1, 1, 2, 2), torch.tensor([3.0]).reshape(1, 1, 1, 1)]
    fake = [torch.tensor([-0.5, -2.0, 1.0, -1.0]).reshape(1, 1, 2, 2), torch.tensor([0.25]).reshape(1, 1, 1, 1)]
    on_real, on_fake = ((0.5 + 0 + 2 + 0) / 4 + 0) / 2, ((0.5 + 0 + 2 + 0) / 4 + 1.25) / 2
    assert float(hinge(real, fake)) == on_real + on_fake
    assert float(fooling(fake)) == ((1.5 + 3 + 0 + 2) / 4 + 0.75) / 2


def test_who_is_sure_learns_nothing_more():
    logits = torch.tensor([[1.5], [0.5], [-1.5]]).reshape(3, 1, 1, 1).requires_grad_()
    slope = torch.autograd.grad(fooling([logits]).sum(), logits)[0].flatten()
    assert slope.tolist() == [0, -1, -1]
    slope = torch.autograd.grad(hinge([logits], [logits.detach()]).sum(), logits)[0].flatten()
    assert slope.tolist() == [0, -1, -1]
    slope = torch.autograd.grad(hinge([logits.detach()], [logits]).sum(), logits)[0].flatten()
    assert slope.tolist() == [1, 1, 0]


def test_the_batch_law():
    critic = Discriminator((8, 3), 2, 0).double()
    real, fake = (maps((3, 8, 4, 4), (3, 3, 2, 2), seed=seed) for seed in (0, 5))
    whole = hinge(critic(real), critic(fake))
    parts = [hinge(*(critic([one[i : i + 1] for one in side]) for side in (real, fake))) for i in range(3)]
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=0)


def test_losses_of_half_precision_are_added_in_single():
    logit = randn(2, 1, 8, 8).bfloat16()
    assert hinge([logit], [logit]).dtype == fooling([logit]).dtype == torch.float32
    torch.testing.assert_close(fooling([logit]), F.relu(1 - logit.float()).mean((1, 2, 3)), rtol=3e-3, atol=0)


# ------------------------------------------------------------------------------------------- the teacher


def our_net(image=(1, 8, 8), channels=(8, 16), classes=None) -> unet.UNet:
    return unet.build(unet.default_config(image, channels, classes=classes, groups=4), 0)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (toy_denoiser(), (8,)),
        (NetDenoiser(ToyNet(3, width=5).double(), Cosine()), (5,)),
        (NetDenoiser(our_net(), Cosine()), (8, 16, 16)),
        (NetDenoiser(our_net((4, 8, 8)), Cosine()), (8, 16, 16)),
        (NetDenoiser(ToyNet(16), Cosine()), (8,)),
        (NetDenoiser(our_net(channels=(8,) * 7, image=(3, 64, 64)), Cosine()), (8,) * 8),
        (NetDenoiser(our_net(classes=4), Cosine(), classes=3), (8, 16, 16)),
        (Guided(NetDenoiser(our_net(classes=4), Cosine(), classes=3)), (8, 16, 16)),
        (NetDenoiser(unet.with_guidance(our_net(classes=4)), Cosine(), classes=3, takes_guidance=True), (8, 16, 16)),
    ],
    ids=["toy", "colour", "ours", "latent", "sixteen", "deep", "classes", "guided", "takes_guidance"],
)
def test_the_widths_of_a_teacher_are_those_of_its_features(teacher, expected):
    assert widths(teacher) == expected


def test_a_teacher_without_features_is_a_mistake():
    with pytest.raises(UserError, match="has no features to show"):
        widths(gaussian())
    with pytest.raises(UserError, match="no features of an image of 64 pixels and 1 to 16 channels: Given groups=1"):
        widths(NetDenoiser(ToyNet(17), Cosine()))


def test_its_heads_learn_to_tell_two_kinds_of_images():
    """Of images that differ in brightness alone, in the features of a frozen network."""
    teacher, t = toy_denoiser().requires_grad_(False), torch.full((8,), 0.3)
    critic = Discriminator(widths(teacher), 2, 0)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3, betas=(0.0, 0.999))
    losses = []
    for step in range(60):
        real, fake = (randn(8, 1, 4, 4, seed=2 * step + k).float() + shift for k, shift in enumerate((0.5, -0.5)))
        loss = hinge(critic(teacher.features(real, t)), critic(teacher.features(fake, t))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5
    assert losses[-1] < 1
    assert all(parameter.grad is None for parameter in teacher.parameters())
