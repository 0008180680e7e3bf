"""The stage `search`: which times to look at, for every number of steps, from Gamma alone.

The times of least cost of the variational bound, which serves likelihood. Those that stay near the teacher's own path, which
serve the quality of samples, are fitted where a checkpoint is measured.
"""

from typing import Any

from diffcore.core import disk, threads
from diffcore.core.errors import UserError
from diffcore.noise import trajectory
from diffcore.search import gamma, least_cost
from tasks import paths
from tasks.params import Params
from tasks.progress import say


def find(params: Params) -> None:
    """Writes the least-cost trajectory for every number of steps."""
    threads.use(params.compute.threads)
    told = gamma.read(paths.GAMMA, None, paths.again("gamma"))
    made = {"gamma": disk.digest(told), "checkpoint": told["about"]["checkpoint_digest"]}
    disk.write_sealed(paths.TRAJECTORY, {"schema": trajectory.SCHEMA, "from": made, **_bound(params, told)})


def _bound(params: Params, told: dict[str, Any]) -> dict[str, Any]:
    """told: the content of gamma.json."""
    found, most = gamma.Gamma.from_json(told), params.search.most
    if most > found.steps:
        raise UserError(f"search.most is {most}, but gamma.steps is only {found.steps}; lower it")
    covariance = found.covariance(params.search.estimator, params.search.repair)
    share = found.sigma2 / (found.alpha2 + found.sigma2)  # the noise's, whatever the variance does
    sigma2, values = share.numpy(), covariance.values.numpy()
    if params.search.decoder:  # node 1 is then the data, and a path of K + 1 nodes takes K calls
        result = least_cost.cheapest(sigma2, values, most + 1, data=least_cost.decoded(values, told["edges"]))
        trajectories = {str(k): [node - 1 for node in result.nodes(k + 1)[1:]] for k in range(1, most + 1)}
        costs = {str(k): result.cost(k + 1) for k in range(1, most + 1)}
    else:
        result = least_cost.cheapest(sigma2, values, most)
        trajectories = {str(k): result.nodes(k) for k in range(1, most + 1)}
        costs = {str(k): result.cost(k) for k in range(2, most + 1)}
    about = {
        "estimator": params.search.estimator,
        "steps": found.steps,
        "decoder": params.search.decoder,
        "moved_into_bounds": {"below": covariance.below, "above": covariance.above},
        "impossible": covariance.impossible,
        "repaired": covariance.repaired,  # null: not asked for
        "monotone": least_cost.is_monge(sigma2, values),
    }
    if covariance.repaired:
        say(f"search: moved {covariance.repaired} of {found.steps} covariances to make them monotone")
    shown = ", ".join(map(str, trajectories[str(min(4, most))]))
    say(f"search: least-cost trajectories of 1 to {most} of {found.steps} steps; with {min(4, most)}: {shown}")
    return {"about": about, "nodes": trajectories, "cost": costs}
