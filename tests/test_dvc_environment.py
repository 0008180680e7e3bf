"""What DVC keeps for itself lies in the project and is nobody else's to write, however DVC is started."""

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.dirs import site_cache_dir
from dvc.repo import Repo

from diffcore.core.errors import UserError
from tasks import dvc_environment, stages
from tasks.running import Running
from tests.test_flows import toy

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # DVC's own


@pytest.fixture(autouse=True)
def own_umask(monkeypatch):
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)


def clone(folder: Path) -> Path:
    """A toy pipeline with what this repository commits for DVC, as git would check it out."""
    toy(folder)
    for name in (".dvc/config", ".dvcignore", ".dvc-site-cache/repo/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with open(folder / ".dvc" / "config", "a") as config:
        config.write("    no_scm = true\n")
    return folder


def writable_by_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]


def shared(folder: Path) -> Path:
    """Where DVC would keep the folder's site cache if nobody told it better."""
    own = {"core": {"site_cache_dir": str(folder / ".dvc-site-cache")}}
    return Path(site_cache_dir()) / "repo" / Path(Repo(str(folder), config=own).site_cache_dir).name


@pytest.mark.parametrize(
    "way",
    [
        "dvc repro",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("the flow", "the flow, in an old workspace")),
    ],
)
def test_no_file_of_a_run_lands_in_the_folder_that_all_users_share(tmp_path, monkeypatch, way):
    folder = clone(tmp_path / "project")
    if "old" in way:
        shutil.rmtree(folder / ".dvc-site-cache")
        (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    if way == "dvc repro":
        done = subprocess.run([sys.executable, "-m", "dvc", "repro", "shard"], cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr
    else:
        stages.reproduce("shard", folder, Running(), lambda line: None)
        assert stages.up_to_date(folder, "shard")
    assert list((folder / ".dvc-site-cache/repo").glob("*/*"))
    assert not writable_by_others(folder)
    monkeypatch.chdir(folder)
    assert not shared(folder).exists()


@pytest.mark.slow
def test_the_site_cache_of_a_workspace_is_its_own(tmp_path, monkeypatch):
    from tasks import workspace

    monkeypatch.chdir(ROOT)
    workspace.make(tmp_path / "trial", "smoke", [])
    monkeypatch.chdir(tmp_path / "trial")
    assert Repo(".").site_cache_dir.startswith(".dvc-site-cache/")
    assert not shared(tmp_path / "trial").exists()
    assert not writable_by_others(tmp_path / "trial" / ".dvc-site-cache")


def test_the_folder_of_what_dvc_unpickles_is_made_by_us_and_nobody_else_s_to_write(tmp_path):
    """DVC leaves one that is there as it is, and would make its own for everybody to write."""
    dvc_environment.of(tmp_path)
    assert (tmp_path / ".dvc-site-cache/repo").is_dir()
    assert not writable_by_others(tmp_path)


def test_a_place_that_the_user_chose_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/chosen")
    assert dvc_environment.of(tmp_path) == {"DVC_SITE_CACHE_DIR": "/chosen"}


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "no text", "a folder"])
def test_a_damaged_configuration_of_dvc_is_one_line(tmp_path, damage):
    folder = clone(tmp_path / "project")
    dvc_environment.check(folder)
    config = folder / ".dvc/config"
    whole = config.read_bytes()
    config.unlink()
    if damage == "a folder":
        config.mkdir()
    elif damage != "gone":
        config.write_bytes({"empty": b"", "cut": whole[:9], "no text": b"\xff\xfe\x00"}[damage])
    with pytest.raises(UserError, match=r"\.dvc/config is missing or damaged; restore it") as caught:
        dvc_environment.check(folder)
    assert "\n" not in str(caught.value)


def test_a_user_s_own_settings_of_dvc_are_no_damage(tmp_path):
    folder = clone(tmp_path / "project")
    with open(folder / ".dvc/config", "a") as config:
        config.write("    remote = far\n['remote \"far\"']\n    url = /far%20away\n")
    dvc_environment.check(folder)


PUBLISHING = """
import os, pwd, sys
from pathlib import Path

def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = nobody
from tasks.tracking.client import explained
with explained("sqlite:///mlflow.db"):
    pass
from dvc.repo import Repo
from tasks import stages
print(list(stages.graph(Path(sys.argv[1]))))
"""


@pytest.mark.slow
def test_a_user_whom_the_system_does_not_know_can_publish_and_run_the_flow(tmp_path):
    unknown = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")
    surroundings = {name: value for name, value in os.environ.items() if name not in unknown}
    command = [sys.executable, "-c", PUBLISHING, str(clone(tmp_path / "project"))]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'shard'" in done.stdout


@pytest.mark.parametrize("error", [KeyError, OSError])  # before and since Python 3.13
def test_a_user_without_a_name_gets_one(tmp_path, monkeypatch, error):
    def nameless() -> str:
        raise error("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert dvc_environment.of(tmp_path)["LOGNAME"] == f"uid-{os.getuid()}"


def test_a_flow_of_a_user_without_a_name_has_one_before_prefect_asks(tmp_path):
    """And a home, in the project."""
    code = """
import getpass, os, pathlib
def nobody(*_):
    raise KeyError("uid not found")
getpass.getuser, pathlib.Path.home = nobody, nobody
import flows
print(os.environ["LOGNAME"], os.environ["HOME"])
"""
    unknown = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unknown} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [f"uid-{os.getuid()}", str(tmp_path / ".services")], done.stderr


def test_a_place_is_whole_wherever_dvc_goes_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    assert dvc_environment.of(Path("w"))["DVC_SITE_CACHE_DIR"] == str(tmp_path / "w/.dvc-site-cache")
    assert (tmp_path / "w/.dvc-site-cache/repo").is_dir()


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
def test_a_user_without_a_home_gets_one_in_the_project(tmp_path, monkeypatch, error):
    def homeless() -> Path:
        raise error("no home")

    monkeypatch.setattr(dvc_environment.Path, "home", homeless)
    monkeypatch.chdir(tmp_path)
    wanted = {"HOME": str(tmp_path / "w/.services")}
    assert dvc_environment.nameless(Path("w")) == wanted
    assert dvc_environment.of(Path("w")).items() >= wanted.items()


CUT = "[core]\n    analytics = false\n    no_sc"
"""Torn behind its first lines: DVC reads none of it."""


def test_a_configuration_must_say_that_dvc_shall_not_phone_home(tmp_path):
    (tmp_path / ".dvc").mkdir()
    for text in ("[core]\n    no_scm = true\n", "[cache]\nanalytics = false\n", "core.analytics\n", CUT):
        (tmp_path / ".dvc/config").write_text(text)
        with pytest.raises(UserError, match="is missing or damaged"):
            dvc_environment.check(tmp_path)
    (tmp_path / ".dvc/config").write_text("[core]\nanalytics = false\n[core]\nautostage = true\n")
    dvc_environment.check(tmp_path)
