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
from tasks.progress import log


def find(params: Params) -> None:
    """Writes the least-cost trajectory for every number of steps."""
    threads.use(params.compute.threads)
    content = gamma.read(paths.GAMMA, None, paths.again("gamma"))
    origin = {"gamma": disk.digest(content), "checkpoint": content["about"]["checkpoint_digest"]}
    disk.write_sealed(paths.TRAJECTORY, {"schema": trajectory.SCHEMA, "from": origin, **_bound(params, content)})


def _bound(params: Params, content: dict[str, Any]) -> dict[str, Any]:
    """The trajectories of least cost by number of steps, with their costs. content: of gamma.json."""
    estimates = gamma.Gamma.from_json(content)
    most = params.search.most
    if most > estimates.steps:
        raise UserError(f"search.most is {most}, but gamma.steps is only {estimates.steps}; lower it")
    covariance = estimates.covariance(params.search.estimator, params.search.repair)
    share = estimates.sigma2 / (estimates.alpha2 + estimates.sigma2)  # the noise's, whatever the variance does
    sigma2, values = share.numpy(), covariance.values.numpy()
    if params.search.decoder:  # node 1 is then the data, and a path of K + 1 nodes takes K calls
        result = least_cost.cheapest(sigma2, values, most + 1, data=least_cost.decoded(values, content["edges"]))
        trajectories = {str(k): [node - 1 for node in result.nodes(k + 1)[1:]] for k in range(1, most + 1)}
        costs = {str(k): result.cost(k + 1) for k in range(1, most + 1)}
    else:
        result = least_cost.cheapest(sigma2, values, most)
        trajectories = {str(k): result.nodes(k) for k in range(1, most + 1)}
        costs = {str(k): result.cost(k) for k in range(2, most + 1)}
    about = {
        "estimator": params.search.estimator,
        "steps": estimates.steps,
        "decoder": params.search.decoder,
        "moved_into_bounds": {"below": covariance.below, "above": covariance.above},
        "impossible": covariance.impossible,
        "repaired": covariance.repaired,  # null: not asked for
        "monotone": least_cost.is_monge(sigma2, values),
    }
    if covariance.repaired:
        log(f"search: moved {covariance.repaired} of {estimates.steps} covariances to make them monotone")
    example = ", ".join(map(str, trajectories[str(min(4, most))]))
    log(f"search: least-cost trajectories of 1 to {most} of {estimates.steps} steps; with {min(4, most)}: {example}")
    return {"about": about, "nodes": trajectories, "cost": costs}
