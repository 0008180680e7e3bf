"""The stages `gamma` and `search`: what Analytic-DPM needs of the teacher, and the trajectories it makes of it."""

import json

from diffcore import checkpoint, disk, feed, fit, gamma, search, shards
from diffcore.mistake import Mistake
from tasks import paths
from tasks.params import ROOT, Params
from tasks.progress import Progress, say


def estimate(params: Params) -> None:
    """The Monte-Carlo estimate of Gamma and of the covariance of x_0, by both estimators, at every time of the grid."""
    fit.use_threads(params.compute.threads)
    teacher = checkpoint.load(paths.CHECKPOINTS / ROOT)
    pixels = shards.load_resident(paths.DATA).pixels
    if params.gamma.images > len(pixels):
        raise Mistake(f"gamma.images is {params.gamma.images}, but the data have only {len(pixels)}; lower it")
    x0 = feed.to_float(pixels[gamma.pick(len(pixels), params.gamma)])
    found = gamma.estimate(teacher.denoiser, x0, params.gamma, Progress("gamma", "calls"))
    about = {"checkpoint": ROOT, "checkpoint_digest": teacher.card.digest, "data": teacher.card.data}
    disk.write_json(paths.GAMMA, {"about": about, **found.to_json()})
    say(f"gamma: {found.images} images at {found.steps} times; {found.told()}")


def search_paths(params: Params) -> None:
    """The least-cost trajectory for every number of steps, from one run."""
    found = gamma.Gamma.from_json(json.loads(paths.GAMMA.read_text()))
    covariance = found.covariance(params.search.estimator)
    result = search.shortest(search.cost(found.sigma2.numpy(), covariance.values.numpy()), params.search.most)
    trajectories = {str(steps): result.nodes(steps) for steps in range(1, params.search.most + 1)}
    costs = {str(steps): result.cost(steps) for steps in range(2, params.search.most + 1)}
    about = {"estimator": params.search.estimator, "steps": found.steps, "below": covariance.below, "above": covariance.above}
    disk.write_json(paths.TRAJECTORY, {"about": about, "nodes": trajectories, "cost": costs})
    say(f"search: least-cost trajectories of 1 to {params.search.most} steps; 4 steps at {trajectories.get('4')}")
