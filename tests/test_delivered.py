"""Students of adopted pipelines, handed out: plain diffusers, where no part of this project is, draws what they do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcore import checkpoints
from diffcore.checkpoints import Guidance, from_diffusers
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.network import NetDenoiser
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks import export, params, paths
from tests import test_pipelines
from tests.test_architectures import CASES as NETWORKS
from tests.test_checkpoint import ABOUT
from tests.test_delivery import ROOT, elsewhere
from tests.test_pipelines import apart

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")]

STEPS = 4
DRAWS = """
import sys
sys.modules.update(dict.fromkeys(["diffcore", "tasks", "flows", "console"]))  # of which an import fails
import torch
from diffusers import DiffusionPipeline
drawn = {}
for word, (folder, absent, call) in torch.load(sys.argv[1]).items():
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **dict.fromkeys(absent))
    start = call["latents"]
    if "Flux" in type(pipeline).__name__:
        call["latents"] = pipeline._pack_latents(start, *start.shape)
    samples = pipeline(**call, output_type="latent").images
    if "Flux" in type(pipeline).__name__:
        samples = pipeline._unpack_latents(samples, call["height"], call["width"], pipeline.vae_scale_factor)
    drawn[word] = samples
torch.save(drawn, sys.argv[2])
"""


@dataclass(frozen=True)
class Case:
    """One of test_pipelines, sampled without guidance, which a student has built in. call: what its pipeline is called with
    beside embeddings, others: what the student is told beside them. weights: of guidance, which its network is told."""

    word: str
    told: tuple[str, ...] = ("text", "pooled")
    call: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    others: dict[str, Tensor] = field(default_factory=dict)
    steps: tuple[float, ...] = uniform(STEPS).times
    weights: Guidance | None = None

    @property
    def theirs(self) -> test_pipelines.Case:
        return test_pipelines.CASES[self.word]

    @property
    def start(self) -> Tensor:
        return test_pipelines.noise(test_pipelines.BATCH, *NETWORKS[self.theirs.network].shape, seed=7)

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {name: test_pipelines.EMBEDDED[name] for name in self.told} | self.others


ALONE = {"guidance_scale": 1.0, **test_pipelines.UNBINNED}
CASES = [
    Case("SDXL by Euler", call={"guidance_scale": 1.0, **test_pipelines.OF_SIZE}, others={"size": test_pipelines.SIZE}),
    Case("PixArt-alpha by DPM", ("text", "text_mask"), ALONE, {"size": test_pipelines.WANTED}),
    Case("PixArt-sigma by DPM", ("text", "text_mask"), ALONE),
    Case("SD3"),
    Case("Flux schnell, guided", call={}),
    Case("Flux dev, a dynamic shift", call={}, weights=Guidance(3.5, 3.5)),
    Case("Flux dev, a dynamic shift", call={}, weights=Guidance(1.0, 5.0)),  # its card says the one in the middle
    Case("AuraFlow", ("text", "text_mask")),
]


def student(case: Case, folder: Path) -> NetDenoiser:
    """A checkpoint `teacher` of four steps, as if it was adopted from this folder, where the pipeline is written first."""
    pipeline = case.theirs.built()
    four = {"latent_channels": 4, "norm_num_groups": 2, "block_out_channels": (2, 2, 2, 2)}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipeline.register_modules(vae=diffusers.AutoencoderKL(**four, **kinds))
    pipeline.save_pretrained(folder)
    read = from_diffusers.read(folder, case.start.shape[2:])
    own, grid = read.denoiser, Trajectory(case.steps)
    one = case.weights.low if case.weights and not case.weights.is_input else None
    own = NetDenoiser(
        own.net, own.schedule, own.reading, grid, None, bool(case.weights), nothing=own.nothing.parts(), guidance=one
    )
    about = {**ABOUT, "name": "teacher", "method": "adopted", "parameters": {"folder": str(folder)}}
    about |= {"guidance": case.weights and vars(case.weights)}
    checkpoints.save(paths.CHECKPOINTS / "teacher", own, case.start.shape[1:], {**about, "encoder": read.encoder})
    return own


def called(case: Case, out: Path) -> tuple[str, list[str], dict[str, Any]]:
    """The folder, the parts that are not in it, and what its pipeline is called with: as the model card says."""
    card = (out / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("images = pipeline(")]
    written: dict[str, Any] = {}
    exec(line, {"pipeline": lambda *words, **call: written.update(call) or type("Drawn", (), {"images": None})})
    words = {
        test_pipelines.THEIR_WORDS[name]: tensor for name, tensor in case.inputs.items() if name not in case.others
    }
    sides = {"height": 8 * case.start.shape[2], "width": 8 * case.start.shape[3]}
    absent = [name for name in case.theirs.absent if name != "vae"]
    return str(out.resolve()), absent, {**written, **case.call, **words, **sides, "latents": case.start}


@torch.no_grad()
def test_each_is_drawn_as_it_draws_where_there_is_none_of_this_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params.dump_yaml(params.load_yaml(ROOT / "params.yaml"), paths.PARAMS)
    calls, expected = {}, {}
    for number, case in enumerate(CASES):
        own, out = student(case, Path(f"theirs{number}")), Path(f"out{number}")
        raw = params.load_yaml(ROOT / "params.yaml")
        params.dump_yaml({**raw, "teachers": {"teacher": {"from": f"theirs{number}"}}}, paths.PARAMS)
        export.export(params.read(), "teacher", out)
        (out / "card.json").unlink(missing_ok=True)  # which would say that it is a student of ours
        again = from_diffusers.read(out, case.start.shape[2:]).denoiser
        assert again.reading == own.reading, case.word
        word = f"{case.word} {case.weights or ''}"
        calls[word] = called(case, out)
        weight = torch.full((test_pipelines.BATCH,), float(calls[word][2].get("guidance_scale", 1)))
        sampler = Sampler(own.with_condition(Condition(case.inputs, weight)), SOLVERS["ddim"](), own.grid)
        expected[word] = sampler.sample(case.start)
    told = {word: call.get("guidance_scale") for word, (_, _, call) in calls.items() if "Flux dev" in word}
    assert list(told.values()) == [3.5, 3.0]
    torch.save(calls, "calls.pt")
    Path("far").mkdir()
    elsewhere(DRAWS, Path("far"), str(tmp_path / "calls.pt"), str(tmp_path / "drawn.pt"))
    drawn = torch.load("drawn.pt")
    assert {
        word: apart(expected[word], drawn[word]) for word in drawn if apart(expected[word], drawn[word]) > 1e-5
    } == {}
