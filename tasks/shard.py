"""The stage `shard`: the user's images as shards with a manifest."""

import joblib

from diffcore.data import pixels, write
from diffcore.data.cache import Cache
from diffcore.data.ledger import Unfinished
from tasks import graph, paths
from tasks.params import Params
from tasks.progress import Progress, log


def shard(params: Params) -> None:
    manifest = write.write(
        params.data,
        paths.DATA,
        joblib.cpu_count(),  # nothing else of the run can begin before
        Progress("shard", "images"),
        tell=lambda line: log(f"shard: {line}"),
        unfinished=Unfinished(paths.RESUME / "shard", graph.code_digest("shard", "")),
        cache=Cache(paths.RESUME / "remote", params.compute.cache_bytes),
        start=pixels.processes,
        drawn=paths.DRAWN,
    )
    height = "x".join(map(str, manifest.shape[1:]))
    classes = f"{len(manifest.classes)} classes" if manifest.classes else "no labels"
    log(
        f"shard: {manifest.images} images of {height}, {manifest.shape[0]} channels, {classes}, "
        f"{len(manifest.quarantined)} quarantined; data {manifest.digest[:12]}"
    )
