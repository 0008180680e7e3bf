"""A teacher that is a network alone: weights, and what says which network they are of.

Of one that was published in code of its authors, a pickle or what `distill read` writes of one, its class and what that was
made with say what it computes, on which noise it was trained, and how it is fed and read. Nothing of the file is run: its
tensors go into a network of ours (`nets.published`). Weights in safetensors have a config.json, whose class is one of these,
of diffusers or of ours; what such a one was trained on its scheduler says or params.yaml.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore.checkpoints import pickled
from diffcore.checkpoints.adopted import Adopted, Stated
from diffcore.checkpoints.folder import check_finite
from diffcore.checkpoints.schedulers import SCHEDULER
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import CONFIG, WEIGHTS, published
from diffcore.nets.files import PARTS, read_json, tensors_of

REMEDY = "fetch it again, or take another teacher"
SAFE = ".safetensors"


@dataclass(frozen=True)
class Bare:
    """weights: a pickle, or a file of safetensors. config: beside that, None for a pickle, which says itself what it is of.
    content: of the config, `{}` for none."""

    weights: Path
    config: Path | None
    content: Mapping[str, Any]

    @property
    def is_published(self) -> bool:
        """Whether it is of a class whose authors' code says how it is fed and read."""
        return self.config is None or "class" in self.content or self.content.get("_class_name") in published.formats()

    @property
    def scheduler(self) -> Path | None:
        """Of diffusers, beside the config; None where there is none."""
        places = (
            () if self.config is None else (self.config.with_name(Path(SCHEDULER).name), self.config.parent / SCHEDULER)
        )
        return next((place for place in places if place.is_file()), None)

    @property
    def files(self) -> dict[str, str]:
        """sha256 of each file."""
        paths = [self.weights, *(path for path in (self.config, self.scheduler) if path is not None)]
        return {path.name: disk.sha256(path) for path in paths}


def bare(place: Path, stated: Stated) -> Bare | None:
    """The network in a file, or in a folder that holds no more than one; None for a folder of another kind. A UserError for
    weights without a config."""
    if place.is_dir():
        return _in_folder(place, stated)
    if not place.is_file():
        return None
    if place.suffix != SAFE:
        if stated != Stated():
            raise UserError(
                f"{place} says by itself what its network is and was trained on; leave config and trained out"
            )
        return Bare(place, None, {})
    config = Path(stated.config).expanduser() if stated.config else place.with_name(CONFIG)
    if not config.is_file():
        raise UserError(f"{place} is weights alone: say which network they are of, config: PATH of its {CONFIG}")
    return _with_config(place, config)


def _in_folder(folder: Path, stated: Stated) -> Bare | None:
    config = Path(stated.config).expanduser() if stated.config else folder / CONFIG
    pipeline = any((folder / part).exists() for part in (*PARTS, "card.json", "model_index.json"))
    if pipeline or not config.is_file():
        return None
    files = sorted(folder.glob(f"*{SAFE}"))
    if len(files) != 1:
        number = f"{len(files)} files" if files else "no file"
        raise UserError(f"{folder} has a {CONFIG} and {number} of safetensors; name the file, from: PATH{SAFE}")
    return _with_config(files[0], config)


def _with_config(weights: Path, config: Path) -> Bare:
    content = read_json(config)
    if not any(isinstance(content.get(key), str) for key in ("_class_name", "class")):
        raise UserError(
            f"{config} does not say of which class its network is: it needs _class_name, of diffusers, of ours or one of "
            f"{', '.join(published.formats())}"
        )
    return Bare(weights, config, content)


def read(one: Bare) -> Adopted:
    """The denoiser of a published network.

    A UserError for a file of no network or of one that nothing here computes, for settings and weights that do not fit each
    other, and for weights that are not finite.
    """
    net = _of_pickle(one.weights) if one.config is None else _of_config(one, str(one.config))
    check_finite(net.state_dict(), str(one.weights), REMEDY)
    net = net.eval().requires_grad_(False)
    return Adopted(NetDenoiser(net, net.schedule, net.reading, classes=net.classes), one.files, net.image)


def _of_pickle(file: Path) -> published.Published:
    network = pickled.network(pickled.read(file))
    if network.cls is None:
        raise UserError(
            f"{file} holds tensors by name and not what network they are of; a teacher is a pickle of one of "
            f"{', '.join(published.names())}, or a folder in diffusers' format; `distill read` writes its tensors"
        )
    return _network(network.cls, network.arguments, network.keywords, network.tensors, str(file))


def _of_config(one: Bare, whose: str) -> published.Published:
    content = one.content
    if "class" not in content:
        return published.filled(content, tensors_of(one.weights), whose)
    name, arguments, keywords = (content.get(key) for key in ("class", "arguments", "keywords"))
    if not (isinstance(name, str) and isinstance(arguments, list) and isinstance(keywords, dict)):
        raise UserError(
            f"{whose} does not say which class its network is of, and what that was made with; read it again"
        )
    return _network(name, arguments, keywords, tensors_of(one.weights), whose)


def _network(
    name: str, arguments: list[Any], keywords: dict[str, Any], tensors: Mapping[str, Tensor], whose: str
) -> published.Published:
    try:
        content = published.content_of(name, arguments, keywords)
    except UserError as error:
        raise UserError(f"{whose}: {error}") from None
    return published.filled(content, tensors, whose)


@contextlib.contextmanager
def as_pipeline(one: Bare, stated: Stated) -> Iterator[Path]:
    """A folder for a while in which the network lies as in a pipeline of diffusers. What a UserError says of the folder, it
    says of the files that were named. One too where nothing says what the network was trained on."""
    if stated.reading is None and one.scheduler is None:
        raise UserError(
            f"nothing says what the network of {one.weights} was trained on: give trained: {{schedule: ..., reading: ..., "
            f"parameterization: ...}}, or put its {Path(SCHEDULER).name} beside {one.config}"
        )
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        links = {f"unet/{CONFIG}": one.config, f"unet/{WEIGHTS}": one.weights, SCHEDULER: one.scheduler}
        for link, place in links.items():
            (room / link).parent.mkdir(exist_ok=True)
            if place is not None:
                (room / link).symlink_to(place.resolve())
        try:
            yield room
        except UserError as error:
            words = {str(room / link): str(place) for link, place in links.items() if place is not None}
            words |= {str(room / "unet"): str(one.weights), str(room): str(one.weights)}
            line = str(error)
            for ours, theirs in words.items():
                line = line.replace(ours, theirs)
            raise UserError(line) from None
