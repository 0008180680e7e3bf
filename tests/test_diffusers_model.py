"""Networks of diffusers that ours is not, and folders that must not be opened."""

import json
import logging
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcore.core.errors import UserError
from diffcore.nets import diffusers_model, open_folder, unet
from diffcore.nets.architectures.unet2d import UNet2D
from tests.conftest import seeded

diffusers = pytest.importorskip("diffusers")
OURS = unet.config_json(unet.default_config((1, 8, 8)))
TIMESTEP = torch.tensor([-1.0, 300.5, 1023.0])
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "ResnetUpsampleBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(channels: int = 1):
    return torch.randn(3, channels, 8, 8, generator=seeded())


def tiny(**change):
    return diffusers.UNet2DModel(**{**TINY, **change}).eval()


def test_a_network_that_ours_is_not(tmp_path):
    net = tiny()
    net.save_pretrained(tmp_path)
    found = open_folder(tmp_path).eval()
    assert isinstance(found, diffusers_model.DiffusersModel)
    assert torch.equal(found(images(), TIMESTEP), net(images(), TIMESTEP).sample)
    assert not torch.equal(found(images(), TIMESTEP), found(images(), TIMESTEP.flip(0)))


def test_what_is_saved_of_it_is_what_was_read(tmp_path):
    tiny().save_pretrained(tmp_path)
    found = open_folder(tmp_path)
    assert found.config_json() == json.loads((tmp_path / "config.json").read_text())
    assert found.state_dict().keys() == tiny().state_dict().keys()
    nested = torch.nn.ModuleDict({"net": found}).state_dict()
    assert nested.keys() == {f"net.{name}" for name in tiny().state_dict()}
    found.load_state_dict(found.state_dict())


def test_classes_pass_through(tmp_path):
    net = tiny(num_class_embeds=4)
    net.save_pretrained(tmp_path)
    found, classes = open_folder(tmp_path).eval(), torch.tensor([0, 3, 2])
    assert torch.equal(found(images(), TIMESTEP, classes), net(images(), TIMESTEP, classes).sample)


def test_a_transformer_and_the_mean_of_a_learned_variance(tmp_path):
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=1,
        sample_size=8, num_embeds_ada_norm=5, norm_num_groups=2,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1)
    net.eval().save_pretrained(tmp_path)
    found, classes = open_folder(tmp_path), torch.tensor([0, 3, 2])
    out = found(images(2), TIMESTEP, classes)
    assert out.shape == (3, 2, 8, 8)
    expected = net(images(2), TIMESTEP, class_labels=classes).sample
    assert expected.shape[1] == 4
    assert torch.equal(out, expected[:, :2])
    trained = [found.train()(images(2), TIMESTEP, classes) for _ in range(8)]
    assert all(torch.equal(again, out) for again in trained)  # no label is ever dropped


@pytest.mark.parametrize("change", [{}, {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}])
def test_a_u_net_with_a_learned_variance(tmp_path, change):
    net = tiny(in_channels=3, out_channels=6, **change)
    net.save_pretrained(tmp_path)
    found = open_folder(tmp_path)
    assert torch.equal(found(images(3), TIMESTEP), net(images(3), TIMESTEP).sample[:, :3])


def test_other_numbers_of_channels_are_refused(tmp_path):
    tiny(in_channels=2, out_channels=3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="UNet2DModel makes 3 channels of 2; it must keep their number, or double it"):
        open_folder(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match=r"pickled weights only.*safe_serialization"):
        open_folder(tmp_path)


def test_pickled_weights_are_refused_for_ours_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OURS))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match="pickled weights only"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("os.system", "not a network of diffusers"),
        ("MyOwnNet", "not a network of diffusers"),
        ("DDIMScheduler", "not a network of diffusers"),
        ("modeling_utils", "not a network of diffusers"),
        ("AutoencoderKL", "told no time"),
        ("ChromaTransformer2DModel", r"for others only: .*FluxTransformer2DModel, .*UNet2DModel; give one of these"),
        ("ControlNetModel", r"for others only: .*FluxTransformer2DModel, .*UNet2DModel; give one of these"),
    ],
)
def test_only_networks_of_diffusers_that_are_written_down(tmp_path, name, words):
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, "auto_map": {"AutoModel": "evil.Net"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(UserError, match=words):
        open_folder(tmp_path)


def test_a_fourier_network_is_refused(tmp_path):
    tiny(time_embedding_type="fourier").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="told the noise scale sigma"):
        open_folder(tmp_path)


def test_folders_that_hold_no_network(tmp_path):
    with pytest.raises(UserError, match=r"config.json is missing"):
        open_folder(tmp_path / "google" / "ddpm-cifar10-32")
    for text, words in (
        ("{", "not valid JSON"),
        ("[]", "_class_name"),
        ('{"_class_name": "UNet2DModel"}', "no .safetensors"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            open_folder(tmp_path)


@pytest.mark.parametrize("which", ["ours", "diffusers"])
def test_damaged_weights_are_named(tmp_path, which):
    net = tiny() if which == "diffusers" else diffusers.UNet2DModel.from_config(OURS)
    net.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="again"):
        open_folder(tmp_path)


def test_weights_of_another_network_are_named(tmp_path):
    diffusers.UNet2DModel.from_config(OURS).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(unet.config_json(unet.default_config((1, 8, 8), channels=(8, 16))))
    )
    with pytest.raises(UserError, match="does not hold this network's weights"):
        open_folder(tmp_path)


@pytest.mark.parametrize("which", ["ours", "diffusers"])
def test_weights_that_are_missing_are_named_and_not_made_up(tmp_path, which, monkeypatch):
    net = tiny() if which == "diffusers" else diffusers.UNet2DModel.from_config(OURS)
    net.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    held = load_file(weights)
    name = sorted(held)[0]
    save_file({key: value for key, value in held.items() if key != name}, weights, {"format": "pt"})
    handler, lines = logging.Handler(), []
    monkeypatch.setattr(handler, "emit", lines.append)
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [handler])
    with pytest.raises(UserError, match=f"{name} (is|are) missing" if which == "diffusers" else "weights"):
        open_folder(tmp_path)
    assert not lines  # where diffusers would say to train them


@pytest.mark.parametrize("which", ["ours", "diffusers"])
def test_pickled_weights_are_not_opened_beside_other_safetensors_either(tmp_path, which):
    net = tiny() if which == "diffusers" else diffusers.UNet2DModel.from_config(OURS)
    net.save_pretrained(tmp_path, safe_serialization=False)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(UserError):
        open_folder(tmp_path)


class Told(torch.nn.Module):
    """A network of diffusers' manner that is told a time alone; it makes `times` as many channels."""

    def __init__(self, times: int = 1):
        super().__init__()
        self.times, self.weight = times, torch.nn.Parameter(torch.ones(()))
        self.config = {"_class_name": "Told", "in_channels": 2, "out_channels": 2 * times}
        self.config |= {"num_class_embeds": None}

    def forward(self, x, timestep):
        made = torch.cat([x * timestep[:, None, None, None] * (k + 1) for k in range(self.times)], 1)
        return types.SimpleNamespace(sample=made)


def adapter(net: Told) -> diffusers_model.DiffusersModel:
    return diffusers_model.DiffusersModel(net, net.config, UNet2D(net.config))


def test_a_network_that_knows_no_classes_is_not_told_one():
    net = adapter(Told())
    assert torch.equal(net(images(2), TIMESTEP), images(2) * TIMESTEP[:, None, None, None])
    with pytest.raises(UserError, match="Told takes no class_labels, only a sample and a time; leave class_labels out"):
        net(images(2), TIMESTEP, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(("times", "is_taken"), [(1, True), (2, True), (3, False)])
def test_channels_are_kept_or_doubled(times, is_taken):
    net = adapter(Told(times))
    if is_taken:
        assert torch.equal(net(images(2), TIMESTEP), images(2) * TIMESTEP[:, None, None, None])
    else:
        with pytest.raises(UserError, match="Told makes 6 channels of 2"):
            net(images(2), TIMESTEP)


def test_a_network_saved_in_half_precision_is_opened_in_float32(tmp_path):
    net = tiny().half()
    net.save_pretrained(tmp_path)
    found = open_folder(tmp_path)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    for name, value in net.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.float())


def test_weights_of_other_names_are_not_loaded_unnoticed(tmp_path):
    tiny().save_pretrained(tmp_path)
    found = open_folder(tmp_path)
    state = found.state_dict()
    renamed = {f"x.{name}": value for name, value in state.items()}
    with pytest.raises(RuntimeError, match="Missing key"):
        found.load_state_dict(renamed)
    assert found.load_state_dict(renamed, strict=False).missing_keys == list(state)
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    found.load_state_dict(other, assign=True)
    assert all(value.data_ptr() == other[name].data_ptr() for name, value in found.state_dict().items())


def test_nothing_is_fetched_and_nothing_pickled_is_asked_for(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    asked, real = [], diffusers.UNet2DModel.from_pretrained
    monkeypatch.setattr(
        diffusers.UNet2DModel,
        "from_pretrained",
        lambda *words, **more: asked.append((words, more)) or real(*words, **more),
    )
    open_folder(tmp_path)
    (((folder,), options),) = asked
    assert folder == tmp_path
    assert (options["use_safetensors"], options["local_files_only"]) == (True, True)


@pytest.mark.parametrize(
    "change", [{"block_out_channels": ["a", 8]}, {"norm_num_groups": 0}, {"layers_per_block": "x"}]
)
@pytest.mark.filterwarnings("ignore")
def test_a_config_that_describes_no_network_is_one_line(tmp_path, change):
    for content in (OURS, tiny().config):
        diffusers.UNet2DModel.from_config(OURS).save_pretrained(tmp_path)
        config = {"_class_name": "UNet2DModel", **{k: v for k, v in content.items() if k[0] != "_"}, **change}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"fetch (or write )?it again$") as caught:
            open_folder(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
