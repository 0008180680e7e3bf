"""The stage `search`: the least-cost trajectory for every number of steps, from one run."""

import json

from diffcore import disk, gamma, search
from diffcore.mistake import Mistake
from tasks import paths
from tasks.params import Params
from tasks.progress import say


def find(params: Params) -> None:
    found, most = gamma.Gamma.from_json(json.loads(paths.GAMMA.read_text())), params.search.most
    if most > found.steps:
        raise Mistake(f"search.most is {most}, but gamma.steps is only {found.steps}; lower it")
    covariance = found.covariance(params.search.estimator)
    result = search.shortest(search.cost(found.sigma2.numpy(), covariance.values.numpy()), most)
    trajectories = {str(steps): result.nodes(steps) for steps in range(1, most + 1)}
    costs = {str(steps): result.cost(steps) for steps in range(2, most + 1)}
    moved = {"below": covariance.below, "above": covariance.above}
    about = {"estimator": params.search.estimator, "steps": found.steps, "moved_into_bounds": moved}
    disk.write_json(paths.TRAJECTORY, {"about": about, "nodes": trajectories, "cost": costs})
    shown = ", ".join(map(str, trajectories[str(min(4, most))]))
    say(f"search: least-cost trajectories of 1 to {most} of {found.steps} steps; with {min(4, most)}: {shown}")
