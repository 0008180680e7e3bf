"""What the spread of the Frechet distance and the kernel distance cost, against the plain formulas.

python bench/quality.py [N]; N samples for the kernel distance against as many real images, 8000 if not said.
"""

import statistics
import sys
import time

import torch
from torch import Tensor

from diffcore.metrics import frechet, mmd
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.frechet import Moments

THREADS, ROUNDS, DIMENSION = 1, 3, 64


def main() -> None:
    torch.set_num_threads(THREADS)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, DIMENSION, generator=rng, dtype=torch.float64) for n in (1000, 1797))
    against, repeats = Moments.of(y), resamples(1000, 0)[:50]
    compare("spread of the Frechet distance, 50 resamples", frechet_before, frechet.frechet_spread, x, against, repeats)
    x, y = (torch.randn(count, DIMENSION, generator=rng, dtype=torch.float64) for _ in range(2))
    repeats = resamples(count, 0)
    compare(f"kid and its spread, {count} samples", kid_before, kid_now, x, y, repeats)
    held = {len(x) ** 2 * 8 * 2 / 2**20: "before", mmd.ROWS**2 * 8 * 3 / 2**20: "now"}
    print(f"kernel values held at {count}: {', '.join(f'{word} {size:.0f} MB' for size, word in held.items())}")


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
    root = frechet.root(against.covariance)
    again = [frechet._frechet(Moments.of(x, row), against, root) for row in repeats]
    return torch.tensor(again, dtype=torch.float64).std().item()


def kid_before(x: Tensor, y: Tensor, repeats: Tensor) -> float:
    """Whole matrices: of the samples for the value and once more for the spread, across for either."""
    value = mmd.kernel(x, x).triu_(1).sum() - mmd.kernel(x, y).mean(1).sum()
    within = mmd.kernel(x, x).fill_diagonal_(0)
    alike = ((repeats @ within) * repeats).sum(1) / (repeats.sum(1) ** 2 - repeats.square().sum(1))
    spread = (alike - 2 * (repeats @ mmd.kernel(x, y).mean(1)) / repeats.sum(1)).std()
    return spread.item() if value.isfinite() else 0.0


def kid_now(x: Tensor, y: Tensor, repeats: Tensor) -> float:
    return mmd._kid(x, y, 0.0, repeats)[1].std().item()


if __name__ == "__main__":
    main()
