import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.skip_tuning import Config, scales, skip_tuned
from tests.conftest import ToyNet, make_solver, toy_denoiser
from tests.test_deepcache import CONFIGS, FIXED, SMALL, labelled, plain, sample, start
from tests.test_unet import FAMILY


def test_the_ramp_rises_from_the_deepest_to_the_finest():
    """rho_i = bottom + (top - bottom) i / k, i = 0 the deepest; listed as the skips are, from the finest."""
    assert scales(Config(0.5, 1.0), 6) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], abs=1e-15)
    assert scales(Config(0.7, 0.7), 4) == [0.7] * 4
    assert scales(Config(0.5), 2) == [1.0, 0.5]


@pytest.mark.parametrize("name", [*CONFIGS, "classes"])
def test_scales_of_1_are_the_plain_network(name):
    whole = plain({**CONFIGS, **FAMILY}[name])
    x = start(whole)
    assert torch.equal(sample(skip_tuned(whole, Config(1.0, 1.0)), x), sample(whole, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_scales_of_1_are_the_plain_network_for_every_solver(name):
    whole = plain()
    x = start(whole)
    assert torch.equal(sample(skip_tuned(whole, Config(1.0)), x, name), sample(whole, x, name))


@pytest.mark.parametrize("name", CONFIGS)
def test_scaling_by_hand(name):
    """Each step of the way up is given its skip times its rho; what comes from below is left alone."""
    whole = plain(CONFIGS[name])
    net, x = whole.net, start(whole)
    t = per_sample(0.4, x)
    with torch.no_grad():
        found = skip_tuned(whole, Config(0.6, 1.1))(x, t).v
        embedding = net.embed((1024 * t - 1).float())
        skips = net.down(x, embedding)
        h, k = net.mid(skips[-1], embedding), len(skips) - 1
        for i, step in enumerate(step for block in net.up_blocks for step in block.steps()):
            h = step(h, (0.6 + (1.1 - 0.6) * i / k) * skips[k - i], embedding)
        torch.testing.assert_close(found, net.out(h), rtol=0, atol=2e-6)
        assert not torch.allclose(found, whole(x, t).v, atol=1e-4)


def test_the_denoiser_is_left_as_it_was():
    whole = plain()
    x = start(whole)
    before = sample(whole, x)
    assert not torch.equal(sample(skip_tuned(whole, Config(0.5)), x), before)
    assert torch.equal(sample(whole, x), before)


def test_everything_else_of_the_denoiser_is_kept():
    whole = plain(FAMILY["classes"])
    student = NetDenoiser(whole.net, Cosine(), Reading("eps", 1000), uniform(4), classes=4)
    tuned = skip_tuned(student, Config(0.9))
    assert (tuned.reading, tuned.grid, tuned.classes) == (Reading("eps", 1000), uniform(4), 4)
    x = start(whole)
    assert not torch.equal(
        sample(labelled(skip_tuned(whole, Config(0.9))), x), sample(skip_tuned(whole, Config(0.9)), x)
    )


def test_a_condition_given_before_is_kept():
    whole, x = plain(FAMILY["classes"]), start(plain(FAMILY["classes"]))
    known = of_classes(torch.tensor([0, 2, 3]))
    before, after = (
        made(x, per_sample(0.5, x)).x0
        for made in (
            skip_tuned(whole.with_condition(known), Config(0.8)),
            skip_tuned(whole, Config(0.8)).with_condition(known),
        )
    )
    assert torch.equal(before, after)


def test_it_moves_with_its_network():
    tuned = skip_tuned(plain(SMALL), Config(0.8)).double()
    x = start(plain(SMALL)).double()
    found = Sampler(tuned, make_solver("ddim"), karras(3, Cosine())).sample(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found.float(), sample(skip_tuned(plain(SMALL), Config(0.8)), x.float(), steps=3), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("wrong", [(0.0, 1.0), (0.8, -1.0)])
def test_a_scale_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="bottom and top must be positive"):
        Config(*wrong)


def test_another_network_is_refused():
    with pytest.raises(UserError, match=r"our own U-Net.*leave `skip` out"):
        skip_tuned(toy_denoiser(), Config(0.9))
    with pytest.raises(UserError, match="our own U-Net"):
        skip_tuned(NetDenoiser(ToyNet(), Cosine()), Config(0.9))


def test_a_network_saved_is_never_a_scaled_one():
    """Its weights would be read back without the scales."""
    assert not hasattr(skip_tuned(plain(), Config(0.9)).net, "config_json")
    assert isinstance(plain().net, unet.UNet)
