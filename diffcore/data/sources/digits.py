"""scikit-learn's digits: 1797 real images of 8x8 pixels in grey, ten classes."""

import numpy as np

from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split


class Digits(Kind):
    """They come with scikit-learn."""

    least = (1, 8, 8)

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # 17 levels to 256, invertible: level = round(pixel * 16 / 255)
        pixels = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
        labels = [int(label) for label in bunch.target]
        return Source(
            [Entry("digits", len(pixels), lambda: (list(pixels), labels))], [str(digit) for digit in range(10)]
        )
