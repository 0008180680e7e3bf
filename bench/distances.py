"""The Frechet distance of many wide features against the code of others, each in a process of its own, in turns.

OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/distances.py [N] [DIMENSION] [THREADS] [ROUNDS]

N float32 features against as many, 50000 of 2048, 1 thread and 1 round if not said. Features are drawn before the clock
starts. The lines of torch-fidelity (0.4.0, metric_fid.py) and clean-fid (0.1.35, fid.py) are theirs, so that neither needs to
be installed.
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

from diffcore.metrics import frechet_wide

USUAL = (50_000, 2048, 1, 1)
"""N, dimension, threads, rounds."""


def main() -> None:
    count, dimension, threads, rounds = [*map(int, sys.argv[1:]), *USUAL[len(sys.argv) - 1 :]]
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for run in (ours, ours_with_error, torch_fidelity, clean_fid):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                wall, before, peak, value = pool.apply(alone, (run, count, dimension, threads))
            seconds.setdefault(run.__name__, []).append(wall)
            print(
                f"{run.__name__}, {count} x {dimension}, {threads} threads: {wall:.1f} s, {peak:.0f} MB at most, "
                f"{peak - before:.0f} MB of it beside the features; {value:.9g}",
                flush=True,
            )
    median = {name: statistics.median(each) for name, each in seconds.items()}
    for peer in ("torch_fidelity", "clean_fid"):
        ratios = (f"{median[peer] / median[name]:.2f} times that of {name}" for name in ("ours", "ours_with_error"))
        print(f"time of {peer}: {', '.join(ratios)}")


def alone(run: Callable[[Tensor, Tensor], float], count: int, dimension: int, threads: int) -> tuple[float, ...]:
    """Seconds, the most memory of the process before and after in MB, and the distance."""
    torch.set_num_threads(threads)
    x, y = features(count, dimension, 0, 1.0), features(count, dimension, 1, 1.1)
    before = peak()
    started = time.perf_counter()
    value = run(x, y)
    return time.perf_counter() - started, before, peak(), value


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features(count: int, dimension: int, seed: int, scale: float) -> Tensor:
    """Of falling variance, as those of networks are; drawn in place, so that the most memory is that of the features."""
    rows = torch.empty(count, dimension).normal_(generator=torch.Generator().manual_seed(seed))
    return rows.mul_(torch.logspace(0.5, -1, dimension) * scale)


def ours(x: Tensor, y: Tensor) -> float:
    """Moments merged block by block, and one factorisation."""
    return frechet_wide.distance(frechet_wide.moments(x), frechet_wide.moments(y))


def ours_with_error(x: Tensor, y: Tensor) -> float:
    """As the stage measures it: with its standard error."""
    b = frechet_wide.moments(y)
    return frechet_wide.estimate(x, b, frechet_wide.factor(b.covariance)).value


def torch_fidelity(x: Tensor, y: Tensor) -> float:
    (mu1, sigma1), (mu2, sigma2) = (
        (np.mean(each, axis=0), np.cov(each, rowvar=False)) for each in (x.numpy(), y.numpy())
    )
    diff = mu1 - mu2
    tr_covmean = np.sum(np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real)
    return float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * tr_covmean)


def clean_fid(x: Tensor, y: Tensor) -> float:
    from scipy import linalg

    (mu1, sigma1), (mu2, sigma2) = (
        (np.mean(each, axis=0), np.cov(each, rowvar=False)) for each in (x.numpy(), y.numpy())
    )
    diff = mu1 - mu2
    covmean = linalg.sqrtm(sigma1.dot(sigma2)).real
    return float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(covmean))


if __name__ == "__main__":
    main()
