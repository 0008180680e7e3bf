"""scikit-learn's digits: 1797 real images of 8x8 pixels in grey, ten classes."""

import numpy as np

from diffcore.data import attributes
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split


class Digits(Kind):
    """They come with scikit-learn."""

    least = (1, 8, 8)
    caption_names = ("caption", "caption")

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # 17 levels to 256, invertible: level = round(pixel * 16 / 255)
        pixels = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
        labels = [int(label) for label in bunch.target]
        captions = self.captions_of(labels, attributes.captions(pixels, labels) if self.caption_name else None)
        entry = Entry("digits", len(pixels), lambda: (list(pixels), labels), captions=captions)
        return Source([entry], [str(digit) for digit in range(10)])
