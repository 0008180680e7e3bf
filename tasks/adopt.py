"""A line of `teachers` that says `from: PATH`: the network in that folder is taken as it is, and trained no further."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

from diffcore import checkpoints
from diffcore.checkpoints import from_diffusers
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.manifest import Manifest
from diffcore.training import config, loop
from tasks import graph, paths
from tasks.params import Params, check_adopted
from tasks.progress import say

COST = {"iterations": 0, "images": 0, "network_calls": 0}


def take(params: Params, name: str) -> None:
    """The network of the line `name`, once it is known to fit the data, as a checkpoint that a chain begins with."""
    line = params.teachers[name]
    manifest, folder = Manifest.read(paths.DATA), line.folder
    found = from_diffusers.read(Path(folder))
    knows, asked = found.denoiser.classes is not None, line.conditional
    if knows != asked:
        raise UserError(
            f"teachers.{name}.conditional is {str(asked).lower()}, but the teacher in {folder} knows {'' if knows else 'no '}"
            f"classes; set it to {str(knows).lower()}"
        )
    found.check(manifest.shape, manifest.classes)
    check_adopted(params, name, found.skips, found.denoiser.parameterization)
    read = {"folder": folder, "files": found.files, "digest": disk.digest(found.files)}
    about = {
        "name": name,
        "method": "adopted",
        "solver": "ddim",
        "weights": "given",
        "parent": None,
        "teacher": None,
        "data": manifest.digest,
        "parameters": read | ({"sampling": found.sampling} if found.sampling else {}),
        "seed": params.seed,
        "code": graph.code_digest("teachers", "adopted"),
        "torch": config.torch_version(),
        "classes": list(manifest.classes) if knows else None,
        "cost": COST,
    }
    card = checkpoints.save(paths.CHECKPOINTS / name, found.denoiser, tuple(manifest.shape), about)
    columns = [field.name for field in fields(loop.Event) if field.default is MISSING]
    disk.write_summed(paths.CURVES / f"{name}.csv", ",".join(columns) + "\n")
    disk.write_sealed(paths.COST / f"{name}.json", {"seconds": 0.0, **COST})
    steps, parameterization = found.denoiser.num_timesteps, found.denoiser.parameterization
    limits = f", sampled with {json.dumps(found.sampling)} as its scheduler says" if found.sampling else ""
    say(
        f"{name}: adopted from {folder}, parameterization {parameterization}, {steps} noise levels{limits}; "
        f"checkpoint {card.digest[:12]}"
    )
