import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints import to_diffusers
from diffcore.checkpoints.folder import WEIGHTS, open_net
from diffcore.checkpoints.to_diffusers import loop
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.feed import to_uint8
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import read_config, unet
from diffcore.nets.order import fastest
from diffcore.noise.schedule import EDM, VE, Cosine, Discrete, Flow, Normalised
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import seeded

IMAGE = (1, 8, 8)
ABOUT = {
    "name": "pd4",
    "method": "progressive",
    "solver": "ddim",
    "weights": "ema",
    "parent": "a" * 64,
    "teacher": "a" * 64,
    "data": "b" * 64,
    "parameters": {"steps": 4},
    "seed": 0,
    "code": "c" * 64,
    "torch": "2.13.0",
    "cost": {"iterations": 1, "images": 8, "network_calls": 40.0},
    "compute": {"device": "cpu", "precision": "float32", "dice": "cpu", "processes": 1},
}


def network(parameterization: str = "v") -> torch.nn.Module:
    """A small network whose output is not small: fresh ones begin at zero."""
    net = unet.build(
        unet.Shape((8, 16), 1, False, 8, 0.0, 12.0, parameterization=parameterization).config(IMAGE), seed=3
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(1))
    return net.eval()


def student(steps: int | None = 4, parameterization: str = "v") -> NetDenoiser:
    return NetDenoiser(
        network(parameterization), Cosine(), Reading(parameterization), uniform(steps) if steps else None
    )


@pytest.fixture
def folder(tmp_path):
    checkpoints.save(tmp_path / "pd4", student(), IMAGE, ABOUT)
    return tmp_path / "pd4"


def test_what_is_loaded_is_what_was_saved(folder):
    opened, x, t = checkpoints.load(folder), torch.randn(3, *IMAGE, generator=seeded()), torch.tensor([0.1, 0.5, 1.0])
    assert torch.equal(opened.denoiser(x, t).x0, student()(x, t).x0)
    assert opened.denoiser.grid == uniform(4)
    assert opened.shape == IMAGE
    assert opened.card.parameters == {"steps": 4}
    assert checkpoints.load(folder).card == opened.card


@pytest.mark.parametrize("parameterization", ["x0", "x0_eps", "flow"])
def test_a_parameterization_is_kept(tmp_path, parameterization):
    checkpoints.save(tmp_path / "s", student(4, parameterization), IMAGE, ABOUT)
    opened, x, t = (
        checkpoints.load(tmp_path / "s"),
        torch.randn(3, *IMAGE, generator=seeded()),
        torch.tensor([0.1, 0.5, 1.0]),
    )
    assert opened.card.parameterization == opened.denoiser.reading.parameterization == parameterization
    assert isinstance(opened.denoiser.net, unet.UNet)
    assert torch.equal(opened.denoiser(x, t).v, student(4, parameterization)(x, t).v)
    assert opened.denoiser(x, t).v.shape == x.shape


def test_equal_jobs_give_equal_bytes(folder, tmp_path):
    checkpoints.save(tmp_path / "again", student(), IMAGE, ABOUT)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 5
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_digest_vouches_for_every_file(folder):
    card = checkpoints.read_card(folder)
    assert set(card.files) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "model_index.json",
    }


def rewrite(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "no card": (lambda f: (f / "card.json").unlink(), "is not a checkpoint: it has no card.json"),
    "half a card": (lambda f: (f / "card.json").write_text((f / "card.json").read_text()[:100]), "is damaged"),
    "a card without end": (lambda f: (f / "card.json").write_text("[" * 100_000), "is damaged"),
    "a key too many": (lambda f: rewrite(f, colour="red"), "is damaged .*colour"),
    "a schema to come": (lambda f: rewrite(f, schema=99), "has schema 99, this version reads 3; run"),
    "a card of before": (
        lambda f: rewrite(f, schema=2),
        "has schema 2, .*labels is num_timesteps now, renoise is multistep_consistency now, head is parameterization now, "
        "both is x0_eps now",
    ),
    "another parameterization": (lambda f: rewrite(f, parameterization="w"), "names the parameterization 'w'; known: "),
    "no timesteps": (lambda f: rewrite(f, num_timesteps=0), "says num_timesteps 0, "),
    "timesteps below none": (lambda f: rewrite(f, num_timesteps=-5), "says num_timesteps -5, "),
    "another digest": (lambda f: rewrite(f, digest="0" * 64), "was changed since it was written"),
    "another file list": (lambda f: rewrite(f, files={}), "was changed since it was written"),
    "another seed": (lambda f: rewrite(f, seed=1), "was changed since it was written"),
    "a bit of the weights": (lambda f: flip(f / WEIGHTS), "is damaged: its sha256 does not fit the card"),
    "weights cut short": (lambda f: (f / WEIGHTS).write_bytes(b"x"), "is damaged: its sha256"),
    "no scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").unlink(),
        "is not whole: scheduler/.* is missing",
    ),
}


@pytest.mark.parametrize("left_out", [{"unet/config.json"}, {WEIGHTS}, {WEIGHTS, "unet/config.json"}])
def test_a_card_must_vouch_for_all_that_is_opened(folder, left_out):
    card = checkpoints.read_card(folder)
    files = {name: digest for name, digest in card.files.items() if name not in left_out}
    for kept in (files, {}):
        honest = dataclasses.replace(card, files=kept, digest=disk.digest(kept))
        rewrite(folder, files=kept, digest=honest.digest, seal=honest.sealed())
        with pytest.raises(UserError, match=r"card\.json does not vouch for unet/"):
            checkpoints.load(folder)


def test_weights_that_nobody_vouches_for_are_not_opened(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not vouch for unet/diffusion_pytorch_model\.safetensors\.index\.json"):
        checkpoints.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_network_of_numbers_that_are_none_is_neither_saved_nor_opened(folder, value, monkeypatch):
    broken = student()
    next(iter(broken.net.parameters())).data.flatten()[0] = value
    before = (folder / "card.json").read_bytes()
    with pytest.raises(
        UserError, match=r"the network \w+: .* holds 1 of \d+ values that are NaN or infinite; lower its"
    ):
        checkpoints.save(folder, broken, IMAGE, ABOUT)
    assert (folder / "card.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("diffcore.checkpoints.folder.check_finite", lambda *words: None)
        checkpoints.save(folder, broken, IMAGE, ABOUT)
    with pytest.raises(UserError, match=r"holds 1 of .* run the stage that makes it again"):
        checkpoints.load(folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(folder, damage):
    break_it, message = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.load(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_pickled_weights_are_refused(folder):
    (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="safe_serialization"):
        open_net(folder / "unet")


def test_saving_that_fails_leaves_what_was_there(folder):
    before = (folder / "card.json").read_bytes()
    with pytest.raises(TypeError):
        checkpoints.save(folder, student(), IMAGE, {**ABOUT, "unknown": 1})
    assert (folder / "card.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["pd4"]
    checkpoints.load(folder)


# ------------------------------------------------------------------------------- plain diffusers


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        diffusers.logging.set_verbosity_error()
        return diffusers


def run(pipeline, noises: list[torch.Tensor], steps: int) -> np.ndarray:
    """The pipeline's own images [n, h, w, c] in [0, 1], with our noise in place of what it would draw."""
    supply = iter(noises)
    module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
    schedulers = __import__(type(pipeline.scheduler).__module__, fromlist=["randn_tensor"])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in (module, schedulers):
            patch.setattr(place, "randn_tensor", lambda *_, **__: next(supply).clone())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(batch_size=len(noises[0]), num_inference_steps=steps, output_type="np").images


def ours(denoiser: NetDenoiser, solver: str, noises: list[torch.Tensor], steps: int) -> torch.Tensor:
    return Sampler(denoiser, SOLVERS[solver](), uniform(steps)).sample(noises[0], lambda k: noises[k + 1])


def compare(theirs: np.ndarray, samples: torch.Tensor) -> None:
    expected = ((samples / 2 + 0.5).clamp(0, 1)).permute(0, 2, 3, 1).numpy()
    assert np.abs(theirs - expected).max() < 2e-5
    eight_bit = (theirs * 255).round().astype("uint8")
    differing = (eight_bit != to_uint8(samples).permute(0, 2, 3, 1).numpy()).mean()
    assert differing < 1e-3  # only a value within rounding of a half may fall to either side


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_progressive_student_in_plain_diffusers_gives_our_images(diffusers, tmp_path, steps):
    checkpoints.save(tmp_path / "s", student(steps), IMAGE, ABOUT)
    noises = [torch.randn(16, *IMAGE, generator=seeded(5))]
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "s", local_files_only=True)
    compare(run(pipeline, noises, steps), ours(checkpoints.load(tmp_path / "s").denoiser, "ddim", noises, steps))


def test_a_student_that_says_x0_in_plain_diffusers_gives_our_images(diffusers, tmp_path):
    checkpoints.save(tmp_path / "s", student(4, "x0"), IMAGE, ABOUT)
    noises = [torch.randn(16, *IMAGE, generator=seeded(5))]
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "s", local_files_only=True)
    compare(run(pipeline, noises, 4), ours(checkpoints.load(tmp_path / "s").denoiser, "ddim", noises, 4))


@pytest.mark.parametrize("solver", ["ddim", "multistep_consistency"])
@pytest.mark.parametrize("says", ["x0_eps", "flow"])
def test_diffusers_opens_a_network_of_ours_alone_and_refuses_to_step_with_it(diffusers, tmp_path, says, solver):
    """Neither of the two schedulers knows the parameterization; it must not be taken for another."""
    checkpoints.save(tmp_path / "s", student(4, says), IMAGE, {**ABOUT, "solver": solver})
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "s", local_files_only=True)
    x, timestep = torch.randn(3, *IMAGE, generator=seeded()), torch.tensor([100.0, 511.0, 1023.0])
    torch.testing.assert_close(pipeline.unet(x, timestep).sample, network(says)(x, timestep), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"prediction_type given as {says} must be one of"):
        run(pipeline, [x] * 5, 4)


@pytest.mark.parametrize("solver", ["ddim", "multistep_consistency"])
@pytest.mark.parametrize("says", ["x0_eps", "flow"])
@pytest.mark.parametrize("kind", [Cosine(), Normalised(Flow(3.0))], ids=["cosine", "flow"])
def test_the_loop_of_the_model_card_samples_what_no_scheduler_can_as_we_do(diffusers, tmp_path, kind, says, solver):
    """With diffusers' network and torch alone, from the same noise."""
    made = student(4, says)
    made.schedule = kind
    card = checkpoints.save(tmp_path / "s", made, IMAGE, {**ABOUT, "solver": solver})
    names: dict[str, object] = {}
    torch.manual_seed(5)
    exec(loop(card, card.grid, read_config(tmp_path / "s/unet")).replace("PATH", str(tmp_path / "s")), names)
    torch.manual_seed(5)
    noises = [torch.randn(16, *IMAGE) for _ in range(5)]
    samples = ours(checkpoints.load(tmp_path / "s").denoiser, solver, noises, 4)
    torch.testing.assert_close(names["x"], samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(names["images"], (samples / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "multistep_consistency"])
@pytest.mark.parametrize(
    ("reading", "kind"),
    [
        (Reading.of("flow", "flow", 1000), Normalised(Flow(3.0))),
        (Reading.of("flow", "flow"), Normalised(Flow())),
        (Reading.of("flow", "flow"), Cosine()),
        (Reading.of("flow", "v"), Cosine()),
        (Reading.of("edm", "edm", sigma_data=0.5), Normalised(EDM())),
        (Reading.of("edm", "v", sigma_data=0.5), Normalised(EDM())),
        (Reading.of("edm", "x0"), Normalised(EDM(0.02, 20.0))),
        (Reading.of("ve", "score"), Normalised(VE())),
        (Reading.of("ve", "eps"), Normalised(VE())),
    ],
    ids=lambda each: "".join(c for c in str(each)[:60] if c.isalnum()),
)
def test_a_student_of_another_reading_samples_in_diffusers_as_here(diffusers, tmp_path, reading, kind, solver):
    """By diffusers' scheduler of rectified flow where it is one, else by the loop of the model card: from the same noise."""
    net = network()
    checkpoints.save(tmp_path / "s", NetDenoiser(net, kind, reading, uniform(4)), IMAGE, {**ABOUT, "solver": solver})
    card, own = checkpoints.read_card(tmp_path / "s"), checkpoints.load(tmp_path / "s").denoiser
    text, names = loop(card, card.grid, read_config(tmp_path / "s/unet")), {}
    is_flow = (reading.input, reading.parameterization) == ("flow", "flow")
    name = "FlowMatchLCMScheduler" if solver == "multistep_consistency" else "FlowMatchEulerDiscreteScheduler"
    assert (f"{name}.from_pretrained" in text) == is_flow == (tmp_path / "s/scheduler").exists()
    assert not (tmp_path / "s/model_index.json").exists()  # no pipeline of diffusers samples it at these times
    torch.manual_seed(5)
    exec(text.replace("PATH", str(tmp_path / "s")), names)
    torch.manual_seed(5)
    noises = [torch.randn(16, *IMAGE) for _ in range(5)]
    samples = ours(own, solver, noises, 4)
    scale = float(samples.abs().max())
    torch.testing.assert_close(names["x"] / scale, samples / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "multistep_consistency"])
@pytest.mark.parametrize("levels", [1024, 1000, 50])
def test_the_scheduler_of_a_student_steps_at_its_times_whatever_its_teacher_counts_in(diffusers, levels, solver):
    """At the first of them too, which is T - 1, for every number of steps that divides T."""
    kind = Discrete((0.02,) * levels)
    _, settings = to_diffusers.scheduler(NetDenoiser(network(), kind, Reading("v", levels)), solver)
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    for steps in (each for each in (1, 2, 4, 5, 8, 10) if levels % each == 0):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == [round(t * levels) - 1 for t in uniform(steps).times[:-1]], steps


def test_the_loop_of_a_network_with_classes_tells_it_classes(diffusers, tmp_path):
    net = unet.build(unet.default_config(IMAGE, (8, 16), classes=4), 3)
    checkpoints.save(
        tmp_path / "s", NetDenoiser(net, Cosine(), grid=uniform(4), classes=3), IMAGE, {**ABOUT, "classes": list("abc")}
    )
    card, own, names = checkpoints.read_card(tmp_path / "s"), checkpoints.load(tmp_path / "s").denoiser, {}
    torch.manual_seed(5)
    exec(loop(card, card.grid, read_config(tmp_path / "s/unet")).replace("PATH", str(tmp_path / "s")), names)
    torch.manual_seed(5)
    noises = [torch.randn(16, *IMAGE)]
    samples = ours(own.with_condition(of_classes(torch.arange(16) % 3)), "ddim", noises, 4)
    torch.testing.assert_close(names["x"], samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", [False, True])
def test_the_loop_of_a_transformer_of_pixels(diffusers, tmp_path, variance):
    """Of diffusers' own class, with classes; of a learned variance it takes the mean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, num_layers=1, norm_num_groups=2, in_channels=1, sample_size=8,
            num_embeds_ada_norm=3, patch_size=2, out_channels=2 if variance else 1,
        )  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    net.save_pretrained(tmp_path / "net")
    about = {**ABOUT, "classes": list("abc")}
    checkpoints.save(
        tmp_path / "s", NetDenoiser(open_net(tmp_path / "net"), Cosine(), grid=uniform(4), classes=3), IMAGE, about
    )
    assert not (tmp_path / "s/model_index.json").exists()
    card, own, names = checkpoints.read_card(tmp_path / "s"), checkpoints.load(tmp_path / "s").denoiser, {}
    torch.manual_seed(5)
    exec(loop(card, card.grid, read_config(tmp_path / "s/unet")).replace("PATH", str(tmp_path / "s")), names)
    torch.manual_seed(5)
    samples = ours(own.with_condition(of_classes(torch.arange(16) % 3)), "ddim", [torch.randn(16, *IMAGE)], 4)
    torch.testing.assert_close(names["x"], samples, rtol=1e-4, atol=1e-4)


def test_a_learned_variance_is_no_pipeline_s_of_diffusers(diffusers, tmp_path):
    """A UNet2DModel with one has a loop, which takes its mean."""
    with torch.random.fork_rng():
        content = {k: v for k, v in network("x0_eps").config_json().items() if k[0] != "_"}
        net = diffusers.UNet2DModel(**content).eval()
    net.save_pretrained(tmp_path / "net")
    made = NetDenoiser(open_net(tmp_path / "net"), Cosine(), grid=uniform(4))
    checkpoints.save(tmp_path / "s", made, IMAGE, ABOUT)
    assert not (tmp_path / "s/model_index.json").exists()
    card, names = checkpoints.read_card(tmp_path / "s"), {}
    torch.manual_seed(5)
    exec(loop(card, card.grid, read_config(tmp_path / "s/unet")).replace("PATH", str(tmp_path / "s")), names)
    torch.manual_seed(5)
    samples = ours(checkpoints.load(tmp_path / "s").denoiser, "ddim", [torch.randn(16, *IMAGE)], 4)
    torch.testing.assert_close(names["x"], samples, rtol=1e-4, atol=1e-4)


def test_where_diffusers_own_pipeline_samples_there_is_no_loop(folder):
    assert loop(checkpoints.read_card(folder), (1.0, 0.0), read_config(folder / "unet")) is None


def test_a_learned_variance_is_not_taken_for_x0_eps(diffusers, tmp_path):
    """A network of twice the channels whose parameterization is another: its first half, then and after it was saved
    again."""
    with torch.random.fork_rng():
        net = diffusers.UNet2DModel(**{k: v for k, v in network("x0_eps").config_json().items() if k[0] != "_"}).eval()
    net.save_pretrained(tmp_path / "unet")
    x, timestep = torch.randn(3, *IMAGE, generator=seeded()), torch.tensor([100.0, 511.0, 1023.0])
    found = NetDenoiser(open_net(tmp_path / "unet", "eps"), Cosine(), Reading("eps"))
    checkpoints.save(tmp_path / "s", found, IMAGE, ABOUT)
    for opened in (found, checkpoints.load(tmp_path / "s").denoiser):
        assert torch.equal(opened.net(x, timestep), net(x, timestep).sample[:, :1])
        assert opened(x, timestep / 1024).eps.shape == x.shape


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_consistency_student_in_plain_diffusers_gives_our_images(diffusers, tmp_path, steps):
    checkpoints.save(
        tmp_path / "s", student(None), IMAGE, {**ABOUT, "method": "consistency", "solver": "multistep_consistency"}
    )
    noises = [torch.randn(16, *IMAGE, generator=seeded(seed)) for seed in range(steps + 1)]
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "s", local_files_only=True)
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    compare(
        run(pipeline, noises, steps),
        ours(checkpoints.load(tmp_path / "s").denoiser, "multistep_consistency", noises, steps),
    )


def test_another_number_of_steps_gives_other_images(diffusers, tmp_path):
    """The comparison above can fail."""
    checkpoints.save(tmp_path / "s", student(4), IMAGE, ABOUT)
    noises = [torch.randn(16, *IMAGE, generator=seeded(5))]
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "s", local_files_only=True)
    with pytest.raises(AssertionError):
        compare(run(pipeline, noises, 2), ours(checkpoints.load(tmp_path / "s").denoiser, "ddim", noises, 4))


def test_the_seal_is_of_every_field_of_a_card(folder):
    text = (folder / "card.json").read_text()
    card = json.loads(text)
    assert {field.name for field in dataclasses.fields(checkpoints.Card)} - card.keys() == {
        "watch",
        "reading",
        "inputs",
        "encoder",
        "prompts",
        "end",
    }
    for field in dataclasses.fields(checkpoints.Card):
        for value in (1, ["x"], None):
            if value == card.get(field.name):
                continue
            rewrite(folder, **{field.name: value})
            with pytest.raises(UserError):
                checkpoints.read_card(folder)
            (folder / "card.json").write_text(text)
        if (
            field.name not in card
        ):  # only the card of a watched training, of another reading, or of a network told more has it
            continue
        without = {name: value for name, value in card.items() if name != field.name}
        (folder / "card.json").write_text(json.dumps(without))
        with pytest.raises(UserError):
            checkpoints.read_card(folder)
        (folder / "card.json").write_text(json.dumps(card))


def test_a_card_from_before_cards_told_of_precision_is_read_as_it_is(folder):
    card = json.loads((folder / "card.json").read_text())
    old = {name: value for name, value in card.items() if name not in ("compute", "seal")}
    (folder / "card.json").write_text(json.dumps({**old, "seal": disk.digest(old)}))
    opened = checkpoints.load(folder).card
    assert opened.compute is None
    assert opened.digest == card["digest"]
    rewrite(folder, compute=card["compute"])  # nobody gives it another past
    with pytest.raises(UserError, match="was changed since it was written"):
        checkpoints.read_card(folder)


def test_a_card_says_all_that_it_was_told_and_what_the_denoiser_is(tmp_path):
    card = checkpoints.save(tmp_path / "s", student(None, "x0"), IMAGE, {**ABOUT, "solver": "multistep_consistency"})
    assert checkpoints.read_card(tmp_path / "s") == card
    found = dataclasses.asdict(card)
    assert {key: found[key] for key in ABOUT} == {**ABOUT, "solver": "multistep_consistency"}
    assert (card.parameterization, card.num_timesteps, card.grid, card.image) == ("x0", 1024, None, list(IMAGE))
    assert (card.classes, card.guidance, card.schedule) == (None, None, {"name": "cosine"})
    for name, digest in card.files.items():
        assert disk.sha256(tmp_path / "s" / name) == digest


def test_a_card_of_other_classes_than_the_network_s_is_not_written(tmp_path):
    denoiser = student()
    for classes in (["a"], ["a", "b"]):
        with pytest.raises(ValueError, match="cannot have the card of"):
            checkpoints.save(tmp_path / "s", denoiser, IMAGE, {**ABOUT, "classes": classes})
    assert not (tmp_path / "s").exists()


def test_what_is_opened_does_not_learn(folder):
    net = checkpoints.load(folder).denoiser.net
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_a_checkpoint_moves_to_a_device_and_stays_what_it_is(folder):
    """To a device that needs no hardware; in the memory order that is fast there."""
    opened = checkpoints.load(folder)
    for device in ("cpu", "meta"):
        moved = opened.to(torch.device(device))
        assert moved.card == opened.card
        assert (moved.shape, moved.guidance) == (opened.shape, opened.guidance)
        weights = list(moved.denoiser.net.parameters())
        assert {weight.device.type for weight in weights} == {device}
        order = fastest(opened.denoiser.net, IMAGE, device)
        assert all(w.is_contiguous(memory_format=order) for w in weights if w.dim() == 4)
        assert (moved.denoiser.grid, moved.denoiser.reading.parameterization) == (uniform(4), "v")
