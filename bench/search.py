"""Seconds of the trajectory search on one thread, against the plain recurrence (an N x N sum, min and argmin per layer).

OMP_NUM_THREADS=1 python bench/search.py        bars: N = 1000, every K in 1.5 s; N = 4000, K = 100
"""

import time

import numpy as np

from diffcore import search


def costs(steps: int) -> np.ndarray:
    """Cosine schedule, anisotropic Gaussian data in 64 dimensions: every covariance is a closed form."""
    sigma2 = np.sin(np.pi / 2 * np.arange(1, steps + 1) / steps) ** 2
    c2 = 1e-4 * 5000 ** (np.arange(64) / 63)
    cov = (c2 * sigma2[:, None] / ((1 - sigma2[:, None]) * c2 + sigma2[:, None])).mean(1)
    return search.cost(sigma2, cov)


def plain(jumps: np.ndarray, most: int) -> np.ndarray:
    """C[k, t] = min_s C[k-1, s] + J[s, t], as it is written; the least cost of every K."""
    best, found = np.full(len(jumps), np.inf), [np.inf, np.inf]
    best[0] = 0.0
    for _ in range(2, most + 1):
        sums = best[:, None] + jumps
        sums.argmin(0)
        best = sums.min(0)
        found.append(best[-1])
    return np.array(found)


def seconds(run, *arguments) -> tuple[float, object]:
    started = time.perf_counter()
    result = run(*arguments)
    return time.perf_counter() - started, result


def main() -> None:
    for steps, most, sample in ((1000, 1000, 100), (4000, 100, 10)):
        jumps = costs(steps)
        ours, paths = min((seconds(search.shortest, jumps, most) for _ in range(2)), key=lambda pair: pair[0])
        whole = min(seconds(search.shortest, jumps, sample)[0] for _ in range(2))
        floor, expected = min((seconds(plain, jumps, sample) for _ in range(2)), key=lambda pair: pair[0])
        assert np.allclose(paths.costs[2 : sample + 1], expected[2:], rtol=1e-12)
        print(
            f"search N={steps} every K up to {most}: {ours:.2f} s; up to {sample}: {whole:.3f} s, "
            f"plain recurrence {floor:.3f} s, ratio {floor / whole:.1f}x (same costs)"
        )
    print("CPU, 1 thread (numpy's sums and argmin use no more), the better of 2 runs each")


if __name__ == "__main__":
    main()
