"""DINOv2 and CLIP as judges: the networks, and the folders from which they are read."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics import judge_file, judge_folder, judges, order, transformer
from diffcore.metrics.judge import Court, Judge
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.judge_folder import Encoder
from diffcore.metrics.judges import clip, dinov2
from diffcore.metrics.preprocessing import central_square
from tests.conftest import randn, seeded

# ruff: noqa: E501

pytestmark = pytest.mark.usefixtures("without_shape_checks")

DINOV2 = {
    **{"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2},
    **{"hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 28, "num_channels": 3},
    **{"qkv_bias": True, "use_swiglu_ffn": False},
}
REGISTERS = DINOV2 | {"model_type": "dinov2_with_registers", "num_register_tokens": 2, "image_size": 280}
VISION = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40},
    **{"image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 5},
}
CLIP = VISION | {"model_type": "clip_vision_model"}
WHOLE = {"model_type": "clip", "projection_dim": 5, "vision_config": VISION, "text_config": {"hidden_size": 8}}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of transformers 5.23.0's Dinov2Model, Dinov2WithRegistersModel or CLIPVisionModelWithProjection, by their
    names there."""
    return _of_clip(config) if "intermediate_size" in config else _of_dinov2(config)


def _of_dinov2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch = config["hidden_size"], config["patch_size"]
    inner = width * config["mlp_ratio"]
    registers = config.get("num_register_tokens", 0)
    there = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + (config["image_size"] // patch) ** 2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **({"embeddings.register_tokens": (1, registers, width)} if registers else {}),
        **_both("layernorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        there |= _both(f"{at}.norm1", width) | _both(f"{at}.norm2", width)
        there |= {f"{at}.layer_scale1.lambda1": (width,), f"{at}.layer_scale2.lambda1": (width,)}
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            there |= _both(f"{at}.attention.{name}", width, width)
        if config["use_swiglu_ffn"]:
            gated = {24 * 2: 32}[inner]  # two thirds of 48, a multiple of 8
            there |= _both(f"{at}.mlp.weights_in", 2 * gated, width) | _both(f"{at}.mlp.weights_out", width, gated)
        else:
            there |= _both(f"{at}.mlp.fc1", inner, width) | _both(f"{at}.mlp.fc2", width, inner)
    return there


def _of_clip(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch, inner = config["hidden_size"], config["patch_size"], config["intermediate_size"]
    there = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (1 + (config["image_size"] // patch) ** 2, width),
        "visual_projection.weight": (config["projection_dim"], width),
        **_both("vision_model.pre_layrnorm", width),
        **_both("vision_model.post_layernorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}"
        there |= _both(f"{at}.layer_norm1", width) | _both(f"{at}.layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            there |= _both(f"{at}.self_attn.{name}", width, width)
        there |= _both(f"{at}.mlp.fc1", inner, width) | _both(f"{at}.mlp.fc2", width, inner)
    return there


def _both(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """As drawn: linear layers that keep the size of what goes through, scales around 1, no token or position near 0."""
    state, rng = {}, seeded(7)
    for name, shape in sorted(shapes(config).items()):
        drawn = torch.randn(shape, generator=rng)
        if name.endswith("weight") and len(shape) in (2, 4) and "position" not in name:
            drawn = drawn / drawn[0].numel() ** 0.5
        elif len(shape) == 1 and name.endswith(("weight", "lambda1")):
            drawn = 1 + 0.3 * drawn
        state[name] = drawn
    return state


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(config) if state is None else state, folder / "model.safetensors")
    return folder


def load(folder: Path, **more) -> Judge:
    """By the name of its config."""
    name = "clip" if "clip" in json.loads((folder / "config.json").read_text())["model_type"] else "dinov2"
    return judges.load(name, JudgeFile(str(folder), **more))


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape or (2, 3, 20, 20), dtype=torch.uint8, generator=seeded(6))


# --- the network


def layer_of(block: transformer.Block, inner: int, scaled: bool) -> nn.TransformerEncoderLayer:
    """torch's own layer with the same weights, in which what is added is scaled by the last layer before it is."""
    width = block.norm1.normalized_shape[0]
    activation = F.gelu if block.activation == "gelu" else lambda x: x / (1 + torch.exp(-1.702 * x))
    sizes = {"d_model": width, "nhead": block.heads, "dim_feedforward": inner, "layer_norm_eps": 1e-4}
    layer = nn.TransformerEncoderLayer(
        **sizes, dropout=0.0, activation=activation, batch_first=True, norm_first=True, dtype=torch.float64
    )
    first, second = (block.scale1, block.scale2) if scaled else (torch.ones(width), torch.ones(width))
    parts = (block.query, block.key, block.value)
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
            "self_attn.out_proj.weight": first[:, None] * block.out.weight,
            "self_attn.out_proj.bias": first * block.out.bias,
            **{f"linear1.{name}": value for name, value in block.hidden.state_dict().items()},
            "linear2.weight": second[:, None] * block.last.weight,
            "linear2.bias": second * block.last.bias,
            **{
                f"norm{k}.{name}": each
                for k in (1, 2)
                for name, each in getattr(block, f"norm{k}").state_dict().items()
            },
        }
    )
    return layer.eval()


def block_of(activation: str, scaled: bool) -> transformer.Block:
    block = transformer.Block(Encoder(1, 12, 3, 20, 4, 8, activation, 1e-4), scaled)
    rng = seeded(2)
    for value in block.parameters():
        value.data += 0.4 * torch.randn(value.shape, generator=rng)
    return block.requires_grad_(False).double()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_block_is_torch_s_encoder_layer(activation, scaled):
    block, x = block_of(activation, scaled), randn(2, 7, 12).double() + 0.3
    layer = layer_of(block, 20, scaled)
    torch.testing.assert_close(block(x), layer(x), rtol=0, atol=1e-12)


def test_a_gated_block_is_its_equation():
    """By hand: the first half of the features times its sigmoid gates the second."""
    block, x = block_of("swiglu", True), randn(2, 7, 12).double() + 0.3
    plain = layer_of(silenced(block), 20, True)
    between = plain(x)  # with a hidden layer of zeros: what attention has added
    hidden = block.norm2(between) @ block.hidden.weight.T + block.hidden.bias
    gate, value = hidden[..., :20], hidden[..., 20:]
    want = between + block.scale2 * ((gate / (1 + (-gate).exp()) * value) @ block.last.weight.T + block.last.bias)
    torch.testing.assert_close(block(x), want, rtol=0, atol=1e-12)


def silenced(block: transformer.Block) -> transformer.Block:
    """With a hidden layer that adds nothing."""
    other = block_of("gelu", True)
    other.load_state_dict({k: v for k, v in block.state_dict().items() if "hidden" not in k}, strict=False)
    for layer in (other.hidden, other.last):
        layer.weight.zero_()
        layer.bias.zero_()
    return other


NUMBERS = {
    "dinov2": ([0.720461, -2.354586, 0.471688, -0.830381, -0.055113], [0.766432, -2.437061, 0.304244, -0.835281, -0.089302], [6.6908245, 6.643374]),
    "swiglu": ([-0.023561, -1.28833, -0.288084, -1.010562, -1.834208], [0.012774, -1.281156, -0.271849, -0.957501, -1.972448], [5.5341444, 5.5501337]),
    "registers": ([-1.837827, -1.894323, -1.757072, -0.802307, -1.540351], [-1.846302, -1.913787, -1.798027, -0.816062, -1.52969], [6.1801176, 6.1281958]),
    "clip": ([-2.5475, 1.433576, 1.355928, 0.970056, -0.211186], [-2.532783, 1.475313, 1.438038, 1.040337, -0.088532], [3.3718019, 3.4277735]),
    "clip with gelu": ([-2.549407, 1.44049, 1.357842, 0.975208, -0.207751], [-2.535356, 1.482352, 1.439183, 1.045725, -0.084994], [3.3782268, 3.434736]),
}  # fmt: skip
"""By transformers 5.23.0's Dinov2Model, Dinov2WithRegistersModel and CLIPVisionModelWithProjection, from the same weights and
the same images as they are prepared here: the first features of two images, and the norms of all."""

CONFIGS = {
    "dinov2": DINOV2,
    "swiglu": DINOV2 | {"use_swiglu_ffn": True},
    "registers": REGISTERS,
    "clip": CLIP,
    "clip with gelu": CLIP | {"hidden_act": "gelu"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_its_features_are_those_of_transformers(kind, tmp_path):
    features = load(write(tmp_path, CONFIGS[kind])).network(pictures())
    first, second, norms = NUMBERS[kind]
    torch.testing.assert_close(features[:, :5], torch.tensor([first, second]), rtol=0, atol=2e-5)
    assert features.norm(dim=1).tolist() == pytest.approx(norms, rel=1e-5)


PUBLISHED = {
    "dinov2 small": (DINOV2 | {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}, 22.06),
    "dinov2 base": (DINOV2 | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}, 86.58),
    "dinov2 large": (DINOV2 | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, 304.37),
    "dinov2 giant": (
        DINOV2 | {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
        1136.48,
    ),
    "clip ViT-B/32": ({"model_type": "clip", "vision_config": {}}, 87.85),
    "clip ViT-L/14": (
        {
            **{
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "intermediate_size": 4096,
            },
            **{"num_attention_heads": 16, "patch_size": 14, "projection_dim": 768},
        },
        303.97,
    ),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_network_has_as_many_parameters_as_is_published(size, tmp_path):
    """In millions: timm's table of DINOv2's four sizes, open_clip's of CLIP's image encoders."""
    config, millions = PUBLISHED[size]
    name, kind = ("dinov2", dinov2.DinoV2) if "dinov2" in size else ("clip", clip.Clip)
    of_dinov2 = {"mlp_ratio": 4, "patch_size": 14, "image_size": 518} if name == "dinov2" else {}
    (tmp_path / "config.json").write_text(json.dumps(config | of_dinov2))
    with torch.device("meta"):
        network = kind(judge_folder.encoder(name, tmp_path))
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def cubic(x: float) -> float:
    """The cubic kernel of torch's and OpenCV's bicubic, a = -0.75 (Keys 1981, equation 15)."""
    x = abs(x)
    if x < 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_of_another_side_are_interpolated_as_the_published_network_does():
    """By hand: place (i + 1/2) 10 / 8.1 - 1/2 of ten for the i-th of eight, four neighbours, the last ones repeated."""
    network = dinov2.DinoV2(Encoder(1, 2, 1, 4, 28, 280, "gelu", 1e-6))
    network.positions.data = randn(1, 101, 2).float()
    rows = np.zeros((8, 10))
    for i in range(8):
        place = (i + 0.5) * 10 / 8.1 - 0.5
        for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            rows[i, min(max(k, 0), 9)] += cubic(place - k)
    square = network.positions.detach()[0, 1:].reshape(10, 10, 2).double().numpy()
    want = np.einsum("ia,jb,abw->ijw", rows, rows, square).reshape(64, 2)
    positions = network.positions_of(8).detach()
    assert positions.shape == (1, 65, 2)
    assert torch.equal(positions[0, 0], network.positions[0, 0])
    assert np.abs(positions[0, 1:].numpy() - want).max() < 1e-5
    assert torch.equal(network.positions_of(10), network.positions)


# --- what it sees


def seen(judge: Judge, images: Tensor) -> Tensor:
    """What goes into its first layer."""
    inputs = []
    judge.network.patches.register_forward_pre_hook(lambda layer, inside: inputs.append(inside[0]))
    judge.network(images)
    return inputs[0]


@pytest.mark.parametrize(
    ("kind", "shape"), [("dinov2", (20, 32)), ("dinov2", (300, 240)), ("clip", (20, 33)), ("clip", (70, 64))]
)
def test_images_are_resized_as_pillow_does_and_normalised(kind, shape, tmp_path):
    """DINOv2's as they are, as EDM2 does; of CLIP's the square in the middle, as CMMD does."""
    images = pictures(1, 3, *shape)
    judge = load(write(tmp_path, CONFIGS[kind]))
    side, mean, std = (224, dinov2.MEAN, dinov2.STD) if kind == "dinov2" else (32, clip.MEAN, clip.STD)
    box = (0, 0, shape[1], shape[0])
    if kind == "clip":
        box = {(20, 33): (6, 0, 26, 20), (70, 64): (0, 3, 64, 67)}[shape]
    for channel, prepared in enumerate(seen(judge, images)[0]):
        image = Image.fromarray(images[0, channel].numpy().astype(np.float32)).crop(box)
        resized = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        assert np.abs(prepared.numpy() - (resized / 255 - mean[channel]) / std[channel]).max() < 1e-4


def test_of_an_odd_pixel_the_square_leaves_out_the_last():
    images = torch.arange(5).expand(1, 1, 2, 5)
    assert central_square(images)[0, 0, 0].tolist() == [1, 2]
    assert central_square(images.transpose(2, 3))[0, 0, :, 0].tolist() == [1, 2]


def test_the_numbers_of_imagenet_and_of_clip_are_the_published_ones():
    assert (dinov2.MEAN, dinov2.STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert clip.MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert clip.STD == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("kind", CONFIGS)
def test_grey_images_are_three_equal_channels(kind, tmp_path):
    network, grey = load(write(tmp_path, CONFIGS[kind])).network, pictures()[:1, :1]
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="4 channels are neither grey nor RGB"):
        network(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


# --- the folder


def test_the_whole_clip_and_its_image_encoder_alone_are_one_network(tmp_path):
    """Old folders say their config twice, and hold numbers that are no weights; half precision is float32 here."""
    state, images = weights(CLIP), pictures()
    want = load(write(tmp_path / "vision", CLIP, state)).network(images)
    beside = {
        "text_projection.weight": torch.zeros(5, 8),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    twice = WHOLE | {"vision_config": VISION, "vision_config_dict": {"hidden_size": 24, "num_attention_heads": 2}}
    assert torch.equal(load(write(tmp_path / "whole", WHOLE, state | beside)).network(images), want)
    assert torch.equal(load(write(tmp_path / "twice", twice, state)).network(images), want)
    short = {key: value for key, value in VISION.items() if key not in ("hidden_act", "layer_norm_eps")}
    unsaid = load(write(tmp_path / "unsaid", WHOLE | {"vision_config": short}, state))
    assert torch.equal(unsaid.network(images), want)
    half = load(write(tmp_path / "half", CLIP, {name: value.half() for name, value in state.items()})).network
    assert all(each.dtype == torch.float32 for each in half.parameters())
    torch.testing.assert_close(half(images), want, rtol=0, atol=0.02)


def test_its_words_name_the_weights_and_what_they_do_not_say(tmp_path):
    """Other heads, activation or eps of the same weights are another judge."""
    one = load(write(tmp_path / "one", DINOV2))
    assert one.sha256 == disk.sha256(tmp_path / "one/model.safetensors")
    assert str(one) == (
        f"dinov2 {one.sha256[:12]} (bicubic with antialias to 224x224, mean and std of ImageNet, grey as three equal "
        "channels, ViT/28 of 2 blocks 24 wide, 3 heads, gelu, eps 1e-06)"
    )
    for key, value in {"num_attention_heads": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}.items():
        other = load(write(tmp_path / key, DINOV2 | {key: value}))
        assert other.sha256 == one.sha256
        assert str(other) != str(one)
        assert (other.network(pictures()) - one.network(pictures())).abs().max() > 1e-6
    clip_s = str(load(write(tmp_path / "clip", CLIP)))
    assert "square in the middle, bicubic with antialias to 32x32, mean and std of CLIP" in clip_s
    for words, name in ((str(one), "dinov2"), (clip_s, "clip"), (f"{one}; {clip_s}", "clip")):
        assert order.is_column(f"fd_{name}", words)
        assert not order.is_column("fd_bicubic", words)


@pytest.mark.parametrize("kind", ["registers", "clip"])
def test_it_measures_as_any_judge(kind, tmp_path):
    judge = load(write(tmp_path, CONFIGS[kind]))
    court = Court.of(judge, Images(pictures(12, 1, 8, 8), None, None))
    measured = court.measure(to_float(pictures(12, 1, 8, 8)))
    assert list(measured) == [f"fd_{judge.name}", f"kid_{judge.name}"]
    assert measured[f"fd_{judge.name}"].value == pytest.approx(0, abs=1e-5)
    other = court.measure(to_float(255 - pictures(12, 1, 8, 8) // 2))
    assert other[f"fd_{judge.name}"].value > 0.1


def test_a_file_of_another_digest_is_refused(tmp_path):
    sha256 = load(write(tmp_path, CLIP)).sha256
    assert load(tmp_path, sha256=sha256[:8]).sha256 == sha256
    wrong = "0123456a" if sha256[0] != "0" else "1123456a"
    with pytest.raises(UserError, match=f"has the sha256 {sha256[:12]} and not {wrong}, as params.yaml says"):
        load(tmp_path, sha256=wrong)


class Wicked:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def wrong_weights(state: dict[str, Tensor], change: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in (state | change).items() if value is not None}


WEIGHTS = {
    "less": (DINOV2, {"encoder.layer.1.mlp.fc2.bias": None}, "is no state dict of this DINOv2: encoder.layer.1.mlp.fc2.bias is missing; name the folder of a Dinov2Model"),
    "another shape": (DINOV2, {"embeddings.cls_token": torch.zeros(24)}, "embeddings.cls_token is of another shape or kind"),
    "integers": (DINOV2, {"layernorm.weight": torch.ones(24, dtype=torch.int8)}, "layernorm.weight is of another shape or kind"),
    "a deeper config": (DINOV2 | {"num_hidden_layers": 3}, {}, "encoder.layer.2.mlp.fc1.bias is missing"),
    "no registers": (REGISTERS, {"embeddings.register_tokens": None}, "embeddings.register_tokens is missing"),
    "no projection": (CLIP, {"visual_projection.weight": None}, "this CLIP: visual_projection.weight is missing; name the folder of a CLIPModel or a CLIPVisionModelWithProjection"),
    "another projection": (CLIP | {"projection_dim": 6}, {"visual_projection.weight": torch.zeros(5, 24)}, "visual_projection.weight is of another shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_those_of_the_config_are_refused_in_one_line(case, tmp_path):
    config, change, words = WEIGHTS[case]
    state = weights(config if case != "a deeper config" else DINOV2)
    write(tmp_path, config, wrong_weights(state, change))
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dinov2", DINOV2)
    Path("dinov2/model.safetensors").unlink()
    torch.save({"weights": Wicked()}, "dinov2/pytorch_model.bin")
    with pytest.raises(UserError, match=r"'dinov2' holds no model\.safetensors; no pickle is opened"):
        judges.load("dinov2", JudgeFile("dinov2"))
    Path("dinov2/pytorch_model.bin").rename("dinov2/model.safetensors")
    with pytest.raises(UserError, match="cannot be read as weights") as refused:
        judges.load("dinov2", JudgeFile("dinov2"))
    assert "\n" not in str(refused.value)
    assert not Path("executed").exists()
    Path("dinov2/config.json").unlink()
    with pytest.raises(UserError, match=r"'dinov2' holds no config\.json; download it beside the weights"):
        judges.load("dinov2", JudgeFile("dinov2"))


FOLDERS = {
    "another model": ("dinov2", CLIP, 'config.json\': model_type must be "dinov2" or "dinov2_with_registers", got \'clip_vision_model\''),
    "another model for clip": ("clip", DINOV2, 'model_type must be "clip" or "clip_vision_model", got \'dinov2\''),
    "no model": ("clip", {}, "model_type must be \"clip\" or \"clip_vision_model\", and is missing"),
    "a list": ("clip", [1], "holds no keys"),
    "a key that is missing": ("dinov2", {k: v for k, v in DINOV2.items() if k != "hidden_size"}, "hidden_size must be an integer from 1 to 65536, and is missing"),
    "no number": ("dinov2", DINOV2 | {"num_hidden_layers": True}, "num_hidden_layers must be an integer from 1 to 1000, got True"),
    "too many blocks": ("clip", CLIP | {"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 1000, got 1000000000"),
    "two sides": ("clip", CLIP | {"image_size": [32, 64]}, "image_size must be an integer from 1 to 4096, got [32, 64]"),
    "heads that do not fit": ("clip", CLIP | {"num_attention_heads": 5}, "24 features of a token cannot be dealt to 5 heads"),
    "patches that do not fit": ("clip", CLIP | {"image_size": 33}, "patches of 8 pixels do not fill a side of 33"),
    "patches that do not fit 224": ("dinov2", DINOV2 | {"patch_size": 15, "image_size": 150}, "patches of 15 pixels do not fill a side of 224"),
    "another activation": ("dinov2", DINOV2 | {"hidden_act": "relu"}, 'hidden_act must be "gelu" or "quick_gelu", got \'relu\'; another network is not supported'),
    "no biases": ("dinov2", DINOV2 | {"qkv_bias": False}, "qkv_bias must be true, got False"),
    "a word for a switch": ("dinov2", DINOV2 | {"use_swiglu_ffn": "no"}, "use_swiglu_ffn must be true or false, got 'no'"),
    "four channels": ("dinov2", DINOV2 | {"num_channels": 4}, "num_channels must be 3, got 4"),
    "no eps": ("dinov2", DINOV2 | {"layer_norm_eps": 0}, "layer_norm_eps must be a positive number, got 0"),
    "no ratio": ("dinov2", DINOV2 | {"mlp_ratio": "4"}, "mlp_ratio must be a positive number, got '4'"),
    "no registers": ("dinov2", REGISTERS | {"num_register_tokens": -1}, "num_register_tokens must be an integer from 1 to 65536, got -1"),
    "quantized": ("clip", CLIP | {"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    "a part that is none": ("clip", WHOLE | {"vision_config": 3}, "vision_config holds no keys"),
    "two configs": ("clip", WHOLE | {"vision_config_dict": {"hidden_act": "gelu"}}, "vision_config and vision_config_dict differ in hidden_act; delete the wrong one"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_config_that_is_not_run_is_refused_as_params_yaml_is_read(case, tmp_path):
    name, config, words = FOLDERS[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not read yet")
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        judge_file.check(name, JudgeFile(str(tmp_path)))
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=rf"evaluate\.judges\.{name}: .*{re.escape(words)}"):
        judges.load(name, JudgeFile(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_is_refused_in_one_line(content, tmp_path):
    write(tmp_path, DINOV2)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as refused:
        judge_file.check("dinov2", JudgeFile(str(tmp_path)))
    assert "\n" not in str(refused.value)
