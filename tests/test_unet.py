"""Our U-Net against diffusers' own, and what ours adds: a slow time embedding, seeds, seams."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffcore import nets
from diffcore.core.errors import UserError
from diffcore.nets import open_folder, unet
from diffcore.nets.unet import UNet, UNetConfig
from tests.conftest import seeded

DEFAULT = unet.default_config((1, 8, 8))
ATTENTION = unet.default_config((1, 8, 8), attention=True)
BARE = UNetConfig(  # diffusers' own defaults at every key that is not about size
    sample_size=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(16, 32),
    norm_num_groups=8,
)
FAMILY = {
    "default": DEFAULT,
    "attention": ATTENTION,
    "bare": BARE,
    "one level": unet.default_config((2, 5, 7), channels=(12,), groups=3),
    "three levels, two layers": unet.default_config((3, 8, 12), channels=(8, 16, 24), layers=2, groups=4),
    "three levels, all attend": replace(
        unet.default_config((1, 8, 8), channels=(8, 16, 16), attention=True, groups=4),
        down_block_types=("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3,
    ),
    "classes": unet.default_config((1, 8, 8), classes=5),
    "default conditioning": replace(DEFAULT, resnet_time_scale_shift="default"),
    "default conditioning, attention": replace(ATTENTION, resnet_time_scale_shift="default"),
    "sin before cos": replace(DEFAULT, flip_sin_to_cos=False),
    "shifted frequencies": replace(DEFAULT, freq_shift=1),
    "padding 0": replace(DEFAULT, downsample_padding=0),
    "odd features": replace(DEFAULT, block_out_channels=(9, 18), norm_num_groups=9),
    "heads 4 wide": replace(ATTENTION, attention_head_dim=4),
    "heads that do not divide": replace(ATTENTION, attention_head_dim=5),
    "one head": replace(ATTENTION, attention_head_dim=None),
    "middle attention unnormed": replace(ATTENTION, attn_norm_num_groups=None),
    "middle scaled": replace(ATTENTION, mid_block_scale_factor=1.5),
    "no middle": replace(DEFAULT, mid_block_type=None),
    "centred, wide embedding, eps": replace(DEFAULT, center_input_sample=True, time_embedding_dim=24, norm_eps=1e-3),
}
SOME = ["default", "attention", "classes", "three levels, two layers", "default conditioning, attention"]


@pytest.fixture(params=FAMILY)
def config(request) -> UNetConfig:
    return FAMILY[request.param]


def theirs(config: UNetConfig, ours: UNet):
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel.from_config(unet.config_json(config))
    net.load_state_dict(ours.state_dict())
    return net.eval()


def stirred(config: UNetConfig, seed: int = 0, max_phase: float | None = 12.0) -> UNet:
    """A network none of whose parts is zero or one, but for the columns that are switched off."""
    net = unet.build(config, seed, max_phase)
    source = seeded(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=source)
            off = (parameter == 0).all(0) if parameter is net.time_embedding.linear_1.weight else False
            parameter.add_((0.05 * noise).masked_fill(torch.as_tensor(off), 0))
    return net.eval()


def batch(config: UNetConfig, count: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    x = torch.randn(count, config.in_channels, *size, generator=seeded(1))
    timestep = 1024 * torch.linspace(0, 1, count) - 1
    classes = None if config.num_class_embeds is None else torch.arange(count) % config.num_class_embeds
    return x, timestep, classes


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5):
    size = float(b.detach().abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, size))


# the same function as diffusers'


def test_output_names_and_gradients_are_diffusers(config):
    ours = stirred(config)
    other = theirs(config, ours)
    assert {name: p.shape for name, p in ours.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    assert list(ours.state_dict().keys() ^ other.state_dict().keys()) == []
    x, timestep, classes = batch(config)
    a, b = ours(x, timestep, classes), other(x, timestep, classes).sample
    assert float(b.detach().std()) > 1e-3
    close(a, b)
    (a - 1).square().sum().backward()
    (b - 1).square().sum().backward()
    gradients = dict(other.named_parameters())
    off = (ours.time_embedding.linear_1.weight == 0).all(0)
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        if name == "time_embedding.linear_1.weight":  # only ours knows which columns are to stay zero
            assert off.any()
            expected = expected.masked_fill(off, 0)
        close(parameter.grad, expected, 1e-4)


@pytest.mark.parametrize("name", SOME)
def test_both_train_alike_where_no_column_is_off(name):
    ours = stirred(FAMILY[name], max_phase=None)
    other = theirs(FAMILY[name], ours)
    x, timestep, classes = batch(FAMILY[name])
    ours(x, timestep, classes).square().sum().backward()
    other(x, timestep, classes).sample.square().sum().backward()
    close(ours.time_embedding.linear_1.weight.grad, other.time_embedding.linear_1.weight.grad, 1e-4)


def test_layout_in_memory_changes_nothing():
    net, (x, timestep, _) = stirred(ATTENTION), batch(ATTENTION)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    close(last(x.to(memory_format=torch.channels_last), timestep), net(x, timestep))


# config.json


def test_config_goes_to_json_and_back(config):
    assert unet.from_json(json.loads(json.dumps(unet.config_json(config)))) == config


def test_defaults_are_diffusers():
    diffusers = pytest.importorskip("diffusers")
    import inspect

    parameters = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    known = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    ours = {field: getattr(UNetConfig, field) for field in UNetConfig.__dataclass_fields__}
    for own in ("guidance_embeds", "end_embeds"):  # ours alone, and then under another class name
        assert ours.pop(own) is False
    assert ours == known


@pytest.mark.parametrize("name", SOME)
def test_a_folder_of_diffusers_opens_here(name, tmp_path):
    config = FAMILY[name]
    net = stirred(config)
    theirs(config, net).save_pretrained(tmp_path)
    found = open_folder(tmp_path)
    assert isinstance(found, UNet)
    assert found.config == config
    assert torch.equal(found.eval()(*batch(config)), net(*batch(config)))


@pytest.mark.parametrize("name", SOME)
def test_a_folder_of_ours_opens_in_diffusers(name, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from safetensors.torch import save_file

    net = stirred(FAMILY[name])
    tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(net.config_json()))
    other, facts = diffusers.UNet2DModel.from_pretrained(tmp_path, use_safetensors=True, output_loading_info=True)
    assert not any(facts.values())
    x, timestep, classes = batch(FAMILY[name])
    close(net(x, timestep, classes), other(x, timestep, classes).sample)


def test_the_old_names_of_attention_are_read():
    new = unet.build(BARE, 0).state_dict()
    backwards = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(new)
    for name in new:
        for now, then in backwards.items():
            if f".{now}." in name:
                old[name.replace(f".{now}.", f".{then}.")] = old.pop(name)
    assert old.keys() != new.keys()
    assert unet.modern_names(old).keys() == new.keys()


# laws


@pytest.mark.parametrize("name", SOME)
def test_batch_law(name):
    """f(batch) == cat(f(sample)), with as many samples as pixels a side."""
    net, (x, timestep, classes) = stirred(FAMILY[name]), batch(FAMILY[name], 8)
    alone = [net(x[i : i + 1], timestep[i : i + 1], None if classes is None else classes[i : i + 1]) for i in range(8)]
    close(net(x, timestep, classes), torch.cat(alone))


def test_time_and_class_reach_every_sample():
    config = FAMILY["classes"]
    net, (x, timestep, classes) = stirred(config), batch(config)
    out = net(x, timestep, classes)
    assert ((net(x, timestep.flip(0), classes) - out).abs().amax((1, 2, 3)) > 1e-4).tolist() == [True, False, True]
    assert ((net(x, timestep, (classes + 1) % 5) - out).abs().amax((1, 2, 3)) > 1e-4).all()


def test_a_new_network_says_nothing_yet_and_learns():
    """The last convolutions start at zero; every parameter moves within three updates."""
    net = unet.build(ATTENTION, 0)
    x, timestep, _ = batch(ATTENTION)
    assert not net(x, timestep).any()
    blocks = [layer for layer in net.modules() if isinstance(layer, unet.Resnet)]
    assert not any(block.conv2.weight.any() or block.conv2.bias.any() for block in blocks)
    before = copy.deepcopy(net.state_dict())
    _train(net, ATTENTION, 3, weight_decay=0.0)
    still = [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])]
    assert still == []


def _train(net: UNet, config: UNetConfig, updates: int, weight_decay: float = 0.1) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=weight_decay)
    x, timestep, classes = batch(config)
    for _ in range(updates):
        (net(x, timestep, classes) - x.flip(0)[:, : config.out_channels]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_dropout_acts_in_training_only():
    net, (x, timestep, _) = stirred(replace(DEFAULT, dropout=0.5)), batch(DEFAULT)
    assert torch.equal(net(x, timestep), net(x, timestep))
    with torch.random.fork_rng():
        assert not torch.equal(net.train()(x, timestep), net.eval()(x, timestep))


# slow time embedding


def test_only_slow_frequencies_take_part():
    """w_k = 10^(-k/2) for 16 features: 1024 w <= 12 from k = 4 on."""
    off = (unet.build(DEFAULT, 0).time_embedding.linear_1.weight == 0).all(0)
    assert off.tolist() == ([True] * 4 + [False] * 4) * 2
    assert not (unet.build(DEFAULT, 0, None).time_embedding.linear_1.weight == 0).any()
    assert (unet.build(DEFAULT, 0, 4.0).time_embedding.linear_1.weight == 0).all(0).sum() == 10


def test_sinusoids_in_closed_form():
    timestep = torch.tensor([-1.0, 0.5, 1023.0])
    w = 10000 ** (-torch.arange(4, dtype=torch.float64) / (4 - 1))
    phase = timestep.double()[:, None] * w
    expected = torch.cat([phase.sin(), phase.cos(), torch.zeros(3, 1)], 1)
    close(unet.sinusoids(timestep, 9, 1, False).double(), expected, 1e-4)


@pytest.mark.parametrize("name", ["default", "sin before cos", "odd features"])
def test_what_is_off_stays_off_in_training(name):
    config = FAMILY[name]
    net = unet.build(config, 0)
    opened = UNet(config)
    opened.load_state_dict(net.state_dict())  # nothing but the weights says which are off
    off = (net.time_embedding.linear_1.weight == 0).all(0)
    for trained in (net, copy.deepcopy(opened)):
        before = trained.time_embedding.linear_1.weight.detach().clone()
        _train(trained, config, 5)
        weight = trained.time_embedding.linear_1.weight
        assert not weight[:, off].any()
        moved = (weight != before).any(0)
        assert torch.equal(moved[: 2 * (len(moved) // 2)], ~off[: 2 * (len(moved) // 2)])
        x, timestep, classes = batch(config)
        close(trained(x, timestep, classes), theirs(config, trained)(x, timestep, classes).sample)


def test_times_are_told_apart_under_autocast():
    """The embedding is made in float32: in bfloat16 timesteps 1000 and 1001 would be one."""
    net = stirred(DEFAULT)
    timestep = torch.tensor([1000.0, 1001.0])
    exact = net.embed(timestep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = net.embed(timestep)
        assert net(batch(DEFAULT, 2)[0], timestep).dtype == torch.bfloat16
    assert torch.equal(embedding, exact)
    assert not torch.equal(embedding[0], embedding[1])


@pytest.mark.parametrize("name", SOME)
def test_autocast_is_near(name):
    net, (x, timestep, classes) = stirred(FAMILY[name]), batch(FAMILY[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(net(x, timestep, classes).float(), net(x, timestep, classes).float(), 0)
        near = net(x, timestep, classes).float()
    close(near, net(x, timestep, classes), 0.05)


# seams


def test_features_are_the_ends_of_the_levels_and_the_middle(config):
    """What the last block of each level on the way down gives, its attention included, before it is halved."""
    net, (x, timestep, classes) = stirred(config), batch(config)
    seen = []
    lasts = [(block.attentions if block.attends else block.resnets)[-1] for block in net.down_blocks]
    for layer in (*lasts, *([] if net.mid_block is None else [net.mid_block])):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found = net.features(x, timestep, classes)
    right = [*seen, seen[-1]] if net.mid_block is None else seen
    assert len(found) == len(config.block_out_channels) + 1
    assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


def test_the_features_of_a_guidance_weight_by_hand():
    g = torch.tensor([0.0, 1.0, 7.5], dtype=torch.float64)
    found = unet.guidance_features(g)
    assert found.dtype == torch.float32
    for row, weight in zip(found.tolist(), g.tolist()):
        phases = [weight / 2**k for k in range(8)]
        assert row == pytest.approx([*map(math.cos, phases), *map(math.sin, phases)], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["default", "three levels, two layers", "three levels, all attend"])
def test_every_cut_gives_the_same_output(name):
    """What a cache keeps at a cut, continued with the skips above the cut, is the whole forward pass."""
    net, (x, timestep, _) = stirred(FAMILY[name]), batch(FAMILY[name])
    whole, embedding = net(x, timestep), net.embed(timestep)
    skips = net.down(x, embedding)
    assert len(skips) == sum(len(block.resnets) for block in net.up_blocks)
    deep = net.mid(skips[-1], embedding)
    for cut in range(1, len(skips)):
        kept = net.up(deep, skips, embedding, until=cut)
        shallow = net.down(x, embedding, cut)
        assert len(shallow) == cut
        assert torch.equal(net.out(net.up(kept, shallow, embedding)), whole)


def test_a_cached_step_does_only_the_shallow_work():
    net, (x, timestep, _) = stirred(DEFAULT), batch(DEFAULT)
    calls = []
    for place, layer in net.named_modules():
        if isinstance(layer, unet.Resnet):
            layer.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
    embedding = net.embed(timestep)
    kept = net.up(net.mid(net.down(x, embedding)[-1], embedding), net.down(x, embedding), embedding, until=1)
    calls.clear()
    net.up(kept, net.down(x, embedding, 1), embedding)
    assert calls == ["up_blocks.1.resnets.1"]


# mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'.*adapter"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types 'SkipDownBlock2D'.*adapter"),
        ({"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}, "up_block_types 'SkipUpBlock2D'.*adapter"),
        ({"downsample_type": "resnet"}, "downsample_type 'resnet'.*adapter"),
        ({"upsample_type": "resnet"}, "upsample_type 'resnet'.*adapter"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'.*adapter"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'.*adapter"),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'.*adapter"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type.*adapter"),
        ({"out_channels": 3}, "out_channels 3.*adapter"),
        ({"layers_per_block": [1, 2]}, "layers_per_block.*adapter"),
        ({"dropuot": 0.1}, "'dropuot'.*adapter"),
        ({"block_out_channels": [16, 32, 64]}, "equal length"),
        ({"block_out_channels": [16, 33]}, "33 channels do not divide into 8 groups"),
        ({"attention_head_dim": 64, "add_attention": True}, "attention_head_dim 64"),
    ],
)
def test_a_config_that_is_not_ours_is_named(change, words):
    with pytest.raises(UserError, match=words):
        unet.from_json({**unet.config_json(DEFAULT), **change})


def test_mistakes_in_the_shape_of_images():
    with pytest.raises(UserError, match="9 x 8 cannot be halved 1 times"):
        unet.default_config((1, 9, 8))
    with pytest.raises(UserError, match="10 channels do not divide into 4 groups"):
        unet.default_config((1, 8, 8), channels=(10, 20), groups=4)
    with pytest.raises(UserError, match=r"max_phase 0\.1 leaves no frequency"):
        unet.build(DEFAULT, 0, 0.1)


@pytest.mark.parametrize(
    "change", [{"channels": ()}, {"groups": 5}, {"layers": 0}, {"dropout": 1.0}, {"max_phase": 0.0}, {"groups": 0}]
)
def test_shape_refuses(change):
    good = {"channels": (16, 32), "layers": 1, "attention": False, "groups": 8, "dropout": 0.0, "max_phase": 12.0}
    assert unet.Shape(**good).config([1, 8, 8]) == DEFAULT
    with pytest.raises(ValueError, match=r"must|at least"):
        unet.Shape(**{**good, **change})


def test_a_shape_s_network_by_hand():
    """Each number of params.yaml's section where it belongs; one more class, for none; twice the channels for `x0_eps`."""
    shape = unet.Shape((8, 24, 40), 3, True, 4, 0.25, 6.0, conditional=True, parameterization="x0_eps")
    assert shape.config((2, 8, 12), 5) == UNetConfig(
        sample_size=(8, 12),
        in_channels=2,
        out_channels=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 24, 40),
        layers_per_block=3,
        dropout=0.25,
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        add_attention=True,
        num_class_embeds=6,
    )
    plain = replace(shape, channels=(4, 8), attention=False, conditional=False, parameterization="x0").config(
        (2, 8, 8), 5
    )
    assert (plain.sample_size, plain.out_channels, plain.num_class_embeds) == (8, 2, None)
    assert (plain.attention_head_dim, plain.add_attention) == (4, False)
    assert plain.down_block_types == ("DownBlock2D",) * 2
    assert replace(shape, conditional=False, parameterization="x0").skips == shape.config((2, 8, 12), 5).skips == 12


def test_classes_must_fit_the_table():
    x, timestep, classes = batch(FAMILY["classes"])
    with pytest.raises(UserError, match="give class_labels"):
        stirred(FAMILY["classes"])(x, timestep)
    with pytest.raises(UserError, match="leave class_labels out"):
        stirred(DEFAULT)(x, timestep, classes)


@pytest.mark.parametrize("name", ["classes", "attention", "three levels, all attend", "heads 4 wide"])
def test_weights_begin_as_wide_as_what_comes_in_asks(name):
    """Uniform within fan_in^-0.5, weights and biases alike; a table of classes is standard normal, a norm does nothing."""
    zero = ("conv2", "conv_out")
    for place, layer in unet.build(FAMILY[name], 0, None).requires_grad_(False).named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if not own or place.endswith(zero):
            assert not any(parameter.any() for parameter in own.values())
        elif isinstance(layer, torch.nn.GroupNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
        elif isinstance(layer, torch.nn.Embedding):
            assert float(layer.weight.std()) == pytest.approx(1, abs=0.15)
        else:
            bound = layer.weight[0].numel() ** -0.5
            assert 0.9 * bound < float(layer.weight.abs().max()) <= bound, place
            assert 0.5 * bound < float(layer.bias.abs().max()) <= bound, place
            assert float(layer.weight.square().mean() * 3 / bound**2) == pytest.approx(1, abs=0.25), place


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("takes_guidance", [False, True])
def test_a_network_takes_just_what_it_has_an_input_for(classes, takes_guidance):
    made = unet.build(unet.default_config((1, 8, 8), classes=classes), 0)
    net = unet.with_guidance(made) if takes_guidance else made
    x, timestep = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    inputs = (torch.tensor([0, 1]), torch.ones(2))
    for told in ((None, None), (inputs[0], None), (None, inputs[1]), inputs):
        wrong = [
            f"{'leave ' if given is not None else 'give '}{word}"
            for word, given, known in zip(("class_labels", "guidance"), told, (classes is not None, takes_guidance))
            if (given is not None) != known
        ]
        if not wrong:
            assert net(x, timestep, *told).shape == x.shape
            continue
        with pytest.raises(UserError, match=wrong[0]):
            net(x, timestep, *told)


def test_a_network_takes_of_another_what_fits_and_says_how_much():
    """Tensors of one name and one shape; what is larger, or not there, stays as it was."""
    net, other = unet.build(unet.default_config((1, 8, 8), layers=2), 0), stirred(DEFAULT)
    before, given = {key: tensor.clone() for key, tensor in net.state_dict().items()}, other.state_dict()
    fits = {key for key, tensor in before.items() if key in given and given[key].shape == tensor.shape}
    assert 0 < len(fits) < len(fits | (set(before) & set(given))) < len(before)
    assert nets.take(net, other) == len(fits)
    after = net.state_dict()
    assert all(torch.equal(after[key], given[key] if key in fits else before[key]) for key in before)
    assert nets.take(other, stirred(DEFAULT, seed=5)) == len(given)
