"""How often the feature network, which no training of a student saw, finds the class that was asked for."""

import torch
from torch import Tensor

from diffcore.core import precision
from diffcore.core.errors import UserError
from diffcore.core.shapes import Sample
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.features import Features
from diffcore.metrics.metric import Metric, Subject
from diffcore.metrics.reference import to_8bit


class Accuracy(Metric):
    """The share of samples; None where the data have one class, of which the feature network learned nothing."""

    better = "higher"
    needs = ("classes", "real_classes")

    def measure(self, subject: Subject) -> Estimate | None:
        if subject.features.card.task != "classes":
            return None
        return accuracy(subject.samples, subject.classes, subject.real_classes, subject.features)


@precision.exact()
def accuracy(samples: Sample, classes: Tensor, real: Tensor, features: Features) -> Estimate:
    """The share of samples whose class is found, and the standard error of this mean.

    classes: int64 [n], of the samples; real: those of the images that the network learned from, for it numbers the classes
    that occur. A UserError for a network that learned no classes.
    """
    if features.card.task != "classes":
        raise UserError("the feature network learned no classes, so it cannot tell whether samples have the right one")
    labels = torch.unique(real.cpu())
    parts = to_8bit(samples).split(250)
    predicted = torch.cat([features.logits(part.to(features.device)).argmax(1).cpu() for part in parts])
    right = (labels[predicted] == classes.cpu()).double()
    return Estimate(float(right.mean()), float(right.std() / len(right) ** 0.5))
