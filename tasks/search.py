"""The stage `search`: which times to look at, for every number of steps, from one run.

Two aims: least cost of the variational bound, which serves likelihood, and hops that stay near the teacher's own path, which
serves the quality of samples.
"""

from typing import Any

from diffcore import checkpoints as checkpoint
from diffcore.core import disk, threads
from diffcore.core import rng as draw
from diffcore.core.errors import Mistake
from diffcore.data import read
from diffcore.denoisers.denoiser import Condition
from diffcore.noise import trajectory
from diffcore.search import fitted as hops
from diffcore.search import gamma
from diffcore.search import least_cost as search
from tasks import paths
from tasks.params import ROOT, Params
from tasks.progress import say


def find(params: Params) -> None:
    threads.use(params.compute.threads)
    told = gamma.read(paths.GAMMA, _digest(ROOT), paths.again("gamma"))
    bound, fitted = _bound(params, told), _fitted(params)
    made = {"gamma": disk.digest(told), "checkpoints": {name: _digest(name) for name in (ROOT, *fitted)}}
    disk.write_sealed(paths.TRAJECTORY, {"schema": trajectory.SCHEMA, "from": made, **bound, "fitted": fitted})


def _digest(name: str) -> str:
    return checkpoint.read_card(paths.CHECKPOINTS / name).digest


def _bound(params: Params, told: dict[str, Any]) -> dict[str, Any]:
    """told: the content of gamma.json."""
    found, most = gamma.Gamma.from_json(told), params.search.most
    if most > found.steps:
        raise Mistake(f"search.most is {most}, but gamma.steps is only {found.steps}; lower it")
    covariance = found.covariance(params.search.estimator, params.search.repair)
    share = found.sigma2 / (found.alpha2 + found.sigma2)  # the noise's, whatever the variance does
    sigma2, values = share.numpy(), covariance.values.numpy()
    if params.search.decoder:  # node 1 is then the data, and a path of K + 1 nodes takes K calls
        result = search.cheapest(sigma2, values, most + 1, data=search.decoded(values, told["edges"]))
        trajectories = {str(k): [node - 1 for node in result.nodes(k + 1)[1:]] for k in range(1, most + 1)}
        costs = {str(k): result.cost(k + 1) for k in range(1, most + 1)}
    else:
        result = search.cheapest(sigma2, values, most)
        trajectories = {str(k): result.nodes(k) for k in range(1, most + 1)}
        costs = {str(k): result.cost(k) for k in range(2, most + 1)}
    about = {
        "estimator": params.search.estimator,
        "steps": found.steps,
        "decoder": params.search.decoder,
        "moved_into_bounds": {"below": covariance.below, "above": covariance.above},
        "impossible": covariance.impossible,
        "repaired": covariance.repaired,  # null: not asked for
        "monotone": search.is_monge(sigma2, values),
    }
    if covariance.repaired:
        say(f"search: moved {covariance.repaired} of {found.steps} covariances to make them monotone")
    shown = ", ".join(map(str, trajectories[str(min(4, most))]))
    say(f"search: least-cost trajectories of 1 to {most} of {found.steps} steps; with {min(4, most)}: {shown}")
    return {"about": about, "nodes": trajectories, "cost": costs}


def _fitted(params: Params) -> dict[str, dict[str, list[float]]]:
    """By checkpoint that is valid at any time and by number of steps, with classes drawn as the evaluation draws them."""
    config, found = params.search.fitted, {}
    teacher = checkpoint.load(paths.CHECKPOINTS / ROOT).to(params.compute.device)
    condition = _classes(teacher, config, params.compute.memory_bytes)
    for name in (ROOT, *params.distill):
        opened = teacher if name == ROOT else checkpoint.load(paths.CHECKPOINTS / name).to(params.compute.device)
        if opened.denoiser.grid is None and opened.guidance is None:
            strays = hops.strays(opened.denoiser, teacher.denoiser, config, opened.shape, condition=condition)
            times = hops.fit(strays, config.late)
            found[name] = {str(steps): list(path.times) for steps, path in times.items()}
            shown = ", ".join(f"{t:.3g}" for t in times[min(4, config.points)].times)
            say(f"search: times fitted to the teacher's path for {name}; with {min(4, config.points)} steps: {shown}")
        elif opened.denoiser.grid is None:
            say(f"search: no times are fitted for {name}, which is guided, and the teacher's own path is not")
    return found


def _classes(teacher: checkpoint.Checkpoint, config: hops.Config, memory: int) -> Condition | None:
    if not teacher.denoiser.classes:
        return None
    return Condition(draw.labels_like(read.open_images(paths.DATA, memory).labels, config.images, config.seed))
