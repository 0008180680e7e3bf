"""Dormand and Prince's Runge-Kutta method of order 5(4) with a step size and an error of its own for each sample."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcore.core.errors import UserError

C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Dormand & Prince 1980, table 2: the last row is the solution of order 5, whose slope begins the next step."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""The solution of order 5 less that of order 4."""

SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 10.0
MOST_STEPS = 10_000

Rate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(y [a, n], u [a], rows [a]) -> dy/du [a, n] of the samples with these places in the batch."""


def integrate(rate: Rate, y: Tensor, start: float, end: float, rtol: float, atol: float) -> Tensor:
    """y [b, n] at u = `start` taken to u = `end`. A step is accepted where rms(error / (atol + rtol |y|)) <= 1.

    A sample that has arrived takes no further part, so its result does not depend on the others. Each step is chosen from the
    one before it as scipy's RK45 does; how the first is chosen differs where y or its rate all but vanish, see `_first_step`.
    A UserError after MOST_STEPS steps, or where the rate is not finite.
    """
    rows = torch.arange(len(y), device=y.device)
    u = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    slope, sign, result = rate(y, u, rows), (1.0 if end > start else -1.0), y.clone()
    h, refused = _first_step(rate, y, slope, start, end, rtol, atol), torch.zeros_like(rows, dtype=torch.bool)
    for _ in range(MOST_STEPS):
        left = (end - u) * sign
        last = h >= left * (1 - 1e-12)
        step = torch.where(last, left, h) * sign
        slopes = [slope]
        for stage in range(1, 7):
            place = u + C[stage] * step
            # exactly the end, not a rounding beside it, where a schedule may be singular
            place = torch.where(last, torch.full_like(u, end), place) if C[stage] == 1 else place
            new = y + _column(step, y) * _mixed(A[stage], slopes)
            slopes.append(rate(new, place, rows))
        error = _column(step, y) * _mixed(ERROR, slopes)
        size = (error / (atol + rtol * torch.maximum(y.abs(), new.abs()))).square().mean(1).sqrt().double()
        if not size.isfinite().all():
            raise UserError(
                "rk45 met numbers that are not finite; look at what the network makes of its noisiest inputs"
            )
        good = size <= 1
        factor = (SAFETY * size.clamp(min=1e-12) ** -0.2).clamp(SLOWEST, FASTEST)
        # the first step after a refused one grows no further, or it would be refused again
        h = step.abs() * torch.where(refused, factor.clamp(max=1.0), factor)
        y, u = torch.where(good[:, None], new, y), torch.where(good, u + step, u)
        slope = torch.where(good[:, None], slopes[-1], slope)
        arrived = good & last
        result[rows[arrived]] = y[arrived]
        rows, y, u, h, slope, refused = (part[~arrived] for part in (rows, y, u, h, slope, ~good))
        if not len(rows):
            return result
    raise UserError(f"rk45 took {MOST_STEPS} steps without arriving; raise rtol and atol")


def _mixed(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum(weight * slope for weight, slope in zip(weights, slopes) if weight)


def _column(step: Tensor, like: Tensor) -> Tensor:
    return step.to(like.dtype)[:, None]


def _first_step(rate: Rate, y: Tensor, slope: Tensor, start: float, end: float, rtol: float, atol: float) -> Tensor:
    """From how fast y and, by one call more, its slope change (Hairer, Norsett & Wanner 1993, section II.4).

    The look ahead lies within 1e-6 and 0.1 of the way, where scipy's goes up to the end and falls back on 1e-6 in u itself.
    """

    def size(part: Tensor) -> Tensor:
        return (part / (atol + rtol * y.abs())).square().mean(1).sqrt().double()

    span, speed = abs(end - start), size(slope)
    look = (0.01 * size(y) / speed.clamp(min=1e-12)).clamp(1e-6 * span, 0.1 * span)
    ahead = look if end > start else -look
    bent = rate(y + _column(ahead, y) * slope, start + ahead, torch.arange(len(y), device=y.device))
    bend = size(bent - slope) / look
    return torch.minimum(100 * look, (0.01 / torch.maximum(speed, bend).clamp(min=1e-12)) ** 0.2).clamp(max=span)
