"""What is handed out: whole pipelines of diffusers with a student in them, and what a model card says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints import from_diffusers, pipeline
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import of_pipeline
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks import command, export, front_matter, named, origin, params, paths, strict_yaml
from tests.conftest import seeded
from tests.test_architectures import CASES as NETWORKS
from tests.test_architectures import Case as Network
from tests.test_checkpoint import ABOUT

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent
BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
WORDS = ["<|startoftext|>", "<|endoftext|>", *(letter + end for letter in "abcdefgh" for end in ("", "</w>"))]
TOKENS = 8


def text_encoder():
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(WORDS), hidden_size=6, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, projection_dim=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).eval()  # fmt: skip


def tokenizer(folder: Path):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS, pad_token="<|endoftext|>"
    )


def vae(channels: int = 4):
    return diffusers.AutoencoderKL(latent_channels=channels, norm_num_groups=2, block_out_channels=(2,))


def stable_diffusion(folder: Path) -> None:
    """A tiny one, whole."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"vae": vae(), "text_encoder": text_encoder(), "tokenizer": tokenizer(folder.with_name("words"))}
    diffusers.StableDiffusionPipeline(
        **parts, unet=NETWORKS["SD 1.5"].network(), scheduler=diffusers.DDIMScheduler(**BETAS), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: creativeml-openrail-m\n---\nlicense: none\n")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    stable_diffusion(folder := tmp_path_factory.mktemp("a") / "stable-diffusion")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, theirs) -> params.Params:
    """A workspace whose teacher was adopted from there."""
    monkeypatch.chdir(tmp_path)
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["teachers"] = {"teacher": {"from": str(theirs)}}
    params.dump_yaml(raw, paths.PARAMS)
    read = from_diffusers.read(theirs)
    about = {
        **ABOUT,
        "name": "teacher",
        "method": "adopted",
        "parameters": {"folder": str(theirs), "encoder": read.encoder},
    }
    saved(read.denoiser, read.encoder, about)
    return params.read()


def saved(denoiser: NetDenoiser, encoder: str | None, about: dict, steps: int | None = None) -> None:
    grid = uniform(steps) if steps else None
    own = NetDenoiser(denoiser.net, denoiser.schedule, denoiser.reading, grid, nothing=denoiser.nothing.parts())
    checkpoints.save(paths.CHECKPOINTS / about["name"], own, (4, 8, 8), {**about, "encoder": encoder})


def student(theirs: Path, steps: int = 4, **about) -> NetDenoiser:
    read = from_diffusers.read(theirs)
    about = {**ABOUT, "name": "pd4", **about}
    saved(read.denoiser, read.encoder, about, steps)
    return checkpoints.load(paths.CHECKPOINTS / about["name"]).denoiser


DRAWS = """
import sys
sys.modules.update(dict.fromkeys(["diffcore", "tasks", "flows", "console"]))  # of which an import fails
import numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
embedded = pipeline.encode_prompt(["a b", "c"], "cpu", 1, False)[0]
drawn = pipeline(prompt_embeds=embedded, latents=start, num_inference_steps=4, guidance_scale=1.0, height=8, width=8,
                 output_type="latent").images
whole = pipeline(["a b", "c"], num_inference_steps=1, guidance_scale=1.0, height=8, width=8, output_type="np").images
assert whole.shape == (2, 8, 8, 3), whole.shape
numpy.savez(sys.argv[2], drawn=drawn.numpy(), embedded=embedded.detach().numpy())
"""


def elsewhere(code: str, folder: Path, *words: str) -> None:
    """In a process that cannot import this project."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def opened(folder: Path, **absent: None):
    whole = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    whole.set_progress_bar_config(disable=True)
    return whole


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


START = torch.randn(2, 4, 8, 8, generator=seeded(7))
LATENT = {"guidance_scale": 1.0, "output_type": "latent"}


@pytest.mark.parametrize("copies", [False, True])
@torch.no_grad()
def test_a_student_that_is_told_texts_is_a_whole_pipeline(here, theirs, copies, capsys):
    """Which draws the latents that the student makes here; its other folders are links, or their bytes."""
    own = student(theirs)
    assert command.main(["export", "pd4", "out", *["--copy"] * copies]) == 0
    how = "copied from" if copies else "links to those in"
    printed = capsys.readouterr().out
    assert f"pd4: a whole StableDiffusionPipeline; text_encoder, tokenizer, vae are {how} {theirs}\n" in printed
    assert all((Path("out") / name).is_symlink() != copies for name in ("text_encoder", "tokenizer", "vae"))
    assert of_pipeline(Path("out")) == of_pipeline(theirs)
    assert checkpoints.verify(Path("out")) == checkpoints.read_card(paths.CHECKPOINTS / "pd4")
    whole = opened(Path("out"))
    text = whole.encode_prompt(["a b", "c"], "cpu", 1, False)[0]
    drawn = whole(prompt_embeds=text, latents=START, num_inference_steps=4, height=8, width=8, **LATENT).images
    sampler = Sampler(own.with_condition(Condition({"text": text})), SOLVERS["ddim"](), uniform(4))
    close(sampler.sample(START), drawn)


@torch.no_grad()
def test_a_consistency_student_is_stepped_in_its_pipeline_as_it_is_here(here, theirs):
    read = from_diffusers.read(theirs)
    saved(read.denoiser, read.encoder, {**ABOUT, "name": "cd", "solver": "multistep_consistency"})
    export.export(here, "cd", Path("out"))
    whole, text = opened(Path("out")), torch.randn(2, TOKENS, 6, generator=seeded(3))
    assert type(whole.scheduler) is diffusers.LCMScheduler
    drawn = whole(prompt_embeds=text, latents=START, num_inference_steps=1, height=8, width=8, **LATENT).images
    own = read.denoiser.with_condition(Condition({"text": text}))
    sampler = Sampler(own, SOLVERS["multistep_consistency"](), uniform(1))
    close(sampler.sample(START, lambda k: START), drawn)


@pytest.mark.slow
def test_a_student_that_is_told_texts_needs_none_of_this_project(here, theirs, tmp_path):
    own = student(theirs)
    export.export(here, "pd4", Path("out"))
    Path("far").mkdir()
    elsewhere(DRAWS, Path("far"), str(tmp_path / "out"), str(tmp_path / "drawn.npz"))
    with np.load("drawn.npz") as arrays:
        drawn, text = (torch.from_numpy(arrays[name]) for name in ("drawn", "embedded"))
    sampler = Sampler(own.with_condition(Condition({"text": text})), SOLVERS["ddim"](), uniform(4))
    close(sampler.sample(START), drawn)


def adopted(folder: Path, classes: list[str] | None = None, image=(4, 8, 8), steps: int = 3) -> NetDenoiser:
    """A student of three steps by the name of the teacher, as if adopted from there."""
    read = from_diffusers.read(folder)
    own = read.denoiser
    own = NetDenoiser(own.net, own.schedule, own.reading, uniform(steps), own.classes, nothing=own.nothing.parts())
    about = {**ABOUT, "name": "teacher", "method": "adopted", "parameters": {"folder": str(folder)}, "classes": classes}
    checkpoints.save(paths.CHECKPOINTS / "teacher", own, image, {**about, "encoder": read.encoder})
    return own


@torch.no_grad()
def test_a_student_of_a_flow_lies_where_its_pipeline_has_it_and_is_drawn_by_its_sigmas(here):
    absent = dict.fromkeys(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
    net, scheduler = NETWORKS["SD3"].network(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.StableDiffusion3Pipeline(net, scheduler, vae(), **absent).save_pretrained("sd3")
    own = adopted(Path("sd3"))
    export.export(here, "teacher", Path("out"))
    assert (Path("out/transformer").is_dir(), Path("out/unet").exists(), Path("out/card.json").exists()) == (
        True,
        False,
        False,
    )
    text = Path("out/README.md").read_text()
    sigmas = [1, 0.666666667, 0.333333333]
    assert f'images = pipeline("a prompt", sigmas={sigmas}, guidance_scale=1).images\n' in text
    told = {"text": torch.randn(2, 5, 6, generator=seeded(1)), "pooled": torch.randn(2, 10, generator=seeded(2))}
    words = {"prompt_embeds": told["text"], "pooled_prompt_embeds": told["pooled"]}
    drawn = opened(Path("out"), **absent)(**words, latents=START, sigmas=sigmas, height=8, width=8, **LATENT).images
    close(Sampler(own.with_condition(Condition(told)), SOLVERS["ddim"](), uniform(3)).sample(START), drawn)


def test_a_student_of_classes_and_latents_is_a_pipeline_of_diffusers_too(here):
    tiny = NETWORKS["DiT"]
    net = Network(tiny.kind, {**tiny.config, "out_channels": 4}, tiny.shape, tiny.call).network()
    diffusers.DiTPipeline(net, vae(2), diffusers.DDIMScheduler(clip_sample=False)).save_pretrained("dit")
    adopted(Path("dit"), [*"abcde"], (2, 8, 8))
    export.export(here, "teacher", Path("out"))
    assert (
        "pipeline(class_labels=[0, 1], num_inference_steps=3, guidance_scale=1).images\n"
        in Path("out/README.md").read_text()
    )
    whole = opened(Path("out"))
    assert type(whole) is diffusers.DiTPipeline
    assert whole([3, 0], guidance_scale=1.0, num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 3)


def test_what_cannot_be_a_pipeline_is_refused_by_name(here, theirs, tmp_path):
    student(theirs)
    whole, card = pipeline.read(theirs), checkpoints.read_card(paths.CHECKPOINTS / "pd4")
    encoder = from_diffusers.read(theirs).encoder
    whole.check(card, "UNet2DConditionModel", encoder)
    with pytest.raises(
        UserError, match=r"^pd4 is a UNet2DModel, and the StableDiffusionPipeline in .* calls a UNet2DCond"
    ):
        whole.check(card, "UNet2DModel", encoder)
    with pytest.raises(
        UserError, match=r"^the text encoders in .* are other than those by whose embeddings pd4 is told"
    ):
        whole.check(card, "UNet2DConditionModel", "another")
    own = from_diffusers.read(theirs).denoiser
    for reading in (Reading.of("edm", "edm"), Reading("flow"), Reading("score")):
        unstepped = NetDenoiser(own.net, own.schedule, reading, nothing=own.nothing.parts())
        saved(unstepped, encoder, {**ABOUT, "name": "pd4"})
        with pytest.raises(
            UserError, match="no scheduler of diffusers steps pd4, so no StableDiffusionPipeline can; ch"
        ):
            export.export(here, "pd4", Path("out"))
    student(theirs)
    for form in ("onnx", "torch_export"):
        with pytest.raises(
            UserError, match=f"--format {form} has no place for text, text_mask, which pd4 is told; choose"
        ):
            export.export(here, "pd4", Path("out"), form)
    with pytest.raises(UserError, match="--copy: pd4 comes from no pipeline with other folders to copy; leave it out"):
        export.export(here, "pd4", Path("out"), "safetensors", copies=True)
    assert not Path("out").exists()
    export.export(here, "pd4", Path("out"), "safetensors")


def test_a_student_whose_pipeline_is_gone_says_where_it_belongs(here, theirs):
    student(theirs, name="other")
    (paths.CHECKPOINTS / "other").rename(paths.CHECKPOINTS / "elsewhere")
    export.export(here, str(paths.CHECKPOINTS / "elsewhere"), Path("out"))
    text = Path("out/README.md").read_text()
    assert "is told text, text_mask besides a time, and no pipeline lies beside it: put it in the place of the" in text
    assert "base_model" not in text
    assert not Path("out/model_index.json").exists()


@pytest.mark.parametrize("spoiled", ["{", "[]", "{}"])
def test_an_index_that_is_none_is_refused_in_one_line(spoiled, tmp_path):
    assert pipeline.read(tmp_path) is None
    (tmp_path / "model_index.json").write_text(spoiled)
    with pytest.raises(UserError, match=r"model_index\.json (is not valid JSON|does not say which pipeline it is)"):
        pipeline.read(tmp_path)


def test_a_point_that_was_guided_by_two_calls_is_drawn_so(here, theirs):
    student(theirs)
    for recipe, weight in (({"sampler": "ddim"}, "1"), ({"sampler": "ddim", "guidance": 4.5}, "4.5")):
        sampling = named.Sampling(json.dumps(recipe), (1.0, 0.5, 0.0), None)
        each = named.Named("pd4", paths.CHECKPOINTS / "pd4", sampling=sampling)
        text = export.readme(each, None, None, pipeline.read(theirs))
        assert f"num_inference_steps=4, guidance_scale={weight}).images\n" in text


def front(text: str) -> dict:
    head = text.split("---\n")[1]
    Path("head.yaml").write_text(head)
    return strict_yaml.load_yaml(Path("head.yaml"))


def test_its_model_card_says_whose_it_is_and_how_it_is_drawn(here, theirs):
    student(theirs, guidance={"low": 7.5, "high": 7.5, "convention": "x"})
    paths.ARTIFACTS.mkdir(exist_ok=True)
    export.export(here, "pd4", Path("out"))
    text = Path("out/README.md").read_text()
    assert front(text) == {
        "license": "creativeml-openrail-m",
        "base_model": "stable-diffusion",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["diffusion-distillation", "progressive"],
    }
    assert 'StableDiffusionPipeline.from_pretrained("PATH")' in text
    assert '- schedule: {"name": "discrete", "betas": "1000 from 0.00085 to 0.012"}\n' in text
    assert 'pipeline("a prompt", num_inference_steps=4, guidance_scale=1).images  # guidance is built in' in text
    assert "The licence of the data is not stated. Licence of the teacher: creativeml-openrail-m." in text


def test_a_pipeline_of_images_is_opened_and_drawn_as_its_model_card_says(here, theirs, tmp_path):
    """Without what would decode latents, which diffusers must be told."""
    shutil.copytree(theirs, whole := tmp_path / "whole")
    shutil.rmtree(whole / "vae")
    index = json.loads((whole / "model_index.json").read_text())
    (whole / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    raw = params.load_yaml(ROOT / "params.yaml")
    params.dump_yaml({**raw, "teachers": {"teacher": {"from": str(whole)}}}, paths.PARAMS)
    checkpoint = checkpoints.load(paths.CHECKPOINTS / "teacher")
    about = {**ABOUT, "name": "teacher", "method": "adopted", "parameters": {"folder": str(whole)}}
    saved(checkpoint.denoiser, checkpoint.card.encoder, about)
    own = student(whole)
    export.export(params.read(), "pd4", Path("out"))
    text = Path("out/README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    assert 'from_pretrained("PATH", vae=None)' in code
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        exec(code.replace("PATH", "out"), names)
        torch.manual_seed(5)
        start = torch.randn(1, 4, 8, 8)
    texts = names["pipeline"].encode_prompt("a prompt", "cpu", 1, False)[0]
    told = Condition({"text": texts, "text_mask": torch.ones(texts.shape[:2], dtype=torch.bool)})
    ours = Sampler(own.with_condition(told), SOLVERS["ddim"](), own.grid).sample(start)
    torch.testing.assert_close(names["images"], (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


LICENSES = [
    ((None, None), {}),
    (("MIT", None), {"license": "mit"}),
    ((None, "cc-by-4.0"), {"license": "cc-by-4.0"}),
    (("cc-by-4.0", "CC-BY-4.0"), {"license": "cc-by-4.0"}),
    (('my own: yes, "really"', None), {"license": "other", "license_name": 'data: my own: yes, "really"'}),
    (("cc0-1.0", "mit"), {"license": "other", "license_name": "teacher: mit; data: cc0-1.0"}),
]


@pytest.mark.parametrize(("licenses", "rows"), LICENSES)
def test_the_licence_of_a_model_is_what_its_teacher_and_its_data_state(here, licenses, rows):
    """In YAML that can be read, whatever the words."""
    data, theirs = licenses
    card = checkpoints.read_card(paths.CHECKPOINTS / "teacher")
    whence = origin.Origin(Path("a/b"), "on", theirs) if theirs else None
    head = front(front_matter.front_matter(card, data, whence, "diffusers"))
    assert {key: value for key, value in head.items() if key.startswith("license")} == rows
    assert head.get("base_model") == (whence and "on")


def test_an_adopted_model_is_called_as_its_files_say(tmp_path):
    def name(index: dict) -> str:
        disk.write_json(tmp_path / "model_index.json", index)
        return origin._name(tmp_path)

    assert name({"_name_or_path": "runwayml/stable-diffusion-v1-5"}) == "runwayml/stable-diffusion-v1-5"
    assert name({"_name_or_path": "/home/me/sd"}) == name({}) == name({"_name_or_path": 3}) == tmp_path.name
