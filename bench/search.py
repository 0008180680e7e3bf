"""Seconds and memory of the trajectory search on one thread, against the plain recurrence (an N x N sum, min and argmin per
layer) in the same run.

OMP_NUM_THREADS=1 python bench/search.py        bars: N = 1000, every K in 1.5 s; N = 4000, K = 100 in 0.5 s
"""

import time
import tracemalloc

import numpy as np

from diffcore.search import least_cost

EDGES = 0.58
"""The digits' share of values at an end of their range."""


def tables(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine schedule, anisotropic Gaussian data in 64 dimensions: every covariance is a closed form."""
    sigma2 = np.sin(np.pi / 2 * np.arange(1, steps + 1) / steps) ** 2
    c2 = 1e-4 * 5000 ** (np.arange(64) / 63)
    return sigma2, (c2 * sigma2[:, None] / ((1 - sigma2[:, None]) * c2 + sigma2[:, None])).mean(1)


def monge(sigma2: np.ndarray, cov: np.ndarray, most: int) -> np.ndarray:
    return least_cost.cheapest(sigma2, cov, most).costs


def dense(sigma2: np.ndarray, cov: np.ndarray, most: int) -> np.ndarray:
    return least_cost.shortest(least_cost.cost(sigma2, cov), most).costs


def monge_decoder(sigma2: np.ndarray, cov: np.ndarray, most: int) -> np.ndarray:
    """As the default search: the last look is chosen too. Costs of 1..most calls."""
    return least_cost.cheapest(sigma2, cov, most + 1, data=least_cost.decoded(cov, EDGES)).costs[1:]


def plain_decoder(sigma2: np.ndarray, cov: np.ndarray, most: int) -> np.ndarray:
    whole = least_cost.with_data(least_cost.cost(sigma2, cov), least_cost.decoded(cov, EDGES))
    return least_cost.shortest(whole, most + 1).costs[1:]


def plain(sigma2: np.ndarray, cov: np.ndarray, most: int) -> np.ndarray:
    """C[k, t] = min_s C[k-1, s] + J[s, t], as it is written; the least cost of every K."""
    jumps = least_cost.cost(sigma2, cov)
    best, found = np.full(len(jumps), np.inf), [np.inf, np.inf]
    best[0] = 0.0
    for _ in range(2, most + 1):
        sums = best[:, None] + jumps
        sums.argmin(0)
        best = sums.min(0)
        found.append(best[-1])
    return np.array(found)


def measured(run, *given) -> tuple[float, float, np.ndarray]:
    """Seconds, the better of 2 runs; MB at most at once, from a third: watching memory takes time; what was found."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        run(*given)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    found = run(*given)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return min(seconds), peak, found


def with_the_decoder() -> None:
    """The default of the stage `search`, against the whole matrix in the same run."""
    for steps, most in ((1000, 64), (8000, 64)):
        given = tables(steps)
        seconds, memory, found = measured(monge_decoder, *given, most)
        whole, whole_memory, expected = measured(plain_decoder, *given, most)
        assert np.allclose(found[1:], expected[1:], rtol=1e-12)
        print(
            f"with the decoder, N={steps}, K up to {most}: {seconds:.3f} s, {memory:.1f} MB; over the whole matrix "
            f"{whole:.3f} s, {whole_memory:.0f} MB (same costs)"
        )


def main() -> None:
    for steps, most, sample in ((1000, 1000, 100), (4000, 100, 10)):
        given = tables(steps)
        assert least_cost.is_monge(*given)
        floor, most_memory, expected = measured(plain, *given, sample)
        for name, run in (("monge", monge), ("whole matrix", dense)):
            whole, whole_memory, paths = measured(run, *given, most)
            part, part_memory, _ = measured(run, *given, sample)
            assert np.allclose(paths[2 : sample + 1], expected[2:], rtol=1e-12)
            print(
                f"{name:<12} N={steps} every K up to {most}: {whole:.3f} s, {whole_memory:.1f} MB; up to {sample}: "
                f"{part:.3f} s, {part_memory:.1f} MB; plain recurrence {floor:.3f} s, {most_memory:.0f} MB: "
                f"{floor / part:.1f}x (same costs)"
            )
    with_the_decoder()
    print("CPU, 1 thread (numpy's sums and argmin use no more), the better of 2 runs each")


if __name__ == "__main__":
    main()
