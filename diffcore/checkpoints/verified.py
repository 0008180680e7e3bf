"""Whether a folder is a whole checkpoint. Opens no network, so who asks only this does not wait for one."""

from pathlib import Path

from diffcore.checkpoints.card import Card, read_card
from diffcore.core import disk
from diffcore.core.errors import UserError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def verify(folder: Path) -> Card:
    """The card after checking every sha256; a missing, damaged or foreign folder is a UserError."""
    folder = Path(folder)
    card = read_card(folder)
    for name, digest in card.files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder} is not whole: {name} is missing; run the stage that makes it again")
        if disk.sha256(file) != digest:
            raise UserError(f"{file} is damaged: its sha256 does not fit the card; run the stage that makes it again")
    _check_listed(folder, card)
    return card


def _check_listed(folder: Path, card: Card) -> None:
    """What is opened must be vouched for: the card is sealed, but only by whoever wrote it."""
    opened = {WEIGHTS, "unet/config.json", *(f"unet/{path.name}" for path in (folder / "unet").glob("*.safetensors*"))}
    if unlisted := sorted(opened - set(card.files)):
        raise UserError(
            f"{folder / 'card.json'} does not vouch for {', '.join(unlisted)}; run the stage that makes it again"
        )
