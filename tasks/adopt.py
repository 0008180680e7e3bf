"""The stage `teacher` where params.yaml names a folder: the network in it is taken as it is, and trained no further."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

from diffcore import checkpoints
from diffcore.checkpoints import from_diffusers
from diffcore.core import disk
from diffcore.core.errors import Mistake
from diffcore.data.manifest import Manifest
from diffcore.training import fit
from tasks import graph, paths
from tasks.params import ROOT, Params, check_adopted
from tasks.progress import say

COST = {"iterations": 0, "images": 0, "network_calls": 0}


def teacher(params: Params) -> None:
    """The network of `teacher.folder`, once it is known to fit the data, as the checkpoint that every chain begins with."""
    manifest, folder = Manifest.read(paths.DATA), params.teacher.folder
    found = from_diffusers.adopt(Path(folder))
    knows, asked = found.denoiser.classes is not None, params.network.conditional
    if knows != asked:
        raise Mistake(
            f"network.conditional is {str(asked).lower()}, but the teacher in {folder} knows {'' if knows else 'no '}"
            f"classes; set it to {str(knows).lower()}"
        )
    found.check(manifest.shape, manifest.classes)
    check_adopted(params, found.skips, found.denoiser.head)
    read = {"folder": folder, "files": found.files, "digest": disk.digest(found.files)}
    about = {
        "name": ROOT,
        "method": "adopted",
        "solver": "ddim",
        "weights": "given",
        "parent": None,
        "teacher": None,
        "data": manifest.digest,
        "parameters": read | ({"sampling": found.sampling} if found.sampling else {}),
        "seed": params.seed,
        "code": graph.code_digest(ROOT, "adopted"),
        "torch": fit.torch_version(),
        "classes": list(manifest.classes) if knows else None,
        "cost": COST,
    }
    card = checkpoints.save(paths.CHECKPOINTS / ROOT, found.denoiser, tuple(manifest.shape), about)
    columns = [field.name for field in fields(fit.Event) if field.default is MISSING]
    disk.write_summed(paths.CURVES / f"{ROOT}.csv", ",".join(columns) + "\n")
    disk.write_sealed(paths.COST / f"{ROOT}.json", {"seconds": 0.0, **COST})
    steps, head = found.denoiser.labels, found.denoiser.head
    limits = f", sampled with {json.dumps(found.sampling)} as its scheduler says" if found.sampling else ""
    say(f"{ROOT}: adopted from {folder}, head {head}, {steps} noise levels{limits}; checkpoint {card.digest[:12]}")
