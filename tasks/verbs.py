"""The words of the command line. Each verb imports only what it uses, when it is run."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from diffcore.core.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tasks.params import Params

NAME = "distill"
"""What a person types, wherever this is called from."""

SETTINGS = {
    "add_completion": False,  # by the console command alone: the shell looks for that name
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "suggest_commands": False,  # we do, in our own words
    "context_settings": {"help_option_names": ["--help", "-h"]},
}


@dataclass(frozen=True)
class Verb:
    """What a command line asks for: the work, and the stage that it is, by its name in dvc.yaml, if it is one."""

    run: Callable[[], int | None]
    stages: tuple[str, ...] = ()
    attached: bool = True
    """Whether it ends with whoever started it."""


app = typer.Typer(**SETTINGS, help="The stages of the pipeline, one at a time, and the whole.")


def parse(arguments: list[str], app: typer.Typer) -> Verb | int:
    """The verb of a command line, or an exit code where it asked for help, which is printed. A UserError for any other."""
    command = typer.main.get_command(app)
    try:
        outcome = command.main(arguments, prog_name=NAME, standalone_mode=False)
    except typer.TyperException as error:
        raise UserError(_one_line(error, command.commands)) from None
    return outcome if isinstance(outcome, Verb) else outcome or 0


def _one_line(error: typer.TyperException, verbs: Iterable[str]) -> str:
    """What is wrong with the words, the nearest right one, and where all are listed."""
    said = error.format_message().rstrip(".")
    near: list[str] = []
    if verb := re.fullmatch(r"No such command (['\"])(.*)\1", said):
        said = f"there is no verb '{verb[2]}'"
        near = difflib.get_close_matches(verb[2], verbs, n=1)
    elif option := re.fullmatch(r"No such option: (.*?)(?: \(Possible options: ([\w-]+).*\))?", said):
        said = f"there is no option {option[1]}"
        near = [option[2]] if option[2] else []
    context = getattr(error, "ctx", None)
    remedy = f"`{context.command_path if context else NAME} --help` lists what there is"
    return f"{said[0].lower()}{said[1:]}" + (f", did you mean {near[0]}? {remedy}" if near else f"; {remedy}")


# ---- the words


@app.command()
def draw() -> Verb:
    """let a teacher draw the images of data.source teacher:N"""
    return Verb(_draw, ("draw",))


@app.command()
def shard() -> Verb:
    """read the images of data.source and write them as shards"""
    return Verb(_shard, ("shard",))


@app.command()
def encode() -> Verb:
    """encode the captions of the images, for the networks"""
    return Verb(_encode, ("encode",))


@app.command()
def features() -> Verb:
    """train the small network in whose features quality is measured"""
    return Verb(_features, ("features",))


def _lines(incomplete: str) -> list[str]:
    """The lines of params.yaml whose names begin so, for completion; none where it cannot be read."""
    from tasks import paths, strict_yaml

    try:
        raw = strict_yaml.load_yaml(paths.PARAMS)
        names = [*raw["teachers"], *raw["distill"]]
    except (UserError, OSError, LookupError, TypeError):
        return []
    return [name for name in names if isinstance(name, str) and name.startswith(incomplete)]


def _checkpoints(incomplete: str) -> list[str]:
    """The trained checkpoints whose names begin so, for completion."""
    return sorted(path.parent.name for path in Path("artifacts/checkpoints").glob(f"{incomplete}*/card.json"))


def _presets(incomplete: str) -> list[str]:
    return sorted(path.stem for path in Path("presets").glob("*.yaml") if path.stem.startswith(incomplete))


Line = Annotated[str, typer.Argument(help="a line of `teachers` or `distill` in params.yaml", autocompletion=_lines)]


@app.command()
def train(name: Line) -> Verb:
    """train one teacher or student, or adopt a teacher from a folder"""
    return Verb(lambda: _train(name), (f"teachers@{name}", f"distill@{name}"))


@app.command()
def gamma() -> Verb:
    """estimate Gamma and the covariance of x_0 for Analytic-DPM"""
    return Verb(_gamma, ("gamma",))


@app.command()
def search() -> Verb:
    """search the least-cost trajectories"""
    return Verb(_search, ("search",))


@app.command()
def measure(name: Line) -> Verb:
    """measure one checkpoint by every sampling that is for it"""
    return Verb(lambda: _measure(name), (f"measure_teachers@{name}", f"measure@{name}"))


@app.command()
def frontier() -> Verb:
    """merge what was measured: the frontier, and which point to ship"""
    return Verb(_frontier, ("frontier",))


@app.command()
def publish() -> Verb:
    """show the frontier and the students in MLflow"""
    return Verb(_publish, ("publish",))


@app.command()
def check() -> Verb:
    """check params.yaml and say what is wrong with it"""
    return Verb(_check)


@app.command()
def run(
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="stages at a time; without it as many as the machine can")
    ] = None,
) -> Verb:
    """the whole pipeline: check, the stages that are stale, report"""
    return Verb(lambda: _run(slots))


@app.command()
def report(
    as_json: Annotated[bool, typer.Option("--json", help="the whole frontier as JSON, and nothing else")] = False,
) -> Verb:
    """print the frontier, and which checkpoint to ship"""
    return Verb(lambda: _report(as_json))


@app.command()
def plan(
    as_json: Annotated[bool, typer.Option("--json", help="the plan as JSON, and nothing else")] = False,
) -> Verb:
    """say what would run, and what it would cost"""
    return Verb(lambda: _plan(as_json))


@app.command()
def advise(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="the params.yaml to write; must not exist")],
    calls: Annotated[str, typer.Option(metavar="8,4,2,1", help="network calls of the students, each of these or some")],
    teacher: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="a trained one; without it that of params.yaml")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="folder:PATH or the like; without it data.source")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, metavar="N", help="side of the images in pixels")] = None,
    guidance: Annotated[
        str | None, typer.Option(metavar="G or LOW,HIGH", help="weights of classifier-free guidance")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="B", help="for all trainings: 600 s, 2 gpu-h, 1e7 calls")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the advice as JSON, and nothing else")] = False,
) -> Verb:
    """write a params.yaml with a reason for each line"""
    return Verb(lambda: _advise(target, calls, teacher, data, size, guidance, budget, as_json))


@app.command()
def cost() -> Verb:
    """say what each training took, beside what was planned"""
    return Verb(_cost)


@app.command()
def follow(
    names: Annotated[list[str] | None, typer.Argument(help="lines of params.yaml; without any all in training")] = None,
    since: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> Verb:
    """show trainings in MLflow while they go on"""
    return Verb(lambda: _follow(names or [], since))


@app.command()
def doctor() -> Verb:
    """look whether all is there that a run needs (else exit code 1)"""
    return Verb(_doctor)


What = Annotated[
    str,
    typer.Argument(
        help="a point of the frontier, a checkpoint, a folder of one, or an alias in MLflow",
        autocompletion=_checkpoints,
    ),
]
Images = Annotated[int | None, typer.Option(min=2, metavar="N", help="how many; without it evaluate.images")]
Seed = Annotated[int | None, typer.Option(metavar="S", help="of the noise; without it evaluate.seed")]
Steps = Annotated[int | None, typer.Option(min=1, metavar="K", help="of a checkpoint that is valid at any time")]


@app.command()
def compare(
    a: What,
    b: What,
    images: Images = None,
    seed: Seed = None,
    steps: Steps = None,
    as_json: Annotated[bool, typer.Option("--json", help="the comparison as JSON, and nothing else")] = False,
) -> Verb:
    """say which of two samplings is better, from the same noise"""
    return Verb(lambda: _compare((a, b), images, seed, steps, as_json))


@app.command()
def sample(
    what: What,
    out: Annotated[Path, typer.Option(metavar="PATH", help="X.png (a grid), X.npz, or a folder; must not exist")],
    images: Annotated[int, typer.Option(min=1, metavar="N", help="how many")] = 16,
    seed: Seed = None,
    steps: Steps = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="names or numbers, each in turn; else as often as in the data")
    ] = None,
    guidance: Annotated[float | None, typer.Option(metavar="G", help="the weight of classifier-free guidance")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="grid, png or npz; without it what PATH's ending says")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="a caption; of several each in turn; else as in the data")
    ] = None,
    condition: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="an image to be told a copy of, or a folder of such")
    ] = None,
) -> Verb:
    """draw images of a checkpoint or a point"""
    return Verb(lambda: _sample(what, out, images, seed, steps, classes, guidance, form, prompt, condition))


@app.command()
def promote(
    what: Annotated[str, typer.Argument(help="a point that is registered in MLflow, or an alias of one")],
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="why; stands beside the version in MLflow")] = None,
) -> Verb:
    """make a point or an alias the production model in MLflow"""
    return Verb(lambda: _promote(what, note))


@app.command()
def export(
    what: What,
    target: Annotated[Path, typer.Argument(help="must not exist")],
    form: Annotated[
        str, typer.Option("--format", help="diffusers (a folder), safetensors, torch_export or onnx (a file)")
    ] = "diffusers",
    guidance: Annotated[
        float | None, typer.Option(help="build this weight into a student that takes it as an input")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="copy its pipeline's other folders, instead of links")] = False,
    to_data: Annotated[bool, typer.Option("--to-data", help="of a flow map, its jumps to the data alone")] = False,
) -> Verb:
    """write a checkpoint for other programs, checked against ours"""
    return Verb(lambda: _export(what, target, form, guidance, copy, to_data))


@app.command()
def card(
    what: What,
    as_json: Annotated[bool, typer.Option("--json", help="the card as it is")] = False,
) -> Verb:
    """verify a checkpoint and print its card"""
    return Verb(lambda: _card(what, as_json))


@app.command()
def read(
    file: Annotated[Path, typer.Argument(help="a .pkl of EDM's or EDM2's, a .pt, .pth or .ckpt of torch.save")],
    target: Annotated[Path | None, typer.Argument(help="a folder for the network in it; must not exist")] = None,
    part: Annotated[str | None, typer.Option(metavar="KEY", help="which network, where the file has several")] = None,
) -> Verb:
    """list a pickled teacher and write its tensors, running nothing"""
    return Verb(lambda: _read(file, target, part))


@app.command()
def statistics(
    judge: Annotated[str, typer.Argument(help="one of evaluate.judges in params.yaml")],
    target: Annotated[Path, typer.Argument(help="an .npz; must not exist")],
) -> Verb:
    """write mu and sigma of the real images as a judge sees them"""
    return Verb(lambda: _statistics(judge, target))


@app.command()
def workspace(
    folder: Annotated[Path, typer.Argument(help="a new one, or one made by this command")],
    preset: Annotated[
        str | None, typer.Option(help="a file of presets/ without .yaml", autocompletion=_presets)
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="one parameter, in YAML")
    ] = None,
) -> Verb:
    """make a folder with a pipeline of its own: a preset, other data"""
    return Verb(lambda: _workspace(folder, preset, changes or []))


# ---- what they do


def _draw() -> int:
    from tasks import undrawn

    if undrawn.write():
        return 0
    from tasks import params

    parameters = params.read()
    from tasks import draw

    return _together(parameters, draw.draw, "draw")


def _shard() -> None:
    from tasks import params, shard

    shard.shard(params.read())


def _encode() -> None:
    from tasks import encode, params

    encode.encode(params.read())


def _together(parameters: "Params", work: Callable[["Params"], int | None], *words: str, without_gpu: int = 1) -> int:
    """Does the work of the verb `words` in as many processes as compute.processes says. The exit code.

    without_gpu: what `auto` is there.
    """
    from diffcore.core import launch, processes
    from tasks.progress import log

    count = launch.wanted(parameters.compute.processes, without_gpu)
    if not launch.is_started() and (count > 1 or launch.is_among_hosts()):
        return launch.start(["-m", "tasks", *words], count, log)
    try:
        with processes.together():
            return work(parameters) or 0
    except processes.Lost:
        return launch.end_lost()


def _features() -> int:
    from tasks import features, params

    return _together(params.read(), features.train, "features")


def _train(name: str) -> int:
    from tasks import adopt, params, places, sections, train

    parameters = params.read()
    if isinstance(parameters.line(name), sections.Adopted):
        return train.until_stopped(adopt.take, parameters, name)
    several = places.processes(parameters, name)
    work = functools.partial(train.until_stopped, train.train)
    return _together(parameters, lambda each: work(each, name), "train", name, without_gpu=several)


def _gamma() -> int:
    from tasks import gamma, params

    return _together(params.read(), gamma.estimate, "gamma")


def _search() -> None:
    from tasks import params, search

    search.find(params.read())


def _measure(name: str) -> int:
    from tasks import measure, params

    return _together(params.read(), lambda each: measure.measure(each, name), "measure", name)


def _frontier() -> None:
    from tasks import frontier, params

    frontier.merge(params.read())


def _publish() -> None:
    from tasks import params, publish

    publish.publish(params.read())


def _check() -> None:
    from tasks import dvc_files, graph, params
    from tasks.progress import log

    students = params.read().distill
    graph.check()
    dvc_files.mend()  # a flow begins with this command
    log(f"params.yaml: {len(students)} students ({', '.join(students)}); all sections are in order")


def _run(slots: int | None) -> int:
    from tasks import graph, report

    graph.check()
    return report.run(slots)


def _report(as_json: bool) -> None:
    from tasks import report

    if as_json:
        report.report_json()
    else:
        report.report()


def _plan(as_json: bool) -> None:
    from tasks import graph, params, plan

    graph.check()
    plan.show(params.read(), as_json)


def _advise(*words: Any) -> None:
    from tasks import params
    from tasks.advice import advise

    advise.advise(params.read(), *words)


def _cost() -> None:
    from tasks import params, plan

    plan.cost(params.read())


def _follow(names: list[str], since: int | None) -> None:
    from tasks import follow, params

    follow.follow(params.read(), names, since=since)


def _doctor() -> int:
    from tasks import doctor

    return doctor.examine()


def _compare(words: tuple[str, str], *options: Any) -> None:
    from tasks import compare, params

    compare.compare(params.read(), words, *options)


def _sample(what: str, out: Path, images: int, *options: Any) -> None:
    from tasks import params, sample

    sample.sample(params.read(), what, out, images, *options)


def _promote(word: str, note: str | None) -> None:
    from tasks import named, params
    from tasks.progress import log
    from tasks.tracking import promotion

    here = named.checkpoint(word) is not None
    for line in promotion.promote(params.read().publish.model, word, named.points().get(word), note, here):
        log(line)


def _export(what: str, target: Path, form: str, guidance: float | None, copies: bool, to_data: bool) -> None:
    from tasks import export, params

    export.export(params.read(), what, target, form, guidance, copies, to_data)


def _card(what: str, as_json: bool) -> None:
    from tasks import card

    card.show(what, as_json)


def _read(file: Path, target: Path | None, part: str | None) -> None:
    from tasks import read

    read.read(file, target, part)


def _statistics(judge: str, target: Path) -> None:
    from tasks import params, statistics

    statistics.write(params.read(), judge, target)


def _workspace(folder: Path, preset: str | None, changes: list[str]) -> None:
    from tasks import workspace
    from tasks.progress import log

    workspace.make(folder, preset, changes)
    log(f"workspace {folder}: cd there and run distill run")
