"""The stage `encode`: what networks are told by the captions of the images."""

from diffcore.core import disk, threads
from diffcore.data.ledger import Unfinished
from diffcore.texts import encoders, stored
from tasks import graph, paths
from tasks.params import Params
from tasks.progress import Progress, log


def encode(params: Params) -> None:
    """Writes the embeddings of all captions, of those held out and of those unseen too; or that there are none."""
    text, compute = params.text, params.compute
    threads.use(compute.threads)
    if text.encoder is None:
        with disk.folder(paths.TEXT) as folder:
            stored.write_none(paths.DATA, folder)
        log("encode: no texts: text.encoder is null")
        return
    encoder = encoders.encoder_of(text.encoder, text.dimension, compute.device, compute.numbers)
    written = stored.write(
        paths.DATA,
        paths.TEXT,
        encoder,
        text.length,
        text.precision,
        Progress("encode", "captions"),
        Unfinished(paths.RESUME / "encode", disk.digest([graph.code_digest("encode"), compute.threads])),
        lambda line: log(f"encode: {line}"),
    )
    _tell(written)


def _tell(written: stored.Stored) -> None:
    encoder, survey = written.encoder, written.survey
    if longer := survey.longer(encoder.length):
        log(
            f"encode: the captions of {longer} of {survey.total} images are cut to {encoder.length} tokens, the longest had "
            f"{survey.longest}"
        )
    inputs = ", ".join(f"{name} {'x'.join(map(str, kind.shape))}" for name, kind in encoder.inputs.items())
    log(f"encode: {survey.distinct} embeddings: {inputs}; encoder {encoder.content['digest'][:12]}")
