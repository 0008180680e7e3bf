"""One stage's inputs from DVC's remote and its outputs to it: `python -m tasks.dvc_remote fetch JOB.json | push STAGE |
pull PATH...`.

`fetch` makes sure first that the stage here is the one of the job (tasks.dvc_content). Outputs of other stages that are not
those of the job are replaced, once no stage reads them: outputs are DVC's, which deletes them too before it runs a stage.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import MISTAKE, UserError
from tasks import dvc_content, dvc_environment, dvc_files, faults
from tasks.dvc_content import Job
from tasks.progress import log

BUSY_SECONDS = 2.0
NO_REMOTE = (
    "DVC has no default remote here, through which hosts hand artifacts on: "
    "dvc remote add --default NAME URL, with a place that every host reaches"
)


def main(arguments: Sequence[str]) -> int:
    """0; 2 for what is the user's to mend; 1 where another try may help."""
    from dvc.exceptions import DvcException

    try:
        verb, *words = arguments
        VERBS[verb](words)
    except UserError as error:
        return _print_error(str(error))
    except DvcException as error:
        print(f"ERROR: {faults.one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if (line := faults.describe(error)) is None:
            raise
        return _print_error(line)
    return 0


def _print_error(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return MISTAKE


def fetch(job: Job) -> None:
    """Brings here what the job's stage needs, as dvc.lock's entries and as files. A UserError names what differs here."""
    _compare(job)
    with _repo() as repo:
        remote = remote_of(repo)
        merge(repo, {name: above for name, above in job["above"].items() if not _has(name, above)})
        _replace(repo, {out["path"] for above in job["above"].values() for out in above["outs"]}, remote)


def pull(paths: Collection[str]) -> None:
    """Brings here the outputs at `paths`, as dvc.lock has them."""
    with _repo() as repo:
        _replace(repo, paths, remote_of(repo))


def _replace(repo: Any, paths: Collection[str], remote: str) -> None:
    outs = [out for out in repo.index.outs if out.def_path in paths and out.workspace_status()]
    if outs:
        with _written(repo, [out.fs_path for out in outs]):
            log(f"from the remote {remote}: {', '.join(out.def_path for out in outs)}")
            _pull(repo, outs, remote)


def _compare(job: Job) -> None:
    with _repo() as repo:
        content = dvc_content.contents(repo).get(job["stage"])
    remedy = f"bring {os.uname().nodename}:{Path.cwd()} to the run's commit and parameters"
    if content is None:
        raise UserError(f"{job['stage']}: this clone's dvc.yaml and params.yaml have no such stage; {remedy}")
    if lines := dvc_content.differences(content, job):
        raise UserError(
            f"{job['stage']} is another stage in this clone than in the run's: {', '.join(lines)}; {remedy}"
        )


def _has(name: str, above: dict[str, Any]) -> bool:
    """Whether dvc.lock here has these outputs of the stage already; then the entry, with all it says, stays."""
    outs = (dvc_files.read(dvc_files.LOCK) or {}).get(name, {}).get("outs", [])
    here = {out["path"]: out.get("md5") for out in outs}
    return all(here.get(out["path"]) == out.get("md5") for out in above["outs"])


def merge(repo: Any, entries: dict[str, Any]) -> None:
    """Writes the entries into dvc.lock, in the place of those of the same stages."""
    from dvc.repo import lock_repo
    from dvc.utils.serialize import dumps_yaml

    if not entries:
        return
    with lock_repo(repo):  # a stage of another run may be writing it
        path = Path(repo.root_dir) / dvc_files.LOCK
        stages = dvc_files.read(path)
        if stages is None and path.exists():
            raise UserError(f"{path} is damaged; `distill check` mends it")
        ordered = {name: {part: entry[part] for part in PARTS if entry.get(part)} for name, entry in entries.items()}
        disk.write(path, dumps_yaml({"schema": "2.0", "stages": {**(stages or {}), **ordered}}))


PARTS = ("cmd", "deps", "params", "outs")
"""Of an entry of dvc.lock, in DVC's order: a database may have given it another one."""


@contextmanager
def _written(repo: Any, paths: Collection[str]) -> Iterator[None]:
    """Holds these paths as DVC's stages do, so that none reads them meanwhile; waits for those that do."""
    from dvc.lock import LockError
    from dvc.rwlock import rwlock

    waiting, hardlink = False, repo.config["core"].get("hardlink_lock", False)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(rwlock(repo.tmp_dir, repo.fs, "distill fetch", [], list(paths), hardlink))
                break
            except LockError as error:
                if not waiting:
                    log(f"waiting: {faults.one_line(error).partition(' If there')[0]}")
                waiting = True
                time.sleep(BUSY_SECONDS)
        yield


def _pull(repo: Any, outs: Sequence[Any], remote: str) -> None:
    from dvc.exceptions import DvcException

    try:
        repo.pull(targets=[out.def_path for out in outs], force=True)
    except DvcException as error:
        store = repo.cloud.get_remote_odb(None, "pull")
        if missing := [out.def_path for out in outs if not store.exists(out.hash_info.value)]:
            fault = f"the remote {remote} does not hold {', '.join(missing)}"
            raise UserError(f"{fault}; is it the same place as the remote of the run's clone?") from error
        raise


def push(stages: list[str]) -> None:
    """Sends the outputs of these stages to the remote, and DVC's notes on runs, by which any clone finds them."""
    with _repo() as repo:
        remote = remote_of(repo)
        count = repo.push(targets=stages)
        repo.stage_cache.push(None)
        log(f"{', '.join(stages)}: {count} files to the remote {remote}")


def remote_of(repo: Any) -> str:
    """The name of the default remote; a UserError if there is none."""
    name = repo.config["core"].get("remote")
    if not name or name not in repo.config["remote"]:
        raise UserError(NO_REMOTE)
    return str(name)


def share(root: Path, workspace: Path) -> None:
    """Gives a preset's workspace the default remote of `root`, in a file that git does not see."""
    with _repo(root) as repo:
        name = remote_of(repo)
        settings = dict(repo.config["remote"][name])
    with _repo(workspace) as repo:
        if (repo.config["core"].get("remote"), repo.config["remote"].get(name)) != (name, settings):
            with repo.config.edit("local") as config:
                config["core"]["remote"] = name
                config["remote"][name] = settings


def holds(repo: Any, entry: dict[str, Any]) -> bool:
    """Whether the remote has the outputs of an entry of dvc.lock. DVC sends a folder's list of files after its files."""
    remote = repo.cloud.get_remote_odb(None, "pull")
    return all(remote.exists(out["md5"]) for out in entry.get("outs", []))


def _repo(folder: Path = Path()) -> Any:
    from dvc.repo import Repo

    site_cache = dvc_environment.of(folder)["DVC_SITE_CACHE_DIR"]
    return Repo(str(folder), config={"core": {"site_cache_dir": site_cache}}, _wait_for_lock=True)


VERBS = {
    "fetch": lambda words: fetch(disk.parse_json(Path(words[0]).read_text())),
    "push": push,
    "pull": pull,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
