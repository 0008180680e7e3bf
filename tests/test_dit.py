"""Our transformer: against diffusers' blocks, in closed form, and under the laws that every network keeps."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcore import checkpoints, exports, nets
from diffcore.checkpoints import Guidance
from diffcore.checkpoints.roles import roles
from diffcore.core.errors import UserError
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.methods import Roles, continuous, distribution_matching, phased, progressive
from diffcore.methods.parts import discriminator
from diffcore.nets import dit
from diffcore.nets.conditioned import folded, with_guidance
from diffcore.nets.dit import DiT, DiTConfig
from diffcore.nets.order import fastest
from diffcore.noise.schedule import Cosine
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.deepcache import DeepCached
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.skip_tuning import skip_tuned
from diffcore.training.loop import Stopped, fit
from diffcore.training.resume import Resume
from tests.conftest import randn, seeded
from tests.test_checkpoint import ABOUT
from tests.test_fit import same, stop_at
from tests.test_precision import EACH, FULL, HALF, SHORT, job

SHAPE = dit.Shape(2, 32, 2, 4)
KINDS = {
    "plain": (SHAPE.config((1, 8, 8)), (8, 8)),
    "oblong, three channels": (dataclasses.replace(SHAPE, patch=4, depth=3).config((3, 8, 16)), (8, 16)),
    "classes": (dataclasses.replace(SHAPE, conditional=True).config((1, 8, 8), 4), (8, 8)),
    "one pixel, x0_eps": (dit.Shape(1, 16, 2, 1, parameterization="x0_eps").config((2, 4, 6)), (4, 6)),
}


@pytest.fixture(params=KINDS)
def kind(request) -> tuple[DiTConfig, tuple[int, int]]:
    return KINDS[request.param]


def stirred(config: DiTConfig, seed: int = 0) -> DiT:
    """A network none of whose parts is zero."""
    net, source = dit.build(config, seed), seeded(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return net.eval().requires_grad_(False)


def batch(kind: tuple[DiTConfig, tuple[int, int]], count: int = 3) -> tuple[Tensor, ...]:
    config, sides = kind
    x = torch.randn(count, config.in_channels, *sides, generator=seeded(1))
    inputs = (x, 1024 * torch.linspace(0, 1, count) - 1)
    return inputs if config.class_embeds is None else (*inputs, torch.arange(count) % config.class_embeds)


def small(conditional: bool = False, seed: int = 0, dropout: float = 0.0, parameterization: str = "v") -> NetDenoiser:
    """For images [1, 4, 4], of three classes or none."""
    shape = dit.Shape(2, 16, 2, 2, dropout=dropout, conditional=conditional, parameterization=parameterization)
    net = stirred(shape.config((1, 4, 4), 3), seed)
    return NetDenoiser(net, Cosine(), Reading(parameterization), classes=3 if conditional else None)


# the paper's function, as diffusers computes it


class Times(nn.Module):
    """Our sines in the place of diffusers', which are fast."""

    def __init__(self, max_phase: float):
        super().__init__()
        self.max_phase = max_phase

    def forward(self, timestep: Tensor) -> Tensor:
        return dit.sinusoids(timestep, self.max_phase)


def theirs(net: DiT, side: int, classes: int) -> nn.Module:
    """DiTTransformer2DModel of the same weights: it embeds time and class in each block anew, which we do once."""
    diffusers = pytest.importorskip("diffusers")
    config = net.config
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=side,
        patch_size=config.patch,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    ).eval()
    weights, state = net.state_dict(), model.state_dict()
    pixels = (config.in_channels, config.patch, config.patch)
    state["pos_embed.proj.weight"] = weights["patch_in.weight"].unflatten(1, pixels)
    state["pos_embed.proj.bias"] = weights["patch_in.bias"]
    for k in range(config.depth):
        block, own = f"transformer_blocks.{k}", f"blocks.{k}"
        for part in ("weight", "bias"):
            parts = weights[f"{own}.attention.qkv.{part}"].chunk(3)
            for name, value in zip(("to_q", "to_k", "to_v"), parts):
                state[f"{block}.attn1.{name}.{part}"] = value
            state[f"{block}.attn1.to_out.0.{part}"] = weights[f"{own}.attention.out.{part}"]
            state[f"{block}.ff.net.0.proj.{part}"] = weights[f"{own}.linear_1.{part}"]
            state[f"{block}.ff.net.2.{part}"] = weights[f"{own}.linear_2.{part}"]
            state[f"{block}.norm1.linear.{part}"] = weights[f"{own}.modulation.{part}"]
        state[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = weights["class_embedding.weight"]
    for part in ("weight", "bias"):
        state[f"proj_out_1.{part}"] = weights[f"modulation_out.{part}"]
        outputs = weights[f"patch_out.{part}"].unflatten(0, (config.out_channels, config.patch**2))
        state[f"proj_out_2.{part}"] = outputs.transpose(0, 1).flatten(0, 1)  # its pixels' channels come last
    model.load_state_dict(state)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj = Times(config.max_phase)
        block.norm1.emb.timestep_embedder.linear_1 = net.time_embedding.linear_1
        block.norm1.emb.timestep_embedder.linear_2 = net.time_embedding.linear_2
    return model


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_blocks_positions_and_modulation_are_diffusers(patch):
    shape = dit.Shape(patch, 32, 3, 4, conditional=True)
    config = shape.config((3, 8, 8), 4)
    net, inputs = stirred(config), batch((config, (8, 8)), 5)
    with torch.no_grad():
        other = theirs(net, 8, 4)(inputs[0], timestep=inputs[1], class_labels=inputs[2]).sample
    assert float(other.std()) > 0.1
    torch.testing.assert_close(net(*inputs), other, rtol=1e-4, atol=1e-5)


def test_times_are_a_geometric_series_of_phases_by_hand():
    """From max_phase to SLOWEST at timestep 1024."""
    out = dit.sinusoids(torch.tensor([0.0, 256.0, 1024.0]), 12.0).double()
    phases = [12.0 * (0.1 / 12.0) ** (k / 31) for k in range(32)]
    for row, share in zip(out, (0, 0.25, 1)):
        by_hand = [f(share * phase) for f in (math.sin, math.cos) for phase in phases]
        torch.testing.assert_close(row, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-5)


def test_positions_by_hand():
    """Columns first; of 8 numbers two frequencies, 1 and 1/100."""
    out = dit.positions(2, 3, 8)
    for row in range(2):
        for column in range(3):
            by_hand = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            assert out[3 * row + column].tolist() == pytest.approx(by_hand, abs=1e-6)


def test_patches_are_cut_row_by_row_and_put_together_again():
    x = torch.arange(2.0 * 3 * 4 * 8).reshape(2, 3, 4, 8)
    cut = dit.patches(x, 2)
    assert cut.shape == (2, 8, 12)
    assert torch.equal(cut[1, 5], x[1, :, 2:4, 2:4].flatten())  # the second row's second
    assert torch.equal(dit.joined(cut, 2, 2), x)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(dit.patches(last, 2), cut)


# laws of every network


def test_batch_law(kind):
    net, inputs = stirred(kind[0]), batch(kind, 8)
    alone = torch.cat([net(*(each[i : i + 1] for each in inputs)) for i in range(8)])
    torch.testing.assert_close(net(*inputs), alone, rtol=1e-4, atol=1e-5)


def test_times_and_classes_reach_every_sample():
    kind = KINDS["classes"]
    net, (x, timestep, classes) = stirred(kind[0]), batch(kind)
    out = net(x, timestep, classes)
    moved = (net(x, timestep.flip(0), classes) - out).abs().amax((1, 2, 3)) > 1e-3
    assert moved.tolist() == [True, False, True]
    assert ((net(x, timestep, (classes + 1) % 5) - out).abs().amax((1, 2, 3)) > 1e-3).all()


def test_every_patch_sees_every_other_and_where_it_is():
    kind = KINDS["plain"]
    net, (x, timestep) = stirred(kind[0]), batch(kind, 1)
    other = x.clone()
    other[0, 0, 7, 7] += 1
    assert ((net(other, timestep) - net(x, timestep)).abs() > 1e-6).all()
    rolled = net(x.roll(2, 3), timestep).roll(-2, 3)
    assert not torch.allclose(rolled, net(x, timestep), atol=1e-2)


def test_weights_begin_as_the_paper_starts_them():
    """Glorot's uniform, deviation 0.02 for what embeds, zero for biases, modulations and the output."""
    net = dit.build(dit.Shape(2, 64, 2, 4, conditional=True).config((1, 8, 8), 200), 0)
    for name, weight in net.named_parameters():
        zero = name.endswith("bias") or "modulation" in name or name.startswith("patch_out")
        assert bool(weight.any()) != zero, name
        if not zero and "embedding" in name:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05), name
        elif not zero:
            bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
            assert 0.95 * bound < float(weight.detach().abs().max()) <= bound, name


def test_a_new_network_says_nothing_yet_and_all_of_it_learns():
    kind = KINDS["classes"]
    net, (x, timestep, classes) = dit.build(kind[0], 0), batch(kind, 5)
    assert not net(x, timestep, classes).any()
    before, optimizer = copy.deepcopy(net.state_dict()), torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(4):
        (net(x, timestep, classes) - x.flip(0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])] == []


def test_dropout_acts_in_training_only_and_is_set_anew():
    plain, inputs = stirred(KINDS["plain"][0]), batch(KINDS["plain"])
    net = plain.with_dropout(0.5).eval()
    assert torch.equal(net(*inputs), plain(*inputs))
    with torch.random.fork_rng():
        assert not torch.equal(net.train()(*inputs), net(*inputs))
    assert torch.equal(net.with_dropout(0.0).train()(*inputs), plain(*inputs))


def test_times_are_told_apart_under_autocast_which_is_near():
    """The embedding is made in float32: in bfloat16 timesteps 1000 and 1001 would be one."""
    net, inputs = stirred(KINDS["plain"][0]), batch(KINDS["plain"])
    near = torch.tensor([1000.0, 1001.0])
    exact = net.embed(near)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding, out = net.embed(near), net(*inputs)
    assert torch.equal(embedding, exact)
    assert not torch.equal(exact[0], exact[1])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), net(*inputs), rtol=0, atol=0.05 * float(net(*inputs).abs().max()))


def test_features_are_the_tokens_after_each_block_as_maps(kind):
    net, inputs = stirred(kind[0]), batch(kind)
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(*inputs)
    rows, columns = (side // kind[0].patch for side in kind[1])
    maps = net.features(*inputs)
    assert len(maps) == kind[0].depth
    for one, tokens in zip(maps, seen[: len(maps)], strict=True):
        assert one.shape == (3, kind[0].width, rows, columns)
        assert torch.equal(one[:, :, 1, 1], tokens[:, columns + 1])


def test_plain_memory_is_its_order_everywhere():
    net = stirred(KINDS["plain"][0])
    assert {fastest(net, (3, side, side), device) for side in (8, 64) for device in ("cpu", "cuda")} == {
        torch.contiguous_format
    }


def test_an_input_for_guidance_changes_nothing_at_first_and_folds_into_a_bias():
    kind = KINDS["classes"]
    plain, inputs = stirred(kind[0]), batch(kind)
    guided, g = with_guidance(plain).requires_grad_(False), torch.tensor([1.0, 2.5, 4.0])
    assert torch.equal(guided(*inputs, g), plain(*inputs))
    guided.guidance_embedding.weight.normal_(generator=seeded(3))
    guided.guidance_embedding.bias.normal_(generator=seeded(4))
    assert not torch.equal(guided(*inputs, g), plain(*inputs))
    torch.testing.assert_close(
        folded(guided, 2.5)(*inputs), guided(*inputs, torch.full((3,), 2.5)), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(UserError, match="give guidance, a number"):
        guided(*inputs)
    with pytest.raises(UserError, match="leave guidance out"):
        plain(*inputs, g)


# what is asked of it elsewhere


def test_a_shape_refuses_what_makes_no_network():
    good = dataclasses.asdict(SHAPE)
    wrong = {
        "patch": (3, "power of two"),
        "width": (30, "divide by 4, for positions, and into 4 heads"),
        "heads": (3, "into 3 heads"),
        "depth": (0, "at least 1"),
        "dropout": (1.0, r"dropout must be in \[0, 1\)"),
        "max_phase": (0.1, "more than 0.1"),
        "parameterization": ("eps", "no image at t = 1"),
    }
    for key, (value, words) in wrong.items():
        with pytest.raises(ValueError, match=words):
            dit.Shape(**{**good, key: value})
    with pytest.raises(UserError, match="images of 8 x 6 cannot be cut into patches of 4; take a smaller patch"):
        dataclasses.replace(SHAPE, patch=4).config((1, 8, 6))
    with pytest.raises(UserError, match="the data have no classes"):
        dataclasses.replace(SHAPE, conditional=True).config((1, 8, 8))


def test_what_acts_on_skips_refuses_it():
    with pytest.raises(UserError, match="needs our own U-Net"):
        DeepCached(small(), CacheConfig(2))
    with pytest.raises(UserError, match="needs our own U-Net"):
        skip_tuned(small(), SkipConfig(0.9))
    assert SHAPE.skips == 0


@pytest.mark.parametrize("conditional", [False, True])
def test_a_critic_looks_at_a_map_of_each_block(conditional):
    assert discriminator.widths(small(conditional)) == (16, 16)


def test_a_derivative_by_time_is_that_of_differences():
    """Of v along a direction of (z, log tan phi), through attention, norms and the embedding; in float64."""
    student = small().double()
    cast = Roles(student, student, student)
    z, log_tan, arc = randn(3, 1, 4, 4), torch.tensor([-2.0, -0.5, 1.0], dtype=torch.float64), randn(3, 1, 4, 4, seed=1)
    exact = continuous.tangent(cast, z, log_tan, arc, 1.0)
    phi = log_tan.exp().atan()
    cos, sin = (f(phi)[:, None, None, None] for f in (torch.cos, torch.sin))

    def v(step: float) -> Tensor:
        return student(z + step * cos * sin * arc, student.schedule.time(-(log_tan + step))).v

    h = 0.01  # timesteps are float32: smaller differences are rounding
    change, at = (8 * (v(h) - v(-h)) - (v(2 * h) - v(-2 * h))) / (12 * h), v(0.0)
    torch.testing.assert_close(exact, -(cos**2) * (at - arc) - cos * sin * z - change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("says", ["v", "x0_eps", "flow"])
def test_a_checkpoint_is_opened_again_to_the_bit(tmp_path, says):
    denoiser = small(True, parameterization=says)
    about = {**ABOUT, "classes": ["a", "b", "c"]}
    checkpoints.save(tmp_path / "one", denoiser, (1, 4, 4), about)
    opened = checkpoints.load(tmp_path / "one")
    assert type(opened.denoiser.net) is DiT
    assert opened.denoiser.net.config == denoiser.net.config
    state = opened.denoiser.net.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in denoiser.net.state_dict().items())
    checkpoints.save(tmp_path / "two", opened.denoiser, (1, 4, 4), about)
    assert checkpoints.load(tmp_path / "two").card.digest == opened.card.digest


def test_a_damaged_folder_is_one_line(tmp_path):
    from safetensors.torch import save_file

    net = stirred(KINDS["plain"][0])
    save_file(net.state_dict(), tmp_path / nets.WEIGHTS)

    def refused(content: dict) -> str:
        (tmp_path / nets.CONFIG).write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            nets.open_folder(tmp_path)
        return str(caught.value)

    content = net.config_json()
    assert "is of no transformer of ours (depth)" in refused({k: v for k, v in content.items() if k != "depth"})
    assert "is of no transformer of ours (colour)" in refused({**content, "colour": 1})
    assert "does not hold this network's weights" in refused({**content, "depth": 3})
    assert "describes no network" in refused({**content, "heads": "two"})
    (tmp_path / nets.WEIGHTS).write_bytes(b"nothing")
    assert "does not hold this network's weights" in refused(content)


@pytest.mark.slow
@EACH
def test_every_method_trains_it_in_float32_and_bfloat16(name, config):
    """With classes, a guided teacher and dropout; losses of both are near, and weights stay float32."""
    student, teacher = small(True, 0, 0.1), Guided(small(True, 2))
    whole, half = (fit(job(name, config, True), student, teacher, compute) for compute in (FULL, HALF))
    assert whole.curve != half.curve
    for one, other in zip(whole.curve, half.curve, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.25 if name == "consistency_training" else 0.1)
    assert all(value.dtype == torch.float32 for value in half.net.state_dict().values())


RESUMED = {
    "progressive": progressive.Progressive(2),
    "continuous": continuous.Continuous(),
    "distribution_matching": distribution_matching.DistributionMatching(2, 1, adversarial=0.1),
    "phased": phased.Phased(16, 4, target_ema=0.5, adversarial=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_training_goes_on_to_the_same_bytes(name, tmp_path):
    fitting = dataclasses.replace(SHORT, iterations=4)

    def train(**more):
        work = job(name, RESUMED[name], fitting=fitting)
        return fit(work, small(False, 0, 0.1), small(False, 2), FULL, **more)

    whole, resume = train(), Resume(tmp_path, "x", {"job": "f"})
    torch.rand(7)  # what others draw in between
    with pytest.raises(Stopped):
        train(resume=resume, stop=stop_at(2))
    assert same(whole, train(resume=resume))


def test_a_student_may_take_the_weight_as_an_input_of_a_transformer(tmp_path):
    checkpoints.save(tmp_path / "one", small(True), (1, 4, 4), {**ABOUT, "classes": ["a", "b", "c"]})
    parent = checkpoints.load(tmp_path / "one")
    student, teacher = roles(parent, Guidance(1.0, 4.0))
    assert student.takes_guidance
    assert type(student.net) is DiT
    assert isinstance(teacher, Guided)


# exports


def saved(folder: Path, takes_guidance: bool = False) -> Path:
    denoiser = small(True)
    about = {**ABOUT, "classes": ["a", "b", "c"]}
    if takes_guidance:
        net = with_guidance(denoiser.net).requires_grad_(False)
        net.guidance_embedding.weight.normal_(generator=seeded(1))
        denoiser = NetDenoiser(net.eval(), Cosine(), classes=3, takes_guidance=True)
        about["guidance"] = dataclasses.asdict(Guidance(1.0, 4.0))
    checkpoints.save(folder, denoiser, (1, 4, 4), about)
    return folder


@pytest.mark.parametrize(
    "form",
    ["safetensors", pytest.param("torch_export", marks=pytest.mark.slow), pytest.param("onnx", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("takes_guidance", [False, True])
def test_it_is_exported(form, takes_guidance, tmp_path):
    folder = saved(tmp_path / "one", takes_guidance)
    assert exports.export(folder, tmp_path / "out", form, "read me") <= exports.TOLERANCE
    assert (tmp_path / "out").is_file()


def test_diffusers_has_no_class_for_it_and_nothing_is_written(tmp_path):
    folder = saved(tmp_path / "one")
    with pytest.raises(UserError, match="diffusers has no class DiT; choose another --format"):
        exports.export(folder, tmp_path / "out", "diffusers", "read me")
    assert not (tmp_path / "out").exists()


def compiled() -> None:
    """As torch.compile traces it, the same numbers."""
    torch.set_num_threads(1)
    for kind in KINDS.values():
        net, inputs = stirred(kind[0]), batch(kind)
        whole = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(whole(*inputs), net(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_is_one_graph_of_the_same_numbers():
    """In a process of its own, as checks of shapes cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_dit"], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    compiled()
