"""A module of the user's own: made from its path, arguments and seed, trained, saved and opened again; of any shape."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcore import checkpoints, exports, nets
from diffcore.checkpoints import Guidance, from_diffusers
from diffcore.checkpoints.folded import fold
from diffcore.checkpoints.roles import roles
from diffcore.core.errors import UserError
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.methods import consistency, continuous, flow_map, progressive
from diffcore.nets import dit
from diffcore.nets.module import Shape, UserModule
from diffcore.nets.order import fastest
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import TRAJECTORIES, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.loop import Job, Stopped, fit
from diffcore.training.resume import Resume
from tasks import params, train, workspace
from tests.conftest import make_solver, randn
from tests.test_checkpoint import ABOUT
from tests.test_fit import same, stop_at
from tests.test_precision import FULL, HALF, SHORT, job, one_of_each

ROOT = Path(__file__).parent.parent
IMAGE = (1, 4, 4)

CODE = '''
import random
import torch
from torch import nn


class Net(nn.Module):
    """Linear in all numbers of a sample, for any shape."""

    def __init__(self, size, hidden=8, dropout=0.25, classes=None, outputs=1):
        super().__init__()
        self.outputs = outputs
        self.enter, self.leave = nn.Linear(size + 1, hidden), nn.Linear(hidden, outputs * size)
        self.drop = nn.Dropout(dropout)
        self.table = None if classes is None else nn.Embedding(classes + 1, hidden)

    def forward(self, x, timestep, class_labels=None):
        h = self.enter(torch.cat([x.flatten(1), timestep[:, None] / 1024], 1))
        h = h if self.table is None else h + self.table(class_labels)
        return self.leave(self.drop(h.tanh())).unflatten(1, (self.outputs * x.shape[1], *x.shape[2:]))


class Volume(nn.Module):
    """For samples [c, f, h, w]; with images: as one frame each."""

    def __init__(self, channels, images=False):
        super().__init__()
        self.images, self.conv = images, nn.Conv3d(channels, channels, 3, padding=1)
        self.flat = nn.Conv2d(channels, channels, 1)

    def forward(self, x, timestep):
        x = x * (1 + timestep / 1024).reshape(-1, *[1] * (x.ndim - 1))
        return self.flat(self.conv(x[:, :, None])[:, :, 0]) if self.images else self.conv(x) + x


class Plain(Net):
    def __init__(self, size):
        super().__init__(size)


class Two(Net):
    """Told where a hop lands, or nothing of that."""

    def __init__(self, size):
        super().__init__(size, dropout=0.0)
        self.slope = nn.Parameter(torch.zeros(size))

    def forward(self, x, timestep, end_timestep=None):
        out = super().forward(x, timestep)
        if end_timestep is None:
            return out
        return out + (((timestep - end_timestep) / 1024)[:, None] * self.slope).reshape(out.shape)


class Strict(Net):
    def forward(self, x, timestep, end_timestep):
        return super().forward(x, timestep)


class Half(Net):
    def forward(self, x, timestep):
        return super().forward(x, timestep)[:, :, ::2]


class Tied(Net):
    def __init__(self, size):
        super().__init__(size, hidden=size + 1)
        self.other = nn.Parameter(torch.zeros(3))
        self.again = self.other


class Lucky(Net):
    def __init__(self, size):
        super().__init__(size)
        nn.init.constant_(self.leave.bias, random.random())


class Noisy(Net):
    def forward(self, x, timestep):
        return super().forward(x + 0.1 * self.training * torch.randn_like(x), timestep)


class Words(Net):
    def forward(self, x, timestep):
        return "words"


class Nothing(nn.Module):
    def forward(self, x, timestep):
        return x


def function(size):
    return Net(size)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The path of a module of the user's, `mine`, imported from its folder."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path / "code/mine.py"
    sys.modules.pop("mine", None)


def small(name: str = "Net", size: int = 16, image: tuple[int, ...] = IMAGE, seed: int = 0, **more) -> NetDenoiser:
    own = {key: more.pop(key) for key in ("conditional", "parameterization") if key in more}
    shape = Shape(f"mine:{name}", {"channels" if name == "Volume" else "size": size, **more}, **own)
    return NetDenoiser(
        shape.build(image, 3, seed), Cosine(), Reading(shape.parameterization), classes=3 if shape.conditional else None
    )


def refused(shape: Shape, image: tuple[int, ...] = IMAGE) -> str:
    with pytest.raises(UserError) as caught:
        shape.build(image, 3, 0)
    (line,) = str(caught.value).splitlines()
    return line


# made


def test_all_weights_come_from_the_seed_and_the_global_generator_is_left_alone(mine):
    state = torch.get_rng_state()
    first = small(seed=3).net
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = small(seed=3).net.state_dict(), small(seed=4).net.state_dict()
    torch.set_rng_state(state)
    assert set(again) == {"enter.weight", "enter.bias", "leave.weight", "leave.bias"}
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.state_dict()["enter.weight"], other["enter.weight"])
    assert first.training
    assert first.config_json() == {
        "_class_name": "UserModule",
        "module": "mine:Net",
        "arguments": {"size": 16},
        "source": first.source,
    }


def test_what_cannot_be_made_is_named_in_one_line(mine):
    size = {"size": 16}
    cases = {
        "nowhere:Net": (size, "nowhere, of network.module nowhere:Net, cannot be imported: ModuleNotFoundError"),
        "mine:Nett": (size, "mine:Nett is no class of a torch module; name one as package.sub:Class"),
        "mine:function": (size, "mine:function is no class of a torch module"),
        "mine:Net": ({"sise": 16}, "mine:Net cannot be made as Net(sise=16): TypeError: "),
        "mine:Half": (
            size,
            "mine:Half makes [2, 1, 2, 4] of torch.float32 of [2, 1, 4, 4]; with parameterization v it must",
        ),
        "mine:Noisy": (size, "mine:Noisy draws random numbers as it is called, other than by nn.Dropout, so that"),
        "mine:Words": (size, "mine:Words makes a str of [2, 1, 4, 4]"),
        "mine:Nothing": ({}, "mine:Nothing has no weights, so there is nothing to train"),
        "mine:Tied": (size, "mine:Tied: other and again are one tensor, which safetensors cannot hold"),
        "mine:Lucky": (
            size,
            "mine:Lucky: leave.bias is another one each time that it is made: draw all that is random",
        ),
    }
    for path, (arguments, words) in cases.items():
        assert refused(Shape(path, arguments)).startswith(words)
    line = refused(Shape("mine:Net", {"size": 15}))
    assert line.startswith("mine:Net cannot be called as forward(x [2, 1, 4, 4], timestep [2]): RuntimeError: ")
    line = refused(Shape("mine:Net", {"size": 16, "classes": 2}, conditional=True))
    assert line.startswith(
        "mine:Net cannot be called as forward(x [2, 1, 4, 4], timestep [2], class_labels [2]): IndexError"
    )
    assert "must make [2, 2, 4, 4] of floating point" in refused(Shape("mine:Net", size, parameterization="x0_eps"))
    (mine.parent / "broken.py").write_text("import nothing_like_it\n")
    assert "broken:Net, cannot be imported: ModuleNotFoundError: No module named 'nothing" in refused(
        Shape("broken:Net")
    )
    for wrong in ("Net", "mine.Net", "mine:", ":Net", "mine:Net.inner", "mi ne:Net", "os;mine:Net"):
        with pytest.raises(ValueError, match="a class by its path, as package"):
            Shape(wrong)
    with pytest.raises(ValueError, match="no image at t = 1"):
        Shape("mine:Net", parameterization="eps")


def test_it_is_weighed_without_memory(mine):
    """Exactly what it learns; of what is kept: the input with its time, what tanh gives, dropout's mask and its product."""
    shape = Shape("mine:Net", {"size": 16, "hidden": 8})
    assert (
        shape.parameters(1) == sum(p.numel() for p in shape.build(IMAGE, None, 0).parameters()) == 17 * 8 + 8 + 9 * 16
    )
    assert 17 + 8 < shape.kept(IMAGE) <= 17 + 4 * 8
    assert shape.kept((1, 5, 5)) == Shape("nowhere:Net").parameters(1) == Shape("nowhere:Net").kept(IMAGE) == 0


def test_dropout_is_an_argument_where_the_class_takes_it(mine):
    net = small().net
    same, other = net.with_dropout(0.0), net.with_dropout(0.5)
    assert (net.net.drop.p, same.net.drop.p, other.net.drop.p) == (0.25, 0.0, 0.5)
    assert other.config_json()["arguments"] == {"size": 16, "dropout": 0.5}
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in net.state_dict().items())
    plain = small("Plain").net
    assert plain.with_dropout(0.0).net.drop.p == 0
    assert plain.net.drop.p == 0.25
    with pytest.raises(UserError, match="mine:Plain takes no argument dropout; leave `dropout` out"):
        plain.with_dropout(0.1)


# saved


def saved(folder: Path, **more) -> Path:
    denoiser = small(classes=3, conditional=True, hidden=5, **more)
    checkpoints.save(folder, denoiser, IMAGE, {**ABOUT, "classes": ["a", "b", "c"]})
    return folder


def test_a_checkpoint_is_opened_again_to_the_bit(mine, tmp_path):
    opened = checkpoints.load(saved(tmp_path / "one"))
    net = small(classes=3, conditional=True, hidden=5).net
    assert isinstance(opened.denoiser.net, UserModule)
    assert opened.denoiser.net.config_json() == net.config_json()
    assert all(torch.equal(tensor, opened.denoiser.net.state_dict()[name]) for name, tensor in net.state_dict().items())
    checkpoints.save(tmp_path / "two", opened.denoiser, IMAGE, {**ABOUT, "classes": ["a", "b", "c"]})
    assert checkpoints.load(tmp_path / "two").card.digest == opened.card.digest


def test_other_code_of_the_class_is_refused_and_other_comments_are_not(mine, tmp_path):
    folder = saved(tmp_path / "one")
    mine.write_text("# another comment\n" + CODE)
    del sys.modules["mine"]
    assert checkpoints.load(folder)
    mine.write_text(CODE.replace("h.tanh()", "h.sin()"))
    del sys.modules["mine"]
    with pytest.raises(
        UserError, match=r"the file of mine:Net was changed since .*one was trained with it; put it back"
    ):
        checkpoints.load(folder)
    mine.unlink()
    del sys.modules["mine"]
    with pytest.raises(UserError, match=r"mine, of network\.module mine:Net, cannot be imported"):
        checkpoints.load(folder)


def test_what_a_folder_from_elsewhere_names_is_never_imported(mine, tmp_path):
    """A network's folder with no card, and a pipeline of diffusers."""
    mine.write_text("raise SystemExit('imported')\n")
    for folder in (tmp_path / "theirs", tmp_path / "theirs/unet"):
        folder.mkdir()
    (tmp_path / "theirs/unet" / nets.CONFIG).write_text(
        json.dumps({"_class_name": "UserModule", "module": "mine:Net", "arguments": {}})
    )
    (tmp_path / "theirs/unet" / nets.WEIGHTS).write_bytes(b"")
    with pytest.raises(
        UserError, match="names a class of somebody's own, which is imported for a checkpoint of ours alone"
    ):
        nets.open_folder(tmp_path / "theirs/unet")
    (tmp_path / "theirs/scheduler").mkdir()
    settings = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10, "prediction_type": "v_prediction"}
    (tmp_path / "theirs" / from_diffusers.SCHEDULER).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="UserModule"):
        from_diffusers.read(tmp_path / "theirs")
    assert "mine" not in sys.modules


def test_a_teacher_from_elsewhere_names_no_class_to_import_though_its_card_is_whole(mine, tmp_path):
    """Whoever writes a folder can seal its card; only what params.yaml names is imported."""
    folder = saved(tmp_path / "one")
    sys.modules.pop("mine", None)
    mine.write_text("raise SystemExit('imported')\n")
    with pytest.raises(
        UserError, match=r"names the class mine:.* as its network, and only a class that params.yaml names"
    ):
        from_diffusers.read(folder)
    assert "mine" not in sys.modules


@pytest.mark.parametrize("form", ["safetensors", pytest.param("torch_export", marks=pytest.mark.slow)])
def test_it_is_exported_where_the_format_needs_no_class_of_diffusers(mine, form, tmp_path):
    folder = saved(tmp_path / "one")
    assert exports.export(folder, tmp_path / "out", form, "read me") <= exports.TOLERANCE
    with pytest.raises(UserError, match="diffusers has no class UserModule; choose another --format"):
        exports.export(folder, tmp_path / "folder", "diffusers", "read me")


# trained


METHODS = {
    "progressive": progressive.Progressive(2),
    "consistency": consistency.Consistency(16, 0.5),
    "continuous": continuous.Continuous(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_goes_on_to_the_same_bytes_and_in_bfloat16(mine, name, tmp_path):
    fitting = dataclasses.replace(SHORT, iterations=4)

    def train(compute=FULL, **more):
        student, teacher = (small(classes=3, conditional=True, seed=seed) for seed in (0, 1))
        return fit(job(name, METHODS[name], True, fitting), student, Guided(teacher), compute, **more)

    whole, resume = train(), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        train(resume=resume, stop=stop_at(2))
    assert same(whole, train(resume=resume))
    half = train(HALF)
    assert half.curve != whole.curve
    assert half.curve[-1].loss == pytest.approx(whole.curve[-1].loss, rel=0.1)


def test_losses_on_features_and_weights_as_inputs_are_refused_by_name(mine, tmp_path):
    with pytest.raises(UserError, match="needs a teacher that is our own"):
        fit(job("consistency", consistency.Consistency(8, 0.0, "perceptual")), small(), small(seed=1), FULL)
    parent = checkpoints.load(saved(tmp_path / "one"))
    assert isinstance(roles(parent, Guidance(2.0, 2.0))[1], Guided)
    with pytest.raises(UserError, match="needs our own U-Net or transformer, not UserModule; give one weight instead"):
        roles(parent, Guidance(1.0, 4.0))


def test_a_flow_map_of_one_that_takes_an_end_is_told_where_its_hops_land(mine, tmp_path):
    """Trained, saved, opened and exported; it teaches and is asked for velocities without."""
    checkpoints.save(tmp_path / "one", small("Two"), IMAGE, ABOUT)
    student, teacher = roles(checkpoints.load(tmp_path / "one"), None, two_times=True)
    assert (student.end, teacher.end, isinstance(student.net, UserModule)) == (ANY, None, True)
    fitting = dataclasses.replace(SHORT, iterations=2)
    net = fit(job("flow_map", flow_map.FlowMap(), False, fitting), student, teacher, FULL).net
    assert float(net.state_dict()["slope"].abs().max()) > 0
    checkpoints.save(tmp_path / "two", student.with_network(net), IMAGE, ABOUT)
    own = checkpoints.load(tmp_path / "two").denoiser
    x, t = randn(2, *IMAGE).float(), torch.full((2,), 0.8)
    far, near = own.toward(t / 4)(x, t).v, own.toward(t)(x, t).v
    assert torch.equal(near, own(x, t).v)
    assert float((far - near).abs().max()) > 0
    assert exports.export(tmp_path / "two", tmp_path / "out", "safetensors", "") <= exports.TOLERANCE
    with pytest.raises(
        UserError, match="to become jumps to the data needs our own U-Net or transformer, not UserModule"
    ):
        fold(tmp_path / "two", None, tmp_path / "three", to_data=True)


def test_a_flow_map_of_one_that_takes_no_end_is_refused_when_the_file_is_read(mine, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = (
        "distill.fm={method: flow_map, init: teacher, teacher: teacher, iterations: 2, batch: 8, lr: 1.0e-3, ema: 0.9}"
    )
    told = (
        "p: distill.fm.method: flow_map tells its network where a hop lands, and mine:{} takes no such thing; give its"
    )
    for name in ("Net", "Strict"):
        with pytest.raises(UserError) as caught:
            params.parse(merged(f"teachers.teacher.network={{module: 'mine:{name}', size: 64}}", line), "p")
        assert str(caught.value) == f"{told.format(name)} forward an argument end_timestep=None, or take another method"
    for name in ("mine:Two", "nowhere:Net"):
        found = params.parse(merged(f"teachers.teacher.network={{module: '{name}', size: 64}}", line), "p")
        assert found.distill["fm"].method.two_times
    own = "distill.fm.network={module: 'mine:Two', size: 64}"
    assert params.parse(merged("teachers.teacher.network={module: 'mine:Net', size: 64}", line, own), "p")


# read


def merged(*changes: str) -> dict:
    return workspace.merged(None, ["evaluate.teacher=[{sampler: ddim, trajectory: uniform, steps: [8]}]", *changes])


def test_params_name_it_beside_its_arguments(mine, monkeypatch):
    """Another class, or a family of ours, takes the place of all keys; students change some of them. Nothing is imported
    to say what is wrong with the file."""
    monkeypatch.chdir(ROOT)
    first = "teachers.teacher.network={module: 'nowhere:Net', size: 64, rows: [1, 2000000], parameterization: flow}"
    read = params.parse(merged(first, "distill.pd8.network={size: 65}"), "p")
    shape = Shape("nowhere:Net", {"size": 64, "rows": [1, 2000000]}, parameterization="flow")
    assert read.shape("teacher") == shape
    assert read.shape("pd8") == dataclasses.replace(shape, arguments={"size": 65, "rows": [1, 2000000]})
    assert read.teachers["teacher"].parameterization == "flow"
    again = merged(first, "teachers.teacher.network={module: 'mine:Net', size: 3}")
    assert params.parse(again, "p").shape("teacher") == Shape("mine:Net", {"size": 3})
    ours = {"family": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2}
    assert merged(first, f"teachers.teacher.network={json.dumps(ours)}")["teachers"]["teacher"]["network"] == ours
    assert (
        merged(first, "teachers.teacher.network={size: 3}")["teachers"]["teacher"]["network"]["module"] == "nowhere:Net"
    )
    for words, fault in (
        (
            "{module: 'mine.Net'}",
            "teachers.teacher.network: module must be a class by its path, as package.sub:Class, got",
        ),
        ("{module: 3}", "teachers.teacher.network.module: Input should be a valid string, got 3"),
        (
            "{module: 'a:B', family: dit}",
            "teachers.teacher.network: family is of ours and module is yours; give one of them",
        ),
        (
            "{module: 'a:B', parameterization: eps}",
            "teachers.teacher.network: parameterization eps has no image at t = 1",
        ),
    ):
        with pytest.raises(UserError) as caught:
            params.parse(merged(f"teachers.teacher.network={words}"), "p")
        assert str(caught.value).startswith(f"p: {fault}")


def test_a_module_that_is_far_too_large_is_refused_before_it_is_made(mine, monkeypatch):
    monkeypatch.chdir(ROOT)
    raw = merged("teachers.teacher.network={module: 'mine:Net', size: 64, hidden: 400000000000}")
    with pytest.raises(UserError, match=r"p: teachers\.teacher\.network: a training of this network .*take a small"):
        params.parse(raw, "p")


# samples of any shape


class Arrays:
    """A feed of samples of any shape: normal numbers, their mean 0.5 and their deviation 0.3."""

    def __init__(self, shape: tuple[int, ...], batch: int = 8):
        self.images, self.shape, self.classes, self.size = 40, shape, None, batch

    def batch(self, step: int, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        return 0.5 + 0.3 * randn(self.size, *self.shape, seed=step).float()[rows], {}


SHAPES = pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 3, 2, 4)], ids=str)


def plain(shape: tuple[int, ...], seed: int = 0) -> NetDenoiser:
    return small(size=math.prod(shape), image=shape, seed=seed)


def test_a_state_that_other_code_saved_is_of_another_job(mine):
    net = small().net
    assert train._own_code(net) == {"module": net.source}
    assert len(net.source) == 64
    assert train._own_code(dit.Shape(2, 8, 1, 1).build(IMAGE, None, 0)) == {}


@SHAPES
@pytest.mark.parametrize(
    ("name", "config"),
    [
        pair
        for pair in one_of_each()
        if not {"adversarial=0.1", "perceptual"} & set(re.findall(r"[\w=.]+", str(pair[1])))
    ],
)
def test_every_method_but_on_features_trains_on_samples_of_any_shape(mine, shape, name, config):
    work = Job(config, SHORT, Arrays(shape), 0)
    fitted = fit(work, plain(shape), plain(shape, 1), FULL)
    assert all(tensor.isfinite().all() for tensor in fitted.net.state_dict().values())
    assert fitted.curve[-1].loss > 0


@pytest.mark.parametrize(("shape", "images"), [((2, 3, 4, 4), False), ((2, 4, 4), True)])
def test_convolutions_of_volumes_know_no_order_of_channels(mine, shape, images):
    """channels_last has four dimensions: a network with others lies in plain memory, and its samples too."""
    student = small("Volume", 2, shape, images=images)
    work = Job(progressive.Progressive(2), SHORT, Arrays(shape), 0)
    assert fastest(student.net, shape, "cuda") == fastest(student.net, shape, "cpu") == torch.contiguous_format
    assert fit(work, student, student, FULL).curve[-1].loss > 0
    assert fastest(torch.nn.Conv2d(2, 2, 3), (2, 3, 4, 4), "cuda") == torch.contiguous_format


@SHAPES
def test_a_stopped_training_of_any_shape_goes_on_to_the_same_bytes(mine, shape, tmp_path):
    work, resume = Job(progressive.Progressive(2), SHORT, Arrays(shape), 0), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        fit(work, plain(shape), plain(shape, 1), FULL, resume, stop=stop_at(1))
    again = fit(work, plain(shape), plain(shape, 1), FULL, resume)
    assert same(fit(work, plain(shape), plain(shape, 1), FULL), again)


@pytest.mark.slow
@SHAPES
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_samples_any_shape_as_if_it_were_flat(shape, name, without_shape_checks):
    """The samples of Gaussian data of that shape are those of the same data in a row."""
    count = math.prod(shape)
    mean, variance = randn(count, seed=1), randn(count, seed=2).square() + 0.1
    flat = GaussianDenoiser(mean, variance, Cosine())
    whole = GaussianDenoiser(mean.reshape(shape), variance.reshape(shape), Cosine())
    times = TRAJECTORIES["karras"](8, Cosine())
    ours, theirs = (
        Sampler(denoiser, make_solver(name, denoiser), times).draw(size, 3, 0, 3)
        for denoiser, size in ((whole, shape), (flat, (count,)))
    )
    assert ours.shape == (3, *shape)
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-5, atol=1e-5)


@SHAPES
def test_a_checkpoint_of_any_shape_is_opened_and_sampled(mine, shape, tmp_path):
    denoiser = plain(shape)
    checkpoints.save(tmp_path / "one", denoiser, shape, ABOUT)
    opened = checkpoints.load(tmp_path / "one").to(torch.device("cpu"))
    assert opened.shape == shape
    ours, theirs = (
        Sampler(each.eval(), SOLVERS["ddim"](), uniform(4)).draw(shape, 3, 0, 3) for each in (denoiser, opened.denoiser)
    )
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, *shape)
    assert exports.export(tmp_path / "one", tmp_path / "out", "safetensors", "read me") == 0
