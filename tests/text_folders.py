"""Tiny text encoders with random weights and tokenizers of a few words, as transformers and diffusers write them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ("<pad>", "</s>", "<unk>", "a", "bold", "dark", "seven", "pale", "nine")
MOST = 12
"""Tokens that the CLIPs take."""

quiet = transformers.utils.logging
quiet.set_verbosity_error()
quiet.disable_progress_bar()
diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)  # of parts that are None


@functools.cache
def letters() -> transformers.CLIPTokenizer:
    """A token for each letter but for those of one word."""
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "da", "rk</w>", "dark</w>"]
    vocabulary = {name: number for number, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("d", "a"), ("r", "k</w>"), ("da", "rk</w>")]
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MOST)


@functools.cache
def words() -> transformers.PreTrainedTokenizerFast:
    """A token for each of WORDS, and one at the end."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


def clip(width: int, projected: bool = False) -> transformers.PreTrainedModel:
    torch.manual_seed(width)
    start, end = letters().bos_token_id, letters().eos_token_id
    config = transformers.CLIPTextConfig(
        vocab_size=len(letters()), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MOST, projection_dim=width + 2, bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def t5() -> transformers.T5EncoderModel:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def single_clip(folder: Path) -> None:
    clip(8).save_pretrained(folder)
    letters().save_pretrained(folder)


def single_t5(folder: Path) -> None:
    t5().save_pretrained(folder)
    words().save_pretrained(folder)


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=clip(8), tokenizer=letters(), unet=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(zeros: bool) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=None, text_encoder=clip(8), text_encoder_2=clip(10, projected=True), tokenizer=letters(), tokenizer_2=letters(),
        unet=None, scheduler=None, force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def pixart(name: str) -> Any:
    parts = dict.fromkeys(("vae", "transformer", "scheduler"))
    return getattr(diffusers, name)(text_encoder=t5(), tokenizer=words(), **parts)


def flux() -> Any:
    parts = dict.fromkeys(("vae", "transformer", "scheduler"))
    return diffusers.FluxPipeline(
        text_encoder=clip(8), tokenizer=letters(), text_encoder_2=t5(), tokenizer_2=words(), **parts
    )


def stable_diffusion_3() -> Any:
    parts = dict.fromkeys(("vae", "transformer", "scheduler"))
    return diffusers.StableDiffusion3Pipeline(
        text_encoder=clip(8, projected=True), tokenizer=letters(), text_encoder_2=clip(10, projected=True),
        tokenizer_2=letters(), text_encoder_3=t5(), tokenizer_3=words(), **parts,
    )  # fmt: skip


Told = dict[str, torch.Tensor]


def _masked(pipeline: Any, captions: list[str]) -> tuple[Told, Told]:
    text, mask, nothing, of_nothing = pipeline.encode_prompt(captions, device="cpu")
    return {"text": text, "text_mask": mask.bool()}, {"text": nothing, "text_mask": of_nothing.bool()}


def _twice(pipeline: Any, captions: list[str]) -> tuple[Told, Told]:
    parts = [pipeline.encode_prompt(each, each, device="cpu") for each in (captions, [""])]
    return tuple({"text": text, "pooled": pooled} for text, pooled, _ in parts)


def _stable_diffusion_3(pipeline: Any, captions: list[str]) -> tuple[Told, Told]:
    text, nothing, pooled, of_nothing = pipeline.encode_prompt(captions, captions, captions, device="cpu")
    return {"text": text, "pooled": pooled}, {"text": nothing, "pooled": of_nothing}


def _two(pipeline: Any, captions: list[str]) -> tuple[Told, Told]:
    text, nothing, pooled, of_nothing = pipeline.encode_prompt(captions, device="cpu")
    return {"text": text, "pooled": pooled}, {"text": nothing, "pooled": of_nothing}


def _one(pipeline: Any, captions: list[str]) -> tuple[Told, Told]:
    text, nothing = pipeline.encode_prompt(captions, "cpu", 1, True)
    return {"text": text}, {"text": nothing}


PIPELINES: dict[str, tuple[Callable[[], Any], Callable[[Any, list[str]], tuple[Told, Told]]]] = {
    "StableDiffusion": (stable_diffusion, _one),
    "StableDiffusionXL": (functools.partial(stable_diffusion_xl, True), _two),
    "StableDiffusionXL, empty": (functools.partial(stable_diffusion_xl, False), _two),
    "PixArtAlpha": (functools.partial(pixart, "PixArtAlphaPipeline"), _masked),
    "PixArtSigma": (functools.partial(pixart, "PixArtSigmaPipeline"), _masked),
    "Flux": (flux, _twice),
    "StableDiffusion3": (stable_diffusion_3, _stable_diffusion_3),
}
"""By layout: a pipeline of diffusers, and what its own encode_prompt tells the network of captions and of nothing."""

SINGLE = {"CLIP": single_clip, "T5": single_t5}
"""Writers of a folder with one encoder."""
