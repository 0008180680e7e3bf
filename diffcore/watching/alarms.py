"""What is wrong with a training, in words. All thresholds are here.

A network that has learned nothing yet draws noise or one grey blur: too much contrast, or no diversity. So what is too much
or too little counts only where the distance is above the best one, or past the middle of the training.
"""

from collections.abc import Sequence

from diffcore.watching.look import Look

ERRORS = 3
"""Standard errors by which a number must be on the wrong side: of a thousand looks about one is there by chance."""

DIVERSITY = 0.5
"""Of the data's. Samples that all lie in one half of the classes keep about 0.7 of it; students of one step that are trained
well, the blurriest of good ones, keep more than 0.8."""

CONTRAST = 1.25
"""Times the data's. What is trained well is within 0.05 of 1; pure noise in place of usual images is at 1.3 and more."""

BEYOND = 0.1
"""Share of values that a screen cuts off by more than MARGIN: a few in a hundred overshoot at the edges of sharp images."""

COPIES = 0.05
"""Share of samples that copy a training image, five times that of new images. It counts whatever the distance does: copies
have the best one."""

WORSE = 1.5
"""Times the best distance. Looks of a healthy training differ by tenths, which are not to be alarmed at."""


def alarms(looks: Sequence[Look], iterations: int) -> dict[str, str]:
    """What is wrong at the last look of a training of so many updates, by its first word; in whole sentences of a log."""
    return {word: text for word, text in _all(looks, iterations) if text}


def _all(looks: Sequence[Look], iterations: int) -> tuple[tuple[str, str | None], ...]:
    return (
        ("collapsing", _collapsing(looks, iterations)),
        ("saturating", _saturating(looks, iterations)),
        ("copying", _copying(looks)),
        ("getting worse", _getting_worse(looks)),
    )


def _collapsing(looks: Sequence[Look], iterations: int) -> str | None:
    low = [look.diversity + ERRORS * look.diversity_se < DIVERSITY for look in looks]
    if not _counts(low, looks, iterations):
        return None
    return f"collapsing: diversity {looks[-1].diversity:.2g} of the data's since update {_since(low, looks)}"


def _saturating(looks: Sequence[Look], iterations: int) -> str | None:
    high = [look.contrast > CONTRAST or look.beyond > BEYOND for look in looks]
    if not _counts(high, looks, iterations):
        return None
    last = looks[-1]
    return (
        f"saturating: contrast {last.contrast:.2f} of the data's and {last.beyond:.0%} of the values out of range since "
        f"update {_since(high, looks)}"
    )


def _copying(looks: Sequence[Look]) -> str | None:
    high = [look.memorised is not None and look.memorised - ERRORS * look.memorised_se > COPIES for look in looks]
    if not high[-1]:
        return None
    return f"copying: {looks[-1].memorised:.2g} of the samples are training images since update {_since(high, looks)}"


def _getting_worse(looks: Sequence[Look]) -> str | None:
    last = looks[-1]
    best = next(look for look in looks if look.step == last.best)
    if not _has_risen(last) or last.fd <= WORSE * best.fd:
        return None
    return f"getting worse: fd {last.distance.plus_minus()} against {best.fd:.2g} at update {best.step}"


def _counts(wrong: Sequence[bool], looks: Sequence[Look], iterations: int) -> bool:
    """Whether it is wrong now, and the distance has risen or the training is past its middle."""
    return wrong[-1] and (_has_risen(looks[-1]) or 2 * looks[-1].step > iterations)


def _has_risen(look: Look) -> bool:
    return look.behind > ERRORS * look.behind_se


def _since(wrong: Sequence[bool], looks: Sequence[Look]) -> int:
    """The update of the first of the last looks at which it was wrong each time."""
    first = len(wrong)
    while first and wrong[first - 1]:
        first -= 1
    return looks[first].step
