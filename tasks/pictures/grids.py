"""Images side by side as a PNG: a point's samples, and many points' in rows. The same content gives the same bytes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks.pictures.charts import INK

GAP = 2  # pixels between the tiles of a grid, so that 8x8 images do not run into each other
TILE = 48  # small images are enlarged to about this many pixels


def grid(images: np.ndarray, path: Path, columns: int = 8, scale: int | None = None) -> None:
    """Images uint8 [n, h, w, c], c = 1 or 3, as a PNG of `columns` columns, each pixel `scale` pixels wide (None: so many
    that an image is about 48 wide).

    The file says how it was cut up, so that `tiles` gets the same images back.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    n, h, w, c = _checked(images).shape
    scale, rows = scale or _scale(h, w), -(-n // columns)
    sheet = np.full((rows * (h * scale + GAP) + GAP, columns * (w * scale + GAP) + GAP, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (GAP + place * (side * scale + GAP) for place, side in zip(divmod(i, columns), (h, w)))
        sheet[top : top + h * scale, left : left + w * scale] = _enlarged(image, scale)
    about = PngInfo()
    about.add_text("tiles", json.dumps({"shape": [n, h, w, c], "columns": columns, "scale": scale}))
    _write_png(Image.fromarray(sheet[..., 0] if c == 1 else sheet), path, pnginfo=about)


def tiles(path: Path) -> np.ndarray:
    """The images uint8 [n, h, w, c] of a PNG that `grid` wrote; another PNG is a UserError."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            about, sheet = disk.parse_json(picture.text["tiles"]), np.asarray(picture)
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a grid of samples ({error!r}); run the stage `frontier` again") from None
    (n, h, w, c), columns, scale = about["shape"], about["columns"], about["scale"]
    sheet = sheet.reshape(*sheet.shape[:2], c)
    corners = [
        (GAP + row * (h * scale + GAP), GAP + left * (w * scale + GAP))
        for row, left in (divmod(i, columns) for i in range(n))
    ]
    return np.stack([sheet[top : top + h * scale : scale, left : left + w * scale : scale] for top, left in corners])


def contact_sheet(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Rows of samples with their labels at the left: (label, uint8 [n, h, w, c]) for each point, top to bottom.

    A column shows one noise throughout, so that only as many columns are shown as the shortest row has
    (16 at most, fewer of large images).
    """
    from PIL import Image, ImageDraw, ImageFont

    h, w = rows[0][1].shape[1:3]
    scale = _scale(h, w)
    columns = min(16, max(4, 1600 // (w * scale)), *(len(_checked(images)) for _, images in rows))
    font = ImageFont.load_default(size=max(13, min(18, h * scale // 3)))
    margin = 16 + max(int(font.getlength(label)) for label, _ in rows) + 14
    width, pitch = margin + columns * (w * scale + GAP) + 16, h * scale + 3 * GAP
    sheet = Image.new("RGB", (width, 32 + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (label, images) in enumerate(rows):
        top = 16 + k * pitch
        pen.text((16, top + h * scale // 2), label, fill=INK, font=font, anchor="lm")
        for i, image in enumerate(images[:columns]):
            sheet.paste(Image.fromarray(_rgb(_enlarged(image, scale))), (margin + i * (w * scale + GAP), top))
    _write_png(sheet, path)


def _checked(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ValueError(f"images must be uint8 [n, h, w, 1 or 3] with n > 0, not {images.dtype} {list(images.shape)}")
    return images


def _scale(h: int, w: int) -> int:
    return max(1, TILE // max(h, w))


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy()


def _write_png(picture: Any, path: Path, **options: Any) -> None:
    content = io.BytesIO()
    picture.save(content, format="PNG", **options)
    disk.write(Path(path), content.getvalue())
