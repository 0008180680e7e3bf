"""A teacher whose network was published in code of its authors': a pickle, or the folder that `distill read` writes of one.

Its class and what that was made with say what it computes, on which noise it was trained, and how it is fed and read. Nothing
of the file is run: its tensors go into a network of ours (`nets.published`).
"""

from pathlib import Path
from typing import Any

from diffcore.checkpoints import pickled
from diffcore.checkpoints.adopted import Adopted
from diffcore.checkpoints.folder import check_finite
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import CONFIG, published
from diffcore.nets.files import read_json, tensors_of

REMEDY = "fetch it again, or take another teacher"


def is_published(place: Path) -> bool:
    """Whether it is a file, or a folder whose network is not in diffusers' format."""
    return place.is_file() or _is_read(place)


def read(place: Path) -> Adopted:
    """The denoiser of a file, or of the folder that `distill read` writes of one.

    A UserError for a file of no network or of one that nothing here computes, for settings and weights that do not fit each
    other, and for weights that are not finite.
    """
    net = _of_folder(place) if place.is_dir() else _of_pickle(place)
    check_finite(net.state_dict(), str(place), REMEDY)
    net = net.eval().requires_grad_(False)
    paths = [place / CONFIG, place / pickled.WEIGHTS] if place.is_dir() else [place]
    files = {path.name: disk.sha256(path) for path in paths}
    return Adopted(NetDenoiser(net, net.schedule, net.reading, classes=net.classes), files, net.image)


def _of_pickle(file: Path) -> published.Published:
    content = pickled.read(file)
    network = pickled.network(content)
    if network.cls is None:
        raise UserError(
            f"{file} holds tensors by name and not what network they are of; a teacher is a pickle of one of "
            f"{', '.join(published.names())}, or a folder in diffusers' format; `distill read` writes its tensors"
        )
    return _network(network.cls, network.arguments, network.keywords, network.tensors, str(file))


def _is_read(folder: Path) -> bool:
    return (
        (folder / CONFIG).is_file() and (folder / pickled.WEIGHTS).is_file() and "class" in read_json(folder / CONFIG)
    )


def _of_folder(folder: Path) -> published.Published:
    about, whose = read_json(folder / CONFIG), str(folder / CONFIG)
    name, arguments, keywords = (about.get(key) for key in ("class", "arguments", "keywords"))
    if not (isinstance(name, str) and isinstance(arguments, list) and isinstance(keywords, dict)):
        raise UserError(
            f"{whose} does not say which class its network is of, and what that was made with; read it again"
        )
    return _network(name, arguments, keywords, tensors_of(folder / pickled.WEIGHTS), whose)


def _network(
    name: str, arguments: list[Any], keywords: dict[str, Any], tensors: Any, whose: str
) -> published.Published:
    try:
        content = published.content_of(name, arguments, keywords)
    except UserError as error:
        raise UserError(f"{whose}: {error}") from None
    return published.filled(content, tensors, whose)
