"""Training batches of texts alone, for methods whose loss looks at no image: each caption of an image and each prompt without
one is as likely. As with images (`feed`), batch `step` is a pure function of (data, seed, step)."""

import math

import numpy as np
import torch
from torch import Tensor

from diffcore.core.transfer import to_device
from diffcore.data.embeddings import Table, Tables
from diffcore.data.feed import Batch, Order


class TextFeed:
    """A Feed of rows without images: x0 is no number anywhere, so that a loss which looks at it is none either. The rows lie
    on `device` if they fit into `memory_bytes`, else in mapped files; the batches are the same bit for bit."""

    classes = None

    def __init__(
        self,
        rows: Tables,
        shape: tuple[int, ...],
        batch_size: int,
        seed: int,
        memory_bytes: int,
        device: torch.device | str = "cpu",
    ):
        self.images, self.shape = sum(rows.counts), shape
        self._rows, self._batch_size, self._device = rows, batch_size, device
        self._order = Order(rows.counts, seed)
        self._starts = np.cumsum([0, *rows.counts])
        self._table: Table | None = rows.whole().to(device) if rows.bytes <= memory_bytes else None

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """See Feed."""
        places = self._order.at(step * self._batch_size, (step + 1) * self._batch_size)
        tables = np.concatenate([place.shards for place in places])[rows]
        index = np.concatenate([place.rows for place in places])[rows]
        x0 = torch.full((len(index), *self.shape), math.nan, device=self._device)
        return x0, self._told(tables, index)

    def _told(self, tables: np.ndarray, index: np.ndarray) -> dict[str, Tensor]:
        if self._table is not None:
            return self._table.take(to_device(torch.from_numpy(self._starts[tables] + index), self._device))
        return {name: to_device(part, self._device) for name, part in self._rows.at(tables, index).items()}
