"""Networks that others published in code of their own compute what that computes, from its pickles on."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffcore import checkpoints, nets
from diffcore.checkpoints import from_diffusers
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import published
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks import paths
from tests.conftest import randn
from tests.test_adopt import EVALUATE, SHORT, adopted
from tests.test_adopt import workspace as digits  # noqa: F401
from tests.test_checkpoint import ABOUT
from tests.test_pickled import EasyDict, Persistent, persistence  # noqa: F401

SONG = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
NCSN = {**SONG, "embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
ADM = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet"}
EDM2 = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channels_per_head": 16, "logvar_channels": 6}
PUBLISHED = {
    "ddpm++ vp": (
        "VPPrecond",
        {**SONG, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9},
    ),
    "ddpm++ edm classes": (
        "EDMPrecond",
        {
            **SONG,
            "label_dim": 4,
            "channel_mult": [2, 2, 2],
            "num_blocks": 2,
            "attn_resolutions": [8, 4],
            "augment_dim": 9,
        },
    ),
    "ncsn++ ve classes": (
        "VEPrecond",
        {
            **NCSN,
            "label_dim": 4,
            "channel_mult": [1, 2, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "encoder_type": "residual",
        },
    ),
    "ncsn++ skips": (
        "EDMPrecond",
        {
            **NCSN,
            "channel_mult": [1, 2, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "encoder_type": "skip",
            "decoder_type": "skip",
        },
    ),
    "adm edm classes": (
        "EDMPrecond",
        {
            **ADM,
            "label_dim": 4,
            "model_channels": 32,
            "channel_mult": [1, 2, 4],
            "num_blocks": 1,
            "attn_resolutions": [4, 2],
        },
    ),
    "adm iddpm": (
        "iDDPMPrecond",
        {**ADM, "model_channels": 16, "channel_mult": [1, 4], "num_blocks": 1, "attn_resolutions": [4]},
    ),
    "edm2 classes": (
        "Precond",
        {**EDM2, "label_dim": 4, "channel_mult": [1, 2, 3], "num_blocks": 1, "attn_resolutions": [4, 2]},
    ),
    "edm2 other balances": (
        "Precond",
        {
            **EDM2,
            "label_dim": 0,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [8],
            "channel_mult_noise": 2,
            "channel_mult_emb": 3,
            "concat_balance": 0.7,
            "resample_filter": [1, 3, 3, 1],
            "res_balance": 0.4,
            "attn_balance": 0.2,
            "clip_act": 1.0,
        },
    ),
}
"""A small one of each kind, by the class that was pickled and what it was made with."""

every = pytest.mark.parametrize("name", PUBLISHED)
TOLD = [0.3, -1.1, 2.0]
"""What the networks of the golden numbers are told of the time."""

GOLDEN = {
    "ddpm++ vp": [
        -0.222389199797,
        0.201216725346,
        1.74850153541,
        -0.602842646163,
        0.65957060609,
        -1.38315598796,
        2.68541104367,
    ],
    "ddpm++ edm classes": [
        -0.37253810768,
        0.815573816379,
        1.54295514028,
        -1.72336053564,
        0.38365616927,
        -0.611502154453,
        -0.524914864873,
    ],
    "ncsn++ ve classes": [
        -0.0167061341244,
        1.65141393501,
        2.8719601393,
        -0.49197347836,
        0.488895482987,
        -0.988367702916,
        2.32647151887,
    ],
    "ncsn++ skips": [
        0.168141649014,
        1.45964237827,
        1.38750393511,
        -0.0347585559625,
        -0.231414307325,
        -0.573479831959,
        1.74745799056,
    ],
    "adm edm classes": [
        -1.00418071933,
        0.95757361538,
        0.176314354814,
        -0.177728341198,
        0.833598103217,
        -0.297737591283,
        0.261908218232,
    ],
    "adm iddpm": [
        -0.390911151239,
        1.06821545286,
        -0.823932145373,
        -0.526040867298,
        0.139619563113,
        -1.21205262124,
        0.261140939241,
    ],
    "edm2 classes": [
        0.0483900865197,
        0.0396779625944,
        -0.0744115459662,
        0.0754313605233,
        -0.120883197131,
        0.112477026237,
        0.289751839234,
    ],
    "edm2 other balances": [
        0.00582642254928,
        0.172703512362,
        -0.229091959427,
        -0.117339458317,
        -0.17611100111,
        0.147390022524,
        0.182155936734,
    ],
}
"""Some numbers of what the authors' own code makes of `images` with weights by `filled_by_formula`, told TOLD, of the classes
0, 3 and none, in float64."""


def filled_by_formula(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that each name and place has for its own; filters and tables as they are."""
    return {name: each if name.endswith("resample_filter") else _by_formula(name, each) for name, each in state.items()}


def _by_formula(name: str, tensor: torch.Tensor) -> torch.Tensor:
    place = torch.arange(tensor.numel(), dtype=torch.float64)
    waves = torch.sin(0.37 * sum(map(ord, name)) + 1.7 * place + 0.01 * place**1.5)
    size = 0.3 if tensor.ndim < 2 else 1.5 / math.sqrt(tensor[0].numel())
    middle = float("norm" in name and name.endswith("weight"))
    return (waves * size + middle).reshape(tensor.shape).float()


def images(keywords: dict) -> torch.Tensor:
    """[3, c, h, w], float64."""
    shape = (3, keywords["img_channels"], keywords["img_resolution"], keywords["img_resolution"])
    return torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) ** 1.2).reshape(shape)


def network(name: str) -> published.Published:
    """One of PUBLISHED in float64, with weights by formula."""
    kind, keywords = PUBLISHED[name]
    content = published.content_of(kind, [], keywords)
    state = shapes(content)
    return published.filled(content, filled_by_formula(state), name).eval().requires_grad_(False).double()


def bare(content: dict) -> published.Published:
    """Without weights."""
    kind = published._kinds(published.Published)[content["_class_name"]]
    return kind(content, published._kinds(published.UNet))


def shapes(content: dict) -> dict[str, torch.Tensor]:
    """Of all its weights, with the filters that it begins with."""
    return bare(content).state_dict()


def hot(net: published.Published) -> torch.Tensor | None:
    return None if net.classes is None else torch.eye(5, 4, dtype=torch.float64)[torch.tensor([0, 3, 4])]


def labels(net: published.Published) -> torch.Tensor | None:
    return None if net.classes is None else torch.tensor([0, 3, 4])


def denoiser(net: published.Published) -> NetDenoiser:
    own = NetDenoiser(net, net.schedule, net.reading, classes=net.classes)
    return own if net.classes is None else own.with_condition(of_classes(labels(net)))


# ------------------------------------------------------------------------------- what they compute


@pytest.fixture
def workspace(digits):  # noqa: F811
    """A folder with the code, a hundred digits as data, and parameters that can be changed."""
    return digits


@every
def test_a_network_computes_what_its_authors_code_does(name):
    net, keywords = network(name), PUBLISHED[name][1]
    out = net.get_submodule(net.inside)(images(keywords), torch.tensor(TOLD, dtype=torch.float64), hot(net))
    some = out.flatten()[:: out.numel() // 7][:7]
    assert torch.allclose(some, torch.tensor(GOLDEN[name], dtype=torch.float64), rtol=1e-9, atol=1e-9)


SIGMAS = torch.tensor([0.05, 0.7, 11.0], dtype=torch.float64)


def of_edm(sigma, data):
    whole = (sigma**2 + data**2).sqrt()
    return data**2 / whole**2, sigma * data / whole, 1 / whole, sigma.log() / 4


def of_vp(sigma, data):
    t = ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
    return torch.ones_like(sigma), -sigma, 1 / (1 + sigma**2).sqrt(), 999 * t


def of_ve(sigma, data):
    return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


COEFFICIENTS = {"EDMPrecond": of_edm, "Precond": of_edm, "VPPrecond": of_vp, "VEPrecond": of_ve}
"""c_skip, c_out, c_in and c_noise of table 1."""


@pytest.mark.parametrize("name", [name for name, (kind, _) in PUBLISHED.items() if kind in COEFFICIENTS])
def test_a_belief_is_what_the_paper_says(name):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), their eq. 7."""
    net, (kind, keywords) = network(name), PUBLISHED[name]
    x = images(keywords) * SIGMAS[:, None, None, None].clamp(min=1)
    skip, out, into, told = COEFFICIENTS[kind](SIGMAS, 0.5)
    lifted = [each[:, None, None, None] for each in (skip, out, into)]
    F = net.get_submodule(net.inside)(lifted[2] * x, told, hot(net))
    t = net.schedule.time(-SIGMAS.log())
    alpha = net.schedule.alpha(t)[:, None, None, None]
    belief = denoiser(net)(alpha * x, t).x0
    assert (belief - (lifted[0] * x + lifted[1] * F)).abs().max() < 1e-6 * belief.abs().max()  # told in float32


def test_a_network_of_betas_is_told_their_index_and_its_variance_is_left():
    net, keywords = network("adm iddpm"), PUBLISHED["adm iddpm"][1]
    steps = torch.tensor([1, 500, 1000])
    bar = torch.cos((steps / 1000 + 0.008) / 1.008 * math.pi / 2).double() ** 2
    t = steps.double() / 1000
    assert net.schedule.alpha(t)[:2] ** 2 == pytest.approx(
        (bar / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)[:2].tolist(), rel=1e-5
    )
    eps = net.model(images(keywords), steps.double() - 1)[:, :3]
    belief = denoiser(net)(images(keywords), t)
    assert torch.allclose(belief.eps, eps, rtol=0, atol=1e-9)
    assert eps.shape[1] * 2 == net.model(images(keywords), t).shape[1]


@every
def test_a_network_whose_last_layer_is_zero_says_zero(name):
    kind, keywords = PUBLISHED[name]
    content = published.content_of(kind, [], keywords)
    state = filled_by_formula(shapes(content))
    ends = ("8x8_aux_conv.weight", "8x8_aux_conv.bias", "4x4_aux_conv.weight", "4x4_aux_conv.bias", "out_gain")
    ends += ("2x2_aux_conv.weight", "2x2_aux_conv.bias", "out_conv.bias", "model.out_conv.weight")
    state |= {key: torch.zeros_like(each) for key, each in state.items() if key.endswith(ends)}
    net = published.filled(content, state, name).eval().requires_grad_(False)
    assert float(net(images(keywords).float(), torch.rand(3) + 0.5, labels(net)).abs().max()) == 0


CIFAR = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "augment_dim": 9, "channel_mult": [2, 2, 2]}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
LATENTS = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000}
MILLIONS = {
    "DDPM++": ("VPPrecond", CIFAR, 55.7),
    "NCSN++": ("VEPrecond", {**CIFAR, **NCSNPP}, 56.4),
    "ADM": ("EDMPrecond", {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}, 295.9),
    "EDM2-XS": ("Precond", {**LATENTS, "model_channels": 128}, 124.7),
    "EDM2-S": ("Precond", LATENTS, 280.2),
    "EDM2-XXL": ("Precond", {**LATENTS, "model_channels": 448}, 1523.2),
}
"""Of weights, as the papers and their repositories count them."""


@pytest.mark.parametrize("size", MILLIONS)
def test_the_published_sizes_have_as_many_weights_as_published(size):
    kind, keywords, millions = MILLIONS[size]
    with torch.device("meta"):
        net = bare(published.content_of(kind, [], keywords))
    assert sum(each.numel() for each in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_layers_of_edm2_keep_magnitudes():
    """Unit noise in, unit magnitude out, whatever the scale of the weights (their eq. 47, 81, 88 and 103)."""
    from diffcore.nets.published import edm2

    layer = edm2.Conv(64, 64, 3)
    x = randn(4, 64, 16, 16)
    with torch.no_grad():
        layer.weight.copy_(7 * randn(64, 64, 3, 3))
    layer.double()
    root = {
        "conv": layer(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"))[..., 1:-1, 1:-1],
        "silu": edm2.silu(x),
        "mixed": edm2.mixed(x, x.flip(1), 0.3),
        "beside": edm2.beside(x, randn(4, 16, 16, 16), 0.4),
        "unit": edm2.unit(5 * x, 1),
    }
    assert {name: float(each.detach().square().mean().sqrt()) for name, each in root.items()} == pytest.approx(
        dict.fromkeys(root, 1.0), rel=0.02
    )
    parts = edm2.beside(x, randn(4, 16, 16, 16), 0.4).split([64, 16], 1)
    sizes = [float(part.square().sum().sqrt()) for part in parts]
    assert sizes[1] / sizes[0] == pytest.approx(0.4 / 0.6, rel=0.02)


@every
def test_every_class_has_its_own_belief_and_none_is_told_by_zeros(name):
    net = network(name).float()
    if net.classes is None:
        with pytest.raises(UserError, match="knows no classes: leave class_labels out"):
            net(images(PUBLISHED[name][1]).float(), torch.ones(3), torch.zeros(3, dtype=torch.int64))
        return
    x = images(PUBLISHED[name][1])[:1].float().expand(5, -1, -1, -1)
    out = net(x, torch.ones(5), torch.arange(5))
    assert all(not torch.allclose(out[i], out[j]) for i in range(5) for j in range(i))
    none = net.get_submodule(net.inside)(x[:1], net._told(torch.ones(1)), torch.zeros(1, 4))
    assert torch.allclose(out[4:], net._said(none), atol=1e-5)
    with pytest.raises(UserError, match="is conditioned on classes: give class_labels"):
        net(x, torch.ones(5))


@every
def test_every_weight_that_is_trained_has_a_gradient(name):
    net = network(name).float().requires_grad_(True).train()
    net(images(PUBLISHED[name][1]).float(), torch.tensor([0.3, 0.6, 2.0]), labels(net)).square().sum().backward()
    still = [key for key, parameter in net.named_parameters() if parameter.grad is None]
    assert still == []


@every
def test_in_bfloat16_it_is_the_same_network_to_rounding(name):
    net, x, told = network(name).float(), images(PUBLISHED[name][1]).float(), torch.tensor([0.3, 0.6, 2.0])
    exact = net(x, told, labels(net))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, told, labels(net))
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@every
def test_features_are_maps_of_each_level(name):
    net, keywords = network(name), PUBLISHED[name][1]
    sides = [each.shape[-1] for each in net.features(images(keywords), torch.tensor(TOLD).double().exp(), labels(net))]
    assert sides == [8 >> level for level in range(len(keywords["channel_mult"]))]


def test_dropout_is_the_student_s_own():
    net = network("ddpm++ edm classes").float()
    rates = {layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)}
    assert rates == {0.1}  # what their class has by default
    other = net.with_dropout(0.0)
    assert {layer.p for layer in other.modules() if isinstance(layer, nn.Dropout)} == {0.0}
    assert other.config_json()["dropout"] == 0.0
    assert "dropout" not in net.config_json()
    x = images(PUBLISHED["ddpm++ edm classes"][1]).float()
    assert torch.equal(other.train()(x, torch.ones(3), labels(net)), net(x, torch.ones(3), labels(net)))


# ------------------------------------------------------------------------------- from a pickle


class Layer(Persistent, nn.Module):
    """A module of theirs inside the network."""

    def __init__(self):
        super().__init__()
        self._init_args, self._init_kwargs = (), {}


def as_published(kind: str, keywords: dict, state: dict[str, torch.Tensor], arguments: tuple = ()) -> dict:
    """What their pickles hold: an object of that class with these weights, in half precision, beside what is not needed."""
    net = type(kind, (Layer,), {})()
    net._init_args, net._init_kwargs = arguments, EasyDict(keywords)
    for name, tensor in state.items():
        *parts, last = name.split(".")
        inner = net
        for part in parts:
            if part not in inner._modules:
                inner.add_module(part, Layer())
            inner = inner._modules[part]
        if last in ("resample_filter", "freqs", "phases", "u"):
            inner.register_buffer(last, tensor)
        else:
            inner.register_parameter(last, nn.Parameter(tensor.half()))
    return EasyDict(ema=net, loss_fn=None, augment_pipe=None, dataset_kwargs=EasyDict(path="x.zip"))


def pickled_as(name: str, file: Path, arguments: tuple = (), change: dict | None = None, **more) -> Path:
    """One of PUBLISHED as a file. change: of its weights, None for one to leave out. more: settings."""
    kind, keywords = PUBLISHED[name]
    state = state_of(name, change or {})
    keywords = {key: value for key, value in (keywords | more).items() if value is not None}
    file.write_bytes(pickle.dumps(as_published(kind, keywords, state, arguments)))
    return file


pytestmark = pytest.mark.usefixtures("persistence")


def in_half(name: str) -> published.Published:
    """The network of such a file, in float32."""
    net = network(name)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())
    return net.float()


@every
def test_a_pickle_is_a_teacher(name, tmp_path):
    file = pickled_as(name, tmp_path / "net.pkl")
    adopted, own = from_diffusers.read(file), in_half(name)
    taken = adopted.denoiser
    assert (adopted.image, taken.classes) == (own.image, own.classes)
    assert (taken.reading, taken.schedule) == (own.reading, own.schedule)
    assert adopted.files == {"net.pkl": disk.sha256(file)}
    x, t = images(PUBLISHED[name][1]).float(), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    theirs = denoiser(own)(x, t).x0
    told = taken if own.classes is None else taken.with_condition(of_classes(labels(own)))
    assert torch.equal(told(x, t).x0, theirs)


def test_what_a_class_is_called_with_in_front_has_a_name(tmp_path):
    left_out = dict.fromkeys(("img_resolution", "img_channels", "label_dim"))
    file = pickled_as("edm2 classes", tmp_path / "net.pkl", (8, 3, 4), **left_out)
    adopted = from_diffusers.read(file)
    assert (adopted.image, adopted.denoiser.classes) == ((3, 8, 8), 4)
    with pytest.raises(UserError, match=r"Precond was made with arguments that have no names here \(4 of them\)"):
        from_diffusers.read(pickled_as("edm2 classes", tmp_path / "net.pkl", (8, 3, 4, True), **left_out))


def test_the_folder_that_is_read_of_a_pickle_is_the_same_teacher(tmp_path):
    from diffcore.checkpoints import pickled

    file = pickled.read(pickled_as("adm edm classes", tmp_path / "net.pkl", sigma_max=float("inf")))
    pickled.save(file, pickled.network(file), tmp_path / "net")
    adopted = from_diffusers.read(tmp_path / "net")
    state = from_diffusers.read(tmp_path / "net.pkl").denoiser.net.state_dict()
    assert all(torch.equal(each, state[key]) for key, each in adopted.denoiser.net.state_dict().items())
    assert sorted(adopted.files) == ["config.json", "model.safetensors"]


def test_the_noise_is_that_of_its_own_training():
    """EDM's samples begin at 80 unless a network takes no more; those of the variance-exploding SDE at its own sigma."""

    def ends(name: str, **more) -> list[float]:
        kind, keywords = PUBLISHED[name]
        with torch.device("meta"):
            net = bare(published.content_of(kind, [], keywords | more))
        schedule = net.schedule
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return (schedule.sigma(t) / schedule.alpha(t)).tolist()

    assert ends("ddpm++ edm classes") == pytest.approx([0.002, 80])
    assert ends("ddpm++ edm classes", sigma_min=0.01, sigma_max=60) == pytest.approx([0.01, 60])
    assert ends("ncsn++ ve classes") == pytest.approx([0.02, 100])
    assert ends("ncsn++ ve classes", sigma_max=50.0) == pytest.approx([0.02, 50])
    assert ends("ddpm++ vp", beta_d=9.9) == pytest.approx([0, math.sqrt(math.exp(9.9 / 2 + 0.1) - 1)])


CONV = "model.enc.8x8_conv.weight"
REFUSED = {
    "a field that is unknown": ({"flux": 3}, {}, "flux is no setting of this network that is known here"),
    "a field of another type": ({"num_blocks": "two"}, {}, "its num_blocks is 'two', which is no such setting"),
    "a field that is missing": ({"img_channels": None}, {}, "its img_channels is missing"),
    "a word that is unknown": (
        {"encoder_type": "deep"},
        {},
        "encoder_type 'deep' is not one of standard, skip, residual",
    ),
    "another network inside": ({"model_type": "BigUNet"}, {}, "model_type 'BigUNet' is no network that is known here"),
    "what follows from the images": ({"out_channels": 3}, {}, "a EDMPrecond is not made with out_channels"),
    "more levels than halves": ({"img_resolution": 10}, {}, "images of side 10 cannot be halved 2 times"),
    "more blocks than any": ({"num_blocks": 1000}, {}, "it has 3 levels of 1000 blocks, more than any network"),
    "weights that are missing": ({}, {CONV: None}, rf"the weights {CONV} are missing \(1 of "),
    "weights too many": (
        {},
        {"model.other.weight": torch.ones(2)},
        r"it has weights model\.other\.weight, for which a network with its settings has no place",
    ),
    "weights of other shapes": (
        {"model_channels": 16},
        {},
        r"its model\.\S+ are \[.*\] and must be \[.*\] in a network with its settings",
    ),
}


def state_of(name: str, change: dict) -> dict[str, torch.Tensor]:
    """The weights of one of PUBLISHED. change: of them, None for one to leave out."""
    kind, keywords = PUBLISHED[name]
    state = filled_by_formula(shapes(published.content_of(kind, [], keywords))) | change
    return {key: each for key, each in state.items() if each is not None}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_network_is_refused_in_one_line(case):
    more, change, words = REFUSED[case]
    kind, keywords = PUBLISHED["ddpm++ edm classes"]
    keywords = {key: value for key, value in (keywords | more).items() if value is not None}
    with pytest.raises(UserError, match=words) as caught:
        published.filled(published.content_of(kind, [], keywords), state_of("ddpm++ edm classes", change), "net.pkl")
    assert str(caught.value).startswith("net.pkl: ")
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused_by_the_file_s_name(tmp_path):
    file = pickled_as("ddpm++ vp", tmp_path / "net.pkl", change={CONV: torch.full((8, 3, 3, 3), torch.nan)})
    with pytest.raises(UserError, match=rf"net\.pkl: {CONV} holds 216 of 216 values that are NaN"):
        from_diffusers.read(file)


def test_a_class_that_nobody_here_knows_is_refused_by_name(tmp_path):
    content = as_published("StyledPrecond", SONG, {"model.weight": torch.ones(2)})
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(
        UserError, match=r"net\.pkl: nothing here knows how a StyledPrecond computes, only EDM2Precond, EDMP"
    ):
        from_diffusers.read(tmp_path / "net.pkl")
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "net.pth")
    with pytest.raises(
        UserError, match=r"net\.pth holds tensors by name and not what network they are of; a teacher is"
    ):
        from_diffusers.read(tmp_path / "net.pth")


def test_other_images_and_classes_are_refused_by_name(tmp_path):
    adopted = from_diffusers.read(pickled_as("ddpm++ edm classes", tmp_path / "net.pkl"))
    adopted.check((3, 8, 8), ["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"the teacher is for images of 3 x 8 x 8 and the data are 3 x 16 x 16"):
        adopted.check((3, 16, 16), ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="the teacher tells 4 classes apart, and the data have 2 classes; take"):
        adopted.check((3, 8, 8), ["a", "b"])


# ------------------------------------------------------------------------------- sampled, saved and trained


@pytest.mark.parametrize("name", ["ddpm++ edm classes", "edm2 other balances"])
def test_samples_are_those_of_the_paper_s_second_algorithm(name):
    """18 noise levels from 80 to 0.002, with churn; written out in float64 beside our solver's."""
    net = network(name)
    solver, steps, data = SOLVERS["edm"](churn=40.0), 17, 0.5
    noises = [randn(3, 3, 8, 8) for _ in range(steps + 1)]

    def D(x, sigma):
        skip, out, into, told = of_edm(torch.tensor(sigma, dtype=torch.float64), data)
        F = net.get_submodule(net.inside)(into * x, told.expand(3), hot(net))
        return skip * x + out * F

    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigmas = [(high + i / steps * (low - high)) ** 7 for i in range(steps + 1)]
    x = sigmas[0] * noises[0]
    for i in range(steps):
        gamma = min(40 / steps, math.sqrt(2) - 1) if 0.05 <= sigmas[i] <= 50 else 0.0
        raised = sigmas[i] * (1 + gamma)
        x = x + math.sqrt(raised**2 - sigmas[i] ** 2) * 1.003 * noises[i + 1]
        slope = (x - D(x, raised)) / raised
        landed = x + (sigmas[i + 1] - raised) * slope
        end = (landed - D(landed, sigmas[i + 1])) / sigmas[i + 1]
        x = x + (sigmas[i + 1] - raised) * (slope + end) / 2
    x = D(x, sigmas[-1])  # the last step, to 0, is Euler's
    own = denoiser(net)
    first = own.schedule.level(torch.ones(3), noises[0])
    ours = Sampler(own, solver, uniform(steps)).sample(first.alpha * 80 * noises[0], lambda k: noises[k + 1])
    ours = own(ours, torch.zeros(3, dtype=torch.float64)).x0
    assert (ours - x).abs().max() < 1e-5 * x.abs().max()
    assert x.abs().max() > 0.1


OPEN = """
import sys, torch
from pathlib import Path
from diffcore import checkpoints
opened = checkpoints.load(Path(sys.argv[1])).denoiser
x, t = torch.load(sys.argv[2])
torch.save((opened(x, t).x0, list(opened.net.state_dict())), sys.argv[3])
"""


@every
def test_a_checkpoint_is_the_same_in_another_process_by_the_same_names(name, tmp_path):
    net, x = network(name).float(), images(PUBLISHED[name][1]).float()
    own = NetDenoiser(net, net.schedule, net.reading, classes=net.classes)
    classes = None if own.classes is None else [str(index) for index in range(own.classes)]
    about = {**ABOUT, "method": "adopted", "classes": classes}
    checkpoints.save(tmp_path / "own", own, net.image, about)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    opened = checkpoints.load(tmp_path / "own").denoiser
    assert torch.equal(opened(x, t).x0, own(x, t).x0)
    assert load_file(tmp_path / "own/unet" / nets.WEIGHTS).keys() == shapes(own.net.content).keys()
    assert nets.is_own(json.loads((tmp_path / "own/unet/config.json").read_text())["_class_name"])
    again = from_diffusers.read(tmp_path / "own").denoiser  # as a teacher, by its card
    assert torch.equal(again(x, t).x0, own(x, t).x0)
    if name == "ddpm++ edm classes":
        torch.save((x, t), tmp_path / "in")
        subprocess.run([sys.executable, "-c", OPEN, tmp_path / "own", tmp_path / "in", tmp_path / "out"], check=True)
        theirs, names = torch.load(tmp_path / "out")
        assert torch.allclose(theirs, own(x, t).x0, atol=1e-5)  # with another number of threads
        assert names == list(own.net.state_dict())


# ------------------------------------------------------------------------------- the stages

DIGITS = {"img_channels": 1, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def of_digits(kind: str, keywords: dict) -> None:
    """A file `theirs.pkl` of a network for the digits."""
    state = filled_by_formula(shapes(published.content_of(kind, [], keywords)))
    Path("theirs.pkl").write_bytes(pickle.dumps(as_published(kind, keywords, state)))


def line(**more) -> dict:
    """What params.yaml says of a teacher in that file, and of what can be measured of it."""
    asked = {
        **EVALUATE,
        "teacher": [{"sampler": "edm", "trajectory": "uniform", "steps": [2]}, *EVALUATE["teacher"][:2]],
    }
    return {"teachers": {"teacher": {"from": "theirs.pkl", **more}}, "evaluate": asked}


def test_the_stage_takes_a_file(workspace, capsys):
    of_digits("EDMPrecond", {**SONG, **DIGITS, "label_dim": 10})
    card = adopted(workspace(**line(conditional=True))).card
    assert (card.method, card.parameterization, card.image) == ("adopted", "edm", [1, 8, 8])
    assert card.reading == {"input": "unit", "time": "log_sigma", "sigma_data": 0.5}
    assert card.schedule == {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "normalised": True}
    assert card.parameters["files"] == {"theirs.pkl": disk.sha256(Path("theirs.pkl"))}
    assert "adopted from theirs.pkl, parameterization edm" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"but the teacher in theirs\.pkl knows classes; set it to true"):
        adopted(workspace(**line(conditional=False)))
    of_digits("EDMPrecond", {**SONG, **DIGITS, "img_resolution": 16})
    with pytest.raises(UserError, match="the teacher is for images of 1 x 16 x 16 and the data are 1 x 8 x 8"):
        adopted(workspace(**line(conditional=False)))


STUDENTS = {
    "pd2": {"method": "progressive", "steps": 2, **SHORT},
    "cd": {"method": "consistency", "steps": 10, "target_ema": 0.5, **SHORT},
}
TEACHERS = {
    "edm": ("EDMPrecond", {**SONG, **DIGITS, "augment_dim": 9}),
    "edm2": ("Precond", {**EDM2, **DIGITS, "label_dim": 10}),
    "vp": ("VPPrecond", {**SONG, **DIGITS}),
    "ve": ("VEPrecond", {**NCSN, **DIGITS, "encoder_type": "residual"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TEACHERS)
def test_students_of_it_are_fed_and_read_as_it_is_and_keep_its_names(case, workspace):
    from tasks import features, frontier, gamma, measure, search, train

    kind, keywords = TEACHERS[case]
    of_digits(kind, keywords)
    found = workspace(**line(conditional="label_dim" in keywords), distill=STUDENTS)
    found = dataclasses.replace(found, distill={name: each for name, each in found.distill.items() if name in STUDENTS})
    features.train(found)
    teacher = adopted(found).denoiser
    for name in STUDENTS:
        train.train(found, name)
        own = checkpoints.load(paths.CHECKPOINTS / name).denoiser
        assert (own.reading, own.schedule) == (teacher.reading, teacher.schedule)
        assert own.net.state_dict().keys() == teacher.net.state_dict().keys()
        moved = [
            key for key, each in own.net.state_dict().items() if not torch.equal(each, teacher.net.state_dict()[key])
        ]
        assert set(moved) == {key for key, _ in own.net.named_parameters()}
    gamma.estimate(found)
    search.find(found)
    for name in ("teacher", *STUDENTS):
        measure.measure(found, name)
    frontier.merge(found)
    assert {point["checkpoint"] for point in json.loads(paths.FRONTIER.read_text())["points"]} == {"teacher", *STUDENTS}
