"""What networks are told, as named tensors: texts of any length, with data for what stands for nothing."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from diffcore import checkpoints
from diffcore.checkpoints.roles import roles
from diffcore.core.errors import UserError
from diffcore.denoisers.condition import Condition, Nothing, joined, of_classes, padded
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import likelihood
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import randn

VARIANCE = 0.3
NOTHING = {"text": torch.tensor([[0.5, -1.0]]), "text_mask": torch.tensor([True]), "pooled": torch.tensor([0.25])}


def mean(text: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
    """[b, 2]: what a text says of the mean of the data: the mean of its words, and what is pooled."""
    words = mask.to(text.dtype)[..., None]
    return (text * words).sum(1) / words.sum(1) + pooled


class Told(nn.Module):
    """Says the exact v of N(mean(text), VARIANCE) on the cosine schedule."""

    def forward(self, x: Tensor, timestep: Tensor, *, text: Tensor, text_mask: Tensor, pooled: Tensor) -> Tensor:
        t = (timestep.double() + 1) / 1024
        parts = []
        for row, center in enumerate(mean(text, text_mask, pooled).to(x.dtype)):
            exact = GaussianDenoiser(center, torch.full((2,), VARIANCE, dtype=x.dtype), Cosine())
            parts.append(exact(x[row : row + 1], t[row : row + 1]).v)
        return torch.cat(parts)


def texts(count: int, words: int, seed: int = 0) -> dict[str, Tensor]:
    """Of 1 to `words` words each; what is beyond them is no word, whatever stands there."""
    mask = torch.arange(words) <= (torch.arange(count) % words)[:, None]
    text = randn(count, words, 2, seed=seed)
    return {
        "text": torch.where(mask[..., None], text, 100.0),
        "text_mask": mask,
        "pooled": randn(count, 1, seed=seed + 1),
    }


def denoiser() -> NetDenoiser:
    return NetDenoiser(Told(), Cosine(), nothing=NOTHING)


def exact(inputs: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    return torch.cat(
        [
            GaussianDenoiser(center, torch.full((2,), VARIANCE, dtype=torch.float64), Cosine())(
                x[k : k + 1], t[k : k + 1]
            ).x0
            for k, center in enumerate(mean(**{("mask" if n == "text_mask" else n): v for n, v in inputs.items()}))
        ]
    )


X, TIMES = randn(5, 2), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
NO_TEXT = {name: part[None].expand(5, *part.shape) for name, part in NOTHING.items()}


def close(a: Tensor, b: Tensor, atol: float = 1e-6) -> None:  # a network is told times in float32
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=atol)


def test_a_network_is_told_the_text_of_each_sample():
    inputs = texts(5, 3)
    close(denoiser().with_condition(Condition(inputs))(X, TIMES).x0, exact(inputs, X, TIMES))


def test_where_nothing_is_known_it_is_told_what_stands_for_nothing():
    nothing = exact(NO_TEXT, X, TIMES)
    close(denoiser()(X, TIMES).x0, nothing)
    close(denoiser().with_condition(Condition())(X, TIMES).x0, nothing)
    dropped = Condition(texts(5, 3)).without(torch.tensor([True, False, True, False, False]))
    found, known = denoiser().with_condition(dropped)(X, TIMES).x0, exact(texts(5, 3), X, TIMES)
    close(found[[0, 2]], nothing[[0, 2]])
    close(found[[1, 3, 4]], known[[1, 3, 4]])


def test_nothing_may_be_longer_than_the_text():
    long = {**NOTHING, "text": randn(4, 2, seed=9), "text_mask": torch.ones(4, dtype=torch.bool)}
    inputs, rows = texts(5, 2), torch.tensor([True, True, False, False, False])
    found = NetDenoiser(Told(), Cosine(), nothing=long).with_condition(Condition(inputs).without(rows))(X, TIMES).x0
    close(found[2:], exact(inputs, X, TIMES)[2:])
    close(found[:2], exact({name: part[None].expand(5, *part.shape) for name, part in long.items()}, X, TIMES)[:2])


@pytest.mark.parametrize("length", [1, 3, 6])
def test_guidance_leads_away_from_nothing_or_from_a_text_of_any_length(length):
    """unconditional + g (conditional - unconditional), by hand."""
    inputs, g = texts(5, 3), torch.tensor([0.0, 1.0, 2.0, 3.5, 7.0], dtype=torch.float64)
    away = texts(5, length, seed=7)
    for negative, of in ((None, exact(NO_TEXT, X, TIMES)), (away, exact(away, X, TIMES))):
        guided = Guided(denoiser()).with_condition(Condition(inputs, g, negative))
        belief = guided(X, TIMES)
        close(belief.x0, of + g[:, None] * (exact(inputs, X, TIMES) - of), 1e-5)
        assert belief.cost == 2


def test_a_dropped_sample_is_not_guided():
    inputs, g = texts(5, 3), torch.full((5,), 4.0).double()
    rows = torch.tensor([False, True, False, True, False])
    found = Guided(denoiser()).with_condition(dataclasses.replace(Condition(inputs).without(rows), guidance=g))(
        X, TIMES
    )
    close(found.x0[rows], exact(NO_TEXT, X, TIMES)[rows])


@pytest.mark.parametrize("guided", [False, True])
def test_the_batch_law(guided):
    """A sample's belief is its own, whatever lengths stand beside it; rows are selected with all that is known of them."""
    known = Condition(texts(5, 4), torch.full((5,), 2.0).double(), texts(5, 2, seed=3))
    whole = (Guided(denoiser()) if guided else denoiser()).with_condition(known)
    parts = [whole.select(slice(k, k + 1))(X[k : k + 1], TIMES[k : k + 1]).x0 for k in range(5)]
    close(whole(X, TIMES).x0, torch.cat(parts), 1e-12)
    rows = torch.tensor([4, 1])
    close(whole.select(rows)(X[rows], TIMES[rows]).x0, whole(X, TIMES).x0[rows], 1e-12)


def test_a_sampler_draws_what_each_text_says():
    """From each noise what the exact flow of each sample's own Gaussian leads to."""
    inputs, noise, one = texts(5, 3), randn(5, 2, seed=5), torch.ones(1, dtype=torch.float64)
    known = denoiser().with_condition(Condition(inputs))
    samples = Sampler(known, SOLVERS["unipc"](), uniform(64)).sample(noise, lambda k: noise)
    for k, center in enumerate(mean(inputs["text"], inputs["text_mask"], inputs["pooled"])):
        whole = GaussianDenoiser(center, torch.full((2,), VARIANCE, dtype=torch.float64), Cosine())
        close(samples[k : k + 1], whole.flow(noise[k : k + 1], one, 0 * one), 3e-3)


def test_drawn_in_batches_each_sample_keeps_its_text():
    known, sampler = Condition(texts(5, 3)), Sampler(denoiser(), SOLVERS["ddim"](), uniform(8))
    whole = sampler.draw((2,), 5, 0, condition=known)
    close(sampler.draw((2,), 5, 0, 2, condition=known), whole, 1e-6)
    close(sampler.draw((2,), 5, 0, condition=known[torch.tensor([1, 0, 2, 3, 4])])[2:], whole[2:], 1e-6)
    assert (sampler.draw((2,), 5, 0, condition=Condition(texts(5, 3, seed=3))) - whole).abs().max() > 0.1


def test_the_likelihood_is_that_of_what_is_known():
    """Of each image under the exact flow of its own text's Gaussian."""
    inputs, rk45 = texts(5, 2), SOLVERS["rk45"]()
    center = mean(inputs["text"], inputs["text_mask"], inputs["pooled"])
    x = (center + VARIANCE**0.5 * randn(5, 2, seed=11)).clamp(-1, 1)
    found = likelihood.estimate(Sampler(denoiser(), rk45, uniform(1)), x, 0, condition=Condition(inputs))
    whole = GaussianDenoiser(center, torch.full((2,), VARIANCE, dtype=torch.float64), Cosine())
    close(found.values, likelihood.estimate(Sampler(whole, rk45, uniform(1)), x, 0).values, 1e-3)


def test_an_input_for_which_nothing_stands_must_be_known():
    needs = NetDenoiser(Told(), Cosine(), nothing={**NOTHING, "pooled": None})
    with pytest.raises(UserError, match="must be told pooled, and nothing stands for it"):
        needs(X, TIMES)
    whole = needs.with_condition(Condition(texts(5, 3)).without(torch.ones(5, dtype=torch.bool)))
    parts = {**NO_TEXT, "pooled": texts(5, 3)["pooled"]}
    close(whole(X, TIMES).x0, exact(parts, X, TIMES))  # never dropped


def test_a_negative_text_must_say_as_much():
    known = Condition(texts(5, 3), torch.ones(5).double(), {"text": texts(5, 3)["text"]})
    with pytest.raises(UserError, match="pooled, text_mask is in one of them alone"):
        Guided(denoiser()).with_condition(known)(X, TIMES)


def test_guidance_without_a_text_is_refused():
    with pytest.raises(UserError, match="needs a class or a text, and a weight"):
        Guided(denoiser()).with_condition(Condition({}, torch.ones(5).double()))(X, TIMES)


def test_what_is_shorter_is_filled_up_with_what_is_no_word():
    first, second = padded(torch.ones(2, 3, 4), torch.ones(5, 2, 6))
    assert (first.shape, second.shape) == ((2, 3, 6), (5, 3, 6))
    assert (first[:, :, 4:] == 0).all()
    assert (second[:, 2:] == 0).all()
    mask, _ = padded(torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool))
    assert mask.tolist() == [[True, False, False]] * 2
    whole = joined(of_classes(torch.tensor([1])), of_classes(torch.tensor([2])).without(torch.tensor([True])))
    assert whole.inputs["class_labels"].tolist() == [1, -1]
    assert whole.dropped.tolist() == [False, True]


def test_a_condition_goes_where_its_samples_go():
    known = Condition(texts(5, 3), torch.ones(5).double(), texts(5, 2), torch.zeros(5, dtype=torch.bool))
    moved = known.to(torch.device("meta"))
    parts = [*moved.inputs.values(), moved.guidance, *moved.negative.values(), moved.dropped]
    assert {part.device.type for part in parts} == {"meta"}
    few = known[torch.tensor([3, 0])]
    assert torch.equal(few.inputs["text"], known.inputs["text"][[3, 0]])
    assert torch.equal(few.negative["pooled"], known.negative["pooled"][[3, 0]])


def test_nothing_moves_with_its_denoiser_and_is_no_weight():
    assert denoiser().state_dict() == {}
    assert denoiser().to("meta").nothing.parts()["text"].device.type == "meta"
    assert Nothing({}).names == ()


ABOUT = {
    "name": "s", "method": "denoising", "solver": "ddim", "weights": "ema", "parent": None, "teacher": None,
    "data": "d", "parameters": {}, "seed": 0, "code": "c", "torch": "t", "cost": {},
}  # fmt: skip


def test_a_checkpoint_keeps_what_stands_for_nothing_and_so_does_its_student(tmp_path, monkeypatch):
    from diffcore.nets import unet

    net = unet.build(unet.default_config((1, 8, 8), (8, 16)), 0)
    whole = NetDenoiser(net, Cosine(), nothing={**NOTHING, "size": None})
    card = checkpoints.save(tmp_path / "s", whole, (1, 8, 8), ABOUT)
    assert card.inputs == ["text", "text_mask", "pooled", "size"]
    opened = checkpoints.load(tmp_path / "s")
    for kept in (opened.denoiser, roles(opened, None)[0], opened.denoiser.with_network(net)):
        parts = kept.nothing.parts()
        assert parts.pop("size") is None
        assert all(torch.equal(parts[name], part) for name, part in NOTHING.items())
    (tmp_path / "s/nothing.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged: its sha256 does not fit the card"):
        checkpoints.load(tmp_path / "s")


def test_times_and_texts_of_a_batch_belong_together():
    """Each row's own time, as in training."""
    inputs = texts(5, 3)
    for t in (0.2, 0.8):
        close(
            denoiser().with_condition(Condition(inputs))(X, per_sample(t, X)).x0,
            exact(inputs, X, per_sample(t, X)),
            1e-6,
        )


def test_without_a_mask_all_tokens_of_a_text_are_there():
    """Of a longer and of a shorter one than what stands for nothing, which keeps its own mask."""
    inputs = {name: part for name, part in texts(5, 3).items() if name != "text_mask"}
    whole = inputs | {"text_mask": torch.ones(inputs["text"].shape[:2], dtype=torch.bool)}
    for dropped in (None, torch.tensor([True, *[False] * (len(X) - 1)])):
        own, masked = (denoiser().with_condition(Condition(told, dropped=dropped)) for told in (inputs, whole))
        assert torch.equal(own(X, per_sample(0.5, X)).x0, masked(X, per_sample(0.5, X)).x0)


def test_texts_of_two_lengths_need_a_mask():
    """Or what fills up the shorter one would be read as a part of it."""
    text = {"text": randn(3, 4, 2)}
    with pytest.raises(
        UserError, match="texts of 4 and of 2 tokens are told as one batch without a mask; give both as"
    ):
        Condition(text, negative={"text": randn(3, 2, 2)}).with_away()
    assert Condition(text, negative={"text": randn(3, 4, 2)}).with_away().inputs["text"].shape == (6, 4, 2)
    unmasked = Nothing({"text": randn(1, 2)})
    assert torch.equal(unmasked.fill(Condition(text), 3)["text"], text["text"])
    with pytest.raises(UserError, match="texts of 4 and of 1 tokens"):
        unmasked.fill(Condition(text, dropped=torch.tensor([True, False, False])), 3)
