"""The command line: `python -m tasks STAGE`. Each stage imports only what it uses.

A mistake of the user's is one line (or one line each) on stderr and exit code 2, without a traceback.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # stages side by side must not spin on each other's cores


STAGES = ("shard", "features", "teacher", "distill", "gamma", "search", "evaluate", "publish")


def main(arguments: list[str] | None = None) -> int:
    """The exit code. What takes time to import is imported in here, where Ctrl-C is quiet."""
    try:
        code, fault = _mendable(lambda: _run_one(arguments))
        return code if fault is None else _told(fault)
    except KeyboardInterrupt:
        return 130


def _run_one(arguments: list[str] | None) -> int:
    from tasks import lifeline, surroundings

    surroundings.check()
    options = _parser().parse_args(arguments)
    lifeline.die_with_parent()
    if options.stage not in STAGES:
        return options.run(options) or 0
    code = 1
    try:
        code, fault = _mendable(lambda: _kept(options))
        return code if fault is None else _told(fault)
    finally:
        if code:
            _put_back(options)


def _kept(options: argparse.Namespace) -> int:
    from tasks import dvc_files

    dvc_files.keep()
    return options.run(options) or 0


def _mendable(work: Callable[[], int]) -> tuple[int, str | None]:
    """The exit code, and what the user or the machine is to mend, if anything."""
    from diffcore.core.mistake import Mistake
    from tasks import faults, surroundings

    try:
        return work(), None
    except Mistake as mistake:
        return 2, str(mistake)
    except ImportError as error:
        return 2, surroundings.lacking(error)
    except Exception as error:
        if (line := faults.told(error)) is None:
            raise
        return 2, line


def _put_back(options: argparse.Namespace) -> None:
    """DVC has deleted the outputs of the last good run before this stage began, and it failed."""
    from tasks import dvc_files
    from tasks.progress import say

    stage = "@".join([options.stage, *([options.name] if options.stage == "distill" else [])])
    if found := dvc_files.put_back(stage):
        say(f"{stage}: {', '.join(map(str, found))} of the last good run {'is' if len(found) == 1 else 'are'} back")


def _told(mistake: str) -> int:
    from tasks import redaction

    with contextlib.suppress(OSError):  # where nothing can be written the exit code must do
        for line in mistake.splitlines():
            print(f"error: {redaction.told(line)}", file=sys.stderr)
    return 2


def _end(code: int) -> int:
    """Writes what is left to be written; a reader that has gone away is no fault, and nothing to be said about."""
    try:
        print(end="", flush=True)
    except OSError:  # `say` has told of any other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks", description="The stages of the pipeline, one at a time.")
    verbs = parser.add_subparsers(required=True, metavar="STAGE")

    def add(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run, stage=name)
        return verb

    add("shard", _shard, "read the images of data.source and write them as shards")
    add("features", _features, "train the small network in whose features quality is measured")
    add("teacher", _teacher, "train the teacher, or adopt the one in teacher.folder")
    add("distill", _distill, "train one student").add_argument("name", help="a key of `distill` in params.yaml")
    add("gamma", _gamma, "estimate Gamma and the covariance of x_0 for Analytic-DPM")
    add("search", _search, "search the least-cost trajectories")
    add("evaluate", _evaluate, "measure every way to sample: the frontier")
    add("publish", _publish, "show the frontier and the students in MLflow")
    add("check", _check, "check params.yaml and say what is wrong with it")
    add("run", _run, "the whole pipeline: check, dvc repro, report")
    add("report", _report, "print the frontier, the recommended checkpoint and where the pictures are")
    workspace = add("workspace", _workspace, "make a folder with a pipeline of its own (a preset, a second data set)")
    workspace.add_argument("folder", type=Path)
    workspace.add_argument("--preset", help="a file of presets/ without .yaml")
    workspace.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="one parameter, in YAML")
    return parser


def _shard(options) -> None:
    from tasks import params, shard

    shard.shard(params.read())


def _features(options) -> None:
    from tasks import features, params

    features.train(params.read())


def _teacher(options) -> int:
    from tasks import adopt, params, train

    found = params.read()
    return train.until_stopped(adopt.teacher if isinstance(found.teacher, params.Adopt) else train.teacher, found)


def _distill(options) -> int:
    from tasks import params, train

    return train.until_stopped(train.distill, params.read(), options.name)


def _gamma(options) -> None:
    from tasks import gamma, params

    gamma.estimate(params.read())


def _search(options) -> None:
    from tasks import params, search

    search.find(params.read())


def _evaluate(options) -> None:
    from tasks import evaluate, params

    evaluate.evaluate(params.read())


def _publish(options) -> None:
    from tasks import params, publish

    publish.publish(params.read())


def _check(options) -> None:
    from tasks import dvc_files, graph, params
    from tasks.progress import say

    found = params.read()
    graph.check()
    dvc_files.mend()  # a flow begins with this command
    say(f"params.yaml: {len(found.distill)} students ({', '.join(found.distill)}); all sections are in order")


def _run(options) -> int:
    from tasks import graph, report

    graph.check()
    return report.run()


def _report(options) -> None:
    from tasks import report

    report.report()


def _workspace(options) -> None:
    from tasks import workspace
    from tasks.progress import say

    workspace.make(options.folder, options.preset, options.set)
    say(f"workspace {options.folder}: cd there and run ./stage run")


if __name__ == "__main__":
    sys.exit(_end(main()))
