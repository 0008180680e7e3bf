"""Whose embeddings of captions a checkpoint is told, and those of the data at hand."""

from collections.abc import Sequence
from pathlib import Path

from diffcore.checkpoints.card import Card
from diffcore.core.errors import UserError
from diffcore.data import embeddings
from diffcore.data.embeddings import Embeddings
from diffcore.data.manifest import Manifest
from diffcore.nets.family import check_inputs
from diffcore.nets.inputs import SIZE


def embeddings_for(inputs: Sequence[str], folder: Path, data: Manifest) -> Embeddings | None:
    """Those in `folder` of the captions of `data`, for a network that is told `inputs`; None for one that is told none. A
    UserError where the data have no embeddings, or lack one of these inputs. Sizes are the network's own: all images have
    one."""
    inputs = [name for name in inputs if name != SIZE]
    if not inputs:
        return None
    own = embeddings.read(folder, data)
    check_inputs(inputs, {name: kind.shape for name, kind in own.inputs.items()} if own else {})
    return own


def embeddings_of(card: Card, folder: Path, data: Manifest) -> Embeddings | None:
    """As `embeddings_for`, for the checkpoint of this card; a UserError too where another encoder made them."""
    own = embeddings_for(card.inputs or (), folder, data)
    if own is not None:
        check_encoder(card, own.encoder["digest"], str(folder))
    return own


def check_encoder(card: Card, digest: str, whose: str) -> None:
    """A UserError where the checkpoint is told the embeddings of another encoder than the one of this digest."""
    if card.encoder != digest:
        raise UserError(
            f"{card.name} is told the embeddings of the encoder {str(card.encoder)[:12]}, and {whose} has those of "
            f"{digest[:12]}; set the section text, and data.image_condition, to what it was trained with"
        )
