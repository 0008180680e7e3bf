"""`workspace` touches nothing that it did not put there, whatever lies in the folder and wherever it is killed."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from tasks import inventory, params, workspace

ROOT = Path(__file__).parent.parent

CODE = {
    "diffcore/__init__.py": "",
    "diffcore/noise/angle.py": "new",
    "diffcore/methods/__init__.py": "",
    "tasks/__init__.py": "",
    "tasks/train.py": "new",
    "dvc.yaml": "stages: {}",
    ".dvcignore": "*.pyc",
    "stage": "#!/bin/sh",
    "params.yaml": "seed: 0",
    "presets/tiny.yaml": "seed: 1",
    ".dvc/config": "[core]\n",
}


class Killed(BaseException):
    """What no cleaning up survives."""


class Reaper:
    """Counts the calls to the file system that change something, and lets none happen from the n-th on."""

    CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.symlink", "os.truncate")

    def __init__(self):
        self.calls, self.last, self.thread = 0, None, None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in self.CHANGES and threading.get_ident() == self.thread and self._writes(event, arguments):
            self.calls += 1
            if self.last is not None and self.calls > self.last:
                raise Killed

    @staticmethod
    def _writes(event: str, arguments: tuple) -> bool:
        return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))

    def let(self, last: int | None, act: Callable[[], object]) -> int:
        """Runs it as far as its `last`-th change; how many changes there were."""
        self.calls, self.last, self.thread = 0, last, threading.get_ident()
        try:
            act()
        except Killed:
            pass
        finally:
            self.thread = None
        return self.calls


@pytest.fixture(scope="module")
def reaper() -> Reaper:
    return Reaper()


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A small one, in which nothing is checked and DVC is quick."""
    folder = lay(tmp_path / "repository", CODE)
    (folder / "stage").chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(params, "parse", lambda raw, whose: None)

    def dvc(place: Path, surroundings: dict[str, str], *words: str) -> None:
        (place / ".dvc").mkdir(exist_ok=True)
        (place / ".dvc/config").touch()

    monkeypatch.setattr(workspace, "_dvc", dvc)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return folder


def made(folder: Path) -> Path:
    workspace.make(folder, None, [])
    return folder


def everything(folder: Path) -> dict[str, str]:
    """Every file and link below, without those of the inventory's own name."""
    paths = [Path(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files)]
    kept = [path for path in paths if path.is_symlink() or path.is_file()]
    own = [path for path in kept if any(part.startswith((".distill-work", "..distill-work")) for part in path.parts)]
    return {
        str(path.relative_to(folder)): f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in kept
        if path not in own
    }


def others(folder: Path, target: Path) -> dict[str, str]:
    """What this command did not make: all but the files of the target that its inventory lists as they are."""
    listed = inventory._read(target) if target.is_dir() else None
    ours = {str((target / path).resolve().parent / Path(path).name) for path in listed or ()}
    return {
        name: content
        for name, content in everything(folder).items()
        if str((folder / name).parent.resolve() / Path(name).name) not in ours
    }


# what may be in the place that is asked for: (a way to arrange it, the words of the refusal or None if it is filled)


def nothing(tmp: Path) -> Path:
    return tmp / "target"


def an_empty_folder(tmp: Path) -> Path:
    (tmp / "target").mkdir()
    return tmp / "target"


def a_home(tmp: Path) -> Path:
    return lay(
        tmp / "home", {"tasks/thesis.md": "years of work", "params.yaml": "mine", "stage": "mine", ".profile": ""}
    )


def another_clone(tmp: Path) -> Path:
    return lay(tmp / "clone", {**CODE, "diffcore/noise/angle.py": "mended by hand", ".git/HEAD": "ref"})


def the_repository(tmp: Path) -> Path:
    return Path(".")


def its_parent(tmp: Path) -> Path:
    return Path("..")


def the_top(tmp: Path) -> Path:
    return Path("/")


def its_code(tmp: Path) -> Path:
    return Path("diffcore/methods/new")


def its_git(tmp: Path) -> Path:
    return Path(".git/new")


def its_artifacts(tmp: Path) -> Path:
    return Path("artifacts")


def the_flows_own_folder(tmp: Path) -> Path:
    return Path(".workspaces")


def a_link_to_the_repository(tmp: Path) -> Path:
    (tmp / "link").symlink_to(tmp / "repository")
    return tmp / "link"


def a_link_into_its_code(tmp: Path) -> Path:
    (tmp / "link").symlink_to(tmp / "repository" / "tasks")
    return tmp / "link"


def a_link_to_itself(tmp: Path) -> Path:
    (tmp / "link").symlink_to("link")
    return tmp / "link"


def a_link_to_nothing(tmp: Path) -> Path:
    (tmp / "link").symlink_to("target")
    return tmp / "link"


def a_file(tmp: Path) -> Path:
    return lay(tmp, {"target": "mine"}) / "target"


def below_a_file(tmp: Path) -> Path:
    return lay(tmp, {"file": "mine"}) / "file" / "target"


def a_pipe(tmp: Path) -> Path:
    os.mkfifo(tmp / "target")
    return tmp / "target"


def an_old_one(tmp: Path) -> Path:
    (made(tmp / "target") / inventory.NAME).unlink()
    return tmp / "target"


def one_with_a_file_of_the_users(tmp: Path) -> Path:
    return lay(made(tmp / "target"), {"tasks/thesis.md": "mine", "diffcore/methods/own.py": "mine", "notes.md": "mine"})


def one_that_has_run(tmp: Path) -> Path:
    return lay(
        made(tmp / "target"), {"artifacts/x.json": "{}", ".dvc/config": "[remote]", "tasks/__pycache__/x.pyc": ""}
    )


def one_with_edited_parameters(tmp: Path) -> Path:
    return lay(made(tmp / "target"), {"params.yaml": "seed: 7"})


def one_with_edited_code(tmp: Path) -> Path:
    return lay(made(tmp / "target"), {"diffcore/noise/angle.py": "mended by hand"})


def one_with_a_file_where_a_new_one_is_to_be(tmp: Path) -> Path:
    lay(made(tmp / "target"), {"diffcore/sampling/solver.py": "mine"})
    lay(tmp / "repository", {"diffcore/sampling/solver.py": "ours"})
    return tmp / "target"


def one_with_an_edited_file_that_is_no_more(tmp: Path) -> Path:
    lay(made(tmp / "target"), {"diffcore/noise/angle.py": "mended by hand"})
    (tmp / "repository/diffcore/noise/angle.py").unlink()
    return tmp / "target"


def one_whose_code_is_a_link(tmp: Path) -> Path:
    shutil.rmtree(made(tmp / "target") / "diffcore")
    (tmp / "target/diffcore").symlink_to(tmp / "repository/diffcore")
    return tmp / "target"


def one_whose_code_is_a_link_elsewhere(tmp: Path) -> Path:
    lay(tmp / "mine", {"angle.py": "new", "__init__.py": ""})
    shutil.rmtree(made(tmp / "target") / "diffcore")
    (tmp / "target/diffcore").symlink_to(tmp / "mine")
    lay(tmp / "repository", {"diffcore/noise/angle.py": "newer"})
    return tmp / "target"


def one_with_a_folder_in_a_files_place(tmp: Path) -> Path:
    (made(tmp / "target") / "stage").unlink()
    return lay(tmp, {"target/stage/mine": "mine"}) / "target"


def one_with_a_link_in_a_files_place(tmp: Path) -> Path:
    (made(tmp / "target") / "params.yaml").unlink()
    (tmp / "target/params.yaml").symlink_to(lay(tmp, {"mine.yaml": "seed: 0\n"}) / "mine.yaml")
    return tmp / "target"


def one_with_an_environment_of_its_own(tmp: Path) -> Path:
    (made(tmp / "target") / ".venv").unlink()
    return lay(tmp, {"target/.venv/bin/python": "mine"}) / "target"


def one_with_a_damaged_inventory(tmp: Path) -> Path:
    return lay(made(tmp / "target"), {inventory.NAME: '{"files": {"dvc.yaml"'})


def one_whose_inventory_lists_what_lies_outside(tmp: Path) -> Path:
    path = made(tmp / "target") / inventory.NAME
    lay(tmp, {"mine": "mine"})
    found = json.loads(path.read_text())
    found["files"]["../mine"] = [inventory._print(tmp / "mine")]
    path.write_text(json.dumps(found))
    return tmp / "target"


FOREIGN = "was not made by this command"
EDITED = "not as this command left it"
REPOSITORY = "belongs to the repository"
ARRANGEMENTS: dict[Callable[[Path], Path], str | None] = {
    nothing: None,
    an_empty_folder: None,
    a_home: FOREIGN,
    another_clone: FOREIGN,
    the_repository: "holds the code",
    its_parent: "holds the code",
    the_top: "holds the code",
    its_code: REPOSITORY,
    its_git: REPOSITORY,
    its_artifacts: REPOSITORY,
    the_flows_own_folder: REPOSITORY,
    a_link_to_the_repository: "holds the code",
    a_link_into_its_code: REPOSITORY,
    a_link_to_itself: "leads to itself",
    a_link_to_nothing: None,
    a_file: "is no folder",
    below_a_file: "is no folder",
    a_pipe: "is no folder",
    an_old_one: FOREIGN,
    one_with_a_file_of_the_users: None,
    one_that_has_run: None,
    one_with_edited_parameters: "params.yaml is " + EDITED,
    one_with_edited_code: "diffcore/noise/angle.py is " + EDITED,
    one_with_a_file_where_a_new_one_is_to_be: "diffcore/sampling/solver.py is " + EDITED,
    one_with_an_edited_file_that_is_no_more: "diffcore/noise/angle.py is " + EDITED,
    one_whose_code_is_a_link: "diffcore/__init__.py, diffcore/methods/__init__.py, diffcore/noise/angle.py are "
    + EDITED,
    one_whose_code_is_a_link_elsewhere: "diffcore/noise/angle.py",
    one_with_a_folder_in_a_files_place: "stage is " + EDITED,
    one_with_a_link_in_a_files_place: "params.yaml is " + EDITED,
    one_with_an_environment_of_its_own: None,
    one_with_a_damaged_inventory: "damaged",
    one_whose_inventory_lists_what_lies_outside: "damaged",
}


@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=lambda arrange: arrange.__name__)
def test_what_it_did_not_make_is_the_same_before_and_after(tmp_path, repository, reaper, arrange):
    target, words = arrange(tmp_path), ARRANGEMENTS[arrange]
    before = everything(tmp_path)
    if words is None:
        before = others(tmp_path, target)
        made(target)
        assert others(tmp_path, target.resolve()).items() >= before.items()
        assert (target / "diffcore/noise/angle.py").read_text() == "new"
        return
    with pytest.raises(UserError) as caught:
        reaper.let(None, lambda: made(target))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert everything(tmp_path) == before
    assert reaper.calls == 0


KILLED = [nothing, one_with_a_file_of_the_users, one_with_an_environment_of_its_own]


@pytest.mark.slow
@pytest.mark.parametrize("arrange", KILLED, ids=lambda arrange: arrange.__name__)
def test_nor_is_anything_lost_where_it_is_killed_at_any_call(tmp_path, repository, reaper, arrange):
    """Killed before each change of the file system in turn: what is others' is as it was, what can be started is of one
    make, and the same command again ends the work."""
    target = arrange(tmp_path)
    lay(repository, {"diffcore/noise/angle.py": "newest", "tasks/new.py": "newest"})
    (repository / "tasks/train.py").unlink()  # so that something is to be removed, too
    before, start = others(tmp_path, target), tmp_path.with_name("start")
    shutil.rmtree(start, ignore_errors=True)
    shutil.copytree(tmp_path, start, symlinks=True)
    calls = reaper.let(None, lambda: made(target))
    assert calls > 10
    for last in range(calls):
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        if (start / "target").is_dir():
            shutil.copytree(start / "target", tmp_path / "target", symlinks=True)
        reaper.let(last, lambda: made(target))
        after = everything(tmp_path)
        assert {name: after.get(name) for name in before} == before, last
        old = everything(start / "target") if (start / "target").is_dir() else {}
        assert {"dvc.yaml", "params.yaml", "diffcore/noise/angle.py"} & set(old) <= set(everything(target)), last
        if (target / "stage").is_file():
            assert (target / "tasks/train.py").exists() == (
                (target / "diffcore/noise/angle.py").read_text() == "new"
            ), last
        made(target)
        assert complete(target, repository)
        assert others(tmp_path, target.resolve()).items() >= before.items()


def complete(target: Path, repository: Path) -> bool:
    """All the code of the repository, no more that was, and a whole .dvc."""
    code = {name: text for name, text in everything(repository).items() if name.startswith(("diffcore", "tasks"))}
    there = everything(target)
    listed = inventory._read(target)
    assert {name: there.get(name) for name in code} == code
    assert {name for name in listed if name.startswith(("diffcore", "tasks"))} == set(code)
    assert all(inventory._print(target / name) in prints and len(prints) == 1 for name, prints in listed.items())
    assert not [name for name in os.listdir(target) if name.startswith((".distill-workspace.", "..distill"))]
    return (target / "stage").stat().st_mode & 0o100 != 0 and (target / ".dvc/config").is_file()


def test_nothing_is_written_for_parameters_that_would_be_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for preset, changes, words in (
        ("smoke", ["seed=x"], f"the parameters of {tmp_path / 'w'}: seed: "),
        ("smoky", [], "no preset 'smoky'"),
        (None, ["features.chanels=8"], "params.yaml has no features.chanels"),
        ("smoke", ["distill.pd1.wacth={every: 5}"], "distill.pd1.wacth: unknown key; did you mean 'watch'"),
        ("smoke", ["evaluate.imags=5"], "evaluate.imags: unknown key; did you mean 'images'"),
    ):
        with pytest.raises(UserError, match=words.replace(".", r"\.")):
            workspace.make(tmp_path / "w", preset, changes)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_without_the_code_cannot_be_copied_from(repository, tmp_path):
    (repository / "stage").unlink()
    with pytest.raises(UserError, match="stage is missing; run from the folder that holds it"):
        made(tmp_path / "w")
    assert not (tmp_path / "w").exists()


def written(path: Path) -> tuple[int, int]:
    """Which file it is and when it was written; not when it was read, which the system notes as it pleases."""
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def test_what_is_as_it_should_be_is_not_written_again(repository, tmp_path):
    made(tmp_path / "w")
    before = {name: written(tmp_path / "w" / name) for name in CODE if (tmp_path / "w" / name).exists()}
    made(tmp_path / "w")
    assert {name: written(tmp_path / "w" / name) for name in before} == before


def test_two_commands_at_once_do_not_meet(repository, tmp_path):
    with inventory.alone(tmp_path / "w"), pytest.raises(UserError, match="another command is making"):
        made(tmp_path / "w")
    assert made(tmp_path / "w").is_dir()


def test_a_copy_of_a_workspace_is_one(repository, tmp_path):
    shutil.copytree(made(tmp_path / "w"), tmp_path / "copy", symlinks=True)
    lay(repository, {"diffcore/noise/angle.py": "newest"})
    assert (made(tmp_path / "copy") / "diffcore/noise/angle.py").read_text() == "newest"


def test_what_dvc_says_when_it_cannot_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "odd\nERROR: no\n"))
    with pytest.raises(UserError, match=r"^dvc init failed in .*: ERROR: no$"):
        workspace._dvc(tmp_path, {}, "init")


@pytest.mark.slow
def test_a_workspace_made_again_has_new_code_and_old_artifacts(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    target = tmp_path / "w"
    workspace.make(target, "smoke", ["data.source=folder:/nowhere"])
    assert (target / "stage").stat().st_mode & 0o100
    lay(target, {"artifacts/kept.txt": "x", "diffcore/noise/angle.py": "of last week"})
    found = json.loads((target / inventory.NAME).read_text())
    found["files"]["diffcore/noise/angle.py"] = [inventory._print(target / "diffcore/noise/angle.py")]
    (target / inventory.NAME).write_text(json.dumps(found))
    workspace.make(target, "smoke", [])
    assert (target / "artifacts/kept.txt").exists()
    assert (target / "diffcore/noise/angle.py").read_text() == (ROOT / "diffcore/noise/angle.py").read_text()
    assert params.read(target / "params.yaml").data.source == "digits"


# ------------------------------------------------------------------------------- what is laid over what


BASE = {
    "seed": 0,
    "teachers": {"teacher": {"iterations": 1, "lr": 0.1, "network": {"layers": 1}}},
    "distill": {"a": {"lr": 1, "steps": 2}, "b": {"lr": 3}},
    "evaluate": {"images": 10, "students": {}},
    "network": {"channels": [8, 16]},
}


def over(*changes: dict) -> dict:
    found = json.loads(json.dumps(BASE))
    for change in changes:
        workspace._merge(found, change, "x")
    return found


@pytest.mark.parametrize(
    ("change", "key", "wanted"),
    [
        ({"seed": 3}, "seed", 3),
        ({"network": {"channels": [4]}}, "network", {"channels": [4]}),
        (
            {"teachers": {"teacher": {"lr": 2, "network": {"layers": 3}}}},
            "teachers",
            {"teacher": {"iterations": 1, "lr": 2, "network": {"layers": 3}}},
        ),
        ({"teachers": {"teacher": {"from": "x"}}}, "teachers", {"teacher": {"from": "x"}}),
        ({"teachers": {"other": {"from": "x"}}}, "teachers", {**BASE["teachers"], "other": {"from": "x"}}),
        (
            {"teachers": {"teacher": {"network": {"family": "dit", "width": 4}}}},
            "teachers",
            {"teacher": {"iterations": 1, "lr": 0.1, "network": {"family": "dit", "width": 4}}},
        ),
        (
            {"teachers": {"teacher": {"network": {"family": "unet", "groups": 4}}}},
            "teachers",
            {"teacher": {"iterations": 1, "lr": 0.1, "network": {"layers": 1, "family": "unet", "groups": 4}}},
        ),
        ({"distill": {"a": {"lr": 7}}}, "distill", {"a": {"lr": 7, "steps": 2}, "b": {"lr": 3}}),
        ({"distill": {"a": {"lr": 7, "steps": 1}}}, "distill", {"a": {"lr": 7, "steps": 1}}),
        ({"distill": {"c": {"lr": 7}}}, "distill", {"c": {"lr": 7}}),
        ({"evaluate": {"students": {"a": [1]}}}, "evaluate", {"images": 10, "students": {"a": [1]}}),
    ],
)
def test_a_change_is_merged_or_takes_the_place_of_what_was(change, key, wanted):
    assert over(change) == {**BASE, key: wanted}


def test_keys_that_may_be_left_out_can_be_set(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = [
        "distill.pd1.watch={every: 5, images: 20}",
        "distill.pd1.seeds=2",
        "evaluate.judges={efficientnet: package}",
    ]
    before, merged = (workspace.merged("smoke", each) for each in ([], changes))
    assert merged["distill"]["pd1"] == {**before["distill"]["pd1"], "watch": {"every": 5, "images": 20}, "seeds": 2}
    assert merged["evaluate"] == {**before["evaluate"], "judges": {"efficientnet": "package"}}
    assert {name: line for name, line in merged["distill"].items() if name != "pd1"} == {
        name: line for name, line in before["distill"].items() if name != "pd1"
    }
    params.parse(merged, "x")


def test_what_a_preset_adds_must_be_there_already():
    for change, path in (
        ({"sed": 1}, "sed"),
        ({"network": {"a": {"b": 1}}}, "network.a"),
    ):
        with pytest.raises(UserError, match=f"^x: params.yaml has no {path}$"):
            over(change)


def test_changes_lie_over_the_preset_and_that_over_the_parameters(repository):
    lay(repository, {"params.yaml": "seed: 0\na: 0\nb: 0\nc: 0\n", "presets/tiny.yaml": "a: 1\nb: 1\n"})
    assert workspace.merged(None, []) == {"seed": 0, "a": 0, "b": 0, "c": 0}
    assert workspace.merged("tiny", ["b=2", "c=3", "c=4"]) == {"seed": 0, "a": 1, "b": 2, "c": 4}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=[1e-4, on]", {"a": {"b": {"c": [1e-4, "on"]}}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("a=", {"a": None}),
    ],
)
def test_a_change_on_the_command_line_is_in_yaml(text, wanted):
    assert workspace._change(text) == wanted


@pytest.mark.parametrize(
    "text", ["distill.cd=3", "distill.cd=", "distill.cd=[1]", "distill=3", "teachers=3", "distill.new=3"]
)
def test_a_line_that_is_none_is_refused_in_words_and_nothing_is_written(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"(?m)^(the parameters of .*: )?{text.partition('=')[0]}: "):
        workspace.make(tmp_path / "w", None, [text])
    assert not (tmp_path / "w").exists()


# ------------------------------------------------------------------------------- what lies in it


def test_a_workspace_holds_the_code_as_it_is_its_own_parameters_and_this_environment(repository, tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "venv").symlink_to(real)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    lay(repository, {"tasks/__pycache__/train.pyc": "compiled", "tasks/notes/more.txt": "x", "docs/x.md": "x"})
    (repository / "tasks/train.py").chmod(0o755)
    before = os.umask(0o077)
    try:
        workspace.make(tmp_path / "w", "tiny", [])
    finally:
        os.umask(before)
    listed = set(inventory._read(tmp_path / "w"))
    code = {name for name in CODE if name.startswith(("diffcore", "tasks"))}
    assert listed == {*code, "tasks/notes/more.txt", "dvc.yaml", ".dvcignore", "stage", "params.yaml", ".venv"}
    assert (tmp_path / "w/params.yaml").read_text() == "seed: 1\n"
    assert os.readlink(tmp_path / "w/.venv") == str(real)
    modes = {name: (tmp_path / "w" / name).stat().st_mode & 0o777 for name in ("stage", "tasks/train.py", "dvc.yaml")}
    assert modes == {"stage": 0o755, "tasks/train.py": 0o755, "dvc.yaml": 0o644}
    assert (tmp_path / "w/artifacts").is_dir()


def test_dvc_starts_without_git_with_this_project_s_settings_and_in_its_own_place(repository, tmp_path, monkeypatch):
    seen = []

    def dvc(place: Path, surroundings: dict[str, str], *words: str) -> None:
        (place / ".dvc").mkdir(exist_ok=True)
        settings = (place / ".dvc/config").read_text() if words[0] == "config" else ""
        seen.append((place, surroundings, words, settings))

    monkeypatch.setattr(workspace, "_dvc", dvc)
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    made(tmp_path / "w")
    assert [words for _, _, words, _ in seen] == [("init", "--no-scm", "--quiet"), ("config", "core.no_scm", "true")]
    assert seen[1][3] == CODE[".dvc/config"]
    for place, surroundings, _, _ in seen:
        assert place.parent == tmp_path / "w"  # beside its place: none is half made
        assert surroundings == {**os.environ, "DVC_SITE_CACHE_DIR": str(tmp_path / "w/.dvc-site-cache")}
    assert (tmp_path / "w/.dvc-site-cache/repo").is_dir()
    seen.clear()
    made(tmp_path / "w")
    assert seen == []


def test_dvc_is_this_python_s_in_that_folder(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$PWD $* $A" > "$OUT"\nexit ${CODE:-0}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    workspace._dvc(tmp_path, {"A": "us", "OUT": str(tmp_path / "out")}, "init", "-q")
    assert (tmp_path / "out").read_text() == f"{tmp_path} -m dvc init -q us\n"
    with pytest.raises(UserError, match=rf"^dvc init failed in {tmp_path}: it said nothing$"):
        workspace._dvc(tmp_path, {"OUT": str(tmp_path / "out"), "CODE": "3"}, "init")


@pytest.mark.parametrize("name", [*workspace.OWN, ".git", ".venv", ".dvc", ".services", ".other"])
def test_no_folder_of_the_repository_is_one(repository, name):
    for target in (Path(name), Path(name, "more")):
        with pytest.raises(UserError, match=f"lies in {re.escape(name)}, which belongs to the repository"):
            made(target)
    assert {"diffcore", "tasks", "console", "flows", "tests", "bench", "docs", "presets", "artifacts", "mlruns"} == {
        *workspace.OWN
    }


def test_beside_its_own_folders_the_repository_has_room_for_workspaces(repository):
    for place in (".workspaces/smoke", "trial", "more/trial"):
        assert (made(repository / place) / "stage").is_file()


@pytest.mark.parametrize("name", ["diffcore", "tasks", "dvc.yaml", ".dvcignore", "stage", ".dvc/config"])
def test_whatever_is_missing_of_the_code_is_named(repository, tmp_path, name):
    path = repository / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"^{re.escape(name)} is missing; run from the folder"):
        made(tmp_path / "w")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": [1]}}', '{"files": {"a": [null]}}']
    + [json.dumps({"files": {name: ["x"]}}) for name in ("/etc/passwd", "../a", "a/../../b", "", ".")]
    + ["[" * 100_000],
)
def test_an_inventory_that_is_none_touches_nothing(repository, tmp_path, content):
    lay(tmp_path, {"w/mine": "mine", f"w/{inventory.NAME}": content})
    before = everything(tmp_path)
    with pytest.raises(UserError, match="is damaged, so what in this folder is whose cannot be told"):
        made(tmp_path / "w")
    assert everything(tmp_path) == before


def test_an_inventory_that_is_a_link_or_a_folder_is_none(repository, tmp_path):
    good = made(tmp_path / "w") / inventory.NAME
    good.rename(tmp_path / "list")
    good.symlink_to(tmp_path / "list")
    with pytest.raises(UserError, match="is damaged"):
        made(tmp_path / "w")
    good.unlink()
    good.mkdir()
    with pytest.raises(UserError, match="is damaged"):
        made(tmp_path / "w")


def test_a_refusal_names_some_files_and_counts_the_rest(repository, tmp_path):
    for count, said in (
        (3, "f0, f1, f2 and was"),
        (4, "f0, f1, f2 and 1 more and was"),
        (6, "f0, f1, f2 and 3 more and"),
    ):
        lay(tmp_path / f"w{count}", {f"f{k}": "" for k in range(count)})
        with pytest.raises(UserError, match=f"holds {said}"):
            made(tmp_path / f"w{count}")


def test_what_a_killed_command_left_is_removed_and_what_a_link_of_that_name_leads_to_is_not(repository, tmp_path):
    target = made(tmp_path / "w")
    lay(tmp_path, {"mine/x": "mine"})
    (target / f"{inventory.NAME}.link").symlink_to(tmp_path / "mine")
    lay(target, {f"{inventory.NAME}.scratch/.dvc/config": "x", f".{inventory.NAME}.1.tmp": "x"})
    lay(repository, {"diffcore/noise/angle.py": "newest"})
    made(target)
    assert (tmp_path / "mine/x").read_text() == "mine"
    assert [path.name for path in target.iterdir() if inventory.NAME in path.name] == [inventory.NAME]


def test_what_is_wanted_no_more_goes_and_its_empty_folder_too(repository, tmp_path):
    lay(repository, {"tasks/old/one.py": "", "tasks/both/one.py": ""})
    lay(made(tmp_path / "w"), {"tasks/both/mine.py": "mine"})
    for name in ("tasks/old", "tasks/both"):
        shutil.rmtree(repository / name)
    made(tmp_path / "w")
    assert not (tmp_path / "w/tasks/old").exists()
    assert everything(tmp_path / "w/tasks/both") == {"mine.py": "mine"}
