"""The section `data` of params.yaml: which images, in what form, and which of them are held out."""

import re
from dataclasses import dataclass
from typing import Literal

from diffcore.data import captions, folders, prompt_file, remote, sources
from diffcore.data.folders import NONE
from diffcore.data.split import Split

Filter = Literal["lanczos", "bicubic", "bilinear", "box"]

CONDITION = re.compile(r"grey|downscale:([2-9]|[1-9]\d+)", re.ASCII)
"""What `image_condition` may be."""


@dataclass(frozen=True)
class TeacherSampling:
    """How a teacher draws the images of source "teacher:N", in the words of a sampling.

    sampler: a word of SOLVERS. trajectory: of its times. steps: how many. guidance: the weight of classifier-free guidance,
    None for none. batch: images that are drawn together.
    """

    sampler: str = "ddim"
    trajectory: Literal["uniform", "quadratic", "uniform_logsnr", "karras"] = "uniform"
    steps: int = 64
    guidance: float | None = None
    batch: int = 64

    def __post_init__(self):
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


TEACHER = "teacher"
"""The kind of source whose images are drawn."""


@dataclass(frozen=True)
class Config:
    """The section `data` of params.yaml.

    source: "digits" (scikit-learn's 1797 real 8x8 images), "folder:PATH" or "shards:PATTERN" (tars in webdataset's
        layout, named by a path or an http(s) or s3 address with `*`, `{a,b}` or `{000..012}`): a file of `sources/` each;
        "teacher:N" for N images that the teacher draws.
        PATH may begin with `~`.
    size: the side of the square that pictures are resized and cropped to, in pixels; None keeps them as they are.
    channels: 1 or 3; None takes the first picture's. Grey is ITU-R 601 luma; transparency is laid on white.
    filter: of the resampling, by Pillow's names. The shorter side becomes `size`, then the middle is cut out.
    flip: mirror left and right at random in training. The shards do not depend on it.
    limit: the most images to take: the first so many, after a folder's have been dealt (see `Source`).
    license: of the images, written down in the manifest.
    members: "block" stores many images in one member of a tar, "image" one losslessly encoded image in each; "auto"
        takes blocks up to 64x64x3 bytes an image, where reading blocks is about a hundred times faster.
    labels: "folders", "none", or the column of a metadata.csv or .jsonl that holds them; None for what the source itself
        says (dataset.json, metadata, else folders).
    split: what is held out; None to train on all.
    tolerance: the share of images that may be unreadable; these are left out, counted and named.
    bits: of 16-bit images, how many are used: 12 where white is 4095. None for all 16, which is refused if none of the
        images is as bright as half of that.
    captions: of the images: a template with {class} in it, or what the source has them under (a column; txt or json.KEY in
        shards, docs/data.md); None for none.
    unseen: a shell's patterns of captions; images that have one are neither trained on nor held out.
    prompts: a file of texts without images (see `diffcore.data.prompt_file`), on which methods that look at no image train
        beside the captions; None for none. The shards do not depend on it.
    image_condition: what a network may be told of an image by a copy of it, see `diffcore.data.image_condition`; None for
        nothing. The shards do not depend on it.
    draw: how the teacher draws them; None for how it does by itself, and where none draws.
    """

    source: str
    size: int | None = None
    channels: Literal[1, 3] | None = None
    filter: Filter = "lanczos"
    crop: Literal["center"] = "center"
    flip: bool = False
    limit: int | None = None
    license: str | None = None
    members: Literal["auto", "block", "image"] = "auto"
    labels: str | None = None
    split: Split | None = None
    tolerance: float = 0.01
    bits: int | None = None
    captions: str | None = None
    unseen: list[str] | None = None
    prompts: str | None = None
    image_condition: str | None = None
    draw: TeacherSampling | None = None

    def __post_init__(self):
        kind, place = sources.parse(self.source)
        if fault := kind.fault(place):
            raise ValueError(fault)
        if "pipe:" in place:
            raise ValueError("source names a pipe:, which would run a command; only files are read")
        if remote.ADDRESS.match(place) and not kind.remote:
            raise ValueError(f"source must be on this machine's disks; fetch {remote.public(place)} first")
        if fault := remote.fault(place):
            raise ValueError(f"source: {fault}")
        for name in ("size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be a share, at least 0 and below 1, not {self.tolerance}")
        if self.labels == "":
            raise ValueError(
                f"labels must be {folders.FOLDERS}, {NONE} or the name of a column; null for what there is"
            )
        if self.bits is not None and not 9 <= self.bits <= 16:
            raise ValueError(f"bits must be 9 to 16, not {self.bits}")
        word = self.source.partition(":")[0]
        if not kind.label_columns and self.labels not in (None, NONE):
            raise ValueError(f"labels may be null or none for {word}; {self.labels!r} is for a folder of images")
        if not kind.named_splits and self.split is not None and (self.split.train or self.split.names):
            raise ValueError(f"split names folders, and {word} has none; say a share, as in holdout: 0.1")
        if fault := captions.fault(self.captions, kind.caption_names, word, self.labels != NONE):
            raise ValueError(fault)
        if self.unseen is not None and (self.captions is None or not all(self.unseen or [""])):
            what = "names captions, and captions is null" if self.captions is None else "must name at least one caption"
            raise ValueError(f"unseen {what}: null leaves none out")
        if self.prompts is not None and not prompt_file.is_file(self.prompts):
            raise ValueError(
                f"prompts must be null or a file of prompts (.txt, .csv, .jsonl or .parquet), not {self.prompts!r}"
            )
        if not CONDITION.fullmatch(self.image_condition or "grey"):
            raise ValueError(
                f"image_condition must be null, grey or downscale:F, as in downscale:4, not {self.image_condition!r}"
            )
        if self.unseen is not None and self.image_condition is not None:
            raise ValueError(
                "unseen: such captions have no image to copy for image_condition; set one of the two to null"
            )
        if self.prompts is not None and self.image_condition is not None:
            raise ValueError("prompts: they have no image to copy for image_condition; set one of the two to null")

    @property
    def is_drawn(self) -> bool:
        """Whether a teacher draws the images."""
        return self.source.partition(":")[0] == TEACHER

    @property
    def sampling(self) -> TeacherSampling:
        """How a teacher draws the images."""
        return self.draw or TeacherSampling()

    @property
    def count(self) -> int:
        """How many images a teacher draws."""
        return int(self.source.partition(":")[2])

    @property
    def origin(self) -> str:
        """`source` as it may be kept: without the query of an address, which may be a signature."""
        kind, _, place = self.source.partition(":")
        return f"{kind}:{remote.public(place)}" if remote.is_remote(place) else self.source
