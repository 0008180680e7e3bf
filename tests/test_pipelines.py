"""Whole pipelines of diffusers, adopted: our sampler draws what each draws itself, from the same noise, guidance included."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcore.checkpoints import from_diffusers
from diffcore.denoisers.condition import Condition, of_classes
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets.architectures import registry
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import seeded
from tests.test_architectures import CASES as NETWORKS
from tests.test_architectures import Case as Network

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # between diffusers and numpy

BATCH, TOKENS, STEPS, WEIGHT = 2, 5, 4, 3.5
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "shift": 3.0}
MASKS = {
    "text_mask": torch.tensor([[True, True, True, False, False], [True] * TOKENS]),
    "negative text_mask": torch.tensor([[True, False, False, False, False]] * BATCH),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


EMBEDDED = {
    "text": noise(BATCH, TOKENS, 6, seed=2),
    "pooled": noise(BATCH, 10, seed=3),
    "negative text": noise(BATCH, TOKENS, 6, seed=4),
    "negative pooled": noise(BATCH, 10, seed=5),
    **MASKS,
}
THEIR_WORDS = {
    "text": "prompt_embeds",
    "pooled": "pooled_prompt_embeds",
    "text_mask": "prompt_attention_mask",
    "negative text": "negative_prompt_embeds",
    "negative pooled": "negative_pooled_prompt_embeds",
    "negative text_mask": "negative_prompt_attention_mask",
}
SIZE = torch.tensor([[64.0, 48, 4, 2, 64, 64]] * BATCH)
WANTED = torch.tensor([[64.0, 48, 0, 0, 64, 48]] * BATCH)
OF_SIZE = {"original_size": (64, 48), "crops_coords_top_left": (4, 2), "target_size": (64, 64)}


@dataclass(frozen=True)
class Case:
    """pipeline: its class in diffusers. network: of test_architectures, with `change` in its config. kind, settings: of its
    scheduler. told: names of EMBEDDED. call: what else the pipeline is called with, others: what else our network is told.
    guided: by two calls of it. solver: ours of the scheduler's steps. absent: parts that it is made without, more: with."""

    pipeline: str
    network: str
    kind: str
    settings: dict[str, Any]
    told: tuple[str, ...]
    change: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    guided: bool = True
    solver: str = "ddim"
    absent: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")
    more: dict[str, Any] = field(default_factory=dict)

    def built(self) -> Any:
        """diffusers' own pipeline, of random weights."""
        own = NETWORKS[self.network]
        net = Network(own.kind, {**own.config, **self.change}, own.shape, own.call).network()
        part = "unet" if "UNet" in type(net).__name__ else "transformer"
        scheduler = getattr(diffusers, self.kind)(**self.settings)
        absent = dict.fromkeys(self.absent)
        pipeline = getattr(diffusers, self.pipeline)(**{part: net}, scheduler=scheduler, **absent, **self.more)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def condition(self) -> Condition:
        inputs = {name: EMBEDDED[name] for name in self.told if not name.startswith("negative")}
        away = {name.removeprefix("negative "): EMBEDDED[name] for name in self.told if name.startswith("negative")}
        weight = torch.full((BATCH,), WEIGHT)
        return Condition(inputs | self.others, weight, away | self.others if away else None)


TWO = ("text_encoder_2", "tokenizer_2")
NEGATIVE = ("text", "negative text")
POOLED = (*NEGATIVE, "pooled", "negative pooled")
MASKED = (*NEGATIVE, "text_mask", "negative text_mask")
FLOW = "FlowMatchEulerDiscreteScheduler"
PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
AT = {"guidance_scale": WEIGHT}
UNBINNED = {"use_resolution_binning": False, "negative_prompt": None}
CASES = {
    "SD 1.5 by DDIM": Case(
        "StableDiffusionPipeline", "SD 1.5", "DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False},
        NEGATIVE, call=AT, more=PLAIN,
    ),
    "SD 2 of v": Case(
        "StableDiffusionPipeline", "SD 1.5", "EulerDiscreteScheduler",
        {**SD, "prediction_type": "v_prediction", "timestep_spacing": "leading"}, NEGATIVE, call=AT, more=PLAIN,
    ),
    "LCM, which embeds the weight": Case(
        "StableDiffusionPipeline", "LCM", "DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False},
        ("text",), call=AT, more=PLAIN, guided=False,
    ),
    "SDXL by Euler": Case(
        "StableDiffusionXLPipeline", "SDXL", "EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading"}, POOLED,
        call={**AT, **OF_SIZE}, others={"size": SIZE}, absent=("vae", "text_encoder", "tokenizer", *TWO),
    ),
    "PixArt-alpha by DPM": Case(
        "PixArtAlphaPipeline", "PixArt-alpha", "DPMSolverMultistepScheduler", {}, MASKED,
        change={"sample_size": 128}, call={**AT, **UNBINNED}, others={"size": WANTED}, solver="dpmpp_2m",
    ),
    "PixArt-sigma by DPM": Case(
        "PixArtSigmaPipeline", "PixArt-sigma", "DPMSolverMultistepScheduler", {}, MASKED,
        call={**AT, **UNBINNED}, solver="dpmpp_2m",
    ),
    "SD3": Case(
        "StableDiffusion3Pipeline", "SD3", FLOW, {"shift": 3.0}, POOLED, call=AT,
        absent=("vae", "text_encoder", "tokenizer", *TWO, "text_encoder_3", "tokenizer_3"),
    ),
    "SD3.5, a dynamic shift": Case(
        "StableDiffusion3Pipeline", "SD3.5", FLOW, {**DYNAMIC, "base_shift": 0.3, "max_shift": 1.2}, POOLED, call=AT,
        absent=("vae", "text_encoder", "tokenizer", *TWO, "text_encoder_3", "tokenizer_3"),
    ),
    "Flux dev, a dynamic shift": Case(
        "FluxPipeline", "Flux dev", FLOW, {**DYNAMIC, "base_shift": 0.5, "max_shift": 1.15}, ("text", "pooled"), call=AT,
        guided=False, absent=("vae", "text_encoder", "tokenizer", *TWO),
    ),
    "Flux schnell, guided": Case(
        "FluxPipeline", "Flux schnell", FLOW, {}, POOLED, call={"true_cfg_scale": WEIGHT},
        absent=("vae", "text_encoder", "tokenizer", *TWO),
    ),
    # its usual DPMSolverMultistepScheduler tells the network whole numbers of times that are none
    "Sana by Euler": Case("SanaPipeline", "Sana", FLOW, {"shift": 3.0}, MASKED, call={**AT, **UNBINNED}),
    "AuraFlow": Case("AuraFlowPipeline", "AuraFlow", FLOW, {"shift": 1.73}, MASKED, call=AT),
}  # fmt: skip


def theirs(pipeline: Any, case: Case, start: Tensor) -> Tensor:
    """What the pipeline draws from this noise: latents [b, c, h, w]."""
    told = {THEIR_WORDS[name]: EMBEDDED[name] for name in case.told}
    height, width = (side * pipeline.vae_scale_factor for side in start.shape[2:])
    latents = pipeline._pack_latents(start, *start.shape) if case.pipeline == "FluxPipeline" else start
    samples = pipeline(
        **told,
        **case.call,
        height=height,
        width=width,
        latents=latents,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    if case.pipeline == "FluxPipeline":
        return pipeline._unpack_latents(samples, height, width, pipeline.vae_scale_factor)
    return samples


def ours(own: NetDenoiser, case: Case, scheduler: Any, start: Tensor) -> Tensor:
    """At the times at which the pipeline's scheduler has stepped, from the same noise."""
    denoiser = (Guided(own) if case.guided else own).with_condition(case.condition)
    times = stepped(own, scheduler)
    scale = 1.0
    if own.reading.time == "flow":  # ours of variance 1 where theirs begins, of a little image and much noise
        first = torch.tensor(times[:1], dtype=torch.float64)
        scale = float(own.schedule.sigma(first)) / float(scheduler.sigmas[0])
    return Sampler(denoiser, SOLVERS[case.solver](), Trajectory(times)).sample(scale * start)


def stepped(own: NetDenoiser, scheduler: Any) -> tuple[float, ...]:
    if own.reading.time == "flow":
        sigmas = scheduler.sigmas[:-1].double()
        return (*own.schedule.time((1 - sigmas).log() - sigmas.log()).tolist(), 0.0)
    last = 0.0 if scheduler.config.get("set_alpha_to_one", True) or hasattr(scheduler, "sigmas") else 0.001
    return (*((float(j) + 1) / 1000 for j in scheduler.timesteps), last)


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("word", CASES)
def test_our_sampler_draws_what_the_pipeline_draws(word, tmp_path):
    case = CASES[word]
    shape = NETWORKS[case.network].shape
    pipeline, start = case.built(), noise(BATCH, *shape, seed=7)
    pipeline.save_pretrained(tmp_path)
    adopted = from_diffusers.read(tmp_path, shape[1:])
    samples = theirs(pipeline, case, start)
    assert apart(ours(adopted.denoiser, case, pipeline.scheduler, start), samples) < 1e-4


def test_a_class_conditional_transformer_draws_what_its_pipeline_draws(tmp_path):
    """DiTPipeline, which knows a thousand classes and decodes whatever it draws."""
    tiny = NETWORKS["DiT"]
    net = Network(tiny.kind, {**tiny.config, "num_embeds_ada_norm": 1000, "out_channels": 4}, tiny.shape, tiny.call)
    vae = diffusers.AutoencoderKL(latent_channels=2, norm_num_groups=2, block_out_channels=(2,), scaling_factor=1.0)
    pipeline = diffusers.DiTPipeline(net.network(), vae, diffusers.DDIMScheduler(clip_sample=False, steps_offset=1))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    adopted, decode, drawn = from_diffusers.read(tmp_path), vae.decode, []
    vae.decode = lambda latents: drawn.append(latents) or decode(latents)
    labels, start = torch.tensor([3, 998]), noise(BATCH, *tiny.shape, seed=7)
    pipeline(labels.tolist(), WEIGHT, seeded(7), STEPS)
    assert (adopted.latent, adopted.image, adopted.denoiser.classes) == ("vae", (2, 8, 8), 1000)
    guided = Guided(adopted.denoiser).with_condition(of_classes(labels, torch.full((BATCH,), WEIGHT)))
    times = Trajectory(stepped(adopted.denoiser, pipeline.scheduler))
    assert apart(Sampler(guided, SOLVERS["ddim"](), times).sample(start), drawn[0]) < 1e-4


def test_every_network_that_is_written_down_is_drawn_by_its_pipeline():
    drawn = {NETWORKS[case.network].kind.__name__ for case in CASES.values()}
    elsewhere = {"DiTTransformer2DModel", "UNet1DModel", "UNet2DModel"}  # above; none; tests/test_adopt.py
    assert registry().keys() == drawn | elsewhere
