"""gamma.json: whole, and of which checkpoint. `gamma.Gamma` is what it holds."""

from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEMA = 2


def read(path: Path, checkpoint: str | None, remedy: str) -> dict[str, Any]:
    """The content of gamma.json: `about`, `edges` and what `gamma.Gamma.from_json` takes.

    checkpoint: the digest of the checkpoint that it must have been estimated from, None for any. A UserError that ends
    with the remedy for a file of another one, or one that is not whole.
    """
    content = disk.read_sealed(path, SCHEMA, remedy)
    own = content["about"]["checkpoint_digest"]
    if checkpoint not in (None, own):
        raise UserError(
            f"{path} was estimated from checkpoint {own[:12]}, and the one here is {checkpoint[:12]}; {remedy}"
        )
    return content
