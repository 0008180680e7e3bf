"""What can be measured of a handwritten digit, in words: "a bold dark seven".

Of a pixel, ink is (level - 26) / 51 between 0 and 1, so that neither paper nor a little noise on it counts. Weight is the
share of ink in the image, tone the mean level of the ink. Each is held against the median of the digit's class over
scikit-learn's 1797 digits, so that neither says anything of the class, and half of each class has each word.
"""

from collections.abc import Sequence

import numpy as np

CAPTION = "a {weight} {tone} {digit}"
WEIGHTS = ("thin", "bold")
TONES = ("pale", "dark")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PAPER, INK = 26, 77
"""Levels of 0 .. 255 up to which nothing is ink, and from which all of it is."""

MEDIAN_WEIGHTS = (0.46063, 0.39645, 0.42892, 0.4257, 0.42157, 0.42678, 0.41958, 0.40855, 0.45358, 0.4447)
"""By digit: the median share of ink; between the two images in the middle."""
MEDIAN_TONES = (165.423, 193.522, 178.909, 174.427, 177.483, 175.287, 177.518, 178.123, 176.086, 170.481)
"""By digit: the median level of the ink; between the two images in the middle."""

Attributes = tuple[str, str, str]


def captions(pixels: np.ndarray, labels: Sequence[int]) -> list[str]:
    """One for each image: uint8 [n, h, w, 1], ink is bright; labels: its digit, 0 .. 9. Raises ValueError for others."""
    digits = np.asarray(labels, dtype=np.int64)
    if len(digits) != len(pixels) or not np.isin(digits, range(len(DIGITS))).all():
        raise ValueError(f"{len(pixels)} images of digits need as many labels, each 0 .. 9")
    weights, tones = measured(pixels)
    bold, dark = weights > np.array(MEDIAN_WEIGHTS)[digits], tones > np.array(MEDIAN_TONES)[digits]
    return [
        CAPTION.format(weight=WEIGHTS[is_bold], tone=TONES[is_dark], digit=DIGITS[digit])
        for is_bold, is_dark, digit in zip(bold.astype(int), dark.astype(int), digits)
    ]


def attributes(caption: str) -> Attributes | None:
    """(weight, tone, digit) in the words of a caption that `captions` makes; None for any other text."""
    words = caption.split(" ")
    if len(words) != 4 or words[0] != "a":
        return None
    _, weight, tone, digit = words
    return (weight, tone, digit) if weight in WEIGHTS and tone in TONES and digit in DIGITS else None


def measured(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of uint8 [n, h, w, 1] the share of ink (0 .. 1), and its mean level (0 .. 255; 0 where there is none): float64 [n]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 1:
        raise ValueError(f"digits are uint8 [n, h, w, 1], not {pixels.dtype} {list(pixels.shape)}")
    levels = pixels.reshape(len(pixels), -1).astype(np.int64)
    ink = np.clip(levels - PAPER, 0, INK - PAPER)
    total = ink.sum(1)
    return total / ((INK - PAPER) * levels.shape[1]), (levels * ink).sum(1) / np.maximum(total, 1)
