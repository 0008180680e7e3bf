"""What the spread of the Frechet distance and the kernel distance cost, against the plain formulas.

python bench/quality.py [N]; N samples for the kernel distance against as many real images, 8000 if not said.
python bench/quality.py wide [N] [THREADS]; N samples against as many real images in 2048 features: the Frechet distance with
its error beside torch-fidelity's, precision to coverage beside the package prdc's, each by its formula in its own process.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffcore.metrics import frechet, frechet_wide, mmd, proportion
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.frechet import Moments
from diffcore.metrics.neighbours import WIDE as NEIGHBOURS
from diffcore.metrics.neighbours import Neighbours, Reach, nearest

THREADS, ROUNDS, DIMENSION, WIDE = 1, 3, 64, 2048


def main() -> None:
    if sys.argv[1:2] == ["wide"]:
        count, threads = map(int, (sys.argv[2:] + ["5000", str(THREADS)][len(sys.argv) - 2 :]))
        wide(count, threads)
        return
    torch.set_num_threads(THREADS)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, DIMENSION, generator=rng, dtype=torch.float64) for n in (1000, 1797))
    against, repeats = Moments.of(y), resamples(1000, 0)[:50]
    compare("spread of the Frechet distance, 50 resamples", frechet_before, frechet_now, x, against, repeats)
    x, y = (torch.randn(count, DIMENSION, generator=rng, dtype=torch.float64) for _ in range(2))
    compare(f"kid and its error, {count} samples", kid_before, kid_now, x, y)
    held = {len(x) ** 2 * 8 * 2 / 2**20: "before", mmd.ROWS**2 * 8 * 3 / 2**20: "now"}
    print(f"kernel values held at {count}: {', '.join(f'{word} {size:.0f} MB' for size, word in held.items())}")


def wide(count: int, threads: int) -> None:
    """Each alone: its CPU seconds, the most memory of its process with the features in it, and its numbers."""
    for run in (frechet_ours, frechet_theirs, neighbours_ours, neighbours_theirs):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            seconds, memory, numbers = pool.apply(alone, (run, count, threads))
        told = ", ".join(f"{number:.9g}" for number in numbers)
        spent = f"{seconds:.1f} CPU seconds, {memory:.0f} MB at most"
        print(f"{run.__name__}, {count} x {WIDE}, {threads} threads: {spent}; {told}", flush=True)


def alone(run: Callable[[Tensor, Tensor], list[float]], count: int, threads: int) -> tuple[float, float, list[float]]:
    torch.set_num_threads(threads)
    x, y = features(count, 0, 1.0), features(count, 1, 1.1)
    started = time.process_time()
    numbers = run(x, y)
    seconds = time.process_time() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, numbers


def features(count: int, seed: int, scale: float) -> Tensor:
    """Of falling variance, as those of networks are; float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDE, generator=rng).double() * torch.logspace(0.5, -1, WIDE).double() * scale


def frechet_ours(x: Tensor, y: Tensor) -> list[float]:
    against = frechet_wide.moments(y)
    return [frechet_wide.estimate(x, against, frechet_wide.factor(against.covariance)).value]


def frechet_theirs(x: Tensor, y: Tensor) -> list[float]:
    """torch-fidelity 0.4.0, metric_fid.py: moments, and the eigenvalues of the product of the covariances."""
    (mu1, sigma1), (mu2, sigma2) = ((each.mean(axis=0), np.cov(each, rowvar=False)) for each in (x.numpy(), y.numpy()))
    roots = np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real
    return [float((mu1 - mu2).dot(mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * roots.sum())]


def neighbours_ours(x: Tensor, y: Tensor) -> list[float]:
    reach = Reach.of(x, Neighbours.of(x, most=NEIGHBOURS), y, nearest(y))
    density = reach.around.double().mean().item() / NEIGHBOURS
    return [density, proportion.of_real(reach.covering).value]


def neighbours_theirs(x: Tensor, y: Tensor) -> list[float]:
    """prdc 0.2, prdc.py: whole matrices of distances."""
    from sklearn.metrics import pairwise_distances

    def reach(rows: np.ndarray) -> np.ndarray:
        distances = pairwise_distances(rows, rows)
        return np.take_along_axis(distances, np.argpartition(distances, 6, axis=-1)[..., :6], axis=-1).max(axis=-1)

    own, real = reach(x.numpy()), reach(y.numpy())
    across = pairwise_distances(y.numpy(), x.numpy())
    inside = across < real[:, None]
    (across < own[None]).any(axis=1).mean()  # recall, which costs as much
    return [float(inside.sum(axis=0).mean() / NEIGHBOURS), float((across.min(axis=1) < real).mean())]


def compare(what: str, before, now, *given) -> None:
    pairs = [(timed(before, *given), timed(now, *given)) for _ in range(ROUNDS)]
    old, new = pairs[0][0][1], pairs[0][1][1]
    ratio = statistics.median(slow / fast for (slow, _), (fast, _) in pairs)
    seconds = statistics.median(fast for _, (fast, _) in pairs)
    print(
        f"{what}: {seconds:.2f} s, {ratio:.2f} times faster than the plain formula; {new:.9g} for {old:.9g}", flush=True
    )


def timed(run, *given) -> tuple[float, float]:
    started = time.process_time()
    value = run(*given)
    return time.process_time() - started, value


def frechet_before(x: Tensor, against: Moments, repeats: Tensor) -> float:
    """By singular values."""
    root = frechet.root(against.covariance)
    weights = 1 + frechet.SHARE * (repeats - 1)
    _, slopes = frechet.first_order(x - x.mean(0), Moments.of(x), against.mean, root)
    again = torch.tensor([frechet._frechet(Moments.of(x, row), against, root) for row in weights], dtype=torch.float64)
    return frechet.Sway(slopes, (again - (weights - 1) @ slopes / len(x)) / frechet.SHARE**2).se


def frechet_now(x: Tensor, against: Moments, repeats: Tensor) -> float:
    return frechet.sway(x, against, repeats).se


def kid_before(x: Tensor, y: Tensor) -> float:
    """Whole matrices: of the samples for the value and once more for the error, across for either."""
    value = mmd.kernel(x, x).triu_(1).sum() - mmd.kernel(x, y).mean(1).sum()
    slopes = 2 * (mmd.kernel(x, x).fill_diagonal_(0).sum(1) / (len(x) - 1) - mmd.kernel(x, y).mean(1))
    return slopes.std().item() / len(x) ** 0.5 if value.isfinite() else 0.0


def kid_now(x: Tensor, y: Tensor) -> float:
    return mmd.estimate(x, y, 0.0).se


if __name__ == "__main__":
    main()
