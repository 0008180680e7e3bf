"""Times fitted to the teacher's own path: the search that serves the quality of samples.

Chen et al. 2024 (arXiv 2405.11326, "GITS"): paths of a teacher bend alike for all samples, so a few of them tell how far a
single hop from one time to another goes astray, and the K hops of least error are a shortest path. One belief lands
anywhere, so N network calls give all N^2/2 hops. The denoiser in question may be the teacher or a student that is valid at
any time: its hops are then measured against the teacher's path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcore.core import processes
from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.core.shapes import batches
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.node import ddim_step, node, predict_at
from diffcore.noise.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """points: N, uniform times of the teacher's fine path. images: paths that are averaged. late: how much more a hop counts
    than the one before it (GITS's coefficient, 1.15: an error near the data is seen).
    """

    points: int
    images: int
    batch: int
    seed: int
    late: float = 1.15

    def __post_init__(self):
        if min(self.points - 1, self.images, self.batch) < 1:
            raise ValueError("points must be at least 2, images and batch at least 1")
        if self.late <= 0:
            raise ValueError(f"late must be positive, got {self.late}")


def hop_errors(
    denoiser: Denoiser,
    teacher: Denoiser,
    config: Config,
    shape: tuple[int, ...],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    condition: Condition | None = None,
) -> np.ndarray:
    """[N + 1, N + 1] float64: at [i, j], i > j, the RMS distance between the teacher's x at time j/N and where one hop of the
    denoiser from the teacher's x at i/N lands; infinite elsewhere. Costs N calls of each for each of `images` noises.
    condition: the classes of all of them, for denoisers that are told such.
    """
    for role in (denoiser, teacher):
        if role.grid is not None:
            raise UserError("times are fitted for denoisers valid at any time; this one has steps of its own")
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    total = torch.zeros(config.points + 1, config.points + 1, dtype=torch.float64)

    def squares(rows: range) -> Tensor:
        start = noises(shape, config.seed, rows, "hops").to(device)
        batch_condition = condition and condition[rows.start : rows.stop].to(device)
        return _squares(*_with_condition(denoiser, teacher, batch_condition), config.points, start)

    dealt = batches(range(config.images), config.batch)
    for rows, sums in zip(dealt, processes.dealt(dealt, squares)):
        total += sums
        on_progress(rows.stop, config.images)
    errors = (total / config.images).sqrt().numpy()
    return np.where(np.tril(np.ones_like(errors), -1) > 0, errors, np.inf)


def _with_condition(denoiser: Denoiser, teacher: Denoiser, condition: Condition | None) -> tuple[Denoiser, Denoiser]:
    if condition is None:
        return denoiser, teacher
    guide = teacher.with_condition(condition)
    return (guide if denoiser is teacher else denoiser.with_condition(condition)), guide


@torch.inference_mode()
def _squares(denoiser: Denoiser, teacher: Denoiser, points: int, start: Tensor) -> Tensor:
    """Sums over the batch of the mean squared hop errors, [N + 1, N + 1], rows from, columns to."""
    nodes = [node(teacher.schedule, k / points) for k in range(points + 1)]
    path = {points: start}
    x = start
    own = denoiser is teacher
    beliefs = {}
    for k in range(points, 0, -1):
        belief = predict_at(teacher, x, nodes[k])
        beliefs[k] = belief if own else denoiser(x, per_sample(k / points, x))
        x = path[k - 1] = ddim_step(belief, nodes[k - 1])
    hops = [(i, j) for i in beliefs for j in range(i)]
    sums = [(ddim_step(beliefs[i], nodes[j]) - path[j]).square().flatten(1).mean(1).double().sum() for i, j in hops]
    table = torch.zeros(points + 1, points + 1, dtype=torch.float64)
    table[tuple(torch.tensor(hops).T)] = torch.stack(sums).cpu()  # one copy: each would make a GPU wait
    return table


def fit(hop_errors: np.ndarray, late: float) -> dict[int, Trajectory]:
    """For each K of 1..N the K hops from 1 to 0 whose weighted errors add up to least, by exact dynamic programming.

    The m-th hop, counted from 0, weighs late^m.
    """
    points = len(hop_errors) - 1
    best = np.full(points + 1, np.inf)
    best[0] = 0.0
    before: dict[int, np.ndarray] = {}
    trajectories: dict[int, Trajectory] = {}
    for k in range(1, points + 1):
        sums = hop_errors + late * best[None, :]  # hop i -> j, then the best k - 1 more from j
        before[k], best = sums.argmin(1), sums.min(1)
        trajectories[k] = _path(before, k, points)
    return trajectories


def _path(before: dict[int, np.ndarray], steps: int, points: int) -> Trajectory:
    place, times = points, [1.0]
    for k in range(steps, 0, -1):
        place = int(before[k][place])
        times.append(place / points)
    return Trajectory(tuple(times))
