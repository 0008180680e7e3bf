"""`distill doctor`: it says what will fail and how to mend it, and changes nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffcore.core import disk
from diffcore.nets import files
from tasks import command, doctor, params, paths
from tests import test_encoders
from tests.test_params import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder in which all is in order."""
    monkeypatch.chdir(ROOT)
    raw = params.load_yaml(paths.PARAMS)
    for name in ("dvc.yaml", "diffcore", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write(raw)
    return tmp_path


def write(raw: dict) -> None:
    params.dump_yaml(json.loads(json.dumps(raw)), paths.PARAMS)


def examined(capsys) -> tuple[int, list[str]]:
    """The exit code, and the lines that name faults; no file is another afterwards."""
    before = {path: path.lstat().st_mtime_ns for path in Path().iterdir()}
    capsys.readouterr()
    code = command.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert {path: path.lstat().st_mtime_ns for path in Path().iterdir()} == before
    return code, [" ".join(line.split()[1:]) for line in lines if line.startswith("FAULT")]


def test_where_all_is_there_nothing_is_at_fault(here, capsys):
    assert examined(capsys) == (0, [])
    command.main(["doctor"])
    text = capsys.readouterr().out
    for word in ("python", "torch", "device", "rights of .", "disk", "params.yaml", "dvc.yaml", "dvc", "git", "mlflow"):
        assert any(line.startswith(f"ok     {word} ") for line in text.splitlines()), word
    assert text.splitlines()[-1] == "all is in order"


def test_what_params_yaml_says_wrong_is_told_line_by_line(here, capsys):
    raw = params.load_yaml(paths.PARAMS)
    raw["gamma"]["stepz"] = raw["gamma"].pop("steps")
    raw["seed"] = "x"
    write(raw)
    code, faults = examined(capsys)
    assert code == 1
    assert [line for line in faults if "stepz" in line and "did you mean 'steps'?" in line]
    assert [line for line in faults if "seed" in line]


def test_dvc_s_missing_configuration_is_a_fault(here, capsys):
    (here / ".dvc/config").unlink()
    code, (line,) = examined(capsys)
    assert code == 1
    assert ".dvc/config is missing or damaged; restore it" in line


def test_servers_that_do_not_answer_are_faults_without_their_passwords(here, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    code, faults = examined(capsys)
    assert code == 1
    assert any("does not answer" in line and "MLflow" in line for line in faults)
    # one server's fault does not hide another's
    assert any(line.startswith("prefect") and "run `distill up` or unset PREFECT_API_URL" in line for line in faults)
    assert "secret" not in "".join(faults)


@pytest.mark.parametrize("part", files.PARTS)
def test_weights_of_a_teacher_are_named_with_their_digest_and_missing_ones_are_a_fault(part, here, capsys):
    raw = params.load_yaml(paths.PARAMS)
    raw["teachers"]["other"] = {"from": str(here / "theirs"), "conditional": False}
    write(raw)
    code, faults = examined(capsys)
    assert code == 1
    assert [line for line in faults if "weights of other" in line and "holds no network with safetensors" in line]
    (here / "theirs" / part).mkdir(parents=True)
    (here / "theirs" / part / "config.json").write_text("{}")
    weights = here / "theirs" / part / files.WEIGHTS
    weights.write_bytes(b"some weights")
    assert examined(capsys) == (0, [])
    command.main(["doctor"])
    assert f"{weights}, sha256 {disk.sha256(weights)[:12]}" in capsys.readouterr().out


def test_files_of_judges_are_named_with_their_digest_and_missing_ones_are_a_fault(here, capsys):
    raw = params.load_yaml(paths.PARAMS)
    raw["evaluate"]["judges"] = {"inception": "weights.pth"}
    write(raw)
    code, faults = examined(capsys)
    assert code == 1
    assert [line for line in faults if "judges.inception: there is no file 'weights.pth'" in line]
    Path("weights.pth").write_bytes(b"some weights")
    assert examined(capsys) == (0, [])
    command.main(["doctor"])
    assert f"weights.pth, sha256 {disk.sha256(Path('weights.pth'))[:12]}" in capsys.readouterr().out


def test_folders_of_judges_are_named_with_the_digest_of_their_weights_and_a_config_that_is_not_run_is_a_fault(
    here, capsys
):
    raw = params.load_yaml(paths.PARAMS)
    raw["evaluate"]["judges"] = {"dinov2": "theirs"}
    write(raw)
    folder = test_encoders.write(here / "theirs", test_encoders.DINOV2)
    assert examined(capsys) == (0, [])
    command.main(["doctor"])
    assert (
        f"theirs/model.safetensors, sha256 {disk.sha256(folder / 'model.safetensors')[:12]}" in capsys.readouterr().out
    )
    test_encoders.write(here / "theirs", test_encoders.CLIP)
    code, faults = examined(capsys)
    assert code == 1
    assert [line for line in faults if "judges.dinov2: 'theirs/config.json': model_type must be" in line]
    assert command.main(["check"]) == 2


def test_a_disk_that_is_nearly_full_and_a_folder_that_is_not_ours_are_faults(here, capsys, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    monkeypatch.setattr(doctor.os, "access", lambda path, how: str(path) != ".")
    code, faults = examined(capsys)
    assert code == 1
    assert faults[0].startswith("rights of . cannot be written to; give this user the right to it")
    assert faults[1].startswith("disk 1 MB are free; free some, a run needs 2 GB")


def test_a_package_that_is_missing_is_a_fault(here, capsys, monkeypatch):
    def lacking(name: str) -> str:
        if name == "prefect":
            raise doctor.PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor, "version", lacking)
    assert examined(capsys) == (1, ["prefect is not installed; run make setup"])
