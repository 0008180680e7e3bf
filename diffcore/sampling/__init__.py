"""From noise to samples: solvers, samplers, and what makes a network call cheaper."""

from diffcore.sampling.recipe import Recipe, sampler_of
from diffcore.sampling.sampler import Sampler

__all__ = ["Recipe", "Sampler", "sampler_of"]
