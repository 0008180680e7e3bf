"""A line of `teachers` that says `from: PATH`: the network in that folder is taken as it is, and trained no further."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

from diffcore import checkpoints
from diffcore.checkpoints import against_diffusers, from_diffusers
from diffcore.checkpoints.encoded import embeddings_for
from diffcore.core import disk
from diffcore.core.shapes import IMAGE
from diffcore.data.manifest import Manifest
from diffcore.denoisers.network import NetDenoiser
from diffcore.training import config, loop
from tasks import graph, paths
from tasks.params import Params, check_adopted
from tasks.progress import log
from tasks.sections import Adopted

COST = {"iterations": 0, "images": 0, "network_calls": 0}


def take(params: Params, name: str) -> None:
    """Saves the network of the line `name`, which must fit the data, as a checkpoint that a chain begins with."""
    line = params.teachers[name]
    manifest = Manifest.read(paths.DATA)
    folder = line.folder
    model = from_diffusers.read(Path(folder), manifest.shape[1:], line.stated)
    model = model.with_weights(name, folder, line.guidance)
    model.check_told(name, folder, line.conditional, line.inputs)
    model.check(manifest.shape, manifest.classes)
    check_adopted(params, name, model.skips, model.denoiser.reading.parameterization, model.takes_end)
    denoiser, encoder = _captioned(name, line, model, manifest)
    read = {"folder": folder, "files": model.files, "digest": disk.digest(model.files)}
    read |= {"encoder": model.encoder} if model.encoder else {}
    about = {
        "name": name,
        "method": "adopted",
        "solver": "ddim",
        "weights": "given",
        "parent": None,
        "teacher": None,
        "data": manifest.digest,
        "parameters": read | ({"sampling": model.sampling} if model.sampling else {}),
        "seed": params.seed,
        "code": graph.code_digest("teachers", "adopted"),
        "torch": config.torch_version(),
        "classes": None if model.denoiser.classes is None else list(manifest.classes),
        "cost": COST,
        "encoder": encoder,
        "guidance": model.guidance and vars(model.guidance),
    }
    if gap := against_diffusers.gap(Path(folder), model, manifest.shape):
        log(f"{name}: {gap}")
    card = checkpoints.save(paths.CHECKPOINTS / name, denoiser, tuple(manifest.shape), about)
    columns = [field.name for field in fields(loop.Event) if field.default is MISSING]
    disk.write_summed(paths.CURVES / f"{name}.csv", ",".join(columns) + "\n")
    disk.write_sealed(paths.COST / f"{name}.json", {"seconds": 0.0, **COST})
    steps, parameterization = model.denoiser.reading.num_timesteps, model.denoiser.reading.parameterization
    limits = f", sampled with {json.dumps(model.sampling)} as its scheduler says" if model.sampling else ""
    log(
        f"{name}: adopted from {folder}, parameterization {parameterization}, {steps} noise levels{limits}; "
        f"checkpoint {card.digest[:12]}"
    )


def _captioned(
    name: str, line: Adopted, model: from_diffusers.Adopted, manifest: Manifest
) -> tuple[NetDenoiser, str | None]:
    """Its denoiser, for which what the encoder makes of the empty caption stands for nothing, and the encoder's digest. A
    UserError where the line says otherwise than the folder, and where the data's captions are embedded by another encoder."""
    own = model.denoiser
    texts = embeddings_for(line.inputs, paths.TEXT, manifest)
    if texts is None:
        return own, None
    model.check_encoder(name, line.folder, texts.encoder, str(paths.TEXT))
    model.check_shapes(name, line.folder, {each: texts.inputs[each].shape for each in line.inputs})
    if model.encoder is None and set(line.inputs) - {IMAGE}:
        log(
            f"{name}: no text encoder that is known here lies in {line.folder}; nobody says that {paths.TEXT} is of its own"
        )
    return model.told({each: texts.nothing[each] for each in line.inputs}), texts.encoder["digest"]
