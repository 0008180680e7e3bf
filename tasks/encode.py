"""The stage `encode`: what networks are told by the captions of the images, and by copies of them that lost something."""

from diffcore.core import disk, threads
from diffcore.data import prompt_file
from diffcore.data.embeddings import Prompts
from diffcore.data.ledger import Unfinished
from diffcore.data.manifest import Manifest
from diffcore.texts import stored
from diffcore.texts.encoder import Encoder
from tasks import graph, paths
from tasks.params import Params
from tasks.progress import Progress, log


def encode(params: Params) -> None:
    """Writes what is told of all images, of those held out too, of captions unseen, and of prompts without images; or that
    there is nothing."""
    text, compute, image = params.text, params.compute, params.data.image_condition
    threads.use(compute.threads)
    if text.encoder is None and image is None:
        stored.write_none(paths.DATA, paths.TEXT, paths.PROMPTS)
        log("encode: no texts: text.encoder is null")
        return
    prompts = _prompts(params)
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
        stored.Alone(prompts, paths.PROMPTS),
    )
    if written.encoder is not None:
        _tell(written.encoder, written.survey)
        if text.length is None:
            _tell_odd(written.survey)
    if prompts.texts:
        _tell_prompts(prompts, written.encoder, written.survey)
    if image is not None:
        log(f"encode: image, a copy of each image: {image}; told by {written.digest[:12]}")


def _tell(encoder: Encoder, survey: stored.Survey) -> None:
    if longer := survey.longer(encoder.length):
        log(
            f"encode: the captions of {longer} of {survey.total} images are cut to {encoder.length} tokens, the longest had "
            f"{max(survey.images)}"
        )
    inputs = ", ".join(f"{name} {'x'.join(map(str, kind.shape))}" for name, kind in encoder.inputs.items())
    log(f"encode: {survey.distinct} embeddings: {inputs}; encoder {encoder.content['digest'][:12]}")


ODD = 8
"""A longest text of so many times the usual length is named, for it makes all of them so long."""


def _tell_odd(survey: stored.Survey) -> None:
    if survey.longest > ODD * survey.usual:
        log(
            f"encode: the longest text has {survey.longest} tokens, to which all are filled up, and half of them have "
            f"{survey.usual} at most; text.length cuts those that are longer"
        )


def _prompts(params: Params) -> Prompts:
    named = params.data.prompts
    return Prompts(prompt_file.read(named, "data.prompts") if named else ())


def _tell_prompts(prompts: Prompts, encoder: Encoder, survey: stored.Survey) -> None:
    count, longer = len(prompts.texts), survey.longer_prompts(encoder.length)
    cut = f", {longer} of them cut to {encoder.length} tokens" if longer else ""
    log(f"encode: {count} prompts without images{cut}; prompts {prompts.digest[:12]}")
    if seen := set(Manifest.read(paths.DATA, verify=False).unseen) & set(prompts.texts):
        log(
            f"encode: {len(seen)} captions of data.unseen are among the prompts: lines that train on these have seen them"
        )
