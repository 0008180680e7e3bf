"""Classes and guidance: what a network is told of a sample, and what is made of it."""

import contextlib
import dataclasses

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.core.rng import draw
from diffcore.denoisers.condition import Condition, of_classes
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import PARAMETERIZATIONS, Prediction
from diffcore.denoisers.rescaling import Rescaled
from diffcore.nets import unet
from diffcore.noise.angle import between
from diffcore.noise.schedule import VE, Cosine, Linear
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import MixtureDenoiser, make_solver, randn


class TwoBlobs(MixtureDenoiser):
    """The exact denoiser of a mixture whose components are the classes; of no class, the whole mixture."""

    def __init__(self, labels=None):
        means = torch.tensor([[-0.8, 0.2], [0.7, -0.1]], dtype=torch.float64)
        variances = torch.tensor([[0.05, 0.1], [0.2, 0.03]], dtype=torch.float64)
        super().__init__(torch.tensor([0.3, 0.7]).double(), means, variances, Cosine())
        self.labels = labels

    def with_condition(self, condition):
        return TwoBlobs(condition.class_labels)

    def select(self, rows):
        return TwoBlobs(self.labels[rows])

    def forward(self, x_t, t):
        mixed = super().forward(x_t, t)
        if self.labels is None:
            return Prediction(mixed.x0.to(x_t.dtype), mixed.eps.to(x_t.dtype), mixed.level)
        own = [GaussianDenoiser(m, v, self.schedule)(x_t, t) for m, v in zip(self.means, self.variances)]
        pick = self.labels[:, None]
        x0, eps = (
            torch.where(
                pick < 0, getattr(mixed, key), torch.where(pick == 0, getattr(own[0], key), getattr(own[1], key))
            )
            for key in ("x0", "eps")
        )
        return Prediction(x0.to(x_t.dtype), eps.to(x_t.dtype), mixed.level)


def condition(*guidance: float) -> Condition:
    return of_classes(torch.tensor([0, 1, 1]), torch.tensor(guidance, dtype=torch.float64))


def test_guidance_against_a_mixture_with_known_conditional_scores():
    """score = score_u + g (score_c - score_u), whatever reading of the belief is combined."""
    x, t, g = randn(3, 2), torch.tensor([0.9, 0.5, 0.2]).double(), (1.0, 3.0, 0.0)
    found = Guided(TwoBlobs()).with_condition(condition(*g))(x, t)
    known, unknown = TwoBlobs(torch.tensor([0, 1, 1]))(x, t), TwoBlobs()(x, t)
    weight = torch.tensor(g).double()[:, None]
    torch.testing.assert_close(
        found.score, unknown.score + weight * (known.score - unknown.score), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(found.v, unknown.v + weight * (known.v - unknown.v), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.x0[2], unknown.x0[2], rtol=0, atol=1e-14)
    assert found.cost == 2


def test_wrappers_pass_on_what_is_known():
    x, t = randn(3, 2), torch.tensor([0.9, 0.5, 0.2]).double()
    plain = Guided(TwoBlobs()).with_condition(condition(2.0, 2.0, 3.0))
    metered = Metered(Guided(TwoBlobs()), Meter()).start_run(None).with_condition(condition(2.0, 2.0, 3.0))
    torch.testing.assert_close(metered(x, t).x0, plain(x, t).x0, rtol=0, atol=0)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(metered.select(rows)(x[rows], t[rows]).x0, plain(x, t).x0[rows], rtol=0, atol=1e-14)
    exploding = Rescaled(Guided(TwoBlobs()), VE(0.01, 50.0)).with_condition(condition(2.0, 2.0, 3.0))
    inner_t = torch.tensor([0.6, 0.5, 0.4]).double()
    outer_t = VE(0.01, 50.0).time(Cosine().half_logsnr(inner_t))
    scale = 1 / Cosine().alpha(inner_t)[:, None]
    torch.testing.assert_close(exploding(x * scale, outer_t).x0, plain(x, inner_t).x0, rtol=1e-9, atol=1e-9)


AWAY = {"class_labels": torch.tensor([1, 1, -1])}


def test_guidance_away_from_a_class_against_a_mixture():
    """score = score_n + g (score_c - score_n), n the negative class; -1 is no class, as if there were no negative."""
    x, t, g = randn(3, 2), torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([3.0, 4.0, 2.0]).double()
    known = dataclasses.replace(condition(*g), negative=AWAY)
    found, plain = (
        Guided(TwoBlobs()).with_condition(known)(x, t),
        Guided(TwoBlobs()).with_condition(condition(*g))(x, t),
    )
    first, second = (GaussianDenoiser(m, v, Cosine()) for m, v in zip(TwoBlobs().means, TwoBlobs().variances))
    for key in ("score", "v", "x0", "eps"):
        one, two = getattr(first(x, t), key), getattr(second(x, t), key)
        torch.testing.assert_close(getattr(found, key)[0], two[0] + 3 * (one[0] - two[0]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(getattr(found, key)[1], two[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(getattr(found, key)[2], getattr(plain, key)[2], rtol=0, atol=0)
    assert found.cost == 2
    assert (found.x0 - plain.x0)[:2].abs().amin() > 0.01


def test_a_sample_keeps_its_negative_class():
    """The batch law, by `select`, by rows of the condition, and by the sampler's batches."""
    x, t, rows = randn(3, 2), torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([2, 0])
    known = dataclasses.replace(condition(2.0, 2.0, 3.0), negative={"class_labels": torch.tensor([1, 0, -1])})
    guided = Guided(TwoBlobs()).with_condition(known)
    for part in (guided.select(rows), Guided(TwoBlobs()).with_condition(known[rows].to(torch.device("cpu")))):
        torch.testing.assert_close(part(x[rows], t[rows]).x0, guided(x, t).x0[rows], rtol=0, atol=1e-14)
    sampler = Sampler(Guided(TwoBlobs()), make_solver("dpmpp_2m"), uniform(4))
    whole = sampler.draw((2,), 3, 0, 3, known)
    torch.testing.assert_close(whole, sampler.draw((2,), 3, 0, 2, known), rtol=0, atol=1e-6)
    assert (whole - sampler.draw((2,), 3, 0, 3, dataclasses.replace(known, negative=None)))[:2].abs().amax() > 0.1


class Jumps(TwoBlobs):
    """What a phased student must be, of each class alone: its one step ends on the exact flow at the next edge."""

    def __init__(self, phases: int, labels=None):
        super().__init__(labels)
        self.phases, self.grid = phases, uniform(phases)

    def with_condition(self, condition):
        return Jumps(self.phases, condition.class_labels)

    def forward(self, x_t, t):
        x, s = x_t.double(), t - 1 / self.phases
        blobs = [GaussianDenoiser(m, v, self.schedule) for m, v in zip(self.means, self.variances)]
        landing = torch.where(self.labels[:, None] == 0, *(blob.flow(x, t, s) for blob in blobs))
        v = between(x, landing, self.schedule.angle(t) - self.schedule.angle(s))
        return PARAMETERIZATIONS["v"](x, self.schedule.level(t, x), v)


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_phased_jumps_are_led_away_from_a_class(phases):
    """A hop is linear in v, so landings are guided as velocities are: where g = 1 lands is exact, and g = 2.5 is by hand."""
    z, labels, away = randn(3, 2), torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])
    for g in (1.0, 2.5):
        at, weight = z, torch.full((3,), g).double()
        denoiser = Guided(Jumps(phases)).with_condition(of_classes(labels, weight, away))
        found = Sampler(denoiser, SOLVERS["ddim"](), uniform(phases)).sample(z)
        for k in range(phases, 0, -1):
            t, s = (torch.full((3,), j / phases).double() for j in (k, k - 1))
            blobs = [
                GaussianDenoiser(m, v, Cosine()).flow(at, t, s) for m, v in zip(TwoBlobs().means, TwoBlobs().variances)
            ]
            to, off = (torch.where(pick[:, None] == 0, *blobs) for pick in (labels, away))
            at = off + g * (to - off)
        torch.testing.assert_close(found, at, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match=f"only on its own {phases} steps"):
        Sampler(denoiser, SOLVERS["ddim"](), uniform(3))


def test_guidance_without_a_class_or_a_weight_is_refused():
    labels, weights = torch.tensor([1]), torch.ones(1).double()
    for known in (Condition(), of_classes(labels), of_classes(None, weights), of_classes(None, weights, labels)):
        with pytest.raises(UserError, match="needs a class or a text, and a weight"):
            Guided(TwoBlobs()).with_condition(known)(randn(1, 2), torch.tensor([0.5]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"analytic"}))
def test_every_solver_keeps_a_sample_with_its_class(name):
    """A solver that works on a part of the batch must ask for that part's classes."""
    known = of_classes(torch.tensor([0, 1, 1, 0, 1]), torch.full((5,), 2.0).double())
    sampler = Sampler(Guided(TwoBlobs()), make_solver(name), karras(6, Cosine()))  # some cannot begin at pure noise
    whole = sampler.draw((2,), 5, 0, 5, known)
    torch.testing.assert_close(whole, sampler.draw((2,), 5, 0, 2, known), rtol=0, atol=1e-5)
    other = sampler.draw((2,), 5, 0, 5, of_classes(1 - known.class_labels, known.guidance))
    assert (whole - other).abs().max() > 0.1


def net(conditional: bool = True, seed: int = 1) -> unet.UNet:
    made = unet.build(unet.default_config((1, 8, 8), (8, 16), classes=4 if conditional else None), seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "conv2" in name or "conv_out" in name:  # which begin at 0, so that no embedding would be felt
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return made


def test_no_class_is_the_index_after_the_last():
    denoiser, x, t = NetDenoiser(net(), Cosine(), classes=3), randn(2, 1, 8, 8).float(), torch.tensor([0.3, 0.6])
    assert torch.equal(denoiser(x, t).v, denoiser.with_condition(of_classes(torch.tensor([-1, -1])))(x, t).v)
    assert torch.equal(denoiser(x, t).v, denoiser.with_condition(of_classes(torch.tensor([3, 3])))(x, t).v)
    assert not torch.equal(denoiser(x, t).v[0], denoiser.with_condition(of_classes(torch.tensor([2, -1])))(x, t).v[0])


def test_an_input_for_guidance_changes_nothing_at_first_and_folds_into_a_bias():
    plain, x, timestep = net(), randn(3, 1, 8, 8).float(), torch.tensor([5.0, 300.0, 1000.0])
    classes, g = torch.tensor([0, 1, 3]), torch.tensor([1.0, 2.5, 4.0])
    made = unet.with_guidance(plain)
    assert torch.equal(made(x, timestep, classes, g), plain(x, timestep, classes))
    with torch.no_grad():
        made.guidance_embedding.weight.normal_(generator=torch.Generator().manual_seed(3))
    assert not torch.equal(made(x, timestep, classes, g), plain(x, timestep, classes))
    same = torch.full((3,), 2.5)
    torch.testing.assert_close(
        unet.folded(made, 2.5)(x, timestep, classes), made(x, timestep, classes, same), atol=1e-5, rtol=1e-5
    )
    assert made.config_json()["_class_name"] == unet.GUIDED
    assert unet.from_json(made.config_json()) == made.config
    assert "guidance_embeds" not in plain.config_json()


def test_a_student_that_takes_a_weight_says_so():
    denoiser = NetDenoiser(unet.with_guidance(net()), Cosine(), classes=3, takes_guidance=True)
    with pytest.raises(UserError, match="takes the guidance weight as an input"):
        denoiser(randn(2, 1, 8, 8).float(), per_sample(0.5, randn(2, 1)))


def test_other_dice_are_independent_and_those_of_the_whole_batch():
    whole = draw(torch.zeros(8, 2), 0, "train", 3)
    parts = [draw(torch.zeros(4, 2), 0, "train", 3, count=8)[rows] for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    assert torch.equal(torch.cat([part.fork("a").noise for part in parts]), whole.fork("a").noise)
    assert torch.equal(torch.cat([part[1:3].fork("a").u for part in parts])[2:], whole.fork("a").u[5:7])
    names = [whole.noise, whole.fork("a").noise, whole.fork("b").noise, whole.fork("a").fork("b").noise]
    assert all(not torch.equal(one, two) for k, one in enumerate(names) for two in names[:k])


@pytest.mark.parametrize("known", [False, True])
def test_a_network_computes_where_the_samples_lie(known, monkeypatch):
    """With classes and weights as inputs, told of both or of the weight alone; on the device of no memory a part of it that
    were left on the CPU would be an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    told = of_classes(torch.arange(3) if known else None, torch.ones(3).double()).to(torch.device("meta"))
    network, heard = unet.with_guidance(net()).to("meta"), []
    network.register_forward_pre_hook(lambda _, own, named: heard.extend([*own, *named.values()]), with_kwargs=True)
    denoiser = NetDenoiser(network, Linear(), classes=3, takes_guidance=True).with_condition(told)
    x, t = torch.zeros(3, 1, 8, 8, device="meta"), torch.zeros(3, device="meta").double()
    found = [denoiser(x, t).v, *denoiser.features(x, t)]
    assert len(heard) == 4
    assert {part.device.type for part in (*heard, *found)} == {"meta"}
