"""The static embeddings that the package wordllama ships: a vector for each token of Llama 2, trained for sentences' likeness
(Miller 2024, github.com/dleemiller/WordLlama). The package is never run, its two files are read where it is installed."""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.texts.encoder import Static

PLACE = None
PACKAGES = ("wordllama", "tokenizers")
TABLE = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


@dataclass(frozen=True)
class WordLlama(Static):
    """table, tokenizer: the files. Tokens are pieces of words, 256 numbers each."""

    table: Path | None = None
    tokenizer: Path | None = None

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        return {"name": "wordllama", "table": disk.sha256(self.table), "tokenizer": disk.sha256(self.tokenizer)}

    @functools.cached_property
    def _rows(self) -> Tensor:
        from safetensors.torch import load_file

        return load_file(self.table)["embedding.weight"].float()

    @functools.cached_property
    def _tokens_of(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def tokens(self, captions: Sequence[str]) -> list[list[Any]]:
        return [each.ids for each in self._tokens_of.encode_batch(list(captions))]

    def vectors(self, tokens: Sequence[Any]) -> Tensor:
        return self._rows[list(tokens)]


def encoder_of(place: str, dimension: int) -> WordLlama:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"text.encoder: wordllama needs {' and '.join(missing)}, which is not installed: pip install 'distill[text]'"
        )
    folder = Path(importlib.util.find_spec("wordllama").origin).parent
    for path in (folder / TABLE, folder / TOKENIZER):
        if not path.is_file():
            raise UserError(
                f"text.encoder: the package wordllama lacks {path.name}: pip install 'wordllama==0.4.0.post1'"
            )
    return WordLlama(table=folder / TABLE, tokenizer=folder / TOKENIZER)
