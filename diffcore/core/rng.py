"""Random numbers by key. Nothing in diffcore draws from a global generator.

The numbers of training step k come from (seed, k) alone and sample i of an evaluation from (seed, i), so nothing about
randomness is ever saved, a resumed run equals an uninterrupted one, and neither depends on how many processes there are.
"""

import hashlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by all of `key`: `generator(seed, "train", step)`. Another device's has other numbers."""
    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8]
    return torch.Generator(device).manual_seed(int.from_bytes(seed, "little") >> 1)


def dice(device: torch.device) -> torch.device:
    """Where the random numbers of a training on this device are drawn: on a GPU itself, else on the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


@dataclass(frozen=True)
class Draw:
    """The randomness of one training step: a loss is a pure function of it.

    u: [b], stratified uniform numbers in (0, 1): one in each of b equal cells, in random order.
    noise: [b, *x], standard normal. key, count, rows: what it was made of, and which part of it this is. forks: of the whole,
    each drawn once.
    """

    u: PerSample
    noise: Sample
    key: tuple[int | str, ...] = ()
    count: int | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    forks: dict[str, "Draw"] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, rows: slice) -> "Draw":
        whole = range(self.count or len(self.u))[self.rows][rows]
        part = slice(whole.start, whole.stop)
        return replace(self, u=self.u[rows], noise=self.noise[rows], rows=part, count=self.count or len(self.u))

    def fork(self, name: str) -> "Draw":
        """As many numbers again, independent of these and of those of any other name."""
        if name not in self.forks:
            self.forks[name] = draw(self.noise, *self.key, name, count=self.count)
        fork = self.forks[name][self.rows]
        return replace(fork, u=fork.u.to(self.u.dtype), noise=fork.noise.to(self.noise.dtype))


def draw(like: Sample, *key: int | str, count: int | None = None) -> Draw:
    """The random numbers of the step named by `key`, shaped like `like` and on its device, in float32.

    count: images in the global batch, if `like` holds only a part of it; the numbers are those of the whole.
    """
    count, where = count or len(like), dice(like.device)
    rng = generator(*key, device=where)
    cells = torch.randperm(count, generator=rng, device=where)
    u = (cells + torch.rand(count, generator=rng, dtype=torch.float64, device=where)) / count
    noise = torch.randn((count, *like.shape[1:]), generator=rng, device=where)
    return Draw(u.to(like.device), noise.to(like.device), key, count)


def noises(shape: tuple[int, ...], seed: int, indices: range, role: str = "sample") -> Sample:
    """Standard normal samples `[len(indices), *shape]`; sample i depends only on (seed, role, i)."""
    if not len(indices):
        return torch.empty(0, *shape)
    return torch.stack([torch.randn(shape, generator=generator(seed, role, i)) for i in indices])


def some(count: int, among: int, *key: int | str) -> Tensor:
    """`count` different places out of `among`, int64."""
    return torch.randperm(among, generator=generator(*key))[:count]


def places_like(total: int, count: int, seed: int) -> Tensor:
    """Numbers of `total` images, each as likely: number i depends on (seed, i) alone. int64 [count]."""
    return torch.cat([torch.randint(total, (1,), generator=generator(seed, "label", i)) for i in range(count)])


def seed(*key: int | str) -> int:
    """An integer seed made of `key`: each stage of a pipeline has random numbers of its own."""
    return generator(*key).initial_seed() % 2**31
