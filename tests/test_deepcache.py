import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling import deepcache
from diffcore.sampling.deepcache import Config, DeepCached, full_calls
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.skip_tuning import skip_tuned
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import ToyNet, make_solver
from tests.test_unet import FAMILY, stirred

SMALL = unet.default_config((1, 8, 8), channels=(8, 16), groups=4)
CONFIGS = {
    "three levels, attention": unet.default_config((1, 8, 8), channels=(16, 32, 64), attention=True),
    "odd shape": FAMILY["one level"],
    "two layers": FAMILY["three levels, two layers"],
    "no middle": FAMILY["no middle"],
}
FIXED = [name for name, kind in SOLVERS.items() if not kind().adaptive]


def plain(config: unet.UNetConfig = SMALL, seed: int = 0) -> NetDenoiser:
    net = stirred(config, seed).requires_grad_(False)
    return NetDenoiser(net, Cosine(), classes=net.config.num_class_embeds and net.config.num_class_embeds - 1)


def start(denoiser: NetDenoiser, count: int = 3, seed: int = 0) -> torch.Tensor:
    size = denoiser.net.config.sample_size
    shape = (denoiser.net.config.in_channels, *(size if isinstance(size, tuple) else (size, size)))
    return noises(shape, seed, range(count), "start").float()


def sample(denoiser: Denoiser, x: torch.Tensor, name: str = "ddim", steps: int = 6) -> torch.Tensor:
    sampler = Sampler(denoiser, make_solver(name), karras(steps, Cosine()))
    return sampler.sample(x, lambda k: noises(x.shape[1:], 0, range(len(x)), f"step {k}").float())


# which calls are full


def test_uniform_is_every_intervalth_call():
    assert sorted(full_calls(Config(3), 8)) == [0, 3, 6]
    assert sorted(full_calls(Config(5), 4)) == [0]


def test_quadratic_by_hand():
    """c = 4, p = 2, n = 13: l from -2 to 3 in 5 parts, so l = -2, -1, 0, 1, 2 and l |l| + 4 = 0, 3, 4, 5, 8."""
    assert sorted(full_calls(Config(3, 0, "quadratic", 4.0, 2.0), 13)) == [0, 3, 4, 5, 8]


def test_quadratic_is_crowded_around_its_center():
    found = sorted(full_calls(Config(5, 0, "quadratic"), 50))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert 15 in found
    assert gaps[found.index(15) - 1] == min(gaps) < 5 < max(gaps) == gaps[-1]


@pytest.mark.parametrize("spread", ["uniform", "quadratic"])
def test_laws_of_full_calls(spread):
    """The first one, as many as the interval says, all of them within the run."""
    for calls in (1, 2, 7, 20, 50):
        for interval in (1, 2, 3, 5, 60):
            for center, power in ((0.0, 1.0), (15.0, 1.4), (3.5, 2.0), (90.0, 4.0)):
                found = full_calls(Config(interval, 0, spread, center, power), calls)
                assert 0 in found
                assert len(found) == -(-calls // interval)
                assert max(found) < calls
    assert full_calls(Config(1, 0, spread), 9) == set(range(9))


# what a run computes


@pytest.mark.parametrize("name", CONFIGS)
def test_interval_1_is_the_plain_network(name):
    whole = plain(CONFIGS[name])
    x = start(whole)
    expected = sample(whole, x)
    for branch in range(whole.net.config.skips - 1):
        assert torch.equal(sample(DeepCached(whole, Config(1, branch)), x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_interval_1_is_the_plain_network_for_every_solver(name):
    whole = plain()
    x = start(whole)
    assert torch.equal(sample(DeepCached(whole, Config(1)), x, name), sample(whole, x, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_calls_are_counted_not_steps(name):
    """A solver of two calls a step has every third call full, whatever step it is in; the meter knows."""
    whole, meter = plain(), Meter()
    cached = DeepCached(whole, Config(3))
    runs = spied(whole.net.mid_block)
    x = start(whole)
    sample(Metered(cached, meter), x, name)
    calls = Sampler(whole, make_solver(name), karras(6, Cosine())).nfe
    full = -(-calls // 3)
    assert len(runs) == full + 1  # one to count the share
    assert meter.settle() == pytest.approx(len(x) * (full + (calls - full) * cached.share(x.shape[1:])))


def spied(layer: torch.nn.Module) -> list[int]:
    """Grows with each call of a layer; holds the batch's size."""
    found: list[int] = []
    layer.register_forward_pre_hook(lambda module, inputs: found.append(len(inputs[0])))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cached_call_where_the_full_one_was_says_the_same(name):
    whole = plain(CONFIGS[name])
    x = start(whole)
    for branch in range(whole.net.config.skips - 1):
        run = DeepCached(whole, Config(2, branch)).start_run(2)
        with torch.no_grad():
            full, again = (run(x, per_sample(0.6, x)) for _ in range(2))
        assert torch.equal(full.x0, again.x0)
        assert full.cost == 1
        assert again.cost < 1 or name == "no middle"  # whose last branch skips nothing


@pytest.mark.parametrize("branch", [0, 1, 3, 7])
def test_a_cached_call_is_the_fine_part_on_what_was_kept(branch):
    """Written out with the seams: skips s_0..s_(branch + 1) are new, what meets the last of them is old."""
    whole = plain(CONFIGS["two layers"])
    net, x, later = whole.net, start(whole), start(whole, seed=1)
    run = DeepCached(whole, Config(2, branch)).start_run(2)
    t, s = per_sample(0.6, x), per_sample(0.5, x)
    with torch.no_grad():
        run(x, t)
        found = run(later, s).v
        old, new = (net.embed((1024 * u - 1).float()) for u in (t, s))
        skips = net.down(x, old)
        h = net.mid(skips[-1], old)
        steps = [step for block in net.up_blocks for step in block.steps()]
        fresh = net.down(later, new)
        for number, step in enumerate(steps):
            place = len(steps) - 1 - number
            h = step(h, fresh[place], new) if place <= branch + 1 else step(h, skips[place], old)
    torch.testing.assert_close(found, net.out(h), rtol=0, atol=1e-5)
    assert not torch.allclose(found, whole(later, s).v, atol=1e-4)


def test_nothing_is_remembered_between_runs():
    whole = plain()
    cached = DeepCached(whole, Config(3))
    x, other = start(whole), start(whole, 2, seed=5)
    fresh = [sample(DeepCached(whole, Config(3)), y) for y in (x, other)]
    assert torch.equal(sample(cached, x, steps=5), sample(DeepCached(whole, Config(3)), x, steps=5))
    for y, expected in zip((x, other, x), (fresh[0], fresh[1], fresh[0])):
        assert torch.equal(sample(cached, y), expected)


def test_sample_i_depends_on_the_seed_and_i_alone():
    sampler = Sampler(DeepCached(plain(), Config(2)), SOLVERS["ddim"](), uniform(5))
    one, other = (sampler.draw((1, 8, 8), 7, 0, batch) for batch in (7, 3))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_student_keeps_its_grid():
    whole = plain()
    student = NetDenoiser(whole.net, Cosine(), Reading("v"), uniform(4))
    cached = DeepCached(student, Config(2))
    assert cached.grid == uniform(4)
    with pytest.raises(UserError, match="own 4 steps"):
        Sampler(cached, SOLVERS["ddim"](), uniform(2))
    assert torch.isfinite(Sampler(cached, SOLVERS["ddim"](), uniform(4)).sample(start(whole))).all()


# what it costs


def by_hand(net: unet.UNet, x: torch.Tensor, branch: int) -> float:
    """The multiply-adds of each layer from the shapes that it meets, deep ones apart."""
    spent: list[int] = []

    def heard(layer, inputs, out):
        weights = layer.weight.numel()
        spent.append(
            weights * (out[0, 0].numel() if isinstance(layer, torch.nn.Conv2d) else out[0].numel() // out.shape[-1])
        )

    def mixed(layer, inputs, out):
        pixels = inputs[0][0, 0].numel()
        spent.append(2 * pixels**2 * layer.to_q.out_features)

    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(heard)
        if isinstance(layer, unet.Attention):
            layer.register_forward_hook(mixed)
    timestep = torch.zeros(1)
    net(x, timestep)
    full = sum(spent)
    embedding = net.embed(timestep)
    cut = branch + 2
    kept = net.up(net.mid(net.down(x, embedding)[-1], embedding), net.down(x, embedding), embedding, until=cut)
    spent.clear()
    net.out(net.up(kept, net.down(x, net.embed(timestep), cut), embedding))
    return sum(spent) / full


@pytest.mark.parametrize("name", CONFIGS)
def test_the_share_is_that_of_the_multiply_adds(name):
    whole = plain(CONFIGS[name])
    x = start(whole, 1)
    shares = []
    for branch in range(whole.net.config.skips - 1):
        expected = by_hand(copy.deepcopy(whole.net), x, branch)
        with torch.inference_mode():  # where it is asked for
            shares.append(DeepCached(whole, Config(2, branch)).share(x.shape[1:]))
        assert shares[-1] == pytest.approx(expected, rel=1e-12)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] < 1 or name == "no middle"


def test_a_run_costs_what_is_counted_in_it():
    whole, meter = plain(CONFIGS["two layers"]), Meter()
    cached, x = DeepCached(whole, Config(3, 1)), start(whole)
    with torch.no_grad(), FlopCounterMode(display=False) as once:
        whole(x, per_sample(0.5, x))
    run, spent = Metered(cached, meter).start_run(7), 0
    for call in range(7):
        cached.share(x.shape[1:])  # not to be counted now
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(x, per_sample(1 - call / 8, x))
        spent += counter.get_total_flops()
    assert meter.settle() / len(x) == pytest.approx(spent / once.get_total_flops(), rel=1e-12)


def test_the_share_is_counted_once_for_a_shape():
    whole = plain(FAMILY["classes"])
    cached, runs = DeepCached(whole, Config(2)), spied(whole.net.conv_in)
    for labels in (torch.zeros(3).long(), torch.ones(3).long()):
        cached.with_condition(of_classes(labels)).share((1, 8, 8))
    assert len(runs) == 2
    cached.share((1, 16, 16))
    assert len(runs) == 4


# classes and guidance


def labelled(denoiser: Denoiser, guidance: float | None = None) -> Denoiser:
    weight = None if guidance is None else torch.full((3,), guidance, dtype=torch.float64)
    return denoiser.with_condition(of_classes(torch.tensor([0, 2, 3]), weight))


def test_classes_reach_full_and_cached_calls():
    whole = plain(FAMILY["classes"])
    cached, x = DeepCached(whole, Config(2)), start(whole)
    assert torch.equal(sample(labelled(DeepCached(whole, Config(1))), x), sample(labelled(whole), x))
    assert not torch.equal(sample(labelled(cached), x), sample(cached, x))
    run = labelled(cached).start_run(2)
    with torch.no_grad():
        full, again = (run(x, per_sample(0.5, x)).x0 for _ in range(2))
        assert torch.equal(full, labelled(whole)(x, per_sample(0.5, x)).x0)
    assert torch.equal(full, again)


def test_under_guidance_both_halves_are_kept():
    whole, meter = plain(FAMILY["classes"]), Meter()
    x, runs = start(whole), spied(whole.net.mid_block)
    expected = sample(labelled(Guided(whole), 2.0), x)
    assert torch.equal(sample(labelled(Guided(DeepCached(whole, Config(1))), 2.0), x), expected)
    runs.clear()
    cached = DeepCached(whole, Config(3))
    found = sample(Metered(labelled(Guided(cached), 2.0), meter), x)
    assert runs == [6, 1, 6]  # the share is counted at the first cached call
    assert meter.settle() == pytest.approx(3 * 2 * (2 + 4 * cached.share((1, 8, 8))))
    assert 0 < float((found - expected).abs().max()) < 1


def test_a_weight_that_is_an_input_is_passed_on():
    made = stirred(replace(FAMILY["classes"], guidance_embeds=True)).requires_grad_(False)
    whole = NetDenoiser(made, Cosine(), classes=4, takes_guidance=True)
    x = start(whole)
    assert torch.equal(sample(labelled(DeepCached(whole, Config(1)), 2.0), x), sample(labelled(whole, 2.0), x))
    found = [sample(labelled(DeepCached(whole, Config(2)), weight), x) for weight in (1.0, 3.0)]
    assert not torch.equal(*found)


# with scaled skips


def test_scaled_skips_are_scaled_in_cached_calls_too():
    whole = plain(CONFIGS["two layers"])
    tuned, x = skip_tuned(whole, SkipConfig(0.6, 1.2)), start(whole)
    assert torch.equal(sample(DeepCached(tuned, Config(1)), x), sample(tuned, x))
    for branch in range(whole.net.config.skips - 1):
        run = DeepCached(tuned, Config(2, branch)).start_run(2)
        with torch.no_grad():
            full, again = (run(x, per_sample(0.5, x)).x0 for _ in range(2))
        assert torch.equal(full, again)
        assert torch.equal(full, tuned(x, per_sample(0.5, x)).x0)


def test_scales_of_1_change_nothing_in_a_cached_run():
    whole = plain()
    tuned, x = skip_tuned(whole, SkipConfig(1.0, 1.0)), start(whole)
    assert torch.equal(sample(DeepCached(tuned, Config(3)), x), sample(DeepCached(whole, Config(3)), x))
    assert DeepCached(tuned, Config(3)).share((1, 8, 8)) == DeepCached(whole, Config(3)).share((1, 8, 8))


# mistakes


@pytest.mark.parametrize(
    "wrong", [{"interval": 0}, {"interval": -2}, {"branch": -1}, {"power": 0.5}, {"center": -1.0}], ids=str
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* at least"):
        Config(**{"interval": 2, **wrong})


@pytest.mark.parametrize("name", FAMILY)
def test_a_branch_that_the_network_does_not_have(name):
    """As many skips as the way down makes; the last branch runs all of it."""
    config = FAMILY[name]
    net = unet.UNet(config)
    size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    classes = None if config.num_class_embeds is None else torch.zeros(1).long()
    skips = len(net.down(torch.zeros(1, config.in_channels, *size), net.embed(torch.zeros(1), classes)))
    assert config.skips == skips
    deepcache.check(Config(2, skips - 2), skips)
    whole = NetDenoiser(net, Cosine(), classes=config.num_class_embeds and config.num_class_embeds - 1)
    DeepCached(whole, Config(2, skips - 2))
    with pytest.raises(UserError, match=rf"^{skips - 1} is not one of the network's {skips - 1} branches"):
        DeepCached(whole, Config(2, skips - 1))


def test_the_shape_of_params_knows_its_skips():
    shape = unet.Shape((8, 16, 16), 2, True, 8, 0.0, 12.0)
    assert shape.skips == shape.config((1, 8, 8)).skips == 9


def test_another_network_is_refused():
    with pytest.raises(UserError, match=r"our own U-Net.*leave `deepcache` out"):
        DeepCached(NetDenoiser(ToyNet(), Cosine()), Config(2))


def test_outside_a_run_it_is_refused():
    whole = plain()
    x = start(whole)
    with pytest.raises(UserError, match="through Sampler"):
        DeepCached(whole, Config(2))(x, per_sample(0.5, x))


def test_under_gradients_it_is_refused():
    whole = plain()
    x = start(whole)
    with pytest.raises(UserError, match="without gradients"):
        DeepCached(whole, Config(2)).start_run(2)(x, per_sample(0.5, x))


def test_where_the_data_decide_how_often_it_is_refused():
    whole = plain()
    with pytest.raises(UserError, match="fixed number of calls"):
        sample(DeepCached(whole, Config(2)), start(whole), "rk45")


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 1, 16, 16)])
@pytest.mark.parametrize("interval", [1, 2])
def test_another_batch_within_a_run_is_refused(shape, interval):
    whole = plain()
    run, x, other = DeepCached(whole, Config(interval)).start_run(4), start(whole), torch.zeros(shape)
    with torch.no_grad():
        run(x, per_sample(0.9, x))
        with pytest.raises(UserError, match="batch changed"):
            run(other, per_sample(0.8, other))
