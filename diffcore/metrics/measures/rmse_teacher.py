"""The RMSE between a student's samples and the teacher's of the same noises: over all pixels, in units of [-1, 1]."""

from diffcore.core.shapes import Sample
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class TeacherRMSE(Metric):
    """Of the samples as they came out, not rounded; its standard error is that over the noises."""

    needs = ("teacher",)

    def measure(self, subject: Subject) -> Estimate:
        return rmse(subject.samples, subject.teacher)


def rmse(student: Sample, teacher: Sample) -> Estimate:
    """Of student samples from the teacher's of the same noises, [n, *x] each, row by row."""
    if student.shape != teacher.shape or len(student) < 2:
        raise ValueError(f"need two equal shapes of at least 2 samples, got {student.shape} and {teacher.shape}")
    squared = (student.double() - teacher.double()).square().flatten(1).mean(1)
    value = squared.mean().sqrt().item()
    spread = squared.std().item() / len(squared) ** 0.5
    return Estimate(value, spread / (2 * value) if value else 0.0)  # d sqrt(m) = dm / (2 sqrt(m))
