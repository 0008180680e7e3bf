"""`distill statistics`: mean and covariance of the real images in a judge's features, for whoever compares with them."""

from pathlib import Path

from diffcore.core import disk, threads
from diffcore.core.errors import UserError
from diffcore.data import read
from diffcore.data.manifest import Manifest
from diffcore.metrics import judges, statistics
from tasks import measure, paths
from tasks.params import Params
from tasks.progress import Progress, log
from tasks.typed import nearest, quoted


def write(params: Params, name: str, target: Path) -> None:
    """Writes those of the images of the training by the judge `name` of evaluate.judges to `target`, a new .npz."""
    disk.check_free(target)
    if target.suffix != ".npz":
        raise UserError(f"{target}: statistics are an .npz; name another target")
    files = params.evaluate.judge_files
    if name not in files:
        near = nearest(name, files) or "; name it there with its file of weights"
        raise UserError(f"evaluate.judges names no judge {quoted(name)}{near}")
    threads.use(params.compute.threads)
    judge = judges.load(name, files[name]).to(params.compute.device)
    images = read.open_images(paths.DATA, params.compute.memory_bytes)
    progress = Progress(f"statistics {name}", "images")
    look = measure.courts(params, f"statistics {name}").court
    court = look(judge, images, lambda done, total: progress(done, total, f"real images by {name}"))
    data = Manifest.read(paths.DATA, verify=False).digest
    statistics.write(target, court.moments, str(judge), len(images), data)
    log(f"{target}: mu and sigma of {len(images)} images by {judge}")
