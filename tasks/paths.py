"""Where everything lies, relative to the folder that holds dvc.yaml."""

from pathlib import Path

PARAMS = Path("params.yaml")
RESUME = Path(".resume")
ARTIFACTS = Path("artifacts")
DATA = ARTIFACTS / "data"
FEATURES = ARTIFACTS / "features"
CHECKPOINTS = ARTIFACTS / "checkpoints"
CURVES = ARTIFACTS / "curves"
COST = ARTIFACTS / "cost"
GAMMA = ARTIFACTS / "gamma.json"
TRAJECTORY = ARTIFACTS / "trajectory.json"
FRONTIER = ARTIFACTS / "frontier.json"
SAMPLES = ARTIFACTS / "samples"
PUBLISHED = ARTIFACTS / "published.json"
