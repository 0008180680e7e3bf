"""Dropout: whose masks are one, whose are others, and who has none."""

import copy
import dataclasses
from dataclasses import asdict
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from diffcore import methods
from diffcore.checkpoints import Card, Checkpoint, Guidance
from diffcore.checkpoints.roles import roles
from diffcore.core.errors import UserError
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Roles, consistency, continuous, distribution_matching
from diffcore.nets import diffusers_model, open_folder, unet
from diffcore.nets.architectures.unet2d import UNet2D
from diffcore.nets.dropout import Masked, Masks, masked, without
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Training
from diffcore.training.loop import Fitted, Stopped, fit
from diffcore.training.resume import Resume
from tests.conftest import randn, seeded
from tests.test_diffusers_model import tiny
from tests.test_fit import same, stop_at
from tests.test_precision import EACH, FULL, SHORT, Told, job

PARTS = dataclasses.replace(SHORT, iterations=4, accumulate=2)


class Dropped(Told):
    """A toy with dropout behind both convolutions."""

    def __init__(self, p: float = 0.3, **more):
        super().__init__(**more)
        self.first, self.last = nn.Dropout(p), nn.Dropout(p)

    def features(self, x, timestep, class_labels=None):
        return [self.first(feature) for feature in super().features(x, timestep, class_labels)]

    def forward(self, *told):
        return self.last(super().forward(*told))


def train(name: str, config, fitting: Training = PARTS, p: float = 0.3, **more) -> Fitted:
    """Leaves the global generator alone."""
    student, teacher = (NetDenoiser(Dropped(p, whose=whose), Cosine()) for whose in ("student", "teacher"))
    before = torch.get_rng_state()
    try:
        return fit(job(name, config, fitting=fitting), student, teacher, FULL, **more)
    finally:
        assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[bool, tuple[int, ...], str, torch.Tensor]]:
    """(whether it learns, the key, the layer, the mask) of every pass through dropout."""
    found, kept = [], Masked.kept

    def spy(layer: Masked, input: torch.Tensor) -> torch.Tensor:
        mask = kept(layer, input)
        found.append((torch.is_grad_enabled(), tuple(layer.masks.key.tolist()), layer.place, mask))
        return mask

    monkeypatch.setattr(Masked, "kept", spy)
    return found


@EACH
def test_student_and_target_share_a_mask_that_is_another_in_every_part_of_every_update(name, config, seen):
    train(name, config)
    learning = [key for learns, key, place, _ in seen if learns and place == "last"]
    assert len(set(learning)) == len(learning) == PARTS.iterations * PARTS.accumulate
    masks: dict[Any, torch.Tensor] = {}
    for _, key, place, mask in seen:
        assert torch.equal(masks.setdefault((key, place), mask), mask)
    for place in ("first", "last"):
        different = [mask for (_, where), mask in masks.items() if where == place]
        assert all(not torch.equal(one, two) for k, one in enumerate(different) for two in different[:k])
        shares = torch.stack([mask.float().mean() for mask in different])
        assert float(shares.mean()) == pytest.approx(0.7, abs=0.05)
    if hasattr(config, "target_ema") or name in ("consistency_training", "continuous"):
        assert {key for learns, key, _, _ in seen if not learns} >= set(learning)  # the target's passes


@pytest.mark.slow
@EACH
def test_a_stopped_run_with_dropout_goes_on_to_the_same_bytes(name, config, tmp_path):
    whole, resume = train(name, config), Resume(tmp_path, "x", {"job": "f"})
    torch.rand(7)  # what others draw in between
    with pytest.raises(Stopped):
        train(name, config, resume=resume, stop=stop_at(2))
    assert same(whole, train(name, config, resume=resume))
    assert not same(whole, train(name, config, p=0.0))


def test_a_mask_is_the_same_in_every_memory_format_and_another_for_every_layer_and_key():
    masks, x = Masks(), randn(4, 8, 6, 6)
    one, other = Masked(0.25, "a", masks), Masked(0.25, "b", masks)
    masks.throw(0, "train", 3, rows=slice(0, 4), count=4)
    found = one(x)
    assert torch.equal(one(x), found)
    assert torch.equal(one(x.to(memory_format=torch.channels_last)), found)
    assert torch.equal(one(x.float()) == 0, found == 0)
    torch.testing.assert_close(found[found != 0], x[found != 0] / 0.75)
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(other(x) == 0, found == 0)
    masks.throw(0, "train", 4, rows=slice(0, 4), count=4)
    assert not torch.equal(one(x) == 0, found == 0)


@pytest.mark.parametrize("parts", [[6], [3, 3], [2, 2, 2], [1, 5]])
@pytest.mark.parametrize("versions", [1, 3])
def test_masks_do_not_depend_on_how_a_batch_is_cut(parts, versions):
    """Of any number of versions of its rows that a loss asks of at once."""
    masks, x = Masks(), torch.ones(versions, 6, 4, 3, 3)
    layer = Masked(0.5, "place", masks)
    masks.throw(1, "train", 0, rows=slice(0, 6), count=6)
    whole = layer(x.flatten(0, 1)).reshape(x.shape)
    first = 0
    for part in parts:
        rows = slice(first, first + part)
        masks.throw(1, "train", 0, rows=rows, count=6)
        assert torch.equal(layer(x[:, rows].flatten(0, 1)), whole[:, rows].flatten(0, 1))
        first += part
    assert not torch.equal(whole[0, :3], whole[0, 3:])


def test_a_network_that_is_called_on_part_of_its_rows_is_refused():
    masks = Masks()
    masks.throw(1, rows=slice(0, 4), count=4)
    with pytest.raises(ValueError, match="called on 3 samples for 4 rows"):
        Masked(0.5, "place", masks)(torch.ones(3, 2))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_every_place_of_every_sample_is_dropped_by_a_die_of_its_own(p):
    """A share p of them, in each sample, channel, row and column, and whatever is kept is scaled so that the mean stays."""
    masks = Masks()
    masks.throw("some words", rows=slice(0, 16), count=16)
    layer, ones = Masked(p, "place", masks), torch.ones(16, 8, 12, 12)
    kept = layer.kept(ones).float()
    for axis in range(4):
        rest = [other for other in range(4) if other != axis]
        assert float((kept.mean(rest) - (1 - p)).abs().max()) < 0.1
        whole = kept.movedim(axis, 0).flatten(1)
        alike = (whole[:-1] == whole[1:]).float().mean(1)
        assert float((alike - (p**2 + (1 - p) ** 2)).abs().max()) < 0.1
    assert torch.equal(layer(ones), kept / (1 - p))


def test_the_derivative_of_a_network_with_dropout_is_that_of_the_network_with_this_mask():
    """In the trainer's memory format, from which the derivative takes group norms away."""
    net = unet.build(unet.default_config((1, 8, 8), (8, 16), groups=4, dropout=0.4), 0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 4 and not parameter.any():
                parameter.normal_(std=0.1, generator=seeded(1))
    masks = Masks()
    masks.throw(5, rows=slice(0, 2), count=2)
    student = NetDenoiser(masked(net.train().to(memory_format=torch.channels_last), masks), Cosine())
    z, arc, log_tan = randn(2, 1, 8, 8).float(), randn(2, 1, 8, 8, seed=1).float(), torch.zeros(2).double()
    with torch.no_grad():
        cold = continuous.tangent(Roles(student, None, student), z, log_tan, arc, 0.0)
        by_hand = -0.5 * (student(z, torch.full((2,), 0.5).double()).v - arc)
        torch.testing.assert_close(cold, by_hand, rtol=0, atol=1e-6)


def test_what_is_trained_is_returned_with_its_own_dropout_and_computes_with_none():
    fitted = train("denoising", methods.load("denoising")())
    assert {type(layer) for name, layer in fitted.net.named_children() if name in ("first", "last")} == {nn.Dropout}
    assert fitted.net.first.p == 0.3
    x, timestep = randn(2, 1, 4, 4).float(), torch.tensor([3.0, 700.0])
    assert torch.equal(fitted.net(x, timestep), fitted.net(x, timestep))


def test_a_critic_has_no_dropout(monkeypatch):
    critics, kind = [], distribution_matching.DistributionMatching
    make = kind.critic
    monkeypatch.setattr(kind, "critic", lambda *of: critics.append(make(*of)) or critics[0])
    train("distribution_matching", kind(critic_updates=1))
    assert [layer.p for layer in critics[0].modules() if isinstance(layer, nn.Dropout)] == [0.0, 0.0]


def test_dropout_that_would_draw_its_own_masks_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout2d(0.1))
    with pytest.raises(UserError, match="1 is a Dropout2d, whose masks cannot be drawn by key; set dropout to 0"):
        masked(net, Masks())
    assert masked(without(net), Masks())[1].p == 0


def test_a_teacher_teaches_without_its_dropout():
    def learned(p: float) -> Fitted:
        student, teacher = NetDenoiser(Told(), Cosine()), NetDenoiser(Dropped(p, seed=2, whose="teacher"), Cosine())
        work = job("consistency", consistency.Consistency(8, 0.0, "perceptual"))
        return fit(work, student, teacher, FULL)

    assert same(learned(0.0), learned(0.5))


# ------------------------------------------------------------------------------------------- a student's own


def parent(net: nn.Module, classes: int | None = None) -> Checkpoint:
    """A checkpoint of a teacher without guidance, with no more than that on its card."""
    return opened(NetDenoiser(net, Cosine(), classes=classes), None)


def opened(denoiser: NetDenoiser, guidance: Guidance | None) -> Checkpoint:
    card = object.__new__(Card)
    vars(card).update(guidance=guidance and asdict(guidance))
    return Checkpoint(card, denoiser)


@pytest.mark.parametrize("weights", [Guidance(2.0, 2.0), Guidance(1.0, 3.0)])
def test_who_has_a_guidance_built_in_is_not_guided_once_more(weights):
    """Neither one that is told its weight nor one that was trained for a single weight."""
    net = unet.build(unet.default_config((1, 8, 8), (8, 16), classes=2), 0)
    plain = parent(net, classes=2)
    assert isinstance(roles(plain, weights)[1], Guided)
    student, _ = roles(plain, weights)
    knows = opened(student, weights)
    assert roles(knows, weights)[1] is student


def dropouts(net: nn.Module) -> set[float]:
    return {layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)}


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_a_student_has_the_dropout_of_its_own_line_and_its_config_says_so(p, tmp_path):
    """Whatever its teacher's is, which stays as it was; the same function of the same weights."""
    ours = unet.build(unet.default_config((1, 8, 8), (8, 16), dropout=0.1), 0)
    tiny(dropout=0.1).save_pretrained(tmp_path)
    for net in (ours, open_folder(tmp_path)):
        before = copy.deepcopy(net.config_json())
        student, teacher = roles(parent(net), None, dropout=p)
        assert dropouts(student.net) - {0.0} == ({p} if p else set())
        assert student.net.config_json() == {**before, "dropout": p}
        assert teacher.net.config_json() == before
        assert 0.1 in dropouts(teacher.net)
        x, timestep = randn(3, 1, 8, 8).float(), torch.tensor([-1.0, 300.5, 1023.0])
        assert torch.equal(student.net.eval()(x, timestep), net.eval()(x, timestep))
    weights = Guidance(1.0, 3.0)
    conditional = unet.build(unet.default_config((1, 8, 8), (8, 16), classes=4, dropout=0.1), 0)
    assert dropouts(roles(parent(conditional), weights, dropout=p)[0].net) == {p}


def test_a_network_without_such_a_key_takes_none(tmp_path):
    net = tiny(dropout=0.1)
    assert 0.1 in dropouts(net)
    del net._internal_dict
    net._internal_dict = {"_class_name": "UNet2DModel"}
    content = {"_class_name": "UNet2DModel"}
    found = diffusers_model.DiffusersModel(net, content, UNet2D(content))
    assert dropouts(found.with_dropout(0.0)) <= {0.0}
    with pytest.raises(UserError, match="UNet2DModel has no dropout to set; leave `dropout` out"):
        found.with_dropout(0.1)


def test_no_label_is_dropped_by_a_network_of_another_dropout(tmp_path):
    """A transformer of diffusers' drops labels by itself in training, from the global generator."""
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=1,
        sample_size=8, num_embeds_ada_norm=5, norm_num_groups=2, dropout=0.1,
    )  # fmt: skip
    net.save_pretrained(tmp_path)
    student = roles(parent(open_folder(tmp_path)), None)[0].net
    assert dropouts(student) == {0.0}
    assert {layer.dropout_prob for layer in student.modules() if hasattr(layer, "dropout_prob")} == {0.0}
