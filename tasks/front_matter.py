"""The head of a model card, in the YAML that Hugging Face reads."""

import json
import re
from typing import Any

from diffcore.checkpoints import Card
from tasks.origin import Origin

NAMES = """
apache-2.0 mit openrail openrail++ creativeml-openrail-m bigscience-openrail-m bsd bsd-2-clause bsd-3-clause cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 agpl-3.0 mpl-2.0 odbl odc-by pddl unlicense wtfpl zlib isc
"""
IDENTIFIERS = frozenset(NAMES.split())
"""What Hugging Face calls licences; others are `other`, with a name."""


def front_matter(card: Card, data: str | None, origin: Origin | None, library: str | None) -> str:
    """The block between two lines of ---. data: licence of the data in the user's words, None where it is not stated.
    library: what opens the folder, None for nothing of others."""
    kind = "text-to-image" if "text" in (card.inputs or ()) else "unconditional-image-generation"
    rows: dict[str, Any] = {
        **_license(stated(data, origin)),
        **({"base_model": origin.name} if origin else {}),
        **({"library_name": library} if library else {}),
        "pipeline_tag": kind,
        "tags": ["diffusion-distillation", *([] if card.method == "adopted" else [card.method.replace("_", "-")])],
    }
    return "\n".join(["---", *(f"{key}: {_yaml(value)}" for key, value in rows.items()), "---", ""])


def _yaml(value: str | list[str]) -> str:
    """JSON is YAML too; a word that YAML takes for nothing else stands as it is."""
    is_word = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9]+([.-][a-z0-9]+)+|diffusers|mit", value)
    return value if is_word else json.dumps(value)


def stated(data: str | None, origin: Origin | None) -> dict[str, str]:
    """The licences that anybody states, by whose they are."""
    of = {"teacher": origin and origin.license, "data": data}
    return {whose: license.strip() for whose, license in of.items() if license and license.strip()}


def _license(licenses: dict[str, str]) -> dict[str, str]:
    if not licenses:
        return {}
    words = {license.lower() for license in licenses.values()}
    if len(words) == 1 and words <= IDENTIFIERS:
        return {"license": words.pop()}
    return {"license": "other", "license_name": "; ".join(f"{whose}: {word}" for whose, word in licenses.items())}
