"""The stage `gamma`: the Monte-Carlo estimate of Gamma and of the covariance of x_0, at every time of the grid."""

from diffcore import checkpoint, disk, feed, gamma, shards, threads
from tasks import paths
from tasks.params import ROOT, Params
from tasks.progress import Progress, say


def estimate(params: Params) -> None:
    """By both estimators, from the teacher and `gamma.images` of the images, of whose classes a conditional one is told."""
    threads.use(params.compute.threads)
    teacher = checkpoint.load(paths.CHECKPOINTS / ROOT).to(params.compute.device)
    images = shards.load_resident(paths.DATA)
    pixels, chosen = images.pixels, gamma.pick(len(images), params.gamma)
    labels = images.labels[chosen] if teacher.denoiser.classes else None
    x0 = feed.to_float(pixels[chosen])
    found = gamma.estimate(teacher.denoiser, x0, params.gamma, Progress("gamma", "calls"), labels=labels)
    about = {"checkpoint": ROOT, "checkpoint_digest": teacher.card.digest, "data": teacher.card.data}
    edges = float(((pixels == 0) | (pixels == 255)).double().mean())  # what the search knows of the bound's decoder
    disk.write_sealed(paths.GAMMA, {"schema": gamma.SCHEMA, "about": about, "edges": edges, **found.to_json()})
    say(f"gamma: {found.images} images at {found.steps} times; {found.told()}")
