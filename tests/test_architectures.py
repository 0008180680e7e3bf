"""The networks of diffusers that are written down: each as its own pipeline calls it, by our names of what it is told."""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.nets import CONFIG, WEIGHTS, open_folder
from diffcore.nets.architectures import registry
from tests.conftest import seeded

ROOT = Path(__file__).parent.parent
BATCH, TOKENS = 3, 5
TIMES = torch.tensor([3.0, 500.0, 999.0])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5, [True, True, False, True, False]])
SIZES = torch.tensor([[64.0, 32, 0, 8, 64, 32], [96, 96, 4, 0, 32, 32], [32, 64, 0, 0, 16, 64]])

UNET = {
    "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip
CONDITION = {
    **UNET, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
PIXART = {
    **HEADS, "in_channels": 2, "out_channels": 4, "sample_size": 8, "norm_num_groups": 2, "cross_attention_dim": 16,
    "caption_channels": 6,
}  # fmt: skip
SANA = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8,
    "cross_attention_dim": 16, "caption_channels": 6, "sample_size": 8,
}  # fmt: skip
SD3 = {
    **HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 6,
    "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8,
}  # fmt: skip
AURA = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 6, "caption_projection_dim": 16,
    "pos_embed_max_size": 36,
}  # fmt: skip
FLUX = {
    **HEADS, "in_channels": 16, "num_single_layers": 1, "joint_attention_dim": 6, "pooled_projection_dim": 10,
    "axes_dims_rope": [2, 2, 4],
}  # fmt: skip


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


TEXT, POOLED = noise(BATCH, TOKENS, 6, seed=2), noise(BATCH, 10, seed=3)
WEIGHTS_OF_GUIDANCE = torch.tensor([1.0, 4.5, 7.25])


# ------------------------------------------------- as diffusers' pipelines call each, for samples of one time


def unet2d(net: nn.Module, x: Tensor, t: Tensor, class_labels=None, image=None) -> Tensor:
    whole = x if image is None else torch.cat([x, image], dim=1)  # LDMSuperResolutionPipeline
    classes = {} if class_labels is None else {"class_labels": class_labels}
    return net(whole, t, **classes, return_dict=False)[0]


def stable_diffusion(net: nn.Module, x: Tensor, t: Tensor, text, text_mask=None, **more: Tensor) -> Tensor:
    """StableDiffusionPipeline, -XL, -Inpaint, -InstructPix2Pix, LatentConsistencyModelPipeline, -Upscale."""
    condition = None
    if "guidance" in more:  # get_guidance_scale_embedding(guidance_scale - 1)
        width = net.config.time_cond_proj_dim
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        phases = ((more["guidance"] - 1) * 1000.0)[:, None] * frequencies[None, :]
        condition = torch.cat([torch.sin(phases), torch.cos(phases)], dim=1)
        condition = torch.nn.functional.pad(condition, (0, 1)) if width % 2 else condition
    added = {"text_embeds": more["pooled"], "time_ids": more["size"]} if "size" in more else None
    return net(
        torch.cat([x, more["image"]], dim=1) if "image" in more else x,
        t,
        encoder_hidden_states=text,
        encoder_attention_mask=text_mask,
        class_labels=more.get("class_labels"),
        timestep_cond=None if condition is None else condition.to(x.dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def dit(net: nn.Module, x: Tensor, t: Tensor, class_labels) -> Tensor:
    out = net(x, timestep=t[None].expand(len(x)), class_labels=class_labels).sample
    return torch.split(out, x.shape[1], dim=1)[0] if net.config.out_channels // 2 == x.shape[1] else out


def pixart(net: nn.Module, x: Tensor, t: Tensor, text, text_mask=None, size=None) -> Tensor:
    added = {"resolution": None, "aspect_ratio": None}
    if size is not None:  # height and width that are wanted
        ratios = [[float(height / width)] for height, width in size[:, 4:].tolist()]
        added = {"resolution": size[:, 4:], "aspect_ratio": torch.tensor(ratios)}
    out = net(
        x,
        encoder_hidden_states=text,
        encoder_attention_mask=text_mask,
        timestep=t[None].expand(len(x)),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return out.chunk(2, dim=1)[0] if net.config.out_channels // 2 == x.shape[1] else out


def sana(net: nn.Module, x: Tensor, t: Tensor, text, text_mask=None) -> Tensor:
    timestep = t.expand(len(x)) * net.config.timestep_scale
    return net(x, encoder_hidden_states=text, encoder_attention_mask=text_mask, timestep=timestep, return_dict=False)[0]


def sprint(net: nn.Module, x: Tensor, t: Tensor, text, guidance, text_mask=None) -> Tensor:
    return net(
        x,
        encoder_hidden_states=text,
        encoder_attention_mask=text_mask,
        guidance=guidance * net.config.guidance_embeds_scale,
        timestep=t.expand(len(x)),
        return_dict=False,
    )[0]


def sd3(net: nn.Module, x: Tensor, t: Tensor, text, pooled) -> Tensor:
    return net(
        hidden_states=x,
        timestep=t.expand(len(x)),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        joint_attention_kwargs=None,
        return_dict=False,
    )[0]


def auraflow(net: nn.Module, x: Tensor, t: Tensor, text) -> Tensor:
    """t: 0 to 1, what its pipeline divides by 1000 to."""
    return net(x, encoder_hidden_states=text, timestep=torch.tensor([t]).expand(len(x)), return_dict=False)[0]


def flux(net: nn.Module, x: Tensor, t: Tensor, text, pooled, guidance=None, image=None) -> Tensor:
    """t: 0 to 1, what its pipeline divides by 1000 to. Each token is written out."""
    whole = x if image is None else torch.cat([x, image], dim=1)
    height, width = (side // 2 for side in x.shape[2:])
    places = [(row, column) for row in range(height) for column in range(width)]
    squares = [whole[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for row, column in places]
    tokens = net(
        hidden_states=torch.stack([square.flatten(1) for square in squares], 1),
        timestep=t.expand(len(x)).to(x.dtype),
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3),
        img_ids=torch.tensor([[0.0, row, column] for row, column in places]),
        return_dict=False,
    )[0]
    out = torch.empty_like(x)
    for token, (row, column) in zip(tokens.unbind(1), places):
        out[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token.reshape(len(x), -1, 2, 2)
    return out


@dataclass(frozen=True)
class Case:
    """kind: of diffusers. shape: of a sample. inputs: for a batch of three. call: as its pipeline calls it. scale: the
    largest time that its pipeline names."""

    kind: Any
    config: dict[str, Any]
    shape: tuple[int, ...]
    call: Callable[..., Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    scale: int = 1000

    def network(self) -> nn.Module:
        """All of its weights random: none begins as zero."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = self.kind(**self.config)
        with torch.no_grad():
            for number, parameter in enumerate(net.parameters()):
                parameter.add_(0.15 * noise(*parameter.shape, seed=number))
        return net.eval()

    @property
    def x(self) -> Tensor:
        return noise(BATCH, *self.shape)

    @property
    def timestep(self) -> Tensor:
        return TIMES * self.scale / 1000

    def expected(self, net: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        """By the pipeline's call, sample after sample, for each has its own time. dtype: of the sample and the embeddings."""
        inputs = {k: v.to(dtype) if k in ("text", "pooled", "image") else v for k, v in self.inputs.items()}
        return torch.cat(
            [
                self.call(net, self.x[[row]].to(dtype), self.timestep[row], **{k: v[[row]] for k, v in inputs.items()})
                for row in range(BATCH)
            ]
        )


CLASSES = torch.tensor([0, 3, 2])
MASKED = {"text": TEXT, "text_mask": MASK}
WHOLE = {"text": TEXT, "pooled": POOLED}
ATTENTION = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
ONE_D = {
    "sample_size": 16, "in_channels": 2, "out_channels": 2, "time_embedding_type": "positional", "act_fn": "mish",
    "use_timestep_embedding": True, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownResnetBlock1D"] * 2, "up_block_types": ["UpResnetBlock1D"],
    "mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock",
}  # fmt: skip
XL = {
    **CONDITION, "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 34, "attention_head_dim": [2, 4],
}  # fmt: skip
DIT = {**HEADS, "in_channels": 2, "sample_size": 8, "num_embeds_ada_norm": 5, "norm_num_groups": 2}
WIDE = {**PIXART, "num_attention_heads": 3, "cross_attention_dim": 24, "use_additional_conditions": True}
SPRINT = {**SANA, "timestep_scale": 0.1, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}


def picture(channels: int, *sides: int) -> dict[str, Tensor]:
    return {"image": noise(BATCH, channels, *sides, seed=5)}


def mean(*words, **inputs: Tensor) -> Tensor:
    out = unet2d(*words, **inputs)
    return out[:, : out.shape[1] // 2]


CASES = {
    "UNet2DModel": Case(
        diffusers.UNet2DModel, {**UNET, **ATTENTION, "in_channels": 2, "out_channels": 4, "num_class_embeds": 4},
        (2, 8, 8), mean, {"class_labels": CLASSES},
    ),
    "UNet2DModel, super-resolution": Case(
        diffusers.UNet2DModel, {**UNET, **PLAIN, "in_channels": 6, "out_channels": 3}, (3, 8, 8), unet2d, picture(3, 8, 8)
    ),
    "UNet1DModel": Case(diffusers.UNet1DModel, ONE_D, (2, 16), unet2d),
    "SD 1.5": Case(diffusers.UNet2DConditionModel, CONDITION, (4, 8, 8), stable_diffusion, {"text": TEXT}),
    "SD 1.5, a mask, odd sides": Case(diffusers.UNet2DConditionModel, CONDITION, (4, 7, 10), stable_diffusion, MASKED),
    "SD inpainting": Case(
        diffusers.UNet2DConditionModel, {**CONDITION, "in_channels": 9}, (4, 8, 8), stable_diffusion,
        {"text": TEXT, **picture(5, 8, 8)},
    ),
    "SD upscaler": Case(
        diffusers.UNet2DConditionModel, {**CONDITION, "in_channels": 7, "num_class_embeds": 20}, (4, 8, 8),
        stable_diffusion, {"text": TEXT, **picture(3, 8, 8), "class_labels": torch.tensor([19, 0, 7])},
    ),
    "LCM": Case(
        diffusers.UNet2DConditionModel, {**CONDITION, "time_cond_proj_dim": 9}, (4, 8, 8), stable_diffusion,
        {"text": TEXT, "guidance": WEIGHTS_OF_GUIDANCE},
    ),
    "SDXL": Case(diffusers.UNet2DConditionModel, XL, (4, 8, 8), stable_diffusion, {**WHOLE, "size": SIZES}),
    "DiT": Case(
        diffusers.DiTTransformer2DModel, {**DIT, "out_channels": 4}, (2, 8, 8), dit,
        {"class_labels": torch.tensor([0, 5, 2])},
    ),
    "PixArt-alpha": Case(diffusers.PixArtTransformer2DModel, WIDE, (2, 8, 6), pixart, {**MASKED, "size": SIZES}),
    "PixArt-sigma": Case(diffusers.PixArtTransformer2DModel, PIXART, (2, 8, 8), pixart, MASKED),
    "Sana": Case(diffusers.SanaTransformer2DModel, {**SANA, "timestep_scale": 0.1}, (4, 6, 8), sana, MASKED),
    "Sana-Sprint": Case(
        diffusers.SanaTransformer2DModel, SPRINT, (4, 8, 8), sprint, {**MASKED, "guidance": WEIGHTS_OF_GUIDANCE}, scale=1
    ),
    "SD3": Case(diffusers.SD3Transformer2DModel, SD3, (4, 8, 6), sd3, WHOLE),
    "SD3.5": Case(
        diffusers.SD3Transformer2DModel, {**SD3, "dual_attention_layers": [0], "qk_norm": "rms_norm"}, (4, 8, 8), sd3, WHOLE
    ),
    "AuraFlow": Case(diffusers.AuraFlowTransformer2DModel, AURA, (4, 8, 6), auraflow, {"text": TEXT}, scale=1),
    "Flux schnell": Case(diffusers.FluxTransformer2DModel, FLUX, (4, 8, 6), flux, WHOLE, scale=1),
    "Flux dev": Case(
        diffusers.FluxTransformer2DModel, {**FLUX, "guidance_embeds": True}, (4, 8, 8), flux,
        {**WHOLE, "guidance": WEIGHTS_OF_GUIDANCE}, scale=1,
    ),
    "Flux Fill": Case(
        diffusers.FluxTransformer2DModel, {**FLUX, "in_channels": 28, "out_channels": 16}, (4, 8, 4), flux,
        {**WHOLE, **picture(3, 8, 4)}, scale=1,
    ),
}  # fmt: skip


ONE_OF_EACH = list({case.kind: word for word, case in CASES.items()}.values())
WITH_MASK = [word for word, case in CASES.items() if "text_mask" in case.inputs]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def theirs(case) -> nn.Module:
    return case.network()


@pytest.fixture(scope="module")
def folder(case, theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder) -> nn.Module:
    return open_folder(folder).eval()


def output(net: nn.Module, case: Case, **changed: Tensor) -> Tensor:
    with torch.no_grad():
        return net(case.x, case.timestep, **{**case.inputs, **changed})


def test_each_network_that_is_written_down_has_a_case():
    assert {case.kind.__name__ for case in CASES.values()} == set(registry())


def test_the_page_has_a_line_for_each_and_for_each_input():
    page = (ROOT / "docs/diffusers.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert registry().keys() <= rows.keys()
    for case in CASES.values():
        for name in case.inputs:
            assert f"`{name}`" in rows[case.kind.__name__], (case.kind.__name__, name)


def test_each_file_is_one_network():
    """Which a further one takes: a file, and a case here."""
    files = {path.stem for path in (ROOT / "diffcore/nets/architectures").glob("*.py")} - {"__init__"}
    assert {kind.__module__.rpartition(".")[2] for kind in registry().values()} == files


def test_it_answers_as_it_does_in_its_own_pipeline(case, theirs, ours):
    with torch.no_grad():
        expected = case.expected(theirs)
    assert output(ours, case).shape == case.x.shape == expected.shape
    torch.testing.assert_close(output(ours, case), expected, rtol=1e-4, atol=1e-5)
    assert ours.time_scale == case.scale


def test_a_sample_alone_is_the_sample_in_a_batch(case, ours):
    whole = output(ours, case)
    for row in range(BATCH):
        row = slice(row, row + 1)
        with torch.no_grad():
            alone = ours(case.x[row], case.timestep[row], **{name: value[row] for name, value in case.inputs.items()})
        torch.testing.assert_close(alone, whole[row], rtol=1e-4, atol=1e-5)


def test_it_listens_to_all_that_it_is_told(case, ours):
    """Another value of any input is another answer, and so is another time."""
    others = {name: value.roll(1, 0) for name, value in case.inputs.items()}
    whole = output(ours, case)
    for name, value in others.items():
        assert not torch.allclose(output(ours, case, **{name: value}), whole, atol=1e-4), name
    with torch.no_grad():
        later = ours(case.x, case.timestep.roll(1, 0), **case.inputs)
    assert not torch.allclose(later, whole, atol=1e-4)


def test_class_labels_and_guidance_may_stand_in_their_place(case, ours):
    """Behind the time, as our own networks take them."""
    rest = {name: value for name, value in case.inputs.items() if name not in ("class_labels", "guidance")}
    with torch.no_grad():
        placed = ours(case.x, case.timestep, case.inputs.get("class_labels"), case.inputs.get("guidance"), **rest)
    assert torch.equal(placed, output(ours, case))


def test_what_it_takes_is_worked_out_from_its_config(case, ours):
    assert {name for name, kind in ours.inputs.items() if kind.required} <= case.inputs.keys() <= ours.inputs.keys()
    for name, kind in ours.inputs.items():
        assert kind.required == (name != "text_mask")
        assert kind.fits(case.inputs.get(name, MASK), BATCH)
    with pytest.raises(TypeError):
        ours.inputs["text"] = None


@pytest.mark.parametrize("case", WITH_MASK, indirect=True)
def test_tokens_that_are_not_there_change_nothing(case, ours):
    other = torch.where(MASK[..., None], TEXT, 7 * noise(*TEXT.shape, seed=9))
    assert torch.equal(output(ours, case, text=other), output(ours, case))
    short = {name: value[:1] for name, value in case.inputs.items()}
    short |= {"text": TEXT[:1, :3], "text_mask": MASK[:1, :3]}
    with torch.no_grad():
        alone = ours(case.x[:1], case.timestep[:1], **short)
    torch.testing.assert_close(alone, output(ours, case)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", WITH_MASK, indirect=True)
def test_without_a_mask_all_tokens_are_there(case, ours):
    rest = {name: value for name, value in case.inputs.items() if name != "text_mask"}
    with torch.no_grad():
        without = ours(case.x, case.timestep, **rest)
    torch.testing.assert_close(output(ours, case, text_mask=torch.ones_like(MASK)), without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of norms of diffusers'
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "weights in bfloat16"])
def test_it_computes_in_bfloat16(case, theirs, ours, whole):
    """As diffusers' own does. Embeddings may come in float32 all the same."""
    net, x = (copy.deepcopy(ours).bfloat16(), case.x.bfloat16()) if whole else (ours, case.x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        rough = net(x, case.timestep, **case.inputs)
    other = copy.deepcopy(theirs).to(x.dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        expected = case.expected(other, x.dtype)
    assert distance(rough, expected) < 0.03
    assert distance(rough, output(ours, case)) > 1e-4


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, in parts of that of `other`."""
    one, other = one.double(), other.double()
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt())


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True)
def test_what_is_saved_of_it_is_what_was_opened(case, folder, ours, tmp_path):
    """To the byte, and diffusers opens it."""
    for name, source in (("once", ours), ("twice", None)):
        net = source or open_folder(tmp_path / "once")
        (tmp_path / name).mkdir()
        save_file(net.state_dict(), tmp_path / name / WEIGHTS, {"format": "pt"})
        (tmp_path / name / CONFIG).write_text(json.dumps(net.config_json()))
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    assert load_file(folder / WEIGHTS).keys() == ours.state_dict().keys()
    again = case.kind.from_pretrained(tmp_path / "once")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())
    assert torch.equal(output(open_folder(tmp_path / "twice").eval(), case), output(ours, case))


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True)
def test_gradients_reach_all_that_they_reach_in_diffusers(case, theirs, ours):
    """In training mode, in which none of them drops a label."""
    expected, net = copy.deepcopy(theirs), copy.deepcopy(ours).train()
    case.expected(expected).square().sum().backward()
    net(case.x, case.timestep, **case.inputs).square().sum().backward()
    own = {name: parameter.grad for name, parameter in net.net.named_parameters() if parameter.grad is not None}
    reached = {name: parameter.grad for name, parameter in expected.named_parameters() if parameter.grad is not None}
    assert own.keys() == reached.keys()
    largest = max(float(grad.abs().max()) for grad in reached.values())
    for name, grad in reached.items():  # that of a bias of keys is rounding alone: softmax does not see it
        torch.testing.assert_close(own[name], grad, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True)
def test_it_has_a_dropout_of_its_own_or_takes_none(case, ours):
    if "dropout" not in case.kind(**case.config).config:
        with pytest.raises(UserError, match="has no dropout to set"):
            ours.with_dropout(0.2)
        return
    net = ours.with_dropout(0.2)
    assert net.config_json()["dropout"] == 0.2
    assert 0.2 in {layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)}
    assert torch.equal(output(net.eval(), case), output(ours, case))


# ------------------------------------------------------------------------------- refusals


def opened(word: str, folder: Path, **change: Any) -> nn.Module:
    """A case's network of another config."""
    case = CASES[word]
    with torch.random.fork_rng():
        case.kind(**{**case.config, **change}).save_pretrained(folder)
    return open_folder(folder)


def refusal(net: nn.Module, case: Case, x: Tensor | None = None, **changed: Tensor | None) -> str:
    inputs = {name: value for name, value in {**case.inputs, **changed}.items() if value is not None}
    with pytest.raises(UserError) as caught:
        net(case.x if x is None else x, case.timestep, **inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_named(case, ours):
    kind = case.kind.__name__
    for name, wanted in ours.inputs.items():
        if wanted.required:
            words = refusal(ours, case, **{name: None})
            assert words == f"{kind} needs {name}, {wanted.describe(BATCH)}; give it in every call"


def test_what_it_does_not_take_is_named(case, ours):
    only = ", ".join(ours.inputs)
    for name in {
        "class_labels",
        "text",
        "text_mask",
        "pooled",
        "size",
        "guidance",
        "image",
        "txet",
    } - ours.inputs.keys():
        words = refusal(ours, case, **{name: POOLED})
        rest = f"only {only}" if only else "only a sample and a time"
        assert words == f"{case.kind.__name__} takes no {name}, {rest}; leave {name} out"


def test_other_shapes_and_dtypes_are_named(case, ours):
    kind = case.kind.__name__
    for name, wanted in ours.inputs.items():
        value = case.inputs.get(name, MASK)
        flags = value.to(torch.int32) if wanted.dtype == torch.bool else value.to(torch.complex64)
        for other in (value[:2], value[..., None], value[:, :0] if value.ndim == 2 and name != "text_mask" else flags):
            words = refusal(ours, case, **{name: other})
            assert words.startswith(f"{kind}: {name} is ")
            assert words.endswith(f"[{', '.join(map(str, other.shape))}] and must be {wanted.describe(BATCH)}")


def test_a_sample_of_another_shape_is_named(case, ours):
    channels, *sides = case.shape
    kind = case.kind.__name__
    others = [noise(BATCH, channels + 1, *sides), noise(BATCH, channels, *sides, 2), noise(BATCH, *case.shape[:-1])]
    if ours.architecture.sides > 1:
        others.append(noise(BATCH, channels, *sides[:-1], sides[-1] + 1))
    for x in others:
        assert refusal(ours, case, x).startswith(
            f"{kind}: a sample is {list(x.shape[1:])} and must be [{channels}, any"
        )


def test_a_mask_of_another_text_and_an_image_of_other_sides_are_named(tmp_path):
    masked, filled = CASES["PixArt-sigma"], CASES["SD inpainting"]
    words = refusal(opened("PixArt-sigma", tmp_path / "masked"), masked, text_mask=MASK[:, :4])
    assert words == "PixArtTransformer2DModel: text has 5 tokens and text_mask 4; give one flag for each token"
    words = refusal(opened("SD inpainting", tmp_path / "filled"), filled, image=noise(BATCH, 5, 8, 4))
    assert words == (
        "UNet2DConditionModel: image is [5, 8, 4] and the sample [4, 8, 8]; give it the height and width of the sample"
    )


def test_samples_that_its_positions_do_not_reach(tmp_path):
    words = refusal(opened("DiT", tmp_path / "dit"), CASES["DiT"], noise(BATCH, 2, 4, 16))
    assert words == "DiTTransformer2DModel: a sample is [2, 4, 16] and must be square"
    words = refusal(opened("SD3", tmp_path / "sd3"), CASES["SD3"], noise(BATCH, 4, 8, 18))
    assert words == "SD3Transformer2DModel: a sample is [4, 8, 18], and its positions end at sides of 16"
    words = refusal(opened("AuraFlow", tmp_path / "aura"), CASES["AuraFlow"], noise(BATCH, 4, 14, 8))
    assert words == "AuraFlowTransformer2DModel: a sample is [4, 14, 8], and its positions end at sides of 12"


@pytest.mark.parametrize(("word", "largest"), [("SD3", 16), ("AuraFlow", 12)])
def test_positions_reach_as_far_as_is_said(word, largest):
    """Diffusers answers at that side."""
    case, net = CASES[word], CASES[word].network()
    x = noise(BATCH, 4, largest, largest)
    with torch.no_grad():
        whole = case.call(net, x, TIMES[0], **case.inputs)
    assert whole.shape == x.shape


@pytest.mark.parametrize(
    ("word", "change", "words"),
    [
        ("SD 1.5", {"class_embed_type": "timestep"}, "class_embed_type 'timestep' is told; give one with class_embed_t"),
        ("SD 1.5", {"addition_embed_type": "image", "encoder_hid_dim": 6}, "addition_embed_type None or 'text' or 'text_t"),
        ("SD 1.5", {"encoder_hid_dim": 6, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type None or 'text_proj'"),
        ("SD 1.5", {"attention_type": "gated"}, "attention_type 'default'"),
        ("SD 1.5", {"time_embedding_type": "fourier"}, "is told the noise scale sigma, not a time; give one with a time"),
        ("SD 1.5", {"cross_attention_dim": [6, 8]}, r"cross_attention_dim \[6, 8\] takes texts of several widths; give one"),
        ("SDXL", {"projection_class_embeddings_input_dim": 24}, "24 has no room for 6 numbers of 4 and a pooled text"),
        ("UNet2DModel", {"time_embedding_type": "learned", "num_train_timesteps": 9}, "time_embedding_type 'positional'"),
        ("PixArt-sigma", {"out_channels": 3}, "makes 3 channels of 2; it must keep their number, or double it"),
        ("Flux dev", {"in_channels": 6}, "makes 6 channels of 6, and each must be a multiple of 4"),
        ("Flux dev", {"patch_size": 2}, "FluxTransformer2DModel with patch_size 2 is told; give one with patch_size 1"),
    ],
)  # fmt: skip
def test_networks_that_take_what_has_no_name_here(tmp_path, word, change, words):
    with pytest.raises(UserError, match=words):
        opened(word, tmp_path, **change)


def test_a_text_of_one_width_may_be_written_for_each_block(tmp_path):
    net = opened("SD 1.5", tmp_path / "each", cross_attention_dim=[6, 6])
    assert net.inputs["text"].shape == (None, 6)
    net = opened("SD 1.5", tmp_path / "projected", encoder_hid_dim=10)
    assert net.inputs["text"].shape == (None, 10)


def test_pixart_of_the_largest_samples_is_told_a_size(tmp_path):
    """Where its config does not say whether it is, as published ones do not."""
    assert "size" in opened("PixArt-sigma", tmp_path / "large", sample_size=128).inputs
    net = opened("PixArt-sigma", tmp_path / "not", sample_size=128, use_additional_conditions=False)
    assert "size" not in net.inputs


def test_the_last_class_label_stands_for_none(tmp_path):
    net = opened("DiT", tmp_path)
    assert net.inputs["class_labels"].rows == 6
    assert net.net.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings == 6


def test_keys_that_a_config_leaves_out_are_as_diffusers_has_them(tmp_path):
    net = opened("LCM", tmp_path)
    content = {key: value for key, value in net.config_json().items() if value is not None}
    (tmp_path / CONFIG).write_text(json.dumps(content))
    assert open_folder(tmp_path).inputs == net.inputs


def test_weights_that_the_config_has_no_place_for_are_named(tmp_path):
    """A config that has lost a word would be another network, opened without one."""
    opened("Flux dev", tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**content, "guidance_embeds": False}))
    with pytest.raises(
        UserError, match=r"a network without the weights time_text_embed.guidance_embedder\.\S+ that lie"
    ):
        open_folder(tmp_path)


# ------------------------------------------------------------------------------- torch.compile


def main() -> None:
    """Each in one graph, which answers as it does without."""
    torch.set_num_threads(1)
    for word, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case.network().save_pretrained(folder)
            net = open_folder(Path(folder)).eval()
        torch._dynamo.reset()
        whole = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(output(whole, case), output(net, case), msg=word)
        print(word, flush=True)


@pytest.mark.slow
def test_each_is_one_graph():
    """In a process of its own: checks of shapes cannot be compiled."""
    done = subprocess.run([sys.executable, "-m", "tests.test_architectures"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == list(CASES)


if __name__ == "__main__":
    main()
