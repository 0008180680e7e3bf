"""Distances that are not squares."""

from diffcore.core.shapes import PerSample, Sample


def pseudo_huber(error: Sample, huber: float) -> PerSample:
    """sqrt(|error|^2 + c^2) - c with c = huber sqrt(d): the norm, made smooth where it is small. [b].

    Song & Dhariwal 2023, arXiv 2310.14189, whose huber is 0.00054.
    """
    error = error.flatten(1)
    c = huber * error.shape[1] ** 0.5
    return (error.square().sum(1) + c**2).sqrt() - c
