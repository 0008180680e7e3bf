"""Publishing: files made from formulas go into a fresh SQLite store, and what MLflow then holds is read back."""

import dataclasses
import hashlib
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffcore import checkpoint, disk
from diffcore.checkpoint import Card
from diffcore.mistake import Mistake
from tasks import pictures, tracking
from tests.test_pictures import point, ramp, small_table, table, write_curve

# what mlflow and the libraries below it warn of on import or on opening a database; nothing of ours
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]

PARAMETERS = {"seed": 0, "evaluate": {"images": 1000}, "search": {"estimator": "residual"}}


def write_files(folder: Path, shown: dict) -> None:
    """Everything that publishing reads. The weights are a few bytes: no model is opened when it is logged."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "samples").mkdir(parents=True)
    for p in shown["points"]:
        p["checkpoint_digest"] = write_checkpoint(folder, p)
    disk.write_sealed(folder / "frontier.json", shown)
    (folder / "frontier.csv").write_text(
        "name,nfe,fd\n" + "".join(f"{p['name']},{p['nfe']},{p['fd']}\n" for p in shown["points"])
    )
    (folder / "gamma.json").write_text("{}")
    for name in ("frontier.png", "samples/all.png", *(f"samples/{p['name']}.png" for p in shown["points"])):
        pictures.grid(ramp(4, 8, 8, 1), folder / name)


def write_checkpoint(folder: Path, p: dict) -> str:
    """A folder with a card that holds, and the digest of its files."""
    held = {checkpoint.WEIGHTS: f"weights of {p['checkpoint']}".encode(), "unet/config.json": b"{}"}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
    card = Card(
        schema=checkpoint.SCHEMA,
        name=p["checkpoint"],
        method=p["method"],
        schedule={},
        head="v",
        labels=1024,
        solver=p["sampler"],
        grid=None,
        classes=None,
        guidance=None,
        image=[1, 8, 8],
        weights=p["weights"],
        parent=None,
        teacher=None,
        data="da7a" * 16,
        parameters={"fit": {"iterations": 50, "lr": 1e-3}},
        seed=0,
        code="c0de" * 16,
        torch="2",
        cost={},
        files=files,
        digest=disk.digest(files),
    )
    for name in ("checkpoints", "curves", "cost"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "checkpoints" / p["checkpoint"]).mkdir(exist_ok=True)
    for name, content in held.items():
        (folder / "checkpoints" / p["checkpoint"] / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / p["checkpoint"] / name).write_bytes(content)
    sealed = dataclasses.asdict(card) | {"seal": card.sealed()}
    (folder / "checkpoints" / p["checkpoint"] / "card.json").write_text(json.dumps(sealed))
    write_curve(folder / "curves" / f"{p['checkpoint']}.csv", 0 if p["checkpoint"] == "teacher" else 50)
    disk.write_sealed(folder / "cost" / f"{p['checkpoint']}.json", {"seconds": 3.5, "iterations": 50})
    return card.digest


def publish(shown: dict | None = None) -> dict:
    if shown is not None:
        write_files(Path("artifacts"), shown)
    return tracking.publish(Path("artifacts"), "distill", "sampler", PARAMETERS)


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory) -> Path:
    """An empty database: making one takes MLflow seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    made = "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); mlflow.MlflowClient().search_experiments()"
    subprocess.run([sys.executable, "-c", made, f"sqlite:///{path}"], check=True, capture_output=True, cwd=path.parent)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory, fresh_store) -> tuple[Path, dict]:
    """A folder and its receipt, published once for the tests that only look."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(fresh_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return folder, publish(few_points())


@pytest.fixture
def receipt(published, monkeypatch) -> dict:
    import mlflow

    folder, receipt = published
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", receipt["tracking_uri"])
    mlflow.set_tracking_uri(receipt["tracking_uri"])
    return receipt


@pytest.fixture
def room(tmp_path, monkeypatch, fresh_store) -> Path:
    """A working directory with a small frontier, and MLflow's default place for its database."""
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_files(tmp_path / "artifacts", few_points())
    return tmp_path


def few_points() -> dict:
    points = [point("teacher", 4, 13.0), point("teacher", 1, 52.0)]
    points += [point("progressive", 2, 1.7), point("progressive", 1, 2.4)]
    points += [point("consistency", 2, 2.0), point("consistency", 1, 2.2)]
    return table(points, "pd2-ddim-even-2")


def client():
    import mlflow

    return mlflow.MlflowClient()


def counts(room: Path) -> dict[str, int]:
    """Rows of every table of the database that publishing could add to."""
    tables = ("experiments", "runs", "metrics", "params", "tags", "logged_models", "logged_model_metrics")
    tables += ("logged_model_tags", "model_versions", "registered_model_aliases")
    with sqlite3.connect(room / "mlflow.db") as database:
        return {name: database.execute(f"select count(*) from {name}").fetchone()[0] for name in tables}


def test_one_run_for_each_way_with_the_calls_as_step(receipt):
    assert list(receipt["runs"]) == ["teacher ddim even", "progressive", "consistency"]
    for name, points in pictures.ways(few_points()["points"]).items():
        run = receipt["runs"][name]
        for key in ("fd", "fd_se", "kid", "kid_se", "fd_pixels", "rmse_teacher", "ms_per_image", "nfe"):
            logged = {m.step: m.value for m in client().get_metric_history(run, key)}
            assert logged == {p["nfe"]: p[key] for p in points if p[key] is not None}, (name, key)
        found = client().get_run(run)
        assert (found.info.run_name, found.info.status, found.data.tags["current"]) == (name, "FINISHED", "true")


def test_the_sample_grids_lie_at_their_steps_and_a_sheet_at_step_0(receipt):
    names = [Path(f.path).name for f in client().list_artifacts(receipt["runs"]["progressive"], "images")]
    steps = sorted(int(re.search(r"step\W(\d+)", name)[1]) for name in names if name.endswith(".png"))
    assert steps == [0, 1, 2]


def test_training_curves_have_runs_of_their_own(receipt):
    assert list(receipt["train"]) == ["train cd", "train pd1", "train pd2", "train teacher"]
    run = client().get_run(receipt["train"]["train pd2"])
    losses = client().get_metric_history(run.info.run_id, "train_loss")
    assert {m.step: m.value for m in losses} == {k: 1 / k for k in range(1, 51)}
    assert run.data.params["cost.seconds"] == "3.5"
    assert run.data.params["fit.iterations"] == "50"


def test_a_teacher_that_was_trained_elsewhere_has_a_run_without_a_curve(receipt):
    run = client().get_run(receipt["train"]["train teacher"])
    assert run.data.metrics == {}
    assert run.data.params["fit.iterations"] == "50"
    assert [Path(f.path).name for f in client().list_artifacts(run.info.run_id)] == ["teacher.csv"]


def test_a_long_curve_is_thinned_to_means(tmp_path):
    write_curve(tmp_path / "curve.csv", 1050)
    rows = tracking._thinned(tmp_path / "curve.csv")
    assert len(rows) <= tracking.CURVE_ROWS
    assert (rows[0]["step"], rows[-1]["step"]) == (11, 1050)
    assert rows[0]["loss"] == pytest.approx(sum(1 / k for k in range(1, 12)) / 11)


def test_the_frontiers_run_holds_files_and_every_parameter(receipt):
    run = client().get_run(receipt["frontier"])
    assert {f.path for f in client().list_artifacts(run.info.run_id)} == {
        "frontier.json",
        "frontier.csv",
        "frontier.png",
        "all.png",
    }
    assert run.data.params == {"seed": "0", "evaluate.images": "1000", "search.estimator": "residual"}
    assert run.data.tags["recommended"] == "pd2-ddim-even-2"


def test_each_point_is_a_logged_model_and_weights_are_copied_once_for_each_student(receipt):
    models = {name: client().get_logged_model(found) for name, found in receipt["models"].items()}
    assert set(models) == {p["name"] for p in few_points()["points"]}
    carried = {name for name, model in models.items() if model.tags["weights"] == "here"}
    assert carried == {"pd2-ddim-even-2", "pd1-ddim-even-1", "cd-ddim-even-2"}
    assert len(list(Path("mlruns").rglob("*.safetensors"))) == 3
    assert not list(Path("mlruns").rglob("*.pkl"))
    fd = {m.key: (m.value, m.step) for m in models["teacher-ddim-even-4"].metrics}["fd"]
    assert fd == (13.0, 4)


def test_the_recommended_point_is_registered_as_challenger(receipt):
    version = client().get_model_version_by_alias("sampler", "challenger")
    assert str(version.version) == receipt["version"]["version"] == "1"
    tags = {key: version.tags[key] for key in ("method", "nfe", "fd", "digest", "point")}
    digest = json.loads(Path("artifacts/checkpoints/pd2/card.json").read_text())["digest"]
    assert tags == {"method": "progressive", "nfe": "2", "fd": "1.7", "digest": digest, "point": "pd2-ddim-even-2"}
    assert version.source == f"models:/{receipt['models']['pd2-ddim-even-2']}"


def test_the_signature_says_what_goes_in_and_comes_out(receipt):
    import mlflow

    signature = mlflow.models.get_model_info(f"models:/{receipt['models']['pd2-ddim-even-2']}").signature
    assert signature.inputs.input_names() == ["num_images"]
    (images,) = signature.outputs.inputs
    assert (images.shape, images.type) == ((-1, 8, 8, 1), np.dtype("uint8"))
    assert signature.params.params[0].name == "seed"


def test_publishing_twice_creates_nothing_new(room):
    first, before = publish(), counts(room)
    second, after = publish(), counts(room)
    assert first == second
    assert before == after
    assert before["runs"] == 3 + 4 + 2
    assert before["logged_models"] == 6


def test_only_the_way_that_changed_gets_a_new_run(room):
    first = publish()
    changed = few_points()
    changed["points"][2]["fd"] = 1.65
    second = publish(changed)
    assert [name for name in first["runs"] if first["runs"][name] != second["runs"][name]] == ["progressive"]
    assert first["train"] == second["train"]
    old = client().get_run(first["runs"]["progressive"])
    assert (old.data.tags["current"], old.info.lifecycle_stage) == ("false", "active")
    gone = first["models"]["pd1-ddim-even-1"]
    assert client().get_logged_model(gone).tags["current"] == "false"
    assert len(second["models"]) == 6
    assert second["version"] == first["version"]


def test_an_earlier_frontier_that_comes_back_is_found_again(room):
    first = publish()
    changed = few_points()
    changed["points"][2]["fd"] = 1.65
    publish(changed)
    before = counts(room)
    third = publish(few_points())
    assert third == first
    assert {**counts(room), "tags": 0} == {**before, "tags": 0}
    assert client().get_run(first["runs"]["progressive"]).data.tags["current"] == "true"
    assert client().get_logged_model(first["models"]["pd1-ddim-even-1"]).tags["current"] == "true"


def test_the_alias_challenger_moves_and_production_stays(room):
    publish()
    client().set_registered_model_alias("sampler", "production", "1")
    second = publish(table(few_points()["points"], "cd-ddim-even-1"))
    assert aliases() == {"challenger": "2", "production": "1"}
    assert client().get_logged_model(second["models"]["cd-ddim-even-1"]).tags["weights"] == "here"
    publish(few_points())
    assert aliases() == {"challenger": "1", "production": "1"}
    assert counts(room)["model_versions"] == 2


def aliases() -> dict[str, str]:
    return {name: str(number) for name, number in client().get_registered_model("sampler").aliases.items()}


def test_a_recommended_sampler_of_the_teacher_carries_its_weights_and_gamma(room):
    points = [*few_points()["points"], point("teacher", 2, 1.5, sampler="analytic")]
    receipt = publish(table(points, "teacher-analytic-even-2"))
    import mlflow

    info = mlflow.models.get_model_info(f"models:/{receipt['models']['teacher-analytic-even-2']}")
    flavor = info.flavors["python_function"]
    assert set(flavor["artifacts"]) == {"checkpoint", "gamma"}
    assert flavor["config"] == {"recipe": '{"sampler": "analytic"}', "times": [1.0, 0.5, 0.0]}


def test_a_publisher_killed_half_way_is_followed_by_a_whole_run(room, monkeypatch):
    log_image = tracking._log_images
    monkeypatch.setattr(tracking, "_log_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish()
    monkeypatch.setattr(tracking, "_log_images", log_image)
    receipt = publish()
    runs = client().search_runs([receipt["experiment_id"]], "tags.current = 'true'")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 9
    assert publish() == receipt


def test_files_are_only_read(room):
    def state() -> dict:
        return {path: path.read_bytes() for path in sorted(Path("artifacts").rglob("*")) if path.is_file()}

    before = state()
    publish()
    assert state() == before


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_server_that_is_down_is_a_mistake_at_once(room, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(Mistake, match=r"MLflow at http://127\.0\.0\.1:\d+ does not answer: .*refused.*; run `make up`"):
        publish()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "name", ["frontier.json", "frontier.csv", "samples/pd2-ddim-even-2.png", "checkpoints/pd2/card.json"]
)
def test_a_missing_file_is_named(room, name):
    (room / "artifacts" / name).unlink()
    with pytest.raises(Mistake, match=f"{Path(name).name}"):
        publish()


def test_a_deleted_experiment_is_a_mistake(room):
    receipt = publish()
    client().delete_experiment(receipt["experiment_id"])
    with pytest.raises(Mistake, match="'distill' was deleted"):
        publish()


def test_how_to_open_names_the_server_or_the_command():
    ui = tracking.CHART.format(7)
    assert tracking.how_to_open({"tracking_uri": "http://a:1/", "ui": ui}) == f"MLflow: http://a:1/{ui}"
    assert "--backend-store-uri sqlite:///mlflow.db" in tracking.how_to_open(
        {"tracking_uri": "sqlite:///mlflow.db", "ui": ui}
    )


PUBLISH = """
import json, sys
from pathlib import Path
from tasks import tracking
print(json.dumps(tracking.publish(Path("artifacts"), "distill", "sampler", {"seed": 0})))
"""


@pytest.mark.slow
def test_two_processes_on_a_fresh_database_publish_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(tracking.__file__).parent.parent))
    write_files(tmp_path / "artifacts", small_table())
    command = [sys.executable, "-c", PUBLISH]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, other = (json.loads(out) for out, _ in said)
    assert one == other
    assert [err for _, err in said] == ["", ""]
    assert counts(tmp_path)["runs"] == 4 + 2 + len(one["train"])


def test_students_are_among_the_runs_that_the_page_opens_with():
    def page(name: str, method: str) -> tracking.Page:
        return tracking.Page("way", name, {"points": [{"method": method}]}, lambda run: None)

    teacher = [page(f"teacher {k}", "teacher") for k in range(12)]
    found = tracking._students_early([*teacher, page("progressive", "progressive"), page("consistency", "consistency")])
    assert [each.name for each in found[:4]] == ["teacher 0", "progressive", "consistency", "teacher 1"]
    assert len(found) == 14
