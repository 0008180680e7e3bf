"""What a checkpoint is told by texts that are no captions of the data: prompts, and what guidance leads away from."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from diffcore.checkpoints import Checkpoint
from diffcore.checkpoints.encoded import check_encoder
from diffcore.core.errors import UserError
from diffcore.denoisers.condition import TEXT
from diffcore.sampling.recipe import Recipe
from diffcore.texts.stored import told_by
from tasks.params import Params
from tasks.progress import log


def by_texts(checkpoint: Checkpoint, params: Params, words: Sequence[str]) -> dict[str, Any]:
    """By the name of the network's input [k, ...], of these texts. A UserError for a network that is told no text, and where
    params.yaml names another encoder than the one that it was trained with."""
    card, nothing = checkpoint.card, checkpoint.denoiser.nothing.parts()
    if TEXT not in nothing:
        raise UserError(f"{card.name} is told no text; leave --prompt out")
    encoder = params.encoder()
    if encoder is None:
        raise UserError(f"{card.name} is told a text, and text.encoder is null; name the encoder it was trained with")
    encoder = dataclasses.replace(encoder, length=len(nothing[TEXT]))
    check_encoder(card, told_by(encoder, params.data.image_condition)["digest"], "text.encoder")
    for each, tokens in zip(words, encoder.counts(words)):
        if tokens > encoder.length:
            log(f"{each!r} has {tokens} tokens and is cut to {encoder.length}")
    return {name: part for name, part in encoder.encode(words).items() if name in checkpoint.denoiser.inputs}


def away(recipe: Recipe, checkpoint: Checkpoint, params: Params) -> dict[str, Any] | None:
    """What the network is told by the recipe's negative text, [1, ...] by name; None where there is none."""
    negative = recipe.text_away(checkpoint)
    return None if negative is None else by_texts(checkpoint, params, [negative])
