"""A network that lies alone, weights and a config.json, is a teacher once it is known what it was trained on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffcore import checkpoints, nets
from diffcore.checkpoints import from_diffusers
from diffcore.checkpoints.adopted import Stated
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import dit
from diffcore.noise.schedule import Discrete, Linear
from tests.conftest import randn
from tests.test_adopt import SCALED, apart, images, network, read, save
from tests.test_checkpoint import ABOUT
from tests.test_published import denoiser, labels
from tests.test_published import network as of_authors

diffusers = pytest.importorskip("diffusers")
AT = torch.tensor([0.1, 0.4, 0.7, 0.9, 1.0], dtype=torch.float64)
LINEAR = Stated(schedule=Linear(), reading=Reading("eps", 1000))


def bared(folder: Path, **settings) -> tuple[Path, from_diffusers.Adopted]:
    """A folder of a network alone, with the scheduler's settings beside it, and what it is as a pipeline."""
    save(folder / "whole", network(), **SCALED, **settings)
    own = folder / "bare"
    shutil.copytree(folder / "whole/unet", own)
    (own / nets.WEIGHTS).rename(own / "model.safetensors")
    shutil.copy(folder / "whole/scheduler/scheduler_config.json", own)
    return own, from_diffusers.read(folder / "whole")


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_a_scheduler_beside_a_network_says_what_it_was_trained_on(place, tmp_path):
    own, whole = bared(tmp_path, prediction_type="v_prediction")
    adopted = from_diffusers.read(own / place)
    assert (adopted.denoiser.reading, adopted.denoiser.schedule) == (whole.denoiser.reading, whole.denoiser.schedule)
    assert (adopted.image, adopted.sampling) == (whole.image, whole.sampling)
    assert torch.equal(adopted.denoiser(images(), AT).x0, whole.denoiser(images(), AT).x0)
    assert sorted(adopted.files) == ["config.json", "model.safetensors", "scheduler_config.json"]


def test_params_yaml_says_what_no_file_does(tmp_path):
    own, _ = bared(tmp_path)
    (own / "scheduler_config.json").unlink()
    with pytest.raises(
        UserError, match=r"nothing says what the network of .*model\.safetensors was trained on: give trained"
    ):
        from_diffusers.read(own)
    adopted = from_diffusers.read(own, None, LINEAR)
    net = diffusers.UNet2DModel.from_pretrained(tmp_path / "whole/unet").requires_grad_(False)
    theirs = NetDenoiser(net_of(net), Linear(), Reading("eps", 1000))
    assert apart(adopted.denoiser(images(), AT).eps, theirs(images(), AT).eps) < 1e-5
    assert sorted(adopted.files) == ["config.json", "model.safetensors"]


def net_of(net):
    class Called(torch.nn.Module):
        def forward(self, x, timestep):
            return net(x, timestep).sample

    return Called().eval().requires_grad_(False)


def test_a_config_elsewhere_is_named(tmp_path):
    own, whole = bared(tmp_path)
    (own / "config.json").rename(tmp_path / "what.json")
    weights = own / "model.safetensors"
    with pytest.raises(
        UserError, match=r"model\.safetensors is weights alone: say which network they are of, config: PATH"
    ):
        from_diffusers.read(weights)
    shutil.copy(own / "scheduler_config.json", tmp_path)
    adopted = from_diffusers.read(weights, None, Stated(str(tmp_path / "what.json")))
    assert torch.equal(adopted.denoiser(images(), AT).x0, whole.denoiser(images(), AT).x0)


def test_our_transformer_alone_is_a_teacher(tmp_path):
    net = dit.Shape(2, 16, 2, 2, conditional=True).build((1, 8, 8), 3, 0).eval()
    about = {**ABOUT, "classes": ["a", "b", "c"]}
    checkpoints.save(tmp_path / "own", NetDenoiser(net, Linear(), classes=3), (1, 8, 8), about)
    stated = Stated(schedule=Linear(), reading=Reading("v", 1024))
    adopted = from_diffusers.read(tmp_path / "own/unet", None, stated).denoiser
    assert torch.equal(adopted(images(), AT).v, checkpoints.load(tmp_path / "own").denoiser(images(), AT).v)
    assert adopted.classes == 3


@pytest.mark.parametrize("name", ["ddpm++ edm classes", "edm2 other balances"])
def test_a_published_network_needs_no_more(name, tmp_path):
    from safetensors.torch import save_file

    net = of_authors(name).float()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    disk.write_json(tmp_path / "config.json", net.config_json())
    adopted = from_diffusers.read(tmp_path / "net.safetensors")
    x, t = randn(3, 3, 8, 8).float(), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    told = adopted.denoiser if net.classes is None else adopted.denoiser.with_condition(denoiser(net).condition)
    assert torch.equal(told(x, t).x0, denoiser(net)(x, t).x0)
    assert (net.classes is None) == (labels(net) is None)


def changed(file: Path, **keys) -> None:
    content = {**json.loads(file.read_text()), **keys}
    disk.write_json(file, {key: value for key, value in content.items() if value is not None})


def two_files(own: Path) -> None:
    shutil.copy(own / "model.safetensors", own / "other.safetensors")


REFUSED = {
    "no class": (
        lambda own: changed(own / "config.json", _class_name=None),
        "does not say of which class its network is",
    ),
    "an unknown class": (
        lambda own: changed(own / "config.json", _class_name="VisionTransformer"),
        "_class_name 'VisionTransformer' is not a network of diffusers",
    ),
    "no weights": (
        lambda own: (own / "model.safetensors").unlink(),
        "has a config.json and no file of safetensors; name",
    ),
    "two files": (two_files, r"has a config.json and 2 files of safetensors; name the file, from: PATH\.safetensors"),
    "other weights": (
        lambda own: changed(own / "config.json", block_out_channels=[8, 32]),
        "does not hold this network's weights",
    ),
    "damaged": (lambda own: (own / "model.safetensors").write_bytes(b"x" * 99), "does not hold this network's weights"),
    "no JSON": (lambda own: (own / "config.json").write_text("{"), "is not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_refused_by_the_files_names(case, tmp_path):
    own, _ = bared(tmp_path)
    change, words = REFUSED[case]
    change(own)
    with pytest.raises(UserError, match=words) as caught:
        from_diffusers.read(own)
    assert str(own) in str(caught.value) or case == "an unknown class"
    assert "/tmp/tmp" not in str(caught.value)


def test_of_what_says_it_itself_nothing_else_is_said(tmp_path):
    save(tmp_path / "whole", network())
    for stated in (LINEAR, Stated("config.json")):
        with pytest.raises(UserError, match="says by itself what its network is and was trained on; leave config and"):
            from_diffusers.read(tmp_path / "whole", None, stated)
    torch.save({}, tmp_path / "x.pkl")
    with pytest.raises(UserError, match="says by itself what its network is and was trained on; leave config and"):
        from_diffusers.read(tmp_path / "x.pkl", None, LINEAR)


# ------------------------------------------------------------------------------- the line

TRAINED = {"schedule": "linear", "reading": "vp", "parameterization": "eps", "num_timesteps": 1000}


def test_the_line_says_it(tmp_path):
    line = read(tmp_path, **{"from": "x.safetensors", "config": "y.json", "trained": TRAINED}).teachers["teacher"]
    assert line.stated == Stated("y.json", Linear(), Reading("eps", 1000))
    betas = {"schedule": {"name": "discrete", "betas": [0.1, 0.2]}, "reading": "vp", "parameterization": "v"}
    stated = read(tmp_path, **{"from": "x.safetensors", "trained": betas}).teachers["teacher"].stated
    assert (stated.schedule, stated.reading) == (Discrete((0.1, 0.2)), Reading("v", 2))
    edm = {"schedule": "edm", "reading": {"name": "edm", "sigma_data": 0.5}, "parameterization": "edm"}
    stated = read(tmp_path, **{"from": "x.safetensors", "trained": edm}).teachers["teacher"].stated
    assert stated.reading == Reading.of("edm", "edm", sigma_data=0.5)


FAULTS = {
    "config": ({"config": 3}, "config: must be the path of a config.json, got 3"),
    "no mapping": ({"trained": "vp"}, "trained: must be a mapping of schedule, reading and parameterization"),
    "missing": ({"trained": {"schedule": "linear"}}, "trained.reading: missing"),
    "a key too many": ({"trained": {**TRAINED, "steps": 3}}, "trained.steps: unknown key"),
    "parameterization": (
        {"trained": {**TRAINED, "parameterization": "noise"}},
        "trained.parameterization: 'noise' is unknown",
    ),
    "schedule": ({"trained": {**TRAINED, "schedule": "linea"}}, "trained.schedule: 'linea' is no schedule"),
    "reading": ({"trained": {**TRAINED, "reading": "edm"}}, "trained.reading: a network with input unit that is told"),
    "no steps": (
        {"trained": {key: value for key, value in TRAINED.items() if key != "num_timesteps"}},
        "trained.num_timesteps: must be how many steps its times count, such as 1000, got None",
    ),
    "steps": ({"trained": {**TRAINED, "num_timesteps": 0}}, "trained.num_timesteps: must be how many"),
    "eps of noise": (
        {"trained": {**TRAINED, "schedule": "cosine"}},
        "trained.parameterization: a network that says eps has no image at t = 1",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_line_is_a_line(case, tmp_path):
    more, words = FAULTS[case]
    with pytest.raises(UserError) as caught:
        read(tmp_path, **{"from": "x.safetensors", **more})
    lines = [row.partition("params.yaml: ")[2] for row in str(caught.value).splitlines()]
    assert any(row.startswith(f"teachers.teacher.{words}") for row in lines), lines
