"""The Frechet distance of the pixels themselves, which needs no network and sees what a classifier forgives."""

from diffcore.metrics.measures.fd import FrechetDistance


class PixelFrechetDistance(FrechetDistance):
    """On pixels averaged down to at most SIDE x SIDE."""

    of = "pixels"
