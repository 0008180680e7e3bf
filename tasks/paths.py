"""Where everything lies, relative to the folder that holds dvc.yaml."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
RESUME_VARIABLE = "DISTILL_RESUME"
RESUME = Path(os.environ.get(RESUME_VARIABLE) or ".resume")
"""Where stages save their state: a folder that hosts share, or this one's own."""

ARTIFACTS = Path("artifacts")
DRAWN = ARTIFACTS / "drawn"
"""Images that a teacher drew, or that none did."""

DATA = ARTIFACTS / "data"
HOLDOUT = DATA / "holdout"
"""Images that nothing is trained on, a folder of shards like DATA; absent where none were held out."""

TEXT = ARTIFACTS / "text"
"""Embeddings of captions; those of HOLDOUT in a folder of that name."""

TEXT_HOLDOUT = TEXT / "holdout"
PROMPTS = ARTIFACTS / "prompts"
"""Embeddings of prompts without images, or that there are none."""

FEATURES = ARTIFACTS / "features"
CHECKPOINTS = ARTIFACTS / "checkpoints"
SEEDS = "seeds"
"""In a checkpoint's folder, those of the line's further trainings, by number; no part of what is shipped."""

CURVES = ARTIFACTS / "curves"
COST = ARTIFACTS / "cost"
GAMMA = ARTIFACTS / "gamma.json"
TRAJECTORY = ARTIFACTS / "trajectory.json"
POINTS = ARTIFACTS / "points"
REFERENCE = ARTIFACTS / "reference"
"""By teacher, its samples that fidelity compares with."""

FRONTIER = ARTIFACTS / "frontier.json"
REPORT = ARTIFACTS / "report.html"
QUALITY = ARTIFACTS / "quality.json"
SAMPLES = ARTIFACTS / "samples"
PUBLISHED = ARTIFACTS / "published.json"


def training(name: str, number: int) -> Path:
    """The checkpoint of the line NAME by its training of this number, counted from 0; the first one is the line's own."""
    return CHECKPOINTS / name / SEEDS / str(number) if number else CHECKPOINTS / name


def train(name: str) -> str:
    """The stage that makes the checkpoint NAME, its curve and its cost."""
    return f"train {name}"


def measure(name: str) -> str:
    """The stage that measures the checkpoint NAME."""
    return f"measure {name}"


def again(stage: str) -> str:
    """What mends an artifact that is missing or damaged, as the end of a UserError."""
    return f"run the stage `{stage}` again"


def label(name: str, number: int) -> str:
    """What a line's training is called, here, in the log and by its saved states; no line can be called so. number: which of
    its trainings, 0 for the first."""
    return f"{name}.{number}" if number else name


def line_of(label: str) -> str:
    """The line of a training's label."""
    return label.partition(".")[0]
