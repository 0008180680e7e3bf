"""What a checkpoint is told by images that are none of the data: copies of them, as `data.image_condition` says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffcore.checkpoints import Checkpoint
from diffcore.checkpoints.encoded import check_encoder, embeddings_of
from diffcore.core.errors import UserError
from diffcore.core.shapes import IMAGE
from diffcore.data import image_condition
from diffcore.data.manifest import Manifest
from diffcore.denoisers.condition import TEXT
from diffcore.texts.stored import told_by
from tasks import paths
from tasks.params import Params


def by_images(checkpoint: Checkpoint, params: Params, places: Sequence[Path]) -> dict[str, Any]:
    """By the name of the network's input [k, c, h, w], of the image files at these places, in a folder by their names. A
    UserError for a network that is told no image, and where params.yaml names other copies than those it was trained with."""
    card, word = checkpoint.card, params.data.image_condition
    if IMAGE not in checkpoint.denoiser.inputs:
        raise UserError(f"{card.name} is told no image; leave --condition out")
    if word is None:
        raise UserError(
            f"{card.name} is told an image, and data.image_condition is null; name the copies it was trained with"
        )
    if params.text.encoder is None:
        check_encoder(card, told_by(None, word)["digest"], "data.image_condition")
    elif TEXT not in checkpoint.denoiser.inputs:  # whose texts would check it
        embeddings_of(card, paths.TEXT, Manifest.read(paths.DATA, verify=False))
    files = [file for place in places for file in image_condition.files(place)]
    return {IMAGE: image_condition.of_files(word, files, checkpoint.shape)}
