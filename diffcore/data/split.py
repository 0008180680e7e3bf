"""What is trained on, and what is held out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """Which images are trained on, and which are held out: written apart, and never trained on.

    train: names of folders (train/, ...) at the top of a folder source; None for all that are not held out.
    holdout: such names, or the share of the images to hold out. A share is drawn by the images' names, so that one that is
    held out stays so when others are added.
    """

    train: list[str] | None = None
    holdout: list[str] | float | None = None

    def __post_init__(self):
        if self.train is None and self.holdout is None:
            raise ValueError("say train, holdout or both; leave split null to train on all")
        if self.train == [] or self.holdout == []:
            raise ValueError("train and holdout must name at least one folder of a split; leave the key out for none")
        if isinstance(self.holdout, float | int) and not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be names of split folders or a share between 0 and 1, not {self.holdout}")
        both = sorted({name.lower() for name in self.train or ()} & {name.lower() for name in self.names})
        if both:
            raise ValueError(f"the split {both[0]} is both trained on and held out; name it once")

    @property
    def names(self) -> list[str]:
        """Of the folders that are held out."""
        return self.holdout if isinstance(self.holdout, list) else []

    @property
    def share(self) -> float:
        """Of the images that are held out, 0 where folders are named."""
        return 0.0 if self.holdout is None or isinstance(self.holdout, list) else self.holdout
