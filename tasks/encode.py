"""The stage `encode`: what networks are told by the captions of the images, and by copies of them that lost something."""

from diffcore.core import disk, threads
from diffcore.data.ledger import Unfinished
from diffcore.texts import stored
from diffcore.texts.encoder import Encoder
from tasks import graph, paths
from tasks.params import Params
from tasks.progress import Progress, log


def encode(params: Params) -> None:
    """Writes what is told of all images, of those held out too, and of captions unseen; or that there is nothing."""
    text, compute, image = params.text, params.compute, params.data.image_condition
    threads.use(compute.threads)
    if text.encoder is None and image is None:
        with disk.folder(paths.TEXT) as folder:
            stored.write_none(paths.DATA, folder)
        log("encode: no texts: text.encoder is null")
        return
    written = stored.write(
        paths.DATA,
        paths.TEXT,
        params.encoder(),
        text.length,
        text.precision,
        Progress("encode", "captions"),
        Unfinished(paths.RESUME / "encode", disk.digest([graph.code_digest("encode"), compute.threads])),
        lambda line: log(f"encode: {line}"),
        image,
    )
    if written.encoder is not None:
        _tell(written.encoder, written.survey)
    if image is not None:
        log(f"encode: image, a copy of each image: {image}; told by {written.digest[:12]}")


def _tell(encoder: Encoder, survey: stored.Survey) -> None:
    if longer := survey.longer(encoder.length):
        log(
            f"encode: the captions of {longer} of {survey.total} images are cut to {encoder.length} tokens, the longest had "
            f"{survey.longest}"
        )
    inputs = ", ".join(f"{name} {'x'.join(map(str, kind.shape))}" for name, kind in encoder.inputs.items())
    log(f"encode: {survey.distinct} embeddings: {inputs}; encoder {encoder.content['digest'][:12]}")
