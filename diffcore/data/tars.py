"""What tars and image files hold, read by nothing but the few decoders named here.

Members are found and checked by their place in the tar: none is unpacked to the disk, no pickle is read, no name in a tar
is ever used as a path, and an unknown extension is refused rather than passed over.
"""

import functools
import io
import itertools
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from diffcore.core import disk
from diffcore.core.errors import UserError

EXTENSIONS = {
    "png": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tif": "TIFF",
    "tiff": "TIFF",
}
TAR_IMAGES = ("png", "jpg", "jpeg", "webp", "npy")
TAR_LABELS = ("cls", "json", "cls.npy")
TAR_CAPTIONS = ("txt", "captions.json")
KNOWN = TAR_IMAGES + TAR_LABELS + TAR_CAPTIONS
MOST_CLASSES = 65536


@functools.cache
def formats() -> dict[str, str]:
    """Pillow's format by extension, of all that are read here: EXTENSIONS, and AVIF where Pillow has a decoder of it."""
    try:
        from PIL import AvifImagePlugin
    except ImportError:  # Pillow before 11.3
        return EXTENSIONS
    return EXTENSIONS | ({"avif": "AVIF"} if AvifImagePlugin.SUPPORTED else {})


PLAIN = re.compile(
    rb"(?P<name>[!-~]{1,99})\0+[0-7\0]{24}(?P<size>[0-7]{11})\0.{20}[0\0]\0{100}ustar.{83}\0{167}", re.DOTALL
)
"""The header of a plain file in a tar: no link, no prefix of its name, nothing that another header says of it."""

WHOLE, TEXTS = ("iu", "whole numbers"), ("SU", "texts")
"""What an .npy may hold: NumPy's letters for it, and in words."""

DEEP = 16
"""Not a word: a picture's own texts stand in `info` under theirs."""


def printable(name: str) -> str:
    """A file's name for one line of text: what is no character of such a line, or not UTF-8, is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, printable."""
    names = iter(names)
    first = [printable(name) for name in itertools.islice(names, most)]
    return ", ".join(first + ["..."] * any(True for _ in names))


def decode(content: bytes | memoryview, extension: str) -> Any:
    """The picture in `content`: a PIL image, fully read and upright (EXIF), of the format that its extension says.

    `extension` "any" lets the bytes say which of `formats` they are, as files are often misnamed. No other decoder is let
    near them: Pillow left to guess would start Ghostscript for an EPS named .png. Of several frames the first counts.
    `info[DEEP]` is True where the file has 16 bits a channel, of which Pillow keeps 8 in colour.
    Raises what Pillow raises, and ValueError for 32-bit pixels, whose range no file states.
    """
    from PIL import Image, ImageOps

    guesses = tuple(dict.fromkeys(formats().values())) if extension == "any" else (EXTENSIONS[extension],)
    picture = Image.open(io.BytesIO(content), formats=guesses)
    deep = re.search(";16[BLN]", str(picture.tile)) is not None  # `load` empties it
    picture.load()
    picture.info[DEEP] = deep
    if picture.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no stated range; save it with 8 or 16 bits")
    return ImageOps.exif_transpose(picture)


def array(content: bytes | memoryview, kinds: tuple[str, str] = WHOLE) -> np.ndarray:
    """The array of whole numbers, or of TEXTS, in an .npy file. Raises ValueError for anything else; objects are never
    unpickled."""
    shape, dtype, start = npy_header(io.BytesIO(content[:65536]), len(content), kinds)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def members(file: io.BufferedIOBase, name: str) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of one tar: [(key, {extension: (offset, bytes)})], by webdataset's rule for keys and extensions.

    Raises UserError if the tar is damaged, ends early, goes on after its end, holds an unknown extension or a sample whose
    parts are not side by side. Names within the tar are never used as paths.
    """
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    keys = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, extension = _key(member, name)
                if not samples or samples[-1][0] != key:
                    if key in keys:
                        raise UserError(f"{name}: the parts of sample {key!r} are not side by side: write it in order")
                    keys.add(key)
                    samples.append((key, {}))
                if extension in samples[-1][1]:
                    raise UserError(f"{name}: sample {key!r} has two parts .{extension}")
                samples[-1][1][extension] = (member.offset_data, member.size)
            _check_end(file, tar.offset)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{name} cannot be read as an uncompressed tar ({error}): fetch or write it again") from None
    return samples


class Uncommon(ValueError):
    """A tar is not one of plain files alone, and `members` must say what it is."""


def plain(file: Any) -> Iterator[tuple[str, str, int, bytes | memoryview]]:
    """(key, extension, offset, content) of each member of a tar that is read once from its beginning, named as by `members`.

    A tenth of tarfile's time, for a tar of plain files whose digest is vouched for. Raises Uncommon for any other.
    """
    at = 0
    while (header := file.read(512))[:1] != b"\0":
        match = PLAIN.fullmatch(header)
        key, extension = _parted(match["name"].decode("ascii")) if match else ("", "")
        size = int(match["size"], 8) if match else 0
        content = file.read(size)
        if extension not in KNOWN or len(content) < size:
            raise Uncommon
        yield key, extension, at + 512, content
        at += 512 + size + len(file.read(-size % 512))


def pictures_of(parts: dict[str, Any]) -> Sequence[Any]:
    """The pictures of one sample of a tar: a block is uint8 [n, h, w, c]. Raises for any other content."""
    if "npy" not in parts:
        extension = next(extension for extension in parts if extension in TAR_IMAGES)
        return [decode(parts[extension], extension)]
    pixels = array(parts["npy"])
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise ValueError(f"an .npy must be uint8 [n, h, w, c] or [h, w, c], not {pixels.dtype} {list(pixels.shape)}")
    return list(pixels)


def labels_of(parts: dict[str, Any], count: int) -> Sequence[int | None]:
    """The labels of one sample of a tar, from .cls.npy, .cls or .json (its key `label` or `cls`), else Nones."""
    if "cls.npy" in parts:
        labels = [int(label) for label in array(parts["cls.npy"]).reshape(-1)]
    elif "cls" in parts:
        labels = [_number(bytes(parts["cls"]))]
    else:
        labels = [_json_label(parts["json"]) if "json" in parts else None] * count
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    if any(label is not None and not 0 <= label < MOST_CLASSES for label in labels):
        raise ValueError(f"a label is not in 0 .. {MOST_CLASSES - 1}")
    return labels


def _number(content: bytes) -> int:
    if not re.fullmatch(rb"\s*-?[0-9]{1,18}\s*", content):
        raise ValueError("the label in the .cls is not a whole number")
    return int(content)


def _json_label(content: bytes | memoryview) -> int | None:
    value = disk.parse_json(bytes(content))
    label = value.get("label", value.get("cls")) if isinstance(value, dict) else value
    if label is not None and type(label) is not int:
        raise ValueError("the label in the .json is not a whole number")
    return label


def _key(member: tarfile.TarInfo, name: str) -> tuple[str, str]:
    key, extension = _parted(member.name)
    if not member.isreg() or member.issparse():
        raise UserError(f"{name}: {member.name!r} is a link, a device or sparse; only plain files are read")
    if extension not in KNOWN:
        extensions = ", ".join(KNOWN)
        raise UserError(f"{name}: {member.name!r} is of an unknown kind, and was not opened; known are {extensions}")
    return key, extension


def _parted(name: str) -> tuple[str, str]:
    # key and extension, which is "" for a name that has none or nothing before it
    place, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{place}/{stem}", extension.lower() if stem else ""


def _check_end(file: io.BufferedIOBase, end: int) -> None:
    # tarfile takes a file that stops between two members for a whole one
    file.seek(end)
    rest = iter(functools.partial(file.read, 1 << 20), b"")
    size = 0
    for block in rest:
        size += len(block)
        if block.count(0) != len(block):
            raise ValueError("there is more after its end")
    if size < 512:
        raise ValueError("it ends early")


NPY = {(1, 0): "<H", (2, 0): "<I"}
"""By version of NumPy's format: how its header's length is written."""
ITEM = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?P<value>True|False|\(\s*\)|\((?:\s*-?\d+\s*,)+(?:\s*-?\d+)?\s*\)|(['"])[<>=|]?[A-Za-z]\w*\4)\s*(?:,|(?=\}))""",
    re.ASCII,
)


def npy_header(
    file: io.BufferedIOBase, size: int, kinds: tuple[str, str] = WHOLE
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and length of the header of the .npy of `size` bytes that starts where `file` is. kinds: WHOLE or TEXTS.
    Raises ValueError."""
    start = file.tell()
    items = _npy_items(file)
    descr = items["descr"].strip("'\"")
    try:
        dtype, shape = np.dtype(descr), tuple(map(int, re.findall(r"-?\d+", items["shape"])))
    except (TypeError, ValueError):
        raise ValueError(f"the header of the .npy cannot be read (descr {descr})") from None
    if items["fortran_order"] != "False" or dtype.kind not in kinds[0]:
        raise ValueError(f"an .npy must hold {kinds[1]} in C order, not {dtype}")
    header = file.tell() - start
    if min(shape, default=0) < 0 or size - header != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError("the .npy is shorter or longer than it says")
    return shape, dtype, header


def _npy_items(file: io.BufferedIOBase) -> dict[str, str]:
    """The three items of an .npy's header, as they are written there.

    NumPy's own reader asks Python's parser for a syntax tree, which fails now and then where two threads do so and one of
    them collects garbage (SystemError): images that are whole were refused as damaged.
    """
    try:
        length = NPY[np.lib.format.read_magic(file)]
        (count,) = struct.unpack(length, file.read(struct.calcsize(length)))
        text = file.read(min(count, 10_000)).decode("latin1").rstrip()
    except (ValueError, KeyError, struct.error) as error:
        raise ValueError(f"the header of the .npy cannot be read ({type(error).__name__})") from None
    items: dict[str, str] = {}
    at = 1
    while item := ITEM.match(text, at):
        items[item["key"]] = item["value"]
        at = item.end()
    if text[:1] != "{" or text[at:].strip() != "}" or items.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("the header of the .npy cannot be read")
    return items
