"""One text encoder of transformers with its tokenizer, from a folder of this machine: nothing is downloaded, no pickle is
read, and no code that the folder brings is run."""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffcore.core import disk
from diffcore.core.errors import UserError

CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Of a network that has a decoder too, its encoder, by `model_type`."""

CLIP, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
USED = (".json", ".txt", ".model", ".jinja")
"""Files beside the weights that a tokenizer or a config may be."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VARIANTS = ("model.*.safetensors", "model.safetensors.index.*.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
UNBOUNDED = 10**6
"""A tokenizer that knows of no limit says a larger one."""

AT_FAULT = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
"""What transformers raises for a folder that is not in order."""


@dataclass(frozen=True)
class Outputs:
    """Of texts. last: [k, l, d], of the last layer. before: of the last but one. pooled: [k, p], where the network has one.
    mask: bool [k, l], which tokens are there."""

    last: Tensor
    before: Tensor
    pooled: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class Model:
    """folder: with config.json and weights; tokenizer_folder: its tokenizer's, often the same one."""

    folder: Path
    tokenizer_folder: Path

    def __post_init__(self):
        for path in (self.folder, self.tokenizer_folder):
            if not path.is_dir():
                raise UserError(
                    f"text.encoder: {path} is not there; name a folder of transformers or of a whole pipeline"
                )
        if "model_type" not in self.config:
            raise UserError(f"text.encoder: {self.folder} is no text encoder, its config.json names no model_type")
        if len(self.variants) > 1:
            words = ", ".join(self.variants)
            raise UserError(
                f"text.encoder: {self.folder} has weights in several variants, {words}; leave one of them there"
            )
        if not self.variants:
            pickled = [path.name for pattern in PICKLED for path in sorted(self.folder.glob(pattern))]
            fault = f"has pickled weights alone ({pickled[0]})" if pickled else f"has no {WEIGHTS[0]}"
            raise UserError(f"text.encoder: {self.folder} {fault}; write it with save_pretrained, as safetensors")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            content = disk.parse_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"text.encoder: {self.folder} is no text encoder, it has no config.json") from None
        except ValueError:
            raise UserError(f"text.encoder: {path} is not JSON; write the folder again with save_pretrained") from None
        return content if isinstance(content, dict) else {}

    @functools.cached_property
    def variants(self) -> list[str]:
        """What the names of its weights have beside `model`, such as fp16: empty alone where there are any without."""
        if any((self.folder / name).is_file() for name in WEIGHTS):
            return [""]
        names = [path.name for pattern in VARIANTS for path in self.folder.glob(pattern)]
        return sorted({name.split(".")[-2] for name in names if "-of-" not in name})

    @property
    def is_clip(self) -> bool:
        return self.config["model_type"] in ("clip", "clip_text_model")

    @property
    def most(self) -> int | None:
        """The most tokens that it takes, None where any number will do."""
        own = None if self.config["model_type"] in CLASSES else self._positions
        limit = self.tokenizer.model_max_length
        return own if limit > UNBOUNDED or self.config["model_type"] in CLASSES else min(own or limit, limit)

    @property
    def usual(self) -> int | None:
        """How many tokens its tokenizer is meant for."""
        limit = self.tokenizer.model_max_length
        return self.most or (None if limit > UNBOUNDED else limit)

    @property
    def _positions(self) -> int | None:
        return {**self.config, **(self.config.get("text_config") or {})}.get("max_position_embeddings")

    def files(self) -> Iterator[Path]:
        """Those that are used: weights, configs and tokenizer."""
        name = ".".join(filter(None, ("model", self.variants[0])))
        whole = self.folder / f"{name}.safetensors"
        yield from [whole] if whole.is_file() else sorted(self.folder.glob(f"{name}-*.safetensors"))
        for folder in dict.fromkeys((self.folder, self.tokenizer_folder)):
            yield from sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in USED)

    @functools.cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with _in_order(self.tokenizer_folder, "tokenizer"):
            return AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True, trust_remote_code=False)

    def counts(self, captions: Sequence[str]) -> list[int]:
        """Of each caption its tokens, before any is cut."""
        return [len(ids) for ids in self.tokenizer(list(captions), verbose=False)["input_ids"]]

    def tokens(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Of captions padded or cut to `length` tokens: their numbers, and which are there, int64 [k, length] each."""
        with _in_order(self.tokenizer_folder, "tokenizer"):
            tokens = self.tokenizer(
                list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
        return tokens["input_ids"], tokens["attention_mask"]

    def load(self, device: torch.device, numbers: str) -> "Loaded":
        """Its network on `device`, in float32 or bf16."""
        import transformers

        transformers.utils.logging.set_verbosity_error()  # weights of other parts that lie beside an encoder's are no news
        transformers.utils.logging.disable_progress_bar()
        with _in_order(self.folder, "text encoder"):
            network, report = getattr(transformers, self._class).from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                variant=self.variants[0] or None,
                output_loading_info=True,
                dtype=torch.bfloat16 if numbers == "bf16" else torch.float32,
            )
        if lacking := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
            raise UserError(f"text.encoder: {self.folder} lacks {len(lacking)} weights, {lacking[0]}; copy it again")
        return Loaded(self, network.to(device).eval().requires_grad_(False))

    @property
    def _class(self) -> str:
        if self.is_clip:
            return PROJECTED if PROJECTED in (self.config.get("architectures") or ()) else CLIP
        return CLASSES.get(self.config["model_type"], "AutoModel")


@dataclass(frozen=True)
class Loaded:
    """A model whose weights are in memory."""

    model: Model
    network: nn.Module

    @torch.inference_mode()
    def outputs(self, captions: Sequence[str], length: int, masked: bool = False) -> Outputs:
        """Of captions padded or cut to `length` tokens; float32 on the CPU. masked: whether the network is told which tokens
        are there; without, it looks at all."""
        ids, mask = self.model.tokens(captions, length)
        seen = mask.to(self.network.device) if masked else None
        outputs = self.network(ids.to(self.network.device), attention_mask=seen, output_hidden_states=True)
        pooled = outputs.get("text_embeds")
        pooled = outputs.get("pooler_output") if pooled is None and self.model.is_clip else pooled
        return Outputs(
            last=_plain(outputs["last_hidden_state"]),
            before=_plain(outputs["hidden_states"][-2]),
            pooled=None if pooled is None else _plain(pooled),
            mask=mask.bool(),
        )


def check_installed() -> None:
    """A UserError that names the extra if transformers is not there."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("text.encoder: folder: needs transformers, which is not installed: pip install 'distill[text]'")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32).clone()  # as no part of what the network has computed beside it


@contextlib.contextmanager
def _in_order(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except AT_FAULT as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"text.encoder: the {what} in {folder} cannot be read: {line}") from None
