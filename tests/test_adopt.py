"""A teacher from elsewhere: folders that diffusers wrote, as they are, and through every stage of the pipeline."""

import contextlib
import copy
import csv
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcore import checkpoints
from diffcore.checkpoints import against_diffusers, from_diffusers
from diffcore.checkpoints.from_diffusers import SCHEDULER, _image
from diffcore.checkpoints.schedulers import PREDICTION_TYPES, SAMPLERS
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import embeddings
from diffcore.data.embeddings import of_pipeline
from diffcore.data.feed import to_uint8
from diffcore.data.manifest import Manifest
from diffcore.denoisers.condition import Condition, of_classes
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import diffusers_model, unet
from diffcore.noise.schedule import Cosine, Discrete
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.config import torch_version
from tasks import command, params, paths, sections
from tests.conftest import seeded
from tests.test_checkpoint import ABOUT, IMAGE, student

diffusers = pytest.importorskip("diffusers")
ROOT = Path(__file__).parent.parent
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}
ZERO = {"rescale_betas_zero_snr": True}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network(**change):
    return diffusers.UNet2DModel(**{**TINY, **change}).eval()


def save(folder: Path, net=None, kind: str = "DDIMScheduler", **settings):
    """A pipeline of diffusers in `folder`; its network and its scheduler."""
    net, scheduler = net or network(), getattr(diffusers, kind)(**settings)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return net, scheduler


def changed(folder: Path, name: str, **change) -> None:
    """Sets keys of a JSON file; None takes one out."""
    content = {**json.loads((folder / name).read_text()), **change}
    disk.write_json(folder / name, {key: value for key, value in content.items() if value is not None})


def images(count: int = 5, channels: int = 1):
    return torch.randn(count, channels, 8, 8, generator=seeded())


# ------------------------------------------------------------------------------- the same beliefs


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize(
    "settings",
    [{}, SCALED, {"beta_schedule": "squaredcos_cap_v2"}, {"num_train_timesteps": 50, "trained_betas": [0.02] * 50}],
)
def test_the_schedule_is_diffusers(kind, settings, tmp_path):
    _, scheduler = save(tmp_path, kind=kind, **settings)
    schedule = from_diffusers.read(tmp_path).denoiser.schedule
    count = len(scheduler.alphas_cumprod)
    t = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert torch.allclose(schedule.alpha(t) ** 2, scheduler.alphas_cumprod.double(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"beta_schedule": "sigmoid"}, ZERO, {**SCALED, **ZERO}])
def test_the_schedules_that_only_some_schedulers_know(settings, tmp_path):
    _, scheduler = save(tmp_path, kind="DDPMScheduler", prediction_type="v_prediction", **settings)
    schedule = from_diffusers.read(tmp_path).denoiser.schedule
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(schedule.alpha(t) ** 2, scheduler.alphas_cumprod.double(), atol=1e-6)
    assert (schedule.alpha(t[-1:]) == 0).all() == ("rescale_betas_zero_snr" in settings)


def apart(ours, theirs) -> float:
    """The largest difference, beside the largest value. diffusers' own alphas are float32: sigma at 0 is good to 3e-4."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("word", PREDICTION_TYPES)
@pytest.mark.parametrize("settings", [{}, SCALED])
@torch.no_grad()
def test_beliefs_are_diffusers_to_float32_rounding(word, settings, tmp_path):
    net, scheduler = save(tmp_path, prediction_type=word, clip_sample=False, **settings)
    denoiser, x = from_diffusers.read(tmp_path).denoiser, images()
    assert isinstance(denoiser.net, unet.UNet)
    scheduler.set_timesteps(1000)
    for j in (0, 1, 17, 500, 998, 999):
        out = net(x, j).sample
        x0 = scheduler.step(out, j, x).pred_original_sample
        a, s = scheduler.alphas_cumprod[j].sqrt(), (1 - scheduler.alphas_cumprod[j]).sqrt()
        eps = {"epsilon": out, "v_prediction": a * out + s * x, "sample": (x - a * x0) / s}[word]
        belief = denoiser(x, torch.full((5,), (j + 1) / 1000, dtype=torch.float64))
        assert apart(getattr(belief, PREDICTION_TYPES[word]), out) < 1e-5, j
        assert apart(belief.x0, x0) < 1e-3, j
        assert apart(belief.eps, eps) < 1e-3, j
        assert apart(belief.v, a * eps - s * x0) < 1e-3, j


THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("DDPMScheduler", {}, {"clip": 1.0}),
        ("DDIMScheduler", {"clip_sample_range": 2.5}, {"clip": 2.5}),
        ("DDIMScheduler", {"clip_sample": False}, {}),
        ("DDIMScheduler", THRESHOLDING, {"threshold": {"quantile": 0.9, "max": 2.0}}),
        ("DPMSolverMultistepScheduler", THRESHOLDING, {"threshold": {"quantile": 0.9, "max": 2.0}}),
        ("DPMSolverMultistepScheduler", {}, {}),
        ("PNDMScheduler", {}, {}),
    ],
)
def test_what_a_scheduler_does_to_x0_is_read(kind, settings, told, tmp_path):
    save(tmp_path, kind=kind, **settings)
    assert from_diffusers.read(tmp_path).sampling == told


def test_what_a_scheduler_does_not_say_it_does_as_in_diffusers(tmp_path):
    save(tmp_path, kind="DDPMScheduler")
    changed(tmp_path, SCHEDULER, clip_sample=None, clip_sample_range=None)
    assert from_diffusers.read(tmp_path).sampling == {"clip": 1.0}


@pytest.mark.parametrize("settings", [{"clip_sample_range": -1.0}, {**THRESHOLDING, "sample_max_value": "much"}])
def test_a_limit_that_is_none_is_refused(settings, tmp_path):
    save(tmp_path)
    changed(tmp_path, SCHEDULER, **settings)
    with pytest.raises(UserError, match="limits x_0 by what is no limit"):
        from_diffusers.read(tmp_path)


def test_pure_noise_at_the_end_is_exact(tmp_path):
    net, _ = save(tmp_path, prediction_type="v_prediction", **ZERO)
    denoiser, x = from_diffusers.read(tmp_path).denoiser, images()
    belief = denoiser(x, torch.ones(5, dtype=torch.float64))
    assert torch.equal(belief.eps, x)
    assert torch.allclose(belief.x0, -net(x, 999).sample, atol=1e-5)


def test_classes_with_a_last_row_for_none(tmp_path):
    net, _ = save(tmp_path, network(num_class_embeds=4))
    found, x, t = from_diffusers.read(tmp_path), images(3), torch.full((3,), 0.5, dtype=torch.float64)
    assert found.denoiser.classes == 3
    assert torch.allclose(found.denoiser(x, t).eps, net(x, 499, torch.tensor([3, 3, 3])).sample, atol=1e-5)
    found.check((1, 8, 8), ["a", "b", "c"])
    with pytest.raises(UserError, match=r"class table has 4 rows, and the data have 2 classes"):
        found.check((1, 8, 8), ["a", "b"])
    with pytest.raises(UserError, match=r"and the data have 0 classes"):
        found.check((1, 8, 8), None)


def test_classes_in_another_order_are_other_classes(tmp_path):
    save(tmp_path, network(num_class_embeds=4))
    found = dataclasses.replace(from_diffusers.read(tmp_path), classes=("a", "b", "c"))
    found.check((1, 8, 8), ["a", "b", "c"])
    for others in (["b", "a", "c"], ["a", "b", "d"]):
        with pytest.raises(UserError, match="the teacher's classes are a, b, c and the data's are "):
            found.check((1, 8, 8), others)


def test_what_our_u_net_lacks_comes_through_the_adapter(tmp_path):
    net, _ = save(tmp_path, network(down_block_types=["ResnetDownsampleBlock2D", "DownBlock2D"]))
    denoiser, x = from_diffusers.read(tmp_path).denoiser, images(2)
    assert isinstance(denoiser.net, diffusers_model.DiffusersModel)
    assert torch.equal(denoiser(x, torch.ones(2, dtype=torch.float64)).eps, net(x, 999).sample)


# ------------------------------------------------------------------------------- flows, EDM, other networks


def denoised(scheduler, model, x, number: int):
    """diffusers' own belief about x_0 after one call of its network, and sigma there, in the scheduler's scale."""
    t, sigma = scheduler.timesteps[number], scheduler.sigmas[number]
    if type(scheduler).__name__.startswith("FlowMatch"):
        return x - sigma * model(x, t.expand(len(x))), sigma
    scheduler._step_index = None
    out = model(scheduler.scale_model_input(x, t), t.expand(len(x)))
    return scheduler.precondition_outputs(x, out, sigma), sigma


PROCESSES = {
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow of 500": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}),
    "flow by Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    "EDM": ("EDMEulerScheduler", {}),
    "EDM of other data": ("EDMEulerScheduler", {"sigma_data": 1.5, "sigma_max": 20.0, "rho": 5.0}),
    "EDM of -F": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "EDM exponential": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    "EDM by DPM": ("EDMDPMSolverMultistepScheduler", {"sigma_max": 40.0}),
}


@pytest.mark.parametrize("case", PROCESSES)
@torch.no_grad()
def test_beliefs_of_flows_and_of_edm_are_diffusers_to_float32_rounding(case, tmp_path):
    """At the times that the scheduler steps at, from data under as much noise."""
    kind, settings = PROCESSES[case]
    net, scheduler = save(tmp_path / "p", kind=kind, **settings)
    own = from_diffusers.read(tmp_path / "p").denoiser
    scheduler.set_timesteps(7)
    noise, x0 = images(), images().flip(0)
    for number in range(0, 6):
        is_flow = kind.startswith("FlowMatch")
        sigma = scheduler.sigmas[number]
        x = (1 - sigma if is_flow else 1) * x0 + sigma * noise
        theirs, sigma = denoised(scheduler, lambda a, t: net(a, t).sample, x, number)
        ratio = sigma / (1 - sigma) if is_flow else sigma
        t = own.schedule.time(-torch.as_tensor(ratio).double().log().expand(len(x)))
        scale = (
            float(own.schedule.alpha(t)[0] / (1 - sigma)) if is_flow and sigma < 1 else float(own.schedule.alpha(t)[0])
        )
        if is_flow and sigma == 1:
            t, scale = torch.ones(len(x), dtype=torch.float64), 1.0
        found = own(scale * x, t).x0
        assert apart(found, theirs) < 2e-5


@pytest.mark.parametrize("case", ["flow", "flow shifted", "EDM", "EDM exponential"])
def test_the_schedule_of_sigmas_is_diffusers(case, tmp_path):
    """Even steps of t are the scheduler's own sigmas, as many as its pipeline takes of it."""
    kind, settings = PROCESSES[case]
    _, scheduler = save(tmp_path / "p", kind=kind, **settings)
    schedule = from_diffusers.read(tmp_path / "p").denoiser.schedule
    if kind.startswith("FlowMatch"):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
        t = torch.linspace(1, 1 / 8, 8, dtype=torch.float64)
        sigmas = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
    else:
        scheduler.set_timesteps(8)
        t = torch.linspace(1, 0, 8, dtype=torch.float64)
        sigmas = schedule.sigma(t) / schedule.alpha(t)
    torch.testing.assert_close(sigmas, scheduler.sigmas[:8].double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_is_that_of_the_images(kind, tmp_path):
    """As the pipeline of such a network works it out: mu is linear in the number of patches."""
    net = diffusers.DiTTransformer2DModel(**DIT).eval()
    settings = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "time_shift_type": kind}
    _, scheduler = save(tmp_path / "p", net, "FlowMatchEulerDiscreteScheduler", **settings)
    (tmp_path / "p/unet").rename(tmp_path / "p/transformer")
    schedule = from_diffusers.read(tmp_path / "p").denoiser.schedule
    mu = 0.5 + (1.15 - 0.5) * (16 - 4) / (64 - 4)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=mu)
    t = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    sigmas = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
    torch.testing.assert_close(sigmas, scheduler.sigmas[:10].double(), rtol=1e-5, atol=1e-7)


DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "norm_num_groups": 2, "in_channels": 1,
    "sample_size": 8, "num_embeds_ada_norm": 3, "patch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("variance", [False, True])
@torch.no_grad()
def test_a_transformer_of_pixels_is_adopted_and_its_learned_variance_left(variance, tmp_path):
    net = diffusers.DiTTransformer2DModel(**DIT, out_channels=2 if variance else 1).eval()
    save(tmp_path / "p", net, "DDIMScheduler", clip_sample=False)
    (tmp_path / "p/unet").rename(tmp_path / "p/transformer")
    found = from_diffusers.read(tmp_path / "p")
    found.check([1, 8, 8], ["a", "b", "c"])
    assert (found.denoiser.classes, found.image) == (3, (1, 8, 8))
    assert "transformer/config.json" in found.files
    x, labels = images(3), torch.tensor([0, 2, -1])
    own = found.denoiser.with_condition(of_classes(labels))(x, torch.full((3,), 0.4).double())
    theirs = net(x, timestep=torch.full((3,), 399.0), class_labels=torch.tensor([0, 2, 3])).sample[:, :1]
    assert apart(own.eps, theirs) < 2e-5


@torch.no_grad()
def test_a_u_net_with_a_learned_variance_teaches_its_mean(tmp_path):
    net, _ = save(tmp_path / "p", network(out_channels=2), clip_sample=False)
    found = from_diffusers.read(tmp_path / "p")
    x = images()
    own = found.denoiser(x, torch.full((5,), 0.4).double())
    assert apart(own.eps, net(x, torch.full((5,), 399.0)).sample[:, :1]) < 2e-5


@pytest.mark.parametrize(
    "case", [*PROCESSES, *(f"betas {word}" for word in PREDICTION_TYPES), "betas of 50", "betas of a sigmoid"]
)
def test_samples_of_an_adopted_teacher_are_those_of_diffusers(case, tmp_path):
    """By diffusers' network and scheduler, from the same noise; and a teacher that is read otherwise is seen."""
    kind, settings = PROCESSES.get(case, ("DDPMScheduler", {"prediction_type": case.split()[-1]}))
    if case == "betas of 50":
        settings = {"num_train_timesteps": 50, "beta_end": 0.2}
    if case == "betas of a sigmoid":
        settings = {"beta_schedule": "sigmoid"}
    save(tmp_path / "p", kind=kind, **settings)
    found = from_diffusers.read(tmp_path / "p")
    gap = against_diffusers.gap(tmp_path / "p", found, IMAGE)
    assert gap.largest < 1e-4
    assert gap.steps == (5 if case == "betas of 50" else 4)
    word = "v" if found.denoiser.reading.parameterization != "v" else "flow"
    other = dataclasses.replace(found.denoiser.reading, parameterization=word)
    wrong = dataclasses.replace(found, denoiser=NetDenoiser(found.denoiser.net, found.denoiser.schedule, other))
    assert against_diffusers.gap(tmp_path / "p", wrong, IMAGE).largest > 1e-2


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # between diffusers and numpy
@pytest.mark.parametrize("kind", SAMPLERS)
def test_samples_are_diffusers_with_whichever_scheduler_of_betas_a_folder_comes(kind, tmp_path):
    """Each of them by its own defaults, of which all are stepped by DDIM."""
    save(tmp_path / "p", kind=kind)
    found = from_diffusers.read(tmp_path / "p")
    gap = against_diffusers.gap(tmp_path / "p", found, IMAGE)
    assert gap.scheduler == "DDIMScheduler"
    assert gap.largest < 1e-4


def test_samples_of_an_adopted_transformer_are_those_of_diffusers(tmp_path):
    """With classes; of a checkpoint of ours nothing is said."""
    save(tmp_path / "p", diffusers.DiTTransformer2DModel(**DIT, out_channels=2).eval(), clip_sample=False)
    (tmp_path / "p/unet").rename(tmp_path / "p/transformer")
    found = from_diffusers.read(tmp_path / "p")
    gap = against_diffusers.gap(tmp_path / "p", found, IMAGE)
    assert (gap.scheduler, gap.largest < 1e-4) == ("DDIMScheduler", True)
    checkpoints.save(tmp_path / "c", found.denoiser, IMAGE, {**ABOUT, "classes": list("abc")})
    assert against_diffusers.gap(tmp_path / "c", from_diffusers.read(tmp_path / "c"), IMAGE) is None


@pytest.mark.parametrize("case", ["flow shifted", "EDM"])
def test_a_checkpoint_of_another_process_is_opened_as_it_was_adopted(case, tmp_path):
    kind, settings = PROCESSES[case]
    save(tmp_path / "p", kind=kind, **settings)
    own = from_diffusers.read(tmp_path / "p").denoiser
    checkpoints.save(tmp_path / "c", own, IMAGE, ABOUT)
    again = from_diffusers.read(tmp_path / "c").denoiser
    x, t = images(), torch.full((5,), 0.6).double()
    assert again.reading == own.reading
    assert torch.equal(again(x, t).x0, own(x, t).x0)


TOLD = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip


def told_texts(**change):
    return diffusers.UNet2DConditionModel(**{**TOLD, **change}).eval()


def encoders(folder: Path, **files: str) -> None:
    """Files of text encoders and tokenizers, by a name with one underscore more for the folder."""
    for name, text in {"text_encoder__config.json": "{}", "tokenizer_2__vocab.json": "[]", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@torch.no_grad()
def test_a_network_that_is_told_texts_is_adopted_and_must_be_told_one(tmp_path):
    net, _ = save(tmp_path / "p", told_texts(), clip_sample=False)
    found, x, t = from_diffusers.read(tmp_path / "p"), images(2), torch.full((2,), 0.4).double()
    assert found.denoiser.nothing.parts() == {"text": None, "text_mask": None}
    assert (found.denoiser.classes, found.denoiser.takes_guidance, found.encoder) == (None, False, None)
    with pytest.raises(UserError, match="this network must be told text, and nothing stands for it"):
        found.denoiser(x, t)
    text = torch.randn(2, 3, 8, generator=seeded(1))
    own = found.denoiser.with_condition(Condition({"text": text}))(x, t)
    assert apart(own.eps, net(x, 399, text).sample) < 1e-5
    gap = against_diffusers.gap(tmp_path / "p", found, IMAGE)
    assert gap.largest < 1e-4
    card = checkpoints.save(tmp_path / "c", found.denoiser, IMAGE, {**ABOUT, "encoder": "e"})
    assert (card.inputs, card.encoder) == (["text", "text_mask"], "e")
    again = from_diffusers.read(tmp_path / "c")
    assert again.encoder == "e"
    assert torch.equal(again.denoiser.with_condition(Condition({"text": text}))(x, t).eps, own.eps)
    assert "encoder" not in checkpoints.save(tmp_path / "d", student(None), IMAGE, {**ABOUT, "encoder": None}).to_json()


def test_the_digest_of_the_encoders_is_of_their_names_and_bytes_alone(copied):
    assert of_pipeline(copied) is None
    encoders(copied)
    first = from_diffusers.read(copied).encoder
    (copied / "vae").mkdir()
    (copied / "vae/config.json").write_text("{}")
    assert of_pipeline(copied) == first
    digests = {first}
    for name, text in (
        ("text_encoder__config.json", "[]"),
        ("text_encoder_3__config.json", "{}"),
        ("tokenizer_2__merges.txt", ""),
    ):
        encoders(copied, **{name: text})
        digests.add(of_pipeline(copied))
    (copied / "tokenizer_2/vocab.json").rename(copied / "tokenizer_2/words.json")
    assert len(digests | {of_pipeline(copied)}) == 5


def test_a_network_that_is_told_how_noisy_an_image_is_is_refused_by_name(tmp_path):
    save(tmp_path / "p", told_texts(num_class_embeds=20, in_channels=2))
    with pytest.raises(
        UserError, match="is told text, text_mask, image is told by class_labels how noisy its image is"
    ):
        from_diffusers.read(tmp_path / "p")


# ------------------------------------------------------------------------------- refusals


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))


def cut(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def not_finite(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, path)


def rewritten(name, **change):
    return lambda folder: changed(folder, name, **change)


def poisoned(value):
    """One value of one tensor, as a training that diverged or a bad download leaves it."""

    def change(folder):
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["conv_in.bias"][3] = value
        save_file(tensors, path)

    return change


def moved(old, new):
    return lambda folder: (folder / old).rename(folder / new)


CONFIG = "unet/config.json"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
KARRAS = {"_class_name": "EDMEulerScheduler"}
SAVED = {
    "no scheduler": (remove(SCHEDULER), "scheduler_config.json is missing; save its pipeline with save_pretrained"),
    "no network": (remove(CONFIG), "holds no network: config.json is missing"),
    "no weights": (remove("unet/diffusion_pytorch_model.safetensors"), "holds no .safetensors"),
    "pickled weights": (pickled, "holds pickled weights only"),
    "half the weights": (cut, "does not hold this network's weights"),
    "weights that are not finite": (not_finite, "unet: conv_in.weight holds 1 of "),
    "no JSON": (lambda folder: (folder / SCHEDULER).write_text("{"), "is not valid JSON"),
    "JSON without end": (lambda folder: (folder / SCHEDULER).write_text("[" * 100_000), "is not valid JSON"),
    "a network without end": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "is not valid JSON"),
    "no mapping": (lambda folder: (folder / SCHEDULER).write_text("[1]"), "is of an unknown scheduler: its process is"),
    "a weight that is NaN": (poisoned(float("nan")), "unet: conv_in.bias holds 1 of "),
    "a weight without bounds": (poisoned(float("inf")), "values that are NaN or infinite; fetch it again, or take another"),
    "a flow's student": (rewritten(SCHEDULER, _class_name="FlowMatchLCMScheduler"), "it is a student that jumps"),
    "a flow of the data": (rewritten(SCHEDULER, **FLOW, invert_sigmas=True), "with invert_sigmas: its sigmas are of"),
    "a flow by a flag": (rewritten(SCHEDULER, use_flow_sigmas=True), "use_flow_sigmas needs prediction_type"),
    "a flow without a shift": (rewritten(SCHEDULER, **FLOW, use_dynamic_shifting=True), "its shift depends on the size of"),
    "a flow of an odd shift": (rewritten(SCHEDULER, **FLOW, shift=-1.0), "has odd numbers (flow schedule: shift"),
    "EDM of odd noise": (rewritten(SCHEDULER, **KARRAS, sigma_min=90.0), "has odd numbers (edm schedule: 0 < sigma_min"),
    "EDM of no word": (rewritten(SCHEDULER, **KARRAS, prediction_type="sample"), "is not one of epsilon, v_prediction;"),
    "another curve of EDM": (rewritten(SCHEDULER, **KARRAS, sigma_schedule="x"), "sigma_schedule 'x' is not one of karras"),
    "an unknown network": (rewritten(CONFIG, _class_name="HunyuanDiT2DModel"), "HunyuanDiT2DModel"),
    "variance exploding": (rewritten(SCHEDULER, _class_name="ScoreSdeVeScheduler"), "(variance exploding)"),
    "another time": (rewritten(CONFIG, time_embedding_type="learned"), "time_embedding_type 'learned' is not known"),
    "another class": (rewritten(CONFIG, class_embed_type="timestep"), "class_embed_type 'timestep' is not known"),
    "an SDE": (rewritten(SCHEDULER, _class_name="ScoreSdeVpScheduler"), "ScoreSdeVpScheduler: its network is told"),
    "a student": (rewritten(SCHEDULER, _class_name="LCMScheduler"), "is of LCMScheduler: it is a student"),
    "another word": (rewritten(SCHEDULER, prediction_type="flow"), "prediction_type 'flow' is not one of epsilon"),
    "an old word": (rewritten(SCHEDULER, predict_epsilon=False), "is not one of epsilon, v_prediction, sample; write"),
    "unknown betas": (rewritten(SCHEDULER, beta_schedule="laplace"), "beta_schedule 'laplace' is unknown); write them"),
    "no betas": (rewritten(SCHEDULER, beta_start=None), "gives no betas (beta_start is missing)"),
    "too few betas": (rewritten(SCHEDULER, trained_betas=[0.1]), "1 trained_betas for 1000 num_train_timesteps"),
    "no numbers": (rewritten(SCHEDULER, beta_end="0.02"), "gives no betas"),
    "negative betas": (rewritten(SCHEDULER, beta_start=-0.1), "betas must be a non-empty list of numbers in (0, 1]"),
    "noise too early": (rewritten(SCHEDULER, trained_betas=[1.0] * 1000), "only the last beta can be 1"),
    "no image at t = 1": (rewritten(SCHEDULER, **ZERO), "has no image at t = 1, where sampling begins; it must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_what_cannot_be_taken_as_it_is_is_refused_in_one_line(case, tmp_path):
    change, message = SAVED[case]
    save(tmp_path / "pipeline")
    change(tmp_path / "pipeline")
    with pytest.raises(UserError) as caught:
        from_diffusers.read(tmp_path / "pipeline")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "save the pipeline with the DDPMScheduler" not in str(caught.value)  # it would make a false teacher of it


def test_weights_that_diffusers_pickled_are_adopted_after_distill_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = network()
    diffusers.DDPMPipeline(net, diffusers.DDIMScheduler()).save_pretrained("ddpm", safe_serialization=False)
    weights = Path("ddpm/unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pickled weights only, .* or write their tensors with `distill read`$"):
        from_diffusers.read(Path("ddpm"))
    with pytest.raises(
        UserError, match=r"\.bin holds tensors by name and not what network .* a folder in .*; `distill read` writes"
    ):
        from_diffusers.read(weights)
    assert command.main(["read", str(weights), "out"]) == 0
    Path("out/model.safetensors").rename(weights.with_suffix(".safetensors"))
    ours = from_diffusers.read(Path("ddpm")).denoiser.net(images(), torch.full((5,), 3.0))
    assert apart(ours, net(images(), 3).sample.detach()) < 1e-5


ODD = (None, -1, 0, 10**12, 1e300, "", "nonesuch", [], [8, 8], {"a": 1}, True, [None])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's and diffusers' own, of networks that make no sense
@pytest.mark.parametrize("name", [SCHEDULER, CONFIG])
def test_whatever_a_key_says_it_is_taken_or_refused_by_a_mistake(name, tmp_path):
    save(tmp_path / "pipeline")
    sound = (tmp_path / "pipeline" / name).read_text()
    keys = [*json.loads(sound), "trained_betas"] if name == SCHEDULER else SPOILED
    for key, value in itertools.product(keys, ODD):
        changed(tmp_path / "pipeline", name, **{key: value})
        with contextlib.suppress(UserError):
            from_diffusers.read(tmp_path / "pipeline")
        (tmp_path / "pipeline" / name).write_text(sound)


SPOILED = ("act_fn", "dropout", "layers_per_block", "norm_num_groups", "sample_size", "num_class_embeds", "_class_name")
"""Keys of a network's config of every sort."""


def test_other_images_are_refused_by_name(tmp_path):
    save(tmp_path)
    found = from_diffusers.read(tmp_path)
    found.check((1, 8, 8), None)
    for image, told in (((3, 8, 8), "3 x 8 x 8"), ((1, 16, 16), "1 x 16 x 16"), ((1, 8, 6), "1 x 8 x 6")):
        with pytest.raises(UserError, match=f"is for images of 1 x 8 x 8 and the data are {told}"):
            found.check(image, None)


def test_a_network_of_any_size_must_be_able_to_halve_its_images(tmp_path):
    save(tmp_path, network(sample_size=None))
    found = from_diffusers.read(tmp_path)
    found.check((1, 12, 10), None)
    with pytest.raises(UserError, match="images of 7 x 8 cannot be halved 1 times as the teacher does"):
        found.check((1, 7, 8), None)
    with pytest.raises(UserError, match=r"is for images of 1 x \? x \? and the data are 3 x 8 x 8"):
        found.check((3, 8, 8), None)


# ------------------------------------------------------------------------------- our own checkpoints


def test_a_checkpoint_of_ours_is_taken_as_its_card_says(tmp_path):
    checkpoints.save(tmp_path / "own", student(None), (1, 8, 8), ABOUT)
    found, x, t = from_diffusers.read(tmp_path / "own"), images(), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    assert torch.equal(found.denoiser(x, t).v, student(None)(x, t).v)
    assert found.files == checkpoints.read_card(tmp_path / "own").files
    with pytest.raises(UserError, match="is for images of 1 x 8 x 8"):
        found.check((3, 8, 8), None)


@pytest.mark.parametrize(("steps", "about"), [(4, {}), (None, {"solver": "multistep_consistency"})])
def test_a_student_of_ours_is_no_teacher(steps, about, tmp_path):
    checkpoints.save(tmp_path / "own", student(steps), (1, 8, 8), {**ABOUT, **about})
    with pytest.raises(UserError, match="which cannot teach at every time; give the teacher it comes from"):
        from_diffusers.read(tmp_path / "own")


# ------------------------------------------------------------------------------- saved and read again


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", **ZERO}, {"prediction_type": "sample"}])
def test_a_checkpoint_of_it_is_the_same_denoiser_and_what_diffusers_samples(settings, tmp_path):
    save(tmp_path / "theirs", **settings)
    found = from_diffusers.read(tmp_path / "theirs")
    checkpoints.save(tmp_path / "ours", found.denoiser, (1, 8, 8), {**ABOUT, "method": "adopted"})
    opened, x = checkpoints.load(tmp_path / "ours").denoiser, images()
    assert opened.reading.num_timesteps == 1000
    assert opened.schedule == found.denoiser.schedule
    for t in (0.001, 0.25, 1.0):
        at = torch.full((5,), t, dtype=torch.float64)
        assert torch.equal(opened(x, at).x0, found.denoiser(x, at).x0)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "ours")
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 4, 8):
        theirs = pipeline(batch_size=5, num_inference_steps=steps, generator=seeded(3), output_type="np").images
        ours = Sampler(opened, SOLVERS["ddim"](), uniform(steps)).sample(torch.randn(5, 1, 8, 8, generator=seeded(3)))
        ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        assert abs(theirs - ours).max() < 2e-3, steps  # beside 1/255; alpha(1) is 0.006 and known to float32
    again = from_diffusers.read(tmp_path / "ours")  # by its card
    assert again.denoiser.schedule == opened.schedule


def test_other_trajectories_begin_where_the_betas_end(tmp_path):
    save(tmp_path)
    denoiser = from_diffusers.read(tmp_path).denoiser
    times = karras(5, denoiser.schedule)
    first = torch.tensor(times.times[:1], dtype=torch.float64)
    assert float(denoiser.schedule.sigma(first) / denoiser.schedule.alpha(first)) == pytest.approx(80)
    start = images()
    for word in ("ddim", "multistep_consistency", "dpmpp_2m"):
        sampled = Sampler(denoiser, SOLVERS[word](), times).sample(start, lambda k: images())
        assert sampled.isfinite().all()


# ------------------------------------------------------------------------------- the file


def read(where: Path, **teacher):
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["teachers"]["teacher"] = teacher
    params.dump_yaml(raw, where / "params.yaml")
    return params.read(where / "params.yaml")


def test_the_folder_takes_the_place_of_the_numbers(tmp_path):
    found = read(tmp_path, **{"from": "~/ddpm"}).teachers["teacher"]
    assert found == sections.Adopted(name="teacher", folder="~/ddpm", conditional=False)


FIT = {"iterations": 5, "batch": 8, "lr": 1e-3, "ema": 0.9}
FAULTS = {
    "both": (
        {"from": "x", **FIT},
        ["teachers.teacher: give from or the numbers of a training, not both; leave out batch, ema"],
    ),
    "one key more": ({"from": "x", "parameterization": "v"}, ["teachers.teacher.parameterization: unknown key"]),
    "no text": ({"from": 3}, ["teachers.teacher.from: must be the path of a folder that holds unet/ and scheduler/"]),
    "nothing": ({"from": " "}, ["teachers.teacher.from: must be the path of a folder that holds unet/ and scheduler/"]),
    "neither": (
        {},
        [f"teachers.teacher.{key}: missing" for key in ("network", "schedule", "iterations", "batch", "lr", "ema")]
        + ["teachers.teacher.method: must be denoising"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_a_line(case, tmp_path):
    teacher, wanted = FAULTS[case]
    with pytest.raises(UserError) as caught:
        read(tmp_path, **teacher)
    lines = [line.partition("params.yaml: ")[2] for line in str(caught.value).splitlines()]
    assert len(lines) == len(wanted)
    for word in wanted:
        assert any(line.startswith(word) for line in lines), (word, lines)


def test_a_cached_branch_is_not_asked_of_a_section_that_does_not_count(tmp_path):
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["evaluate"]["teacher"].append(
        {"sampler": "ddim", "trajectory": "uniform", "steps": [4], "deepcache": {"interval": 2, "branch": 7}}
    )
    raw["teachers"]["teacher"] = {"from": "x"}
    params.dump_yaml(raw, tmp_path / "params.yaml")
    assert params.read(tmp_path / "params.yaml")


def test_a_schedule_that_an_adopted_teacher_need_not_have_forbids_nothing(tmp_path):
    """Its betas may begin where the cosine schedule cannot."""
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["evaluate"]["teacher"].append({"sampler": "langevin", "trajectory": "uniform", "steps": [8]})
    assert params.parse({**raw, "teachers": {"teacher": {"from": "x"}}}, "p").teachers
    with pytest.raises(UserError, match="langevin cannot begin at t = 1"):
        params.parse(raw, "p")


# ------------------------------------------------------------------------------- the stages

SHORT = {"init": "teacher", "teacher": "teacher", "iterations": 3, "batch": 16, "lr": 1.0e-3, "ema": 0.9}
STUDENTS = {
    "v": {"method": "denoising", "parameterization": "v", **SHORT},
    "pd4": {"method": "progressive", "steps": 4, **SHORT, "init": "v", "teacher": "v"},
    "pd2": {"method": "progressive", "steps": 2, **SHORT, "init": "pd4", "teacher": "pd4"},
    "cd": {"method": "consistency", "steps": 10, "target_ema": 0.5, **SHORT},
}
EVALUATE = {
    "images": 20,
    "batch": 20,
    "seed": 0,
    "likelihood": {"images": 4, "probes": 1, "seed": 0},
    "fitted": {"points": 8, "images": 4, "batch": 4, "seed": 0},
    "teacher": [
        {"sampler": "ddim", "trajectory": ["uniform", "karras", "least_cost", "fitted"], "steps": [2]},
        {"sampler": "analytic", "trajectory": "uniform", "steps": [2]},
        {"sampler": "ddim", "trajectory": "uniform", "steps": [4], "deepcache": {"interval": 2}},
    ],
    "any_time_students": [{"sampler": "multistep_consistency", "trajectory": ["uniform", "fitted"], "steps": [2]}],
    "students": {},
}


CONDITIONAL = {"teacher": {"from": "theirs", "conditional": True}}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with the code, a hundred digits as data, and parameters that adopt `theirs`; `set` changes some."""
    from tasks import shard

    for name in ("diffcore", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    raw = params.load_yaml(ROOT / "params.yaml")
    own = {"distill": STUDENTS, "evaluate": EVALUATE, "teachers": {"teacher": {"from": "theirs"}}}
    raw |= copy.deepcopy(own)
    raw["data"]["limit"] = 100
    raw["features"] |= {"channels": 8, "dimension": 8, "iterations": 5, "batch": 32}
    raw["gamma"] |= {"steps": 50, "images": 4}
    raw["search"] |= {"most": 4}

    def change(**sections):
        for section, values in sections.items():
            raw[section] |= values
        params.dump_yaml(json.loads(json.dumps(raw)), paths.PARAMS)
        return params.read()

    shard.shard(change())
    return change


def adopted(found) -> checkpoints.Checkpoint:
    from tasks import adopt as stage

    stage.take(found, "teacher")
    return checkpoints.load(paths.CHECKPOINTS / "teacher")


def test_the_stage_makes_a_checkpoint_with_an_honest_card(workspace):
    save(Path("theirs"))
    opened = adopted(workspace())
    card = opened.card
    assert (card.method, card.weights, card.parent, card.teacher, card.classes) == (
        "adopted",
        "given",
        None,
        None,
        None,
    )
    assert card.cost == {"iterations": 0, "images": 0, "network_calls": 0}
    assert card.parameters["folder"] == "theirs"
    assert card.parameters["sampling"] == {"clip": 1.0}  # diffusers clips unless it is told not to
    weights = Path("theirs/unet/diffusion_pytorch_model.safetensors")
    assert card.parameters["files"][str(weights.relative_to("theirs"))] == disk.sha256(weights)
    assert card.schedule["name"] == "discrete"
    assert isinstance(opened.denoiser.schedule, Discrete)
    with open(paths.CURVES / "teacher.csv", newline="") as file:
        table = csv.DictReader(file)
        assert list(table) == []
        assert table.fieldnames == ["step", "images", "loss", "grad_norm", "lr"]
    assert disk.read_sealed(paths.COST / "teacher.json", None, "x") == {"seconds": 0.0, **card.cost}
    before = card.digest
    assert adopted(workspace()).card.digest == before
    save(Path("theirs"), prediction_type="v_prediction")
    assert adopted(workspace()).card.digest != before


def test_an_adopted_teacher_s_card_tells_of_this_run(workspace, capsys):
    """Its seed, its data, its code and its files: each as the other stages tell theirs."""
    from tasks import graph

    save(Path("theirs"), network(num_class_embeds=11), prediction_type="v_prediction", clip_sample=False)
    found = dataclasses.replace(workspace(teachers=CONDITIONAL), seed=23)
    card, manifest = adopted(found).card, Manifest.read(paths.DATA)
    files = from_diffusers.read(Path("theirs")).files
    assert card.parameters == {"folder": "theirs", "files": files, "digest": disk.digest(files)}
    assert (card.name, card.solver, card.seed, card.data) == ("teacher", "ddim", 23, manifest.digest)
    assert (card.image, card.classes, card.guidance) == (list(manifest.shape), list(manifest.classes), None)
    assert card.code == graph.code_digest("teachers", "adopted")
    assert card.torch == torch_version()
    told = f"teacher: adopted from theirs, parameterization v, 1000 noise levels; checkpoint {card.digest[:12]}\n"
    assert capsys.readouterr().out.endswith(told)
    save(Path("theirs"), network(num_class_embeds=11), clip_sample_range=2.5)
    adopted(found)
    assert 'sampled with {"clip": 2.5} as its scheduler says; checkpoint' in capsys.readouterr().out


def test_the_line_must_not_say_otherwise(workspace):
    save(Path("theirs"))
    with pytest.raises(
        UserError,
        match=r"teachers\.teacher\.conditional is true, but the teacher in theirs knows no classes; set it to",
    ):
        adopted(workspace(teachers=CONDITIONAL))
    save(Path("theirs"), network(num_class_embeds=11))
    with pytest.raises(
        UserError, match=r"teachers\.teacher\.conditional is false, but the teacher in theirs knows classes; set it to"
    ):
        adopted(workspace(teachers={"teacher": {"from": "theirs", "conditional": False}}))
    card = adopted(workspace(teachers=CONDITIONAL)).card
    assert card.classes == [str(digit) for digit in range(10)]
    save(Path("theirs"), network(in_channels=3, out_channels=3))
    with pytest.raises(UserError, match="is for images of 3 x 8 x 8 and the data are 1 x 8 x 8"):
        adopted(workspace(teachers={"teacher": {"from": "theirs", "conditional": False}}))


def test_the_stage_refuses_latents_of_which_there_are_no_data(workspace):
    save(Path("theirs"), network(in_channels=4, out_channels=4))
    Path("theirs/vae").mkdir()
    with pytest.raises(
        UserError, match="works on latents of 4 x 8 x 8, which the encoder in vae/ makes of images, and the"
    ):
        adopted(workspace())
    assert not (paths.CHECKPOINTS / "teacher").exists()


def written(pipeline: str, features: int = 8) -> None:
    """Embeddings of the captions of the data at hand, all alike, by the text encoder of this pipeline."""
    manifest = Manifest.read(paths.DATA)
    nothing = {"text": torch.full((3, features), 0.5), "text_mask": torch.ones(3, dtype=torch.bool)}
    nothing["pooled"] = torch.full((8,), 0.25)
    inputs = {name: part[None] for name, part in nothing.items()}
    tables = [embeddings.Table(torch.zeros(shard.images, dtype=torch.int64), inputs) for shard in manifest.shards]
    with disk.folder(paths.TEXT) as folder:
        embeddings.write(folder, {"digest": "e" * 64, "pipeline": pipeline}, manifest, tables, nothing)


def test_the_stage_s_card_says_by_whose_embeddings_its_network_is_told_texts(workspace):
    save(Path("theirs"), told_texts())
    encoders(Path("theirs"))
    line = {"teacher": {"from": "theirs", "inputs": ["text", "text_mask"]}}
    texts = {
        "data": {"captions": "caption"},
        "text": {"encoder": "words"},
        "evaluate": {"teacher": EVALUATE["teacher"][:2]},
    }
    found = workspace(**texts, teachers=line)
    written(of_pipeline(Path("theirs")))
    checkpoint = adopted(found)
    assert (checkpoint.card.inputs, checkpoint.card.encoder) == (["text", "text_mask"], "e" * 64)
    assert torch.equal(checkpoint.denoiser.nothing.parts()["text"], torch.full((3, 8), 0.5))
    written(of_pipeline(Path("theirs")), 6)
    with pytest.raises(
        UserError,
        match=r"in theirs is told text of \[any, 8\], and the data have \[3, 6\]; set data\.captions and text\.encoder",
    ):
        adopted(found)
    written("d" * 64)
    with pytest.raises(
        UserError, match=r"told the embeddings of another encoder than those in artifacts/text; set text"
    ):
        adopted(found)
    words = (
        r"teachers\.teacher\.inputs is \[.*\], but the teacher in theirs is told text, and may be told text_mask; set it to "
        r"\[text\]"
    )
    for inputs in ([], ["text_mask"], ["text", "pooled"]):
        line["teacher"]["inputs"] = inputs
        with pytest.raises(UserError, match=words):
            adopted(workspace(**texts, teachers=line))
    save(Path("theirs"), told_texts(time_cond_proj_dim=8))
    with pytest.raises(
        UserError, match=r"teachers\.teacher\.from: the network in theirs takes the weight of guidance as an input, as"
    ):
        adopted(found)


SIZED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}


@torch.no_grad()
def test_a_network_of_sdxl_is_told_the_one_size_of_all_images_and_so_are_its_students(workspace):
    """Which its pipeline tells it too where nobody says another."""
    from tasks import train

    net, _ = save(Path("theirs"), told_texts(**SIZED))
    found = workspace(
        data={"captions": "caption"},
        text={"encoder": "words"},
        evaluate={"teacher": EVALUATE["teacher"][:2]},
        teachers={"teacher": {"from": "theirs", "inputs": ["text", "pooled"]}},
    )
    written("d" * 64)
    checkpoint = adopted(found)
    assert sorted(checkpoint.card.inputs) == ["pooled", "size", "text"]
    x, t = images(2), torch.full((2,), 0.4).double()
    known = {"text": torch.rand(2, 3, 8, generator=seeded(1)), "pooled": torch.rand(2, 8, generator=seeded(2))}
    added = {"text_embeds": known["pooled"], "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 2)}
    theirs = net(x, 399, known["text"], added_cond_kwargs=added).sample
    assert apart(checkpoint.denoiser.with_condition(Condition(known))(x, t).eps, theirs) < 1e-5
    away = Condition(known, torch.full((2,), 2.0), {name: part.flip(0) for name, part in known.items()})
    assert Guided(checkpoint.denoiser).with_condition(away)(x, t).x0.isfinite().all()
    with torch.enable_grad():
        train.train(found, "v")
    student = checkpoints.load(paths.CHECKPOINTS / "v").denoiser
    assert torch.equal(student.nothing.parts()["size"], torch.tensor([8.0, 8, 0, 0, 8, 8]))
    with pytest.raises(UserError, match=r"is told text, pooled, and may be told text_mask; set it to \[text, pooled\]"):
        adopted(workspace(teachers={"teacher": {"from": "theirs", "inputs": ["text", "pooled", "size"]}}))


def measured(found) -> set[str]:
    """All that follows training, of the teacher and its students; the checkpoints that the frontier has points of."""
    from tasks import frontier, gamma, measure, search

    gamma.estimate(found)
    search.find(found)
    for name in ("teacher", *STUDENTS):
        measure.measure(found, name)
    frontier.merge(found)
    return {point["checkpoint"] for point in json.loads(paths.FRONTIER.read_text())["points"]}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", **ZERO}])
def test_the_whole_pipeline_with_an_adopted_teacher(settings, workspace):
    from tasks import features, train

    save(Path("theirs"), **settings)
    found = workspace()
    features.train(found)
    adopted(found)
    for name in STUDENTS:
        train.train(found, name)
        opened = checkpoints.load(paths.CHECKPOINTS / name)
        assert opened.denoiser.reading.num_timesteps == 1000
        assert isinstance(opened.denoiser.schedule, Discrete)
        assert opened.denoiser.reading.parameterization == ("eps" if name == "cd" and not settings else "v")
        trained = opened.denoiser.net.state_dict()
        start = checkpoints.load(paths.CHECKPOINTS / found.distill[name].init).denoiser.net.state_dict()
        assert any(not torch.equal(trained[key], start[key]) for key in start)
    assert measured(found) == {"teacher", *STUDENTS}
    assert Path("artifacts/curves.png").exists()
    pipeline = diffusers.DDIMPipeline.from_pretrained(paths.CHECKPOINTS / "pd4")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=5, num_inference_steps=4, generator=seeded(3), output_type="np").images
    denoiser = checkpoints.load(paths.CHECKPOINTS / "pd4").denoiser
    ours = Sampler(denoiser, SOLVERS["ddim"](), uniform(4)).sample(torch.randn(5, 1, 8, 8, generator=seeded(3)))
    ours = to_uint8(ours).permute(0, 2, 3, 1).numpy() / 255
    assert abs(theirs - ours).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("case", ["flow shifted", "EDM"])
def test_the_whole_pipeline_with_a_teacher_of_another_process(case, workspace):
    """Its students are fed and read as it is; those of a flow come with a scheduler of diffusers."""
    from tasks import features, train

    kind, settings = PROCESSES[case]
    save(Path("theirs"), kind=kind, **settings)
    found = workspace()
    features.train(found)
    reading = adopted(found).denoiser.reading
    for name in STUDENTS:
        train.train(found, name)
        own = checkpoints.load(paths.CHECKPOINTS / name).denoiser.reading
        assert dataclasses.replace(own, parameterization=reading.parameterization) == reading
    assert measured(found) == {"teacher", *STUDENTS}
    assert (paths.CHECKPOINTS / "cd/scheduler").exists() == (case == "flow shifted")


def test_what_the_file_asks_of_another_network_is_told_before_anything_is_trained(workspace):
    save(Path("theirs"), network(down_block_types=["ResnetDownsampleBlock2D", "DownBlock2D"]))
    with pytest.raises(UserError) as caught:
        adopted(workspace())
    assert str(caught.value) == (
        "params.yaml: evaluate.teacher.2.deepcache: needs our own U-Net, which the teacher is not; leave it out"
    )
    skips = {"sampler": "ddim", "trajectory": "uniform", "steps": [4], "skip": [{"bottom": 0.9}, {"bottom": 1.1}]}
    with pytest.raises(UserError, match=r"^params\.yaml: evaluate\.any_time_students\.0\.skip: needs our own U-Net"):
        adopted(workspace(evaluate={"teacher": EVALUATE["teacher"][:2], "any_time_students": [skips]}))
    workspace(evaluate=EVALUATE)
    save(Path("theirs"), prediction_type="sample")
    samplings = [{"sampler": "ddim", "trajectory": "uniform", "steps": [4], "deepcache": {"interval": 2, "branch": 3}}]
    lines = {name: {**STUDENTS["v"], "method": "continuous", "init": "v", "teacher": "v"} for name in ("one", "two")}
    two = {**lines["two"], "init": "teacher", "teacher": "teacher"}
    with pytest.raises(UserError) as caught:
        adopted(workspace(evaluate={"teacher": samplings}, distill={**lines, "two": two}))
    first, second = str(caught.value).splitlines()
    assert first.startswith("params.yaml: distill.two.method: continuous asks for velocities close to the data")
    assert second.startswith(
        "params.yaml: evaluate.teacher.0.deepcache.branch: 3 is not one of the network's 3 branches"
    )


def test_an_eps_network_is_not_rounded_to_bfloat16(tmp_path):
    save(tmp_path)
    denoiser, x, t = from_diffusers.read(tmp_path).denoiser, images(), torch.ones(5, dtype=torch.float64)
    plain = denoiser(x, t).x0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(denoiser(x, t).x0, plain)


def test_a_head_of_a_line_is_v_or_left_out(tmp_path):
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["distill"]["cd"]["parameterization"] = "eps"
    params.dump_yaml(raw, tmp_path / "params.yaml")
    with pytest.raises(
        UserError, match=r"distill\.cd\.parameterization: must be v, or left out for that of the network it starts"
    ):
        params.read(tmp_path / "params.yaml")


def test_a_workspace_can_be_given_a_folder():
    from tasks import workspace as spaces

    raw = params.load_yaml(ROOT / "params.yaml")
    spaces._merge(raw, spaces._change("teachers.teacher.from=~/ddpm"), "x")
    assert raw["teachers"]["teacher"] == {"from": "~/ddpm"}


# ------------------------------------------------------------------------------- every word of a list

KNOWN = """
DDPM DDPMParallel DDIM DDIMParallel PNDM DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep
EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete KDPM2AncestralDiscrete
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        save(folder := tmp_path_factory.mktemp("pipeline"))
    return folder


@pytest.fixture
def copied(pipeline, tmp_path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "copied"))


@pytest.mark.parametrize("name", KNOWN.split())
def test_each_scheduler_of_betas_is_taken_and_only_those_that_clip_by_themselves_clip(name, copied):
    changed(copied, SCHEDULER, _class_name=f"{name}Scheduler", clip_sample=None)
    clips = name in ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel")
    assert from_diffusers.read(copied).sampling == ({"clip": 1.0} if clips else {})


REFUSED = {
    **{f"EulerDiscreteScheduler with {flag}": (flag, True) for flag in ("invert_sigmas", "snr_shift_scale")},
    "CogVideoXDDIMScheduler": ("_class_name", "CogVideoXDDIMScheduler"),
    "TCDScheduler": ("_class_name", "TCDScheduler"),
    "VPScheduler": ("_class_name", "ScoreSdeVpScheduler"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_another_process_of_it_is_refused(case, copied):
    key, value = REFUSED[case]
    changed(copied, SCHEDULER, **{"_class_name": "EulerDiscreteScheduler", key: value})
    with pytest.raises(UserError, match="it cannot be adopted"):
        from_diffusers.read(copied)
    if value is True:
        changed(copied, SCHEDULER, **{key: False})
        assert from_diffusers.read(copied).denoiser


@pytest.mark.parametrize("part", ["vae", "vqvae", "movq", "vqmodel"])
def test_each_kind_of_encoder_makes_it_a_pipeline_of_latents(part, copied):
    """No data are latents yet, whatever their shape."""
    assert from_diffusers.read(copied).latent is None
    (copied / part).mkdir()
    found = from_diffusers.read(copied)
    assert found.latent == part
    for image, word in (((1, 8, 8), "1 x 8 x 8"), ((3, 64, 64), "3 x 64 x 64")):
        with pytest.raises(UserError) as caught:
            found.check(image, None)
        assert str(caught.value) == (
            f"the teacher works on latents of 1 x 8 x 8, which the encoder in {part}/ makes of images, and the data are "
            f"images of {word}, of which none are made here yet; take a teacher of pixels"
        )


def test_what_a_scheduler_leaves_out_is_what_diffusers_takes(copied):
    def sampling(**change) -> dict:
        changed(copied, SCHEDULER, **change)
        return from_diffusers.read(copied).sampling

    assert sampling(prediction_type=None, clip_sample_range=None) == {"clip": 1.0}
    assert from_diffusers.read(copied).denoiser.reading.parameterization == "eps"
    given = {"thresholding": True, "dynamic_thresholding_ratio": None, "sample_max_value": None}
    assert sampling(**given) == {"threshold": {"quantile": 0.995, "max": 1.0}}
    assert sampling(thresholding=None, clip_sample=True, clip_sample_range=3) == {"clip": 3.0}


@torch.no_grad()
def test_a_network_of_fifty_steps_is_told_its_own_times(tmp_path):
    net, _ = save(tmp_path, num_train_timesteps=50, trained_betas=[0.02] * 50)
    found, x = from_diffusers.read(tmp_path), images()
    assert found.denoiser.reading.num_timesteps == 50
    for j in (0, 24, 49):
        belief = found.denoiser(x, torch.full((5,), (j + 1) / 50, dtype=torch.float64))
        assert apart(belief.eps, net(x, j).sample) < 1e-5
    assert not any(parameter.requires_grad for parameter in found.denoiser.parameters())
    assert not any(module.training for module in found.denoiser.net.modules())


def test_all_files_that_were_read_are_vouched_for(copied):
    (copied / "readme.md").write_text("not read")
    (copied / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    names = ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
    read = {SCHEDULER, *(f"unet/{name}" for name in names)}
    assert from_diffusers.read(copied).files == {name: disk.sha256(copied / name) for name in read}


def test_a_folder_below_home_is_found(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    assert from_diffusers.read(Path("~/copied")).image == (1, 8, 8)


def test_sides_are_height_then_width_and_channels_three_where_nothing_is_said(tmp_path):
    save(tmp_path, network(sample_size=[16, 8]))
    found = from_diffusers.read(tmp_path)
    assert found.image == (1, 16, 8)
    found.check((1, 16, 8), None)
    with pytest.raises(UserError, match="is for images of 1 x 16 x 8 and the data are 1 x 8 x 16"):
        found.check((1, 8, 16), None)
    save(tmp_path / "rgb", network(in_channels=3, out_channels=3))
    changed(tmp_path / "rgb", CONFIG, in_channels=None, out_channels=None)
    assert from_diffusers.read(tmp_path / "rgb").image == (3, 8, 8)
    for size in ("8", [8], [8, 8, 8], ["8", "8"], True):
        changed(tmp_path / "rgb", CONFIG, sample_size=size)
        with pytest.raises(UserError, match="sample_size"):
            from_diffusers.read(tmp_path / "rgb")
    for size in ([8, "8"], ["8", 8]):  # asked directly: who checks types meanwhile looks at one place by chance
        with pytest.raises(UserError, match="sample_size"):
            _image({"sample_size": size})


def test_a_network_of_three_levels_halves_twice(tmp_path):
    blocks = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}
    save(tmp_path, network(sample_size=None, block_out_channels=[8, 8, 16], **blocks))
    found = from_diffusers.read(tmp_path)
    assert found.skips == found.denoiser.net.config.skips == 6
    found.check((1, 4, 12), None)
    for image in ((1, 6, 8), (1, 8, 6)):
        with pytest.raises(UserError, match="cannot be halved 2 times"):
            found.check(image, None)
    save(tmp_path / "other", network(down_block_types=["ResnetDownsampleBlock2D", "DownBlock2D"]))
    assert from_diffusers.read(tmp_path / "other").skips is None


def test_what_a_card_of_ours_says_of_an_adopted_teacher_is_taken(tmp_path):
    parameters = {"sampling": {"clip": 2.0}}
    for method, sampling in (("adopted", {"clip": 2.0}), ("denoising", {})):
        checkpoints.save(
            tmp_path / method, student(None), (1, 8, 8), {**ABOUT, "method": method, "parameters": parameters}
        )
        found = from_diffusers.read(tmp_path / method)
        assert (found.sampling, found.image, found.classes) == (sampling, (1, 8, 8), None)


def test_a_conditional_checkpoint_of_ours_is_for_its_own_classes_in_their_own_order(tmp_path):
    net = unet.build(dataclasses.replace(unet.default_config((1, 8, 8)), num_class_embeds=4), 0)
    own = NetDenoiser(net, Cosine(), Reading("v"), classes=3)
    checkpoints.save(tmp_path / "own", own, (1, 8, 8), {**ABOUT, "classes": ["a", "b", "c"]})
    found = from_diffusers.read(tmp_path / "own")
    assert list(found.classes) == ["a", "b", "c"]
    assert found.denoiser.classes == 3
    found.check((1, 8, 8), ["a", "b", "c"])
    for others in (["b", "a", "c"], ["a", "b", "d"]):
        with pytest.raises(UserError, match="the teacher's classes are a, b, c and the data's are "):
            found.check((1, 8, 8), others)


@pytest.mark.parametrize("ours", [True, False])
def test_a_teacher_in_half_precision_is_one_in_float32(tmp_path, ours):
    """As fp16 teachers are published: its values are taken as they are, and computed with in float32."""
    kinds = {} if ours else {"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"]}
    net, _ = save(tmp_path, network(**kinds).half())
    denoiser, x = from_diffusers.read(tmp_path).denoiser, images()
    assert isinstance(denoiser.net, unet.UNet) == ours
    assert {parameter.dtype for parameter in denoiser.net.parameters()} == {torch.float32}
    out = net.float()(x, 499).sample
    assert apart(denoiser(x, torch.full((5,), 0.5, dtype=torch.float64)).eps, out.detach()) < 1e-5


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_a_teacher_saved_before_diffusers_0_15_is_the_same_teacher(tmp_path):
    """google/ddpm-cifar10-32 and its kin call the layers of attention otherwise."""
    blocks = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    net, _ = save(tmp_path, network(**blocks, add_attention=True, attention_head_dim=8))
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        for now, then in OLD.items():
            name = name.replace(f".{now}.", f".{then}.")
        renamed[name] = tensor
    assert all(any(f".{then}.weight" in name for name in renamed) for then in OLD.values())
    save_file(renamed, path)
    found, x = from_diffusers.read(tmp_path).denoiser, images()
    assert isinstance(found.net, unet.UNet)
    t = torch.full((5,), 0.5, dtype=torch.float64)
    assert apart(found(x, t).eps, net(x, 499).sample.detach()) < 1e-5


def test_a_student_with_guidance_built_in_is_no_teacher(tmp_path):
    guidance = dataclasses.asdict(checkpoints.Guidance(2.0, 2.0))
    checkpoints.save(tmp_path / "own", student(None), (1, 8, 8), {**ABOUT, "guidance": guidance})
    with pytest.raises(UserError, match="is a student by progressive, which cannot teach at every time"):
        from_diffusers.read(tmp_path / "own")
