"""Bits per dimension of real images, of samplings that have a likelihood."""

from diffcore.metrics import likelihood
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class Bits(Metric):
    """The mean over images."""

    needs = ("model",)

    def measure(self, subject: Subject) -> Estimate | None:
        model = subject.model
        bits = likelihood.estimate(model.sampler, model.images, model.seed, model.probes, model.batch, model.condition)
        return bits and Estimate(bits.mean, bits.se)
