"""Networks lie in memory as their norms and convolutions are fastest, and what is computed does not depend on it."""

import pytest
import torch

from diffcore import checkpoints
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods.progressive import Progressive
from diffcore.nets import unet
from diffcore.nets.order import NARROW, fastest
from diffcore.noise.schedule import Cosine
from diffcore.training.loop import Job, Loop
from tests.conftest import randn, seeded
from tests.test_checkpoint import ABOUT
from tests.test_fit import COMPUTE, SHORT

LAST, PLAIN = torch.channels_last, torch.contiguous_format
IMAGE = (3, 8, 8)


def network(*channels: int, attention: bool = False) -> unet.UNet:
    return unet.build(unet.default_config(IMAGE, channels, attention=attention), 0)


def orders(net: torch.nn.Module) -> set[torch.memory_format]:
    """Of the weights that know more than one."""
    known = [weight for weight in net.parameters() if weight.dim() == 4 and min(weight.shape[1], weight.shape[2]) > 1]
    assert known
    return {order for order in (LAST, PLAIN) for weight in known if weight.is_contiguous(memory_format=order)}


@pytest.mark.parametrize(("device", "narrow"), [("cpu", PLAIN), ("cuda", LAST), ("meta", LAST)])
def test_only_a_cpu_has_narrow_groups_in_plain_memory(device, narrow):
    """The narrowest norm decides, wherever it stands; and the size of the images."""
    device = torch.device(device)
    for width in (8 * NARROW, 8):
        for net in (network(width, 64), network(64, width)):
            assert fastest(net, IMAGE, device) == fastest(net, (1, 33, 31), device) == narrow
            assert fastest(net, (3, 32, 32), device) == fastest(net, (1, 16, 64), device) == LAST
    assert fastest(network(8 * (NARROW + 1), 64), IMAGE, device) == LAST
    assert fastest(torch.nn.Conv2d(1, 1, 1), IMAGE, device) == LAST


@pytest.mark.parametrize(("channels", "order"), [((16, 32), PLAIN), ((32, 32), LAST)])
@pytest.mark.parametrize("before", [LAST, PLAIN])
def test_trained_and_opened_networks_lie_so(channels, order, before, tmp_path):
    """Student, average, teacher and the images, however the student lay; and what is sampled from."""
    student = NetDenoiser(network(*channels).to(memory_format=before), Cosine())
    pixels = torch.randint(0, 256, (32, *IMAGE), generator=seeded(0)).to(torch.uint8)
    work = Job(Progressive(4), SHORT, ResidentFeed(Images(pixels, None, None), SHORT.batch, 0, flip=False), 0)
    loop = Loop(work, student, student, COMPUTE)
    assert orders(loop.student.net) == orders(loop.student.averages["ema"]) == {order}
    assert orders(loop.roles.teacher) == {order}
    images, _ = loop._batch()
    assert images.is_contiguous(memory_format=order)
    checkpoints.save(tmp_path / "one", student, IMAGE, ABOUT)
    assert orders(checkpoints.load(tmp_path / "one").to(torch.device("cpu")).denoiser.net) == {order}


def test_a_norm_of_few_channels_computes_the_same_in_both():
    net = network(16, 32, attention=True).requires_grad_(False)
    for parameter in net.parameters():
        parameter += 0.05 * randn(*parameter.shape).float()
    x, timestep = randn(4, *IMAGE).float(), torch.full((4,), 300.0)
    outputs = [net.to(memory_format=order)(x.to(memory_format=order), timestep) for order in (LAST, PLAIN)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
