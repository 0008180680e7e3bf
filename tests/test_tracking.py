"""Publishing: files made from formulas go into a fresh SQLite store, and what MLflow then holds is read back."""

import base64
import contextlib
import csv
import dataclasses
import errno
import fcntl
import gc
import hashlib
import http.server
import importlib
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import quote

import numpy as np
import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints.card import SCHEMA, Card
from diffcore.checkpoints.folder import WEIGHTS
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.metrics import measured
from diffcore.metrics.estimate import Estimate, columns
from diffcore.metrics.frontier import SCHEMA as SCHEMA_OF_FRONTIERS
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from diffcore.search import gamma
from tasks import database, faults, paths, redaction, report
from tasks.pictures import charts, grids, page
from tasks.tracking import publishing
from tasks.tracking.artifacts import ALIASES, CURVE_ROWS, Artifacts, _check_rows, looks, read, thinned
from tasks.tracking.client import (
    LOCK,
    QUIET,
    Experiment,
    alone,
    ask,
    every,
    explained,
    logged,
    open_experiment,
    prepared,
)
from tasks.tracking.models import (
    _fault,
    _model_name,
    _pin,
    _shipped,
    carries,
    digests_of,
    identity_of,
    local_folder,
    register,
)
from tasks.tracking.note import NOTE, _lines, write_note
from tasks.tracking.publishing import _publish
from tasks.tracking.receipt import CHART, how_to_open
from tasks.tracking.run_specs import (
    RunSpec,
    _flat,
    _log,
    _log_images,
    curve_specs,
    enter,
    floor_spec,
    frontier_spec,
    students_early,
    train_specs,
)
from tests.test_pictures import LOOKS, but, of, pixels, point, ramp, seen, small_table, table, write_curve

# what mlflow and the libraries below it warn of on import or on opening a database; nothing of ours
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]

PARAMETERS = {
    "seed": 0,
    "evaluate": {"images": 1000},
    "search": {"estimator": "residual"},
    "publish": {"tolerance": 0.14},  # of the teacher's 13: within it is one point, which all aliases go to
}


def write_files(folder: Path, shown: Frontier) -> Frontier:
    """Everything that publishing reads, for these points with the digests of what lies there. The weights are a few bytes: no
    model is opened when it is logged."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "samples").mkdir(parents=True)
    shown = of(shown, [dataclasses.replace(p, checkpoint_digest=write_checkpoint(folder, p)) for p in shown.points])
    disk.write_sealed(folder / "frontier.json", shown.to_json())
    (folder / "frontier.csv").write_text(shown.to_csv())
    lines = [page.Line("teacher", "teacher", None, None, {})]
    whole = page.Report(shown, Estimate(1.0, 0.1), {measured.REAL: ramp(4, 8, 8, 1)}, lines, {})
    (folder / "report.html").write_text(page.html_of(whole))
    known = {"checkpoint_digest": next(p.checkpoint_digest for p in shown.points if p.checkpoint == "teacher")}
    disk.write_sealed(folder / "gamma.json", {"schema": gamma.SCHEMA, "about": known})
    for number, name in enumerate(
        ("frontier.png", "samples/all.png", *(f"samples/{p.name}.png" for p in shown.points))
    ):
        grids.grid(ramp(4, 8, 8, 1) // (number % 250 + 1) + number // 250, folder / name)  # no two alike
    return shown


def write_checkpoint(folder: Path, p: Point) -> str:
    """A folder with a card that holds, and the digest of its files."""
    held = {WEIGHTS: f"weights of {p.checkpoint}".encode(), "unet/config.json": b"{}"}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
    card = Card(
        schema=SCHEMA,
        name=p.checkpoint,
        method=p.method,
        schedule={},
        parameterization="v",
        num_timesteps=1024,
        solver=p.sampler,
        grid=None,
        classes=None,
        guidance=None,
        image=[3, 8, 12],
        weights=p.weights,
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
    (folder / "checkpoints" / p.checkpoint).mkdir(exist_ok=True)
    for name, content in held.items():
        (folder / "checkpoints" / p.checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / p.checkpoint / name).write_bytes(content)
    sealed = dataclasses.asdict(card) | {"seal": card.sealed()}
    (folder / "checkpoints" / p.checkpoint / "card.json").write_text(json.dumps(sealed))
    rows, every = (0 if p.checkpoint == "teacher" else 50), (20 if p.checkpoint == "cd" else 0)
    write_curve(folder / "curves" / f"{p.checkpoint}.csv", rows, every)
    disk.write_sealed(folder / "cost" / f"{p.checkpoint}.json", {"seconds": 3.5, "iterations": 50})
    return card.digest


def publish(shown: Frontier | None = None) -> dict:
    if shown is not None:
        write_files(Path("artifacts"), shown)
    return publishing.publish(Path("artifacts"), "distill", "sampler", PARAMETERS)


@pytest.fixture(scope="module")
def published(tmp_path_factory, fresh_store, written) -> tuple[Path, dict]:
    """A folder and its receipt, published once for the tests that only look."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(fresh_store, folder / "mlflow.db")
    shutil.copytree(written, folder / "artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return folder, publish()


@pytest.fixture
def receipt(published, monkeypatch) -> dict:
    import mlflow

    folder, receipt = published
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", receipt["tracking_uri"])
    mlflow.set_tracking_uri(receipt["tracking_uri"])
    return receipt


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The files of a small frontier: writing them waits for the disk, copying them does not."""
    folder = tmp_path_factory.mktemp("written") / "artifacts"
    write_files(folder, few_points())
    return folder


@pytest.fixture
def room(tmp_path, monkeypatch, fresh_store, written) -> Path:
    """A working directory with a small frontier, and MLflow's default place for its database."""
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    shutil.copytree(written, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def few_points() -> Frontier:
    points = [point("teacher", 4, 13.0), point("teacher", 1, 52.0)]
    points += [point("progressive", 2, 1.7), point("progressive", 1, 2.4)]
    points += [point("consistency", 2, 2.0), point("consistency", 1, 2.2)]
    for k, each in enumerate(points[:3]):
        rare = {"accuracy": Estimate(0.9 - k / 50, 0.01 + k / 500), "bits": Estimate(3.5 + k, 0.02 + k / 500)}
        points[k] = dataclasses.replace(each, metrics=each.metrics | rare)
    return table(points, "pd2-ddim-uniform-2")


def client():
    import mlflow

    return mlflow.MlflowClient()


def counts(room: Path) -> dict[str, int]:
    """Rows of every table of the database that publishing could add to."""
    tables = ("experiments", "runs", "metrics", "params", "tags", "logged_models", "logged_model_metrics")
    tables += ("logged_model_tags", "model_versions", "registered_model_aliases")
    with sqlite3.connect(room / "mlflow.db") as database:
        return {name: database.execute(f"select count(*) from {name}").fetchone()[0] for name in tables}


SHOWN = ("fd", "fd_se", "kid", "kid_se", "fd_pixels", "fd_pixels_se", "rmse_teacher", "rmse_teacher_se")
SHOWN += ("accuracy", "accuracy_se", "bits", "bits_se", "ms_per_image", "nfe")


def test_one_run_for_each_way_with_the_calls_as_step(receipt):
    assert list(receipt["runs"]) == ["teacher ddim uniform", "progressive", "consistency"]
    for name, points in charts.by_curve(few_points().points).items():
        run = receipt["runs"][name]
        for key in SHOWN:
            logged = {m.step: m.value for m in client().get_metric_history(run, key)}
            assert logged == {p.nfe: p.row()[key] for p in points if p.row()[key] is not None}, (name, key)
        found = client().get_run(run)
        assert (found.info.run_name, found.info.status, found.data.tags["current"]) == (name, "FINISHED", "true")


def test_the_sample_grids_lie_at_their_steps_and_a_sheet_at_step_0(receipt):
    names = [Path(f.path).name for f in client().list_artifacts(receipt["runs"]["progressive"], "images")]
    steps = sorted(int(re.search(r"step\W(\d+)", name)[1]) for name in names if name.endswith(".png"))
    assert steps == [0, 1, 2]


def test_the_sample_grid_at_a_step_is_that_of_the_point_with_so_many_calls(receipt):
    """And the sheet has all of the curve's, the one with the fewest calls last."""
    for curve, points in charts.by_curve(few_points().points).items():
        folder = Path(client().download_artifacts(receipt["runs"][curve], "images"))
        logged = {int(re.search(r"step\W(\d+)", path.name)[1]): path for path in folder.glob("*.png")}
        assert set(logged) == {0, *(point_.nfe for point_ in points)}
        for point_ in points:
            wanted = pixels(Path(f"artifacts/samples/{point_.name}.png"))
            shown = pixels(logged[point_.nfe])
            assert np.array_equal(shown, np.broadcast_to(wanted[..., None], shown.shape)), point_.name
        rows = [(each.name, grids.tiles(Path(f"artifacts/samples/{each.name}.png"))) for each in points[::-1]]
        grids.contact_sheet(rows, folder.parent / "wanted.png")
        assert np.array_equal(pixels(logged[0]), pixels(folder.parent / "wanted.png"))


def test_every_metric_has_the_time_it_was_published_in_milliseconds(receipt):
    path = Path(receipt["tracking_uri"].removeprefix("sqlite:///"))
    with contextlib.closing(sqlite3.connect(path)) as book:
        first, last = book.execute("select min(timestamp), max(timestamp) from metrics").fetchone()
        begun, ended = book.execute("select min(start_time), max(end_time) from runs").fetchone()
    assert begun <= first <= last <= ended


def test_training_curves_have_runs_of_their_own(receipt):
    assert list(receipt["train"]) == ["train cd", "train pd1", "train pd2", "train teacher"]
    run = client().get_run(receipt["train"]["train pd2"])
    rows = list(csv.DictReader(io.StringIO(disk.read_summed(Path("artifacts/curves/pd2.csv"), "x"))))
    for key in ("loss", "grad_norm", "lr"):
        history = client().get_metric_history(run.info.run_id, f"train_{key}")
        assert {m.step: m.value for m in history} == {int(row["step"]): float(row[key]) for row in rows}
    assert len(rows) == 50
    assert run.data.params["cost.seconds"] == "3.5"
    assert run.data.params["fit.iterations"] == "50"


def test_the_looks_of_a_watched_training_are_in_its_run_by_their_updates(receipt):
    run = client().get_run(receipt["train"]["train cd"])
    for place, key in enumerate(LOOKS):
        history = client().get_metric_history(run.info.run_id, f"watch_{key}")
        assert {m.step: m.value for m in history} == {20: seen(20)[place], 40: seen(40)[place]}
    assert len(client().get_metric_history(run.info.run_id, "train_loss")) == 49
    other = client().get_run(receipt["train"]["train pd2"])
    assert not [key for key in other.data.metrics if key.startswith("watch_")]


def test_many_looks_are_thinned_and_the_last_is_there(tmp_path):
    write_curve(tmp_path / "curve.csv", 1050, 2)
    rows = looks(tmp_path / "curve.csv")
    assert len(rows) <= CURVE_ROWS
    assert rows[-1]["step"] == 1050


def test_a_teacher_that_was_trained_elsewhere_has_a_run_without_a_curve(receipt):
    run = client().get_run(receipt["train"]["train teacher"])
    assert run.data.metrics == {}
    assert run.data.params["fit.iterations"] == "50"
    assert [Path(f.path).name for f in client().list_artifacts(run.info.run_id)] == ["teacher.csv"]


def test_a_long_curve_is_thinned_to_means(tmp_path):
    write_curve(tmp_path / "curve.csv", 1050)
    rows = thinned(tmp_path / "curve.csv")
    assert len(rows) <= CURVE_ROWS
    assert (rows[0]["step"], rows[-1]["step"]) == (11, 1050)
    assert rows[0]["loss"] == pytest.approx(sum(1 / k for k in range(1, 12)) / 11)


def test_the_frontiers_run_holds_files_and_every_parameter(receipt):
    run = client().get_run(receipt["frontier"])
    assert {f.path for f in client().list_artifacts(run.info.run_id)} == {
        "frontier.json",
        "frontier.csv",
        "frontier.png",
        "all.png",
        "report.html",
    }
    wanted = {"seed": "0", "evaluate.images": "1000", "search.estimator": "residual", "publish.tolerance": "0.14"}
    assert run.data.params == wanted
    assert run.data.tags["recommended"] == "pd2-ddim-uniform-2"


def test_each_point_is_a_logged_model_and_weights_are_copied_once_for_each_student(receipt):
    models = {name: client().get_logged_model(found) for name, found in receipt["models"].items()}
    assert set(models) == {p.name for p in few_points().points}
    carried = {name for name, model in models.items() if model.tags["weights"] == "here"}
    assert carried == {"pd2-ddim-uniform-2", "pd1-ddim-uniform-1", "cd-ddim-uniform-2"}
    assert len(list(Path("mlruns").rglob("*.safetensors"))) == 3
    assert not list(Path("mlruns").rglob("*.pkl"))
    fd = {m.key: (m.value, m.step) for m in models["teacher-ddim-uniform-4"].metrics}["fd"]
    assert fd == (13.0, 4)


def test_the_recommended_point_is_registered_as_challenger(receipt):
    version = client().get_model_version_by_alias("sampler", "challenger")
    assert str(version.version) == receipt["version"]["version"] == "1"
    tags = {key: version.tags[key] for key in ("method", "nfe", "fd", "digest", "point")}
    digest = json.loads(Path("artifacts/checkpoints/pd2/card.json").read_text())["digest"]
    assert tags == {"method": "progressive", "nfe": "2", "fd": "1.7", "digest": digest, "point": "pd2-ddim-uniform-2"}
    assert version.source == f"models:/{receipt['models']['pd2-ddim-uniform-2']}"


def test_the_signature_says_what_goes_in_and_comes_out(receipt):
    import mlflow

    signature = mlflow.models.get_model_info(f"models:/{receipt['models']['pd2-ddim-uniform-2']}").signature
    assert signature.inputs.input_names() == ["num_images"]
    (images,) = signature.outputs.inputs
    assert (images.shape, images.type) == ((-1, 8, 12, 3), np.dtype("uint8"))
    assert signature.params.params[0].name == "seed"


def test_a_shipped_model_asks_for_the_packages_it_needs_as_an_index_serves_them(receipt, monkeypatch):
    """torch==2.5.1+cpu is served by none."""
    (told,) = Path("mlruns").rglob(f"{receipt['models']['pd2-ddim-uniform-2']}/artifacts/requirements.txt")
    asked = dict(line.split("==") for line in told.read_text().split())
    assert asked == {name: version(name).split("+")[0] for name in ("mlflow", "torch", "numpy", "safetensors")}
    monkeypatch.setattr("tasks.tracking.models.version", lambda package: f"{len(package)}.5.1+cu128")
    assert _pin("torch") == "torch==5.5.1"


@pytest.mark.parametrize("name", ["g2.5", "skip0.8to1", "a/b:c", "100%", "it's", 'a"b', "plain_name-1"])
def test_a_point_of_any_name_is_a_model_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_logged_model_name

    _validate_logged_model_name(_model_name(point("teacher", 4, 13.0, name=name)))


def test_publishing_twice_creates_nothing_new(room):
    first, before = publish(), counts(room)
    second, after = publish(), counts(room)
    assert first == second
    assert before == after
    assert before["runs"] == 3 + 4 + 3
    assert before["logged_models"] == 6


def test_where_nothing_is_new_no_torch_is_imported(receipt):
    """Its import takes as long as all the rest."""
    room = Path.cwd()
    before = counts(room)
    code = "import sys; from pathlib import Path; from tasks.tracking import publishing; "
    code += f"publishing.publish(Path('artifacts'), 'distill', 'sampler', {PARAMETERS}); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert "mlflow" in modules
    assert not modules & {"torch", "safetensors", "accelerate", "matplotlib"}
    assert counts(room) == before


@pytest.mark.parametrize("fault", [False, True])
def test_the_collector_is_put_back_as_it_was(room, monkeypatch, fault):
    rare = []

    def work(*_) -> dict:
        rare.append(gc.get_threshold()[0])
        return {"all": 1 / (not fault)}

    monkeypatch.setattr(publishing, "_publish", work)
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError) if fault else contextlib.nullcontext():
        publish()
    assert rare == [publishing.OBJECTS]
    assert gc.get_threshold() == before


def test_only_the_way_that_changed_gets_a_new_run(room):
    first = publish()
    changed = but(few_points(), 2, metrics=few_points().points[2].metrics | {"fd": Estimate(1.65, 0.068)})
    second = publish(changed)
    assert [name for name in first["runs"] if first["runs"][name] != second["runs"][name]] == ["progressive"]
    assert first["train"] == second["train"]
    old = client().get_run(first["runs"]["progressive"])
    assert (old.data.tags["current"], old.info.lifecycle_stage) == ("false", "active")
    gone = first["models"]["pd1-ddim-uniform-1"]
    assert client().get_logged_model(gone).tags["current"] == "false"
    assert len(second["models"]) == 6
    assert second["version"] == first["version"]
    client().set_logged_model_tags(
        gone, {"current": "true"}
    )  # as a kill between a run's mark and its models' leaves it
    assert publish() == second


def test_what_a_run_shows_besides_numbers_makes_it_new_too(room):
    """Parameters and pictures; and a model whose digest a kill left unwritten is as good as any."""
    first = publish()
    client().delete_logged_model_tag(first["models"]["pd2-ddim-uniform-2"], "files")
    grids.grid(ramp(4, 8, 8, 1)[::-1], room / "artifacts/samples/cd-ddim-uniform-2.png")
    second = publishing.publish(Path("artifacts"), "distill", "sampler", PARAMETERS | {"seed": 1})
    assert [name for name in first["runs"] if first["runs"][name] != second["runs"][name]] == ["consistency"]
    assert second["train"] == first["train"]
    assert client().get_run(second["frontier"]).data.params["seed"] == "1"
    same = {name for name in first["models"] if first["models"][name] == second["models"][name]}
    assert same == {name for name in first["models"] if not name.startswith("cd-")}
    assert second["version"] == first["version"]


def test_an_earlier_frontier_that_comes_back_is_found_again(room):
    first = publish()
    changed = but(few_points(), 2, metrics=few_points().points[2].metrics | {"fd": Estimate(1.65, 0.068)})
    publish(changed)
    before = counts(room)
    third = publish(few_points())
    assert third == first
    assert {**counts(room), "tags": 0} == {**before, "tags": 0}
    assert client().get_run(first["runs"]["progressive"]).data.tags["current"] == "true"
    assert client().get_logged_model(first["models"]["pd1-ddim-uniform-1"]).tags["current"] == "true"


@pytest.mark.slow
def test_the_alias_challenger_moves_and_production_stays(room):
    publish()
    client().set_registered_model_alias("sampler", "production", "1")
    second = publish(table(few_points().points, "cd-ddim-uniform-1"))
    assert aliases() == {"challenger": "2", "best_quality": "1", "fastest": "1", "production": "1"}
    moved = client().get_logged_model(second["models"]["cd-ddim-uniform-1"])
    assert moved.tags["weights"] == "here"
    assert (moved.experiment_id, moved.source_run_id) == (second["experiment_id"], second["runs"]["consistency"])
    before = counts(room)
    assert publish() == second
    assert counts(room) == before
    publish(few_points())
    assert aliases() == {"challenger": "1", "best_quality": "1", "fastest": "1", "production": "1"}
    assert counts(room)["model_versions"] == 2


def test_what_a_person_did_in_the_experiment_does_not_end_publishing(room, capsys):
    """A run of their own, and the recommended point's logged model deleted: it is logged again, into the curve's run, and
    registered anew; then all is as it should be."""
    first = publish()
    mine = client().create_run(first["experiment_id"], run_name="by hand").info.run_id
    client().set_terminated(mine)
    gone = first["models"]["pd2-ddim-uniform-2"]
    client().delete_logged_model(gone)
    capsys.readouterr()
    second = publish()
    said = capsys.readouterr().out
    assert "what MLflow held of pd2-ddim-uniform-2 was deleted; logged again" in said
    assert "version 1 of 'sampler' in MLflow is damaged; version 2 takes its place" in said
    new = second["models"].pop("pd2-ddim-uniform-2")
    assert second["models"].items() == first["models"].items() - {("pd2-ddim-uniform-2", gone)}
    model = client().get_logged_model(new)
    assert (model.experiment_id, model.source_run_id) == (first["experiment_id"], first["runs"]["progressive"])
    assert model.tags["weights"] == "here"
    assert client().get_model_version_by_alias("sampler", "challenger").source == f"models:/{new}"
    assert "current" not in client().get_run(mine).data.tags
    before = counts(room)
    assert publish()["models"] == second["models"] | {"pd2-ddim-uniform-2": new}
    assert counts(room) == before


def aliases() -> dict[str, str]:
    return {name: str(number) for name, number in client().get_registered_model("sampler").aliases.items()}


@pytest.mark.parametrize(
    "other",
    [{"recipe": '{"sampler": "unipc"}', "sampler": "unipc"}, {"trajectory": "karras"}, {"nfe": 3}],
    ids=["recipe", "trajectory", "calls"],
)
def test_another_way_to_sample_the_same_weights_is_another_thing_to_ship(other):
    first = point("teacher", 2, 1.5)
    same = dataclasses.replace(first, metrics=first.metrics | {"fd": Estimate(1.6, 0.1)}, name="x", ms_per_image=9.0)
    assert identity_of(first) == identity_of(same)
    assert identity_of(dataclasses.replace(first, **other)) != identity_of(first)
    assert identity_of(dataclasses.replace(first, checkpoint_digest="f" * 64)) != identity_of(first)


def test_a_recommended_sampler_of_the_teacher_carries_its_weights_and_gamma(room):
    points = [*few_points().points, point("teacher", 2, 1.5, sampler="analytic")]
    receipt = publish(table(points, "teacher-analytic-uniform-2"))
    import mlflow

    info = mlflow.models.get_model_info(f"models:/{receipt['models']['teacher-analytic-uniform-2']}")
    flavor = info.flavors["python_function"]
    assert set(flavor["artifacts"]) == {"checkpoint", "gamma"}
    assert flavor["config"] == {"recipe": '{"sampler": "analytic"}', "times": [1.0, 0.5, 0.0]}


def test_a_publisher_killed_half_way_is_followed_by_a_whole_run(room, monkeypatch):
    log_image = _log_images
    monkeypatch.setattr("tasks.tracking.run_specs._log_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish()
    monkeypatch.setattr("tasks.tracking.run_specs._log_images", log_image)
    receipt = publish()
    runs = client().search_runs([receipt["experiment_id"]], "tags.current = 'true'")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 10
    assert publish() == receipt


def test_files_are_only_read(written, receipt):
    """Those that were published are as they were written."""

    def state(folder: Path) -> dict:
        return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    assert state(Path("artifacts")) == state(written)
    assert len(state(written)) > 6


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_server_that_is_down_is_a_mistake_at_once(room, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"MLflow at http://127\.0\.0\.1:\d+ does not answer: .*refused.*; run `distill up`"
    ):
        publish()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "name", ["frontier.json", "frontier.csv", "samples/pd2-ddim-uniform-2.png", "checkpoints/pd2/card.json"]
)
def test_a_missing_file_is_named(room, name):
    (room / "artifacts" / name).unlink()
    with pytest.raises(UserError, match=f"{Path(name).name}"):
        publish()


def test_a_deleted_experiment_is_a_mistake(room):
    receipt = publish()
    client().delete_experiment(receipt["experiment_id"])
    with pytest.raises(UserError, match="'distill' was deleted"):
        publish()


def test_how_to_open_names_the_server_or_the_command():
    ui = CHART.format(7)
    assert how_to_open({"tracking_uri": "http://a:1/", "ui": ui}) == f"MLflow: http://a:1/{ui}"
    assert "--backend-store-uri sqlite:///mlflow.db" in how_to_open({"tracking_uri": "sqlite:///mlflow.db", "ui": ui})


PUBLISH = """
import json, sys
from pathlib import Path
from tasks.tracking.publishing import publish
print(json.dumps(publish(Path("artifacts"), "distill", "sampler", {"seed": 0, "publish": {"tolerance": 0.14}})))
"""


@pytest.mark.slow
def test_two_processes_on_a_fresh_database_publish_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(paths.__file__).parent.parent))
    write_files(tmp_path / "artifacts", small_table())
    command = [sys.executable, "-c", PUBLISH]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in said)  # who waits says so first
    assert one == other
    assert [err for _, err in said] == ["", ""]
    assert counts(tmp_path)["runs"] == 4 + 3 + len(one["train"])


def test_students_are_among_the_runs_that_the_page_opens_with():
    def spec(name: str, method: str) -> RunSpec:
        return RunSpec("curve", name, {"points": [{"method": method}]}, lambda run: None)

    teacher = [spec(f"teacher {k}", "teacher") for k in range(12)]
    found = students_early([*teacher, spec("progressive", "progressive"), spec("consistency", "consistency")])
    assert [each.name for each in found[:4]] == ["teacher 0", "progressive", "consistency", "teacher 1"]
    assert len(found) == 14


def test_the_runs_are_made_in_the_order_in_which_the_page_shows_them_backwards(tmp_path, monkeypatch):
    """It opens with the newest ten."""
    write_files(tmp_path, few_points())
    made = []

    def enter(experiment: Experiment, specs: list[RunSpec]) -> None:
        made.extend(spec.name for spec in specs)
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.tracking.publishing.enter", enter)
    with pytest.raises(KeyboardInterrupt):
        _publish(read(tmp_path, PARAMETERS), Experiment(None, "1"), "m")
    curves = ["teacher ddim uniform", "progressive", "consistency"]
    trained = ["train cd", "train pd1", "train pd2", "train teacher"]
    first = "recommended: pd2-ddim-uniform-2"
    assert made[::-1] == [first, *curves, "real against real", "frontier", *trained]


def test_the_newest_of_several_sound_versions_is_the_challenger(monkeypatch):
    """By number: 10 comes after 9. One that holds another point or is damaged does not count."""
    artifacts = Artifacts(Path(), few_points(), {}, PARAMETERS)
    wanted = identity_of(artifacts.recommended)
    versions = [SimpleNamespace(version=n, tags=dict(wanted)) for n in ("9", "10", "2", "11")]
    versions += [SimpleNamespace(version="12", tags={**wanted, key: "other"}) for key in wanted]
    versions[3].tags["damaged"] = "replaced by version 10"
    moved = []

    class Answer(list):
        token = None

    fake = SimpleNamespace(
        search_model_versions=lambda condition, page_token: Answer(versions if condition == "name = 'm'" else ()),
        get_registered_model=lambda name: SimpleNamespace(aliases={"challenger": "9", "production": "2"}),
        set_registered_model_alias=lambda *words: moved.append(words),
    )
    monkeypatch.setattr(
        "tasks.tracking.models._version_fault", lambda experiment, artifacts, p, v: "bad" if v.version == "11" else None
    )
    assert register(Experiment(fake, "7"), artifacts, "m", {artifacts.recommended.name: None}) == dict.fromkeys(
        ALIASES, "10"
    )
    assert moved == [("m", alias, "10") for alias in ALIASES]


# ---- what is shipped is verified


def flip(path: Path) -> None:
    """Turns one bit over in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SHIPPED = [
    "checkpoints/pd2/unet/diffusion_pytorch_model.safetensors",
    "checkpoints/pd2/unet/config.json",
    "checkpoints/teacher/card.json",
    "samples/pd1-ddim-uniform-1.png",
    "samples/all.png",
    "frontier.png",
    "frontier.csv",
]


def refused() -> str:
    """What the command says of a `publish` that cannot be, in one line."""
    with pytest.raises((UserError, OSError)) as caught:
        publish()
    line = faults.describe(caught.value) or str(caught.value)
    assert line.isprintable()
    assert isinstance(caught.value, UserError) or faults.describe(caught.value)
    return line


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "a folder"])
@pytest.mark.parametrize("name", [*SHIPPED, "frontier.json", "checkpoints/pd2/card.json"])
def test_no_damaged_file_is_published(room, name, damage):
    path = room / "artifacts" / name
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    before = (room / "mlflow.db").read_bytes()
    assert Path(name).name in refused()
    assert (room / "mlflow.db").read_bytes() == before
    assert not (room / "mlruns").exists()


@pytest.mark.parametrize("name", ["curves/pd2.csv", "cost/pd2.json"])
def test_no_damaged_curve_is_published(room, name):
    flip(room / "artifacts" / name)
    with pytest.raises(UserError, match=Path(name).name):
        publish()
    assert counts(room)["runs"] == 0


@pytest.mark.parametrize("name", ["curves/pd2.csv", "cost/pd2.json"])
def test_a_folder_in_the_place_of_a_curve_is_one_line(room, name):
    (room / "artifacts" / name).unlink()
    (room / "artifacts" / name).mkdir()
    assert Path(name).name in refused()


def test_gamma_of_another_teacher_is_not_shipped(room):
    write_files(
        Path("artifacts"),
        table([*few_points().points, point("teacher", 2, 1.5, sampler="analytic")], "cd-ddim-uniform-1"),
    )
    flip(room / "artifacts/gamma.json")
    with pytest.raises(UserError, match=r"gamma\.json"):
        publish()
    disk.write_sealed(
        room / "artifacts/gamma.json", {"schema": gamma.SCHEMA, "about": {"checkpoint_digest": "other" * 9}}
    )
    with pytest.raises(UserError, match=r"gamma.json was estimated from checkpoint other"):
        publish()


def test_another_network_than_the_one_that_was_measured_is_not_published(room):
    shutil.rmtree(room / "artifacts/checkpoints/pd2")
    shutil.copytree(room / "artifacts/checkpoints/pd1", room / "artifacts/checkpoints/pd2")
    with pytest.raises(
        UserError, match="checkpoints/pd2 is not the network that was measured; run the stage `measure pd2` again"
    ):
        publish()


def held(receipt: dict, name: str, file: str) -> Path:
    (found,) = Path("mlruns").rglob(f"{receipt['models'][name]}/artifacts/{file}")
    return found


@pytest.mark.parametrize(
    "file",
    [
        "artifacts/pd2/unet/diffusion_pytorch_model.safetensors",
        pytest.param("artifacts/pd2/card.json", marks=pytest.mark.slow),
        pytest.param("MLmodel", marks=pytest.mark.slow),
        pytest.param("sampler_model.py", marks=pytest.mark.slow),
        pytest.param("code/diffcore/noise/angle.py", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", pytest.param("gone", marks=pytest.mark.slow)])
def test_a_registered_version_that_is_damaged_is_replaced_aloud(room, capsys, file, damage):
    first = publish()
    client().set_registered_model_alias("sampler", "production", "1")
    path = held(first, "pd2-ddim-uniform-2", file)
    flip(path) if damage == "flipped" else path.unlink()
    capsys.readouterr()
    second = publish()
    said = capsys.readouterr().out
    assert aliases() == {"challenger": "2", "best_quality": "2", "fastest": "2", "production": "1"}
    assert second["version"]["version"] == "2"
    assert "version 1 of 'sampler' in MLflow is damaged; version 2 takes its place" in said
    assert "the alias 'production' of 'sampler' names the damaged version 1: set it anew" in said
    assert not [alias for alias in ALIASES if alias in said]  # which have moved
    assert second["models"]["pd2-ddim-uniform-2"] != first["models"]["pd2-ddim-uniform-2"]
    assert client().get_logged_model(first["models"]["pd2-ddim-uniform-2"]).tags["current"] == "false"
    whole = Path("artifacts/checkpoints/pd2/unet/diffusion_pytorch_model.safetensors").read_bytes()
    copied = held(second, "pd2-ddim-uniform-2", "artifacts/pd2/unet/diffusion_pytorch_model.safetensors")
    assert copied.read_bytes() == whole
    before = counts(room)
    client().set_registered_model_alias("sampler", "production", "2")
    capsys.readouterr()
    assert publish() == second
    assert counts(room) == before
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_weights_of_another_point_that_are_damaged_are_logged_again(room, capsys):
    first = publish()
    flip(held(first, "cd-ddim-uniform-2", "artifacts/cd/unet/diffusion_pytorch_model.safetensors"))
    second = publish()
    assert "what MLflow holds of cd-ddim-uniform-2 is damaged" in capsys.readouterr().out
    changed = {name for name in first["models"] if first["models"][name] != second["models"][name]}
    assert changed == {"cd-ddim-uniform-2"}
    assert second["version"] == first["version"]
    assert publish() == second


def test_what_mlflow_did_not_copy_rightly_is_a_mistake(room, monkeypatch):
    import mlflow

    log_model = mlflow.pyfunc.log_model

    def badly(**options):
        logged = log_model(**options)
        flip(next(Path("mlruns").rglob(f"{logged.model_id}/**/*.safetensors")))
        return logged

    monkeypatch.setattr(mlflow.pyfunc, "log_model", badly)
    with pytest.raises(
        UserError, match=r"MLflow did not keep .* as it is: artifacts/.*safetensors is changed in .*; publish again"
    ):
        publish()


# ---- addresses and passwords

SECRET = "s3sam/e op@n"
TOLD = ("s3sam", "op%40n", "op@n", base64.b64encode(f"me:{SECRET}".encode()).decode())


def assert_untold(folder: Path, *texts: str) -> None:
    """The password stands in no text, and in no file below a folder in any form."""
    for text in texts:
        assert not [form for form in TOLD if form in text], text
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [form for form in TOLD if form.encode() in content], path


class Guarded(http.server.BaseHTTPRequestHandler):
    """A server that demands a password, keeps what it is told, and repeats it in what it refuses."""

    heard: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        header = self.headers.get("Authorization")
        self.heard.append((self.path, header))
        right = header == f"Basic {TOLD[-1]}"
        self.send_response(403 if right else 401)
        self.end_headers()
        self.wfile.write(f"no experiments for {header} of {self.path}".encode())

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    Guarded.heard.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["in the address", "by variables"])
def test_a_password_reaches_the_server_and_nothing_else(room, monkeypatch, capsys, guarded, way):
    if way == "in the address":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{quote(SECRET, safe='')}@{guarded}")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{guarded}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    before = dict(os.environ)
    with pytest.raises(UserError, match=rf"MLflow at http://{guarded} refuses: .*403") as caught:
        publish()
    assert (f"Basic {TOLD[-1]}") in {header for path, header in Guarded.heard if path.startswith("/api")}
    assert not [path for path, _ in Guarded.heard if "s3sam" in path]
    assert_untold(room, redaction.redact(str(caught.value)), *capsys.readouterr())
    assert dict(os.environ) == before | {name: os.environ[name] for name in QUIET}


GARBAGE = [
    "garbage",
    "://",
    "/tmp",
    "http://",
    "http://[",
    "http://host:port",
    "ftp://x/y",
    "nonsense://a/b",
    "file:///tmp/nothing",
    "sqlite:",
    "sqlite://",
    "sqlite:///",
    "databricks",
    "uc://x",
    f"postgresql://me:{quote(SECRET)}@127.0.0.1:1/db",
    f"mysql+pymysql://me:{SECRET}@127.0.0.1:1/db",
    f"http://me:{SECRET}@127.0.0.1:1",
    f"https://me:{quote(SECRET)}@[::1]:1/a?token={quote(SECRET)}",
]


@pytest.mark.parametrize("address", GARBAGE)
def test_garbage_for_an_address_is_one_line_without_a_password(room, monkeypatch, capsys, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError) as caught:
        publish()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert_untold(room, redaction.redact(str(caught.value)), *capsys.readouterr())


def test_a_store_that_cannot_be_written_to_is_one_line(room, monkeypatch):
    (room / "mlruns").write_text("a file where MLflow would make a folder")
    assert re.search(r"mlruns.*: a file is where a folder should be; move it away", refused())


def test_the_receipt_and_the_way_to_open_it_hold_no_password(monkeypatch):
    receipt = {"tracking_uri": f"https://me:{quote(SECRET)}@h:8/a", "ui": "#x"}
    assert how_to_open(receipt) == "MLflow: https://h:8/a/#x"
    assert '"$MLFLOW_TRACKING_URI"' in how_to_open({"tracking_uri": f"postgresql://me:{SECRET}@h/db", "ui": ""})


MLFLOW_BEHIND_A_PASSWORD = """
import base64, sys, warnings
warnings.simplefilter("ignore")
from mlflow.server import app
from werkzeug.serving import make_server

wanted = "Basic " + base64.b64encode(sys.argv[1].encode()).decode()

def guarded(environment, start):
    if environment.get("HTTP_AUTHORIZATION") != wanted and environment["PATH_INFO"] != "/health":
        start("401 Unauthorized", [])
        return [b"who are you?"]
    return app(environment, start)

server = make_server("127.0.0.1", 0, guarded, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.slow
def test_a_whole_publication_to_a_server_with_a_password(tmp_path, monkeypatch, fresh_store):
    """Everything is published, by the command line, and the password lies nowhere: files, database, terminal."""
    root = Path(paths.__file__).parent.parent
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    shutil.copy(fresh_store, tmp_path / "server" / "mlflow.db")
    write_files(tmp_path / "client" / "artifacts", few_points())
    shutil.copy(root / "params.yaml", tmp_path / "client")
    surroundings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tmp_path}/server/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(tmp_path / "server" / "mlruns"),
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-c", MLFLOW_BEHIND_A_PASSWORD, f"me:{SECRET}"]
    with open(tmp_path / "server" / "log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path / "server", env=surroundings, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        port = server.stdout.readline().strip()
        address = f"http://me:{quote(SECRET, safe='')}@127.0.0.1:{port}"
        done = subprocess.run(
            [sys.executable, "-m", "tasks", "publish"],
            cwd=tmp_path / "client",
            env={**surroundings, "MLFLOW_TRACKING_URI": address},
            capture_output=True,
            text=True,
        )
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert done.returncode == 0, done.stderr
    receipt = json.loads((tmp_path / "client/artifacts/published.json").read_text())
    assert receipt["tracking_uri"] == f"http://127.0.0.1:{port}"
    assert counts(tmp_path / "server")["runs"] == 3 + 4 + 3
    assert list((tmp_path / "server/mlruns").rglob("*.safetensors"))
    assert_untold(tmp_path, done.stdout, done.stderr)


# ---- many points


@pytest.mark.parametrize("count", [1, 50, 400, 1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_note_holds_as_many_points_as_mlflow_takes_and_counts_the_rest(count):
    points = [point("consistency", 1 + k % 64, 1 + k / count, name=f"student-{k}-" + "x" * 40) for k in range(count)]
    lines = _lines(points, 19_000)
    assert len("\n".join(lines)) <= 19_000
    shown = [line for line in lines if line.startswith("| student")]
    if count <= 50:
        assert len(shown) == count
    else:
        assert len(shown) == 64  # the best of each number of calls
        assert lines[-1] == f"{count - 64} more points: frontier.csv in the run frontier holds all."
    assert "student-0-" in shown[0]


@pytest.mark.slow
def test_a_thousand_points_are_published(room):
    points = [point("teacher", 4, 13.0)]
    points += [point("consistency", 1 + k // 20, 2 + k / 500, curve=f"student {k % 20}") for k in range(1000)]
    points = [dataclasses.replace(each, name=f"{each.name}-{k}") for k, each in enumerate(points)]
    receipt = publish(table(points, points[1].name))
    assert len(receipt["models"]) == 1001
    note = client().get_experiment(receipt["experiment_id"]).tags["mlflow.note.content"]
    assert len(note) <= NOTE
    before = counts(room)
    assert publish() == receipt
    assert counts(room) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "left", ["whole", "gone", *(pytest.param(each, marks=pytest.mark.slow) for each in ("another", "a folder"))]
)
def test_the_pipeline_publishes_again_where_mlflow_s_own_file_is_gone(room, monkeypatch, capsys, left):
    """DVC knows the receipt alone, and finds nothing to do."""
    disk.write_sealed(paths.PUBLISHED, publish())
    asked = []
    monkeypatch.setattr(report, "_repro", lambda *words: asked.append(words) or 7)
    book = room / "mlflow.db"
    if left != "whole":
        book.unlink()
    if left == "another":
        database.ready(book)
    elif left == "a folder":
        book.mkdir()
    code = report._published_again()
    assert (code, asked) == ((0, []) if left == "whole" else (7, [("--force", "--single-item", "publish")]))
    assert ("publishing again" in capsys.readouterr().out) == (left != "whole")


@pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's advice, see tasks/sampler_model.py
def test_a_row_of_a_shipped_model_asks_for_images_of_its_own_class():
    import pandas

    from tasks.sampler_model import SamplerModel

    model = SamplerModel()
    model._draw = lambda count, seed, labels: (count, seed, None if labels is None else list(labels))
    rows = pandas.DataFrame({"num_images": [2, 1, 3], "label": [7, 8, 9]})
    assert model.predict(None, rows, {"seed": 5}) == (6, 5, [7, 7, 8, 9, 9, 9])
    assert model.predict(None, rows[["num_images"]]) == (6, 0, None)
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        model.predict(None, pandas.DataFrame({"num_images": [0]}))


# ---- what each run and model says


def test_every_model_says_of_its_point_what_the_table_says(receipt):
    """Each key alone, for every point; a point of a student's has the weights of its own checkpoint only."""
    for point_ in few_points().points:
        card = json.loads(Path(f"artifacts/checkpoints/{point_.checkpoint}/card.json").read_text())
        model = client().get_logged_model(receipt["models"][point_.name])
        keys = ("method", "checkpoint", "sampler", "trajectory", "recipe", "nfe", "seed", "n")
        params = {
            key: value for key, value in model.params.items() if key != "times"
        }  # which MLflow adds of a run's first
        assert params == {key: str(getattr(point_, key)) for key in keys}
        tags = {key: value for key, value in model.tags.items() if not key.startswith("mlflow.")}
        weights = tags.pop("weights")
        assert ("files" in tags) == (weights == "here")
        tags.pop("files", None)
        assert tags == {
            "digest": card["digest"],
            "recipe": point_.recipe,
            "trajectory": point_.trajectory,
            "nfe": f"{point_.nfe:g}",
            "point": point_.name,
            "method": point_.method,
            "fd": f"{point_.fd:.4g}",
            "current": "true",
        }
        assert weights in ("here", f"not here: checkpoints/{point_.checkpoint}")
        curve = next(name for name, ps in charts.by_curve(few_points().points).items() if point_ in ps)
        assert model.source_run_id == receipt["runs"][curve]
        assert (model.name, model.model_type) == (_model_name(point_), "sampler")
        logged = {metric.key: (metric.value, metric.step) for metric in model.metrics}
        wanted = {key: value for key, value in point_.row().items() if key in SHOWN and value is not None}
        assert logged == {key: (value, point_.nfe) for key, value in wanted.items()}
        if weights == "here":  # the step at which the run's page shows it
            steps = {each.model_id: each.step for each in client().get_run(model.source_run_id).outputs.model_outputs}
            assert steps[model.model_id] == point_.nfe


def test_every_run_says_what_it_was_made_from(receipt):
    def told(run: str) -> tuple[dict, dict]:
        data = client().get_run(run).data
        return data.params, {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")}

    def card(name: str) -> dict:
        return json.loads(Path(f"artifacts/checkpoints/{name}/card.json").read_text())

    about = {f"evaluate/{key}": str(value) for key, value in few_points().about.items()}
    specs = {}
    for curve, names in (
        ("teacher ddim uniform", ["teacher"]),
        ("progressive", ["pd1", "pd2"]),
        ("consistency", ["cd"]),
    ):
        params, tags = told(receipt["runs"][curve])
        trained = {
            f"{name}/fit.{key}": value for name in names for key, value in (("iterations", "50"), ("lr", "0.001"))
        }
        assert {key: value for key, value in params.items() if key not in ("recipe", "times")} == about | trained
        specs[curve] = tags.pop("digest")
        method = curve.split()[0]
        digests = {f"digest {name}": card(name)["digest"] for name in names}
        assert tags == {"kind": "curve", "current": "true", "method": method, **digests}
    for name in ("teacher", "cd", "pd1", "pd2"):
        params, tags = told(receipt["train"][f"train {name}"])
        assert params == {
            "fit.iterations": "50",
            "fit.lr": "0.001",
            "seed": "0",
            "cost.seconds": "3.5",
            "cost.iterations": "50",
        }
        specs[name] = tags.pop("digest")
        mine = {f"digest {name}": card(name)["digest"], "method": card(name)["method"], "data": card(name)["data"]}
        assert tags == {"kind": "train", "current": "true", "parent": "none", **mine}
    params, tags = told(receipt["frontier"])
    specs["frontier"] = tags.pop("digest")
    chosen = few_points().recommended
    assert tags == {"kind": "frontier", "current": "true", "recommended": chosen.point.name, "reason": chosen.reason}
    metrics = client().get_run(receipt["frontier"]).data.metrics
    floor = columns(few_points().floor.metrics)
    assert list(floor) == ["fd", "fd_se", "kid", "kid_se", "fd_pixels", "fd_pixels_se"]
    assert metrics == {f"floor_{key}": value for key, value in floor.items()}
    assert len(set(specs.values())) == len(specs)


def test_the_floor_is_a_level_line_under_all_curves(receipt):
    (run,) = client().search_runs([receipt["experiment_id"]], "tags.kind = 'floor'")
    assert run.info.run_name == "real against real"
    for key, value in columns(few_points().floor.metrics).items():
        logged = {metric.step: metric.value for metric in client().get_metric_history(run.info.run_id, key)}
        assert logged == {1: value, 2: value, 4: value}


def test_the_receipt_and_the_experiment_s_page_tell_what_is_there(receipt):
    experiment = client().get_experiment(receipt["experiment_id"])
    assert experiment.name == "distill"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    version = {"name": "sampler", "version": "1", "alias": "challenger", "point": "pd2-ddim-uniform-2"}
    assert receipt["version"] == version
    assert receipt["ui"] == CHART.format(receipt["experiment_id"])
    note = experiment.tags["mlflow.note.content"].splitlines()
    chosen = few_points().recommended
    assert note[0] == f"Recommended: **pd2-ddim-uniform-2** (sampler version 1). {chosen.reason}"
    rows = [line.split(" | ")[0].removeprefix("| ") for line in note if " +- " in line]
    assert rows == [p.name for p in sorted(few_points().points, key=lambda p: (p.nfe, p.fd))]
    assert "| pd2-ddim-uniform-2 | 2 | 1.700 +- 0.068 | 0.08 |" in note


@pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's advice when its pyfunc is imported
@pytest.mark.parametrize(("calls", "step"), [(2.6, 3), (3.4, 3), (0.6, 1)])
def test_a_point_of_a_mean_number_of_calls_is_shown_at_the_nearest_step(tmp_path, monkeypatch, calls, step):
    """As an adaptive sampler's: numbers, pictures, floor and model alike. Its own metric and tag tell it as it is."""
    row = dataclasses.replace(point("teacher", 4, 13.0, sampler="rk45"), nfe=calls)
    write_files(tmp_path, table([row], row.name))
    artifacts, told, shown, kept = read(tmp_path, PARAMETERS), [], [], []
    fake = SimpleNamespace(
        log_batch=lambda run, metrics, params, tags: told.extend(metrics),
        log_image=lambda run, image, key, step: shown.append((run, key, step)),
    )
    monkeypatch.chdir(tmp_path)
    pyfunc, logged = importlib.import_module("mlflow.pyfunc"), SimpleNamespace(model_id="m")
    monkeypatch.setattr(pyfunc, "log_model", lambda **words: kept.append(words) or logged)
    monkeypatch.setattr("tasks.tracking.models._seal", lambda *_: None)
    experiment = Experiment(fake, "1")
    (spec,) = curve_specs(experiment, artifacts)
    spec.fill("r")
    assert {(metric.step, metric.model_id) for metric in told} == {(step, "m")}
    assert {metric.key: metric.value for metric in told}["nfe"] == calls
    assert shown == [("r", "samples", 0), ("r", "samples", step)]
    assert (kept[0]["step"], kept[0]["tags"]["nfe"], kept[0]["params"]["nfe"]) == (step, f"{calls:g}", f"{calls}")
    told.clear()
    floor_spec(experiment, artifacts).fill("r")
    assert {metric.step for metric in told} == {step}


def test_a_warning_stands_on_the_experiment_s_page(monkeypatch):
    shown, written = few_points(), []
    shown = dataclasses.replace(shown, recommended=dataclasses.replace(shown.recommended, warnings=("one", "two")))
    fake = SimpleNamespace(
        get_experiment=lambda number: SimpleNamespace(tags={}),
        set_experiment_tag=lambda *words: written.append(words),
    )
    write_note(Experiment(fake, "7"), Artifacts(Path(), shown, {}, PARAMETERS), "m", "3")
    ((number, key, note),) = written
    assert (number, key) == ("7", "mlflow.note.content")
    assert "(m version 3)" in note
    assert "\n\nWarning: one.\n\nWarning: two.\n" in note


@pytest.mark.parametrize(
    ("recommended", "carried"),
    [
        ("pd2-ddim-uniform-2", {"pd2-ddim-uniform-2", "pd1-ddim-uniform-1", "cd-ddim-uniform-2"}),
        ("cd-ddim-uniform-1", {"pd2-ddim-uniform-2", "pd1-ddim-uniform-1", "cd-ddim-uniform-1"}),
        (
            "teacher-ddim-uniform-1",
            {"pd2-ddim-uniform-2", "pd1-ddim-uniform-1", "cd-ddim-uniform-2", "teacher-ddim-uniform-1"},
        ),
    ],
)
def test_weights_go_with_the_recommended_point_or_a_student_s_best(recommended, carried):
    artifacts = Artifacts(Path(), table(few_points().points, recommended), {}, PARAMETERS)
    assert {p.name for p in artifacts.frontier.points if carries(artifacts, p)} == carried


def test_a_run_that_a_killed_publisher_left_is_marked_killed_and_no_longer_current(room, monkeypatch):
    """By its own name and no other's: what it had logged is not current either."""
    with monkeypatch.context() as patch:
        patch.setattr("tasks.tracking.run_specs._log_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("mlflow.start_run", started := Unfinished())
        with pytest.raises(KeyboardInterrupt):
            publish()
    receipt = publish()
    left = started.left
    run = client().get_run(left)
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")
    models = client().search_logged_models([receipt["experiment_id"]], filter_string=f"source_run_id = '{left}'")
    assert len(models) > 0
    assert {model.tags["current"] for model in models} == {"false"}
    assert not {model.model_id for model in models} & set(receipt["models"].values())


class Unfinished:
    """Stands in for MLflow's start_run: a run that an exception leaves is as kill -9 leaves it."""

    def __init__(self):
        import mlflow

        self.real = mlflow.start_run

    @contextlib.contextmanager
    def __call__(self, **words):
        import mlflow

        active = self.real(**words)
        try:
            yield active
        except KeyboardInterrupt:
            self.left = active.info.run_id
            mlflow.end_run()
            client().update_run(self.left, "RUNNING")
            raise
        mlflow.end_run()


def test_all_pages_of_an_answer_are_read():
    class Answer(list):
        token = None

    pages = {None: Answer([1, 2]), "a": Answer(), "b": Answer([3])}
    pages[None].token, pages["a"].token = "a", "b"
    assert list(every(pages.get)) == [1, 2, 3]


def test_of_more_logged_models_than_a_page_holds_all_are_seen():
    class Answer(list):
        token = None

    first, second, asked = Answer(["a", "b"]), Answer(["c"]), []
    first.token = "more"

    def search(experiments, filter_string, page_token):
        asked.append((experiments, filter_string, page_token))
        return second if page_token else first

    experiment = Experiment(SimpleNamespace(search_logged_models=search), "7")
    assert list(logged(experiment, "name = 'x'")) == ["a", "b", "c"]
    assert asked == [(["7"], "name = 'x'", None), (["7"], "name = 'x'", "more")]


def test_of_more_runs_than_a_page_holds_all_are_seen():
    """One that is there is taken from a later page too, and what is no longer shown there is marked."""

    class Answer(list):
        token = None

    def run(name: str, digest: str) -> SimpleNamespace:
        data = SimpleNamespace(tags={"digest": digest, "current": "true"})
        return SimpleNamespace(info=SimpleNamespace(run_id=name, status="FINISHED"), data=data)

    spec = RunSpec("curve", "a", {}, lambda run: pytest.fail("logged again"))
    first, second, marked = Answer([run("x", "gone")]), Answer([run("y", spec.digest), run("z", "gone too")]), []
    first.token = "more"
    fake = SimpleNamespace(
        search_runs=lambda experiments, page_token=None: second if page_token else first,
        set_tag=lambda *words: marked.append(words),
        search_logged_models=lambda *_, **__: Answer(),
    )
    assert enter(Experiment(fake, "7"), [spec]) == {spec.digest: "y"}
    assert marked == [("x", "current", "false"), ("z", "current", "false")]


def entered(artifacts: Artifacts) -> dict[str, str]:
    """The digest of each spec, by its name."""
    experiment = Experiment(None, "1")
    specs = [
        *curve_specs(experiment, artifacts),
        floor_spec(experiment, artifacts),
        frontier_spec(experiment, artifacts),
    ]
    return {spec.name: spec.digest for spec in (*specs, *train_specs(experiment, artifacts))}


def another(value: object) -> object:
    return {str: f"another {value}", tuple: (1.0, 0.0, 0.0)}.get(type(value), 9)


OTHERS = {"grid": [1.0, 0.0], "classes": ["a"], "guidance": {"low": 1.0}, "parent": "a", "teacher": "a", "image": [9]}
OTHERS |= {
    "cost": {"images": 1},
    "compute": {"device": "a"},
    "watch": {"at": 1},
    "reading": {"input": "flow"},
    "inputs": ["text"],
    "encoder": "a",
    "end": "any",
    "prompts": "a",
    **{key: {"another": "a"} for key in ("files", "parameters", "schedule")},
}
"""Other values of a card's fields that are neither words nor whole numbers."""


def other_metrics(metrics: dict[str, Estimate]) -> Iterator[dict[str, Estimate]]:
    """Each number of each metric alone, and each metric left out but the first."""
    for number, (name, each) in enumerate(metrics.items()):
        yield metrics | {name: dataclasses.replace(each, value=9.0)}
        yield metrics | {name: dataclasses.replace(each, se=9.0)}
        if number:
            yield {key: value for key, value in metrics.items() if key != name}


def others(point_: Point) -> Iterator[tuple[str, object]]:
    """(a field, another value of it), but for those that name it and those that all points share."""
    named = {"curve", "best", "name", "checkpoint", "method", "n", "seed", "features", "weights", "judges", "metrics"}
    rare = {"halves": (1.0, 2.0), "halves_se": 0.5, "crossfit": Estimate(1.0, 0.1), "trainings": (1.0, 2.0)}
    yield from rare.items()
    for key, value in vars(point_).items():
        if key not in named | rare.keys():
            yield key, float(another(value)) if isinstance(value, float) else another(value)
    yield from (("metrics", metrics) for metrics in other_metrics(point_.metrics))


def test_a_run_is_new_where_anything_that_it_shows_is_another(tmp_path, monkeypatch):
    """Each key and each file alone: the specs of runs that show it, and no other, have another digest."""
    write_files(tmp_path, few_points())
    first = entered(artifacts := read(tmp_path, {"seed": 0, "a": {"b": 1}}))
    curves, floor = {"teacher ddim uniform", "progressive", "consistency"}, "real against real"
    trained = {"train teacher", "train cd", "train pd1", "train pd2"}
    assert set(first) == {*curves, *trained, floor, "frontier"}
    assert len(set(first.values())) == len(first)

    def changed(**parts) -> set[str]:
        now = entered(dataclasses.replace(artifacts, **parts))
        return {name for name in first if now[name] != first[name]}

    shown = artifacts.frontier
    for number, each in enumerate(shown.points):
        for key, other in others(each):
            (curve,) = (name for name, alike in charts.by_curve(shown.points).items() if each in alike)
            other_curve = changed(frontier=but(shown, number, **{key: other}))
            assert other_curve == {curve, *([floor] if key == "nfe" else [])}, (key, other)
    for key in ("n", "seed", "features", "weights", "judges"):
        of_all = [dataclasses.replace(each, **{key: another(getattr(each, key))}) for each in shown.points]
        assert changed(frontier=of(shown, of_all)) == {*curves, floor}, key
    assert changed(frontier=dataclasses.replace(shown, data="another")) == {*curves, floor}
    with monkeypatch.context() as patch:
        patch.setattr("diffcore.metrics.frontier.RESAMPLES", 9)
        assert changed() == {*curves, floor}
    for metrics in other_metrics(shown.floor.metrics):
        least = dataclasses.replace(shown.floor, metrics=metrics)
        assert changed(frontier=dataclasses.replace(shown, floor=least)) == {floor}
    for name, curve in (("teacher", "teacher ddim uniform"), ("pd1", "progressive"), ("pd2", "progressive")):
        for key, value in vars(artifacts.cards[name]).items():
            card = dataclasses.replace(artifacts.cards[name], **{key: OTHERS.get(key) or another(value)})
            assert changed(cards=artifacts.cards | {name: card}) == {curve}, key
    for parameters in ({"seed": 1, "a": {"b": 1}}, {"seed": 0, "a": {"b": 2}}, {"seed": 0}):
        assert changed(parameters=parameters) == {"frontier"}
    for name in ("frontier.json", "frontier.csv", "frontier.png", "samples/all.png", "samples/pd1-ddim-uniform-1.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"x")
        assert changed() == {"progressive" if "pd1" in name else "frontier"}, name
        (tmp_path / name).write_bytes(content)
    write_curve(tmp_path / "curves/pd1.csv", 49)
    assert changed() == {"train pd1"}
    disk.write_sealed(tmp_path / "cost/pd2.json", {"seconds": 3.5, "iterations": 51})
    assert changed() == {"train pd1", "train pd2"}
    shutil.rmtree(tmp_path / "checkpoints/cd")
    shutil.copytree(tmp_path / "checkpoints/pd1", tmp_path / "checkpoints/cd")
    assert changed() == {"train pd1", "train pd2", "train cd"}


def test_pages_of_another_kind_or_name_are_other_pages():
    same = [("curve", "a"), ("curve", "b"), ("train", "a")]
    assert len({RunSpec(kind, name, {"x": 1}, lambda run: None).digest for kind, name in same}) == 3


def test_a_server_that_takes_the_connection_and_says_nothing_is_waited_for_seconds(monkeypatch):
    asked = []

    def silent(url: str, **words) -> None:
        asked.append((url, words))
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", silent)
    with pytest.raises(UserError, match="MLflow at http://h:1/a/ does not answer: timed out"):
        ask("http://h:1/a/")
    ((url, words),) = asked
    assert url == "http://h:1/a/health"
    assert 0 < words["timeout"] <= 10


def test_what_mlflow_takes_as_a_key_and_a_value():
    heard = []
    fake = SimpleNamespace(log_batch=lambda run, **parts: heard.append((run, parts)))
    _log(Experiment(fake, "1"), "r", [], {"a(b)/c.d-e f:g": "x" * 900, "k" * 300: None}, {"t,": 3})
    ((run, parts),) = heard
    assert run == "r"
    params = {each.key: each.value for each in parts["params"]}
    assert params == {"a_b_/c.d-e f:g": "x" * 500, "k" * 250: "None"}
    assert [(tag.key, tag.value) for tag in parts["tags"]] == [("t_", "3")]
    assert _flat({"a": {"b": {"c": 1}}, "d": None}) == {"a.b.c": 1, "d": None}


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        ("/a/b c", "/a/b c"),
        ("/a:b/c?d#e", "/a:b/c?d#e"),
        ("mlruns/1", "mlruns/1"),
        ("file:///a/b%20c", "/a/b c"),
        ("file:/a/b%20c", "/a/b c"),
        ("mlflow-artifacts:/1/models", None),
        ("mlflow-artifacts://h:1/1/models", None),
        ("s3://b/x", None),
    ],
)
def test_a_folder_of_this_machine_is_known_by_its_address(location, folder):
    assert local_folder(location) == (folder and Path(folder))


def shipped(folder: Path, artifacts: Artifacts, point_: dict) -> None:
    """As MLflow keeps a model: what is shipped under artifacts/, and files of its own."""
    for name in _shipped(artifacts, point_):
        source = name.removeprefix("artifacts/")
        source = Path("artifacts") / (source if source == "gamma.json" else f"checkpoints/{source}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    (folder / "MLmodel").write_text("flavors: {}")


@pytest.mark.parametrize("sampler", ["ddim", "analytic"])
def test_every_file_that_is_shipped_is_verified_where_it_lies(room, tmp_path, sampler, monkeypatch):
    """In a folder of this machine and in a store elsewhere, which is asked for those of the picked points alone."""
    shown = few_points()
    shown = but(table(shown.points, shown.points[3].name), 3, sampler=sampler)
    shown = write_files(room / "artifacts", shown)
    artifacts, point_ = read(room / "artifacts", PARAMETERS), shown.points[3]
    wanted = {f"artifacts/pd1/{name}" for name in (WEIGHTS, "unet/config.json", "card.json")}
    wanted |= {"artifacts/gamma.json"} if sampler == "analytic" else set()
    assert set(_shipped(artifacts, point_)) == wanted
    here = tmp_path / "held"
    shipped(here, artifacts, point_)
    seal = disk.digest(digests_of(here))
    near = SimpleNamespace(artifact_location=str(here), tags={"files": seal})
    far = SimpleNamespace(artifact_location="s3://bucket/x", tags={})
    fetched = []

    def fetch(artifact_uri, dst_path):
        fetched.append(artifact_uri)
        shutil.copytree(here, Path(dst_path) / "model")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fetch)
    for model in (near, far):
        assert _fault(artifacts, point_, model) is None
    for name in sorted(wanted):
        content = (here / name).read_bytes()
        for damage, told in ((lambda path: flip(path), "changed"), (lambda path: path.unlink(), "missing")):
            damage(here / name)
            for model in (near, far):
                assert _fault(artifacts, point_, model) == f"{name} is {told}"
            (here / name).write_bytes(content)
    (here / "MLmodel").write_text("another")
    assert _fault(artifacts, point_, near) == "a file of it was changed"
    assert _fault(artifacts, point_, far) is None
    (here / "MLmodel").unlink()
    assert "is missing" in _fault(artifacts, point_, far)
    assert set(fetched) == {"s3://bucket/x"}

    def refuse(**_):
        raise raised("MlflowException", "gone\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.artifacts.download_artifacts", refuse)
        assert _fault(artifacts, point_, far) == "gone"
    fetched.clear()
    assert _fault(artifacts, shown.points[0], far) is None
    assert fetched == []


def test_publishers_of_one_database_wait_for_each_other_whatever_folder_they_are_in(tmp_path, monkeypatch, capsys):
    """The lock lies beside the database; for a server, where the publisher is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for address, lock in (
        (f"sqlite:///{tmp_path}/books/mlflow.db", tmp_path / "books" / LOCK),
        ("http://127.0.0.1:1", tmp_path / "here" / LOCK),
    ):
        waited = []
        with alone(address):
            assert lock.exists()
            real = fcntl.flock
            with monkeypatch.context() as patch:
                patch.setattr(
                    fcntl,
                    "flock",
                    lambda file, how, r=real, w=waited: w.append(how) or r(file, how | fcntl.LOCK_NB),
                )
                with pytest.raises(BlockingIOError), alone(address, "waiting: another"):
                    pytest.fail("two at once")
        assert capsys.readouterr().out == "waiting: another\n"
        assert waited == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
        with alone(address, "waiting: another"):
            assert capsys.readouterr().out == ""


def test_a_server_s_database_is_held_until_the_server_has_answered_whoever_made_it(tmp_path, monkeypatch, capsys):
    """By a file that every user may lock."""
    monkeypatch.setattr(database, "ready", lambda path: f"{path.name} was brought on")
    before = os.umask(0)
    try:
        with prepared(f"sqlite:///{tmp_path}/mlflow.db", "waiting"):
            assert capsys.readouterr().out == "mlflow.db was brought on\n"
            assert (tmp_path / LOCK).stat().st_mode & 0o777 == 0o666
            with open(tmp_path / LOCK) as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.umask(before)
    with open(tmp_path / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def raised(kind: str, text: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return {
        "MlflowException": MlflowException,
        "RequestException": RequestException,
        "SQLAlchemyError": SQLAlchemyError,
    }[kind](text)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (("MlflowException", "no such run\nand more"), "MLflow at http://h:1 refuses: no such run"),
        (("SQLAlchemyError", "no such table"), "MLflow at http://h:1 refuses: no such table"),
        (
            ("MlflowException", "Connection aborted"),
            "MLflow at http://h:1 does not answer: Connection aborted; run `distill up`",
        ),
        (("RequestException", "too many redirects"), "MLflow at http://h:1 does not answer: too many redirects; run"),
        (OSError(errno.ENOSPC, "full"), "MLflow at http://h:1 refuses: [Errno 28] full"),
        (OSError(errno.ENOENT, "none", "a.db"), "MLflow at http://h:1 refuses: [Errno 2] none: 'a.db'"),
        (OSError(errno.ENOSPC, "full", "a.db"), None),
        (ZeroDivisionError("ours"), None),
    ],
)
def test_what_mlflow_refuses_is_one_line_and_a_fault_of_the_machine_s_or_ours_is_its_own(
    error, line, monkeypatch, capsys
):
    """What it prints meanwhile is heard by nobody; what a user set of its switches stays."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    monkeypatch.setattr("tasks.dvc_environment.nameless", lambda folder: {"A_NAME": f"uid-1 in {folder}"})
    for name in (*quiet, "A_NAME"):
        monkeypatch.delenv(name, raising=False)
    error = raised(*error) if isinstance(error, tuple) else error

    @explained("http://h:1")
    def publishing() -> None:
        print("chatter")
        print("more", file=sys.stderr)
        raise error

    with pytest.raises((UserError, OSError, ZeroDivisionError)) as caught:
        publishing()
    assert caught.value is error if line is None else str(caught.value).startswith(line)
    assert "and more" not in str(caught.value)
    assert capsys.readouterr() == ("", "")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert (quiet | {"A_NAME": "uid-1 in ."}).items() <= os.environ.items()
    print("heard again")
    assert capsys.readouterr().out == "heard again\n"


@pytest.mark.parametrize(
    ("address", "used", "named"),
    [
        (None, "sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("", "sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:///x.db", "sqlite:///x.db", "sqlite:///x.db"),
        ("http://me:s3same@h:1", "http://h:1", "http://h:1"),
        ("http://t0kenOfMine@h:1", "http://t0kenOfMine@h:1", "http://h:1"),  # MLflow takes it in the address alone
    ],
)
def test_publishing_goes_to_the_address_that_is_set_or_to_a_file_here_and_tells_what_was_done(
    address, used, named, tmp_path, monkeypatch, capsys
):
    """Also where it fails afterwards: what MLflow did meanwhile is said. No other publishes at the same time, MLflow's own
    chatter is heard by nobody, and no password is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    heard = []
    monkeypatch.setattr("tasks.tracking.publishing.read", lambda folder, parameters: ("files", folder, parameters))
    monkeypatch.setattr("tasks.tracking.publishing.ask", lambda *words: heard.append(words))
    monkeypatch.setattr(
        "tasks.tracking.publishing.open_experiment", lambda *words: words[2].append("made a book") or words[:2]
    )

    def published(*words) -> dict:
        print("chatter")
        heard.append(words)
        with open(LOCK) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return {"runs": {}}

    monkeypatch.setattr("tasks.tracking.publishing._publish", published)
    assert publishing.publish(tmp_path, "e", "m", {"seed": 1}) == {"runs": {}, "tracking_uri": named}
    assert heard == [(used,), (("files", tmp_path, {"seed": 1}), (used, "e"), "m")]
    assert capsys.readouterr().out == "publish: made a book\n"
    monkeypatch.setattr("tasks.tracking.publishing._publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publishing.publish(tmp_path, "e", "m", {"seed": 1})
    assert capsys.readouterr().out == "publish: made a book\n"


@pytest.mark.parametrize("stage", [None, "active", "deleted"])
def test_an_experiment_is_opened_in_a_database_that_is_ready_and_made_where_there_is_none(monkeypatch, stage):
    done, aloud = [], []
    one = SimpleNamespace(experiment_id="4", lifecycle_stage=stage, artifact_location="s3://bucket/4")
    found = None if stage is None else one
    fake = SimpleNamespace(
        get_experiment=lambda number: one,
        get_experiment_by_name=lambda name: done.append(name) or found,
        create_experiment=lambda name, tags: done.append((name, tags)) or "5",
    )
    monkeypatch.setattr(database, "ready", lambda path: done.append(path) or f"{path} was brought on")
    monkeypatch.setattr("tasks.tracking.client._client", lambda address: done.append(address) or fake)
    made = [("e", {"mlflow.experimentKind": "custom_model_development"})] if stage is None else []
    for address, readied in (("sqlite:///a/b.db", [Path("a/b.db")]), ("http://h:1", [])):
        done.clear()
        with pytest.raises(UserError, match="'e' was deleted") if stage == "deleted" else contextlib.nullcontext():
            assert open_experiment(address, "e", aloud) == Experiment(fake, "5" if stage is None else "4", aloud)
        assert done == [*readied, address, "e", *made]
        assert aloud == ["a/b.db was brought on"]
    if stage != "deleted":
        one.artifact_location = "/no/such/folder/mlruns/4"
        with pytest.raises(UserError, match="a folder of another host"):
            open_experiment("http://h:1", "e", aloud)


def test_a_recommended_point_that_the_table_has_not_is_refused(tmp_path):
    write_files(tmp_path, few_points())
    found = disk.read_sealed(tmp_path / "frontier.json", SCHEMA_OF_FRONTIERS, "x")
    found["recommended"]["name"] = "pd3"
    disk.write_sealed(tmp_path / "frontier.json", found)
    with pytest.raises(
        UserError, match=r"frontier\.json is not .*it recommends 'pd3', none of its points\); run the stage `frontier`"
    ):
        read(tmp_path, PARAMETERS)


def test_a_place_where_no_lock_can_lie_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    words = r"MLflow at sqlite:.* cannot be written to: .*file/\.mlflow\.lock: "
    with pytest.raises(UserError, match=words), alone(f"sqlite:///{tmp_path}/file/mlflow.db"):
        pytest.fail("held")


def test_a_table_for_spreadsheets_that_says_anything_else_is_damaged(tmp_path):
    """Each field alone, a row too many or too few, and rows in another order."""
    points = [point("progressive", k, 1.5 / k) for k in (2, 1)]
    keys = list(points[0].row())

    def text(value: object) -> str:
        return "" if value is None else " ".join(map(str, value if isinstance(value, tuple) else [value]))

    def check(rows: list[list[str]]) -> None:
        with open(tmp_path / "frontier.csv", "w", newline="") as file:
            csv.writer(file).writerows([keys, *rows])
        _check_rows(tmp_path / "frontier.csv", points)

    rows = [[text(value) for value in each.row().values()] for each in points]
    check(rows)
    for number in range(len(keys)):
        changed = [*rows[0]]
        changed[number] += "1"
        with pytest.raises(UserError, match=r"frontier\.csv is damaged"):
            check([changed, rows[1]])
    for others in (rows[:1], [*rows, rows[1]], rows[::-1]):
        with pytest.raises(UserError, match=r"frontier\.csv is damaged"):
            check(others)


# ---- a model that is served


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two checkpoints of classes, the student's card naming the teacher, and their gamma."""
    from diffcore.denoisers.network import NetDenoiser
    from diffcore.noise.schedule import Cosine
    from tests.conftest import exact_gamma, gaussian
    from tests.test_checkpoint import ABOUT
    from tests.test_unet import FAMILY, stirred

    folder = tmp_path_factory.mktemp("served")
    config = FAMILY["classes"]
    image = (1, 8, 8)
    about = {**ABOUT, "classes": [f"class {k}" for k in range(4)]}
    cards = {}
    for seed, name in enumerate(("teacher", "student")):
        parents = (
            {"parent": None, "teacher": None} if name == "teacher" else dict.fromkeys(("parent", "teacher"), "d" * 64)
        )
        denoiser = NetDenoiser(stirred(config, seed=seed), Cosine(), classes=4)
        cards[name] = checkpoints.save(
            folder / name, denoiser, image, {**about, "name": name, **parents, "solver": "ddim"}
        )
    known = exact_gamma(gaussian(), 20)
    told = {"checkpoint_digest": cards["teacher"].digest}
    disk.write_sealed(folder / "gamma.json", {"schema": gamma.SCHEMA, "about": told, "edges": 0.1, **known.to_json()})
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["teacher", "student"])
@pytest.mark.parametrize("made", [{"sampler": "ddim", "guidance": 2.0}, {"sampler": "analytic"}])
def test_a_served_model_draws_what_its_recipe_draws(served, name, made):
    """As many as are asked for, from the seed, of the classes: uint8, channels last."""
    from diffcore.data.feed import to_uint8
    from diffcore.noise.trajectory import Trajectory
    from diffcore.sampling import recipe
    from tasks.sampler_model import SamplerModel

    artifacts = {"checkpoint": str(served / name), "gamma": str(served / "gamma.json")}
    config = {"recipe": json.dumps(made), "times": [1.0, 0.6, 0.0]}
    model = SamplerModel()
    model.load_context(SimpleNamespace(artifacts=artifacts, model_config=config))
    opened, way = checkpoints.load(served / name), recipe.from_json(made)
    known = gamma.Gamma.from_json(gamma.read(served / "gamma.json", None, "x"))
    sampler = way.sampler(opened, Trajectory((1.0, 0.6, 0.0)), known)
    for asked, labels in (([3, 1], [3, 3, 3, 1]), (None, [0, 1, 2, 3])):
        found = model._draw(4, 6, asked and [asked[0]] * 3 + asked[1:])
        told = way.condition(opened, {CLASS: torch.tensor(labels)})
        wanted = to_uint8(sampler.draw((1, 8, 8), 4, 6, condition=told)).permute(0, 2, 3, 1).numpy()
        assert (found.dtype, found.shape) == (np.uint8, (4, 8, 8, 1))
        assert np.array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_served_teacher_takes_no_other_teacher_s_gamma(served, tmp_path):
    """A student is sampled by its teacher's, whose digest its card does not know by that name."""
    from tasks.sampler_model import _open

    value = json.loads((served / "gamma.json").read_text())
    value.pop("seal")
    disk.write_sealed(tmp_path / "gamma.json", {**value, "about": {"checkpoint_digest": "0" * 64}})
    config = {"recipe": '{"sampler": "analytic"}', "times": [1.0, 0.5, 0.0]}
    artifacts = {"checkpoint": str(served / "student"), "gamma": str(tmp_path / "gamma.json")}
    _open(artifacts, config)
    with pytest.raises(UserError, match="publish this model again"):
        _open({**artifacts, "checkpoint": str(served / "teacher")}, config)


# ---- what a person picks from


def picking(tolerance: float) -> dict:
    return publishing.publish(
        Path("artifacts"), "distill", "sampler", PARAMETERS | {"publish": {"tolerance": tolerance}}
    )


def test_each_alias_goes_to_its_own_point_and_the_same_point_is_one_version(room):
    """Within 1.6 times the teacher's 13 are all students; of one call the better is cd's. Twice is as once."""
    receipt = picking(1.6)
    points = {"challenger": "pd2-ddim-uniform-2", "best_quality": "pd2-ddim-uniform-2", "fastest": "cd-ddim-uniform-1"}
    assert {alias: each["point"] for alias, each in receipt["aliases"].items()} == points
    assert aliases() == {alias: each["version"] for alias, each in receipt["aliases"].items()}
    for alias, name in points.items():
        version = client().get_model_version_by_alias("sampler", alias)
        assert (version.tags["point"], version.source) == (name, f"models:/{receipt['models'][name]}")
        assert client().get_logged_model(receipt["models"][name]).tags["weights"] == "here"
    before = counts(room)
    assert before["model_versions"] == 2
    assert picking(1.6) == receipt
    assert counts(room) == before
    picking(0.14)
    assert aliases()["fastest"] == aliases()["challenger"]


def test_the_pages_of_model_and_versions_say_what_why_and_how_well_and_a_person_s_words_stay(room):
    from tasks.tracking.descriptions import MARK, NOTE, sealed

    receipt = picking(1.6)
    model = client().get_registered_model("sampler")
    for alias, each in receipt["aliases"].items():
        assert f"| `{alias}` | {each['version']} | {each['point']} |" in model.description
    assert few_points().recommended.reason in model.description
    chosen = client().get_model_version_by_alias("sampler", "challenger")
    fast = client().get_model_version_by_alias("sampler", "fastest")
    assert chosen.description.startswith(
        "**pd2-ddim-uniform-2**, published as `challenger` (the recommended point) and `"
    )
    assert few_points().recommended.reason in chosen.description
    assert few_points().recommended.reason not in fast.description
    floor = few_points().floor.metrics["fd"].plus_minus(" ± ")
    assert f"| fd | 1.700 ± 0.068 | 13.00 ± 0.52 | {floor} |" in chosen.description
    assert f"get-artifact?path=frontier.png&run_uuid={receipt['frontier']}" in chosen.description
    assert f"/runs/{receipt['frontier']}/artifacts/report.html" in chosen.description
    assert f'"models:/sampler/{chosen.version}"' in chosen.description
    for each in (chosen, fast):
        logged = client().get_logged_model(each.source.removeprefix("models:/"))
        assert logged.tags[NOTE] == each.description == sealed(each.description.rpartition(MARK)[0])
        assert len(each.description) < 5000  # what MLflow's stores take

    client().update_model_version("sampler", fast.version, f"mine: {fast.description}")
    client().update_registered_model("sampler", "my samplers")
    other = few_points()
    other = dataclasses.replace(other, recommended=dataclasses.replace(other.recommended, reason="another reason"))
    write_files(room / "artifacts", other)
    picking(1.6)
    assert client().get_registered_model("sampler").description == "my samplers"
    assert client().get_model_version("sampler", fast.version).description.startswith("mine: **cd-ddim")
    assert "another reason" in client().get_model_version("sampler", chosen.version).description


def test_the_link_opens_a_view_of_current_curves_with_fd_on_logarithmic_axes(receipt):
    """Kept where MLflow's pages look for the views that are shared by a link."""
    key = re.search(r"viewStateShareKey=(\w+)", receipt["ui"])[1]
    tags = client().get_experiment(receipt["experiment_id"]).tags
    state = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    first = state["compareRunCharts"][0]
    assert (first["metricKey"], first["scaleType"], first["xAxisScaleType"], first["xAxisKey"]) == (
        "fd",
        "log",
        "log",
        "step",
    )
    sections = {each["uuid"] for each in state["compareRunSections"]}
    assert {each["metricSectionId"] for each in state["compareRunCharts"]} == sections
    names = {run.info.run_name for run in client().search_runs([receipt["experiment_id"]], state["searchFilter"])}
    assert names == {*receipt["runs"], "frontier", "real against real", "recommended: pd2-ddim-uniform-2"}


def test_the_recommended_point_is_a_run_of_its_own_and_curves_have_the_picture_s_colours(receipt):
    from tasks.tracking.run_specs import COLOUR

    wanted = charts.colours(few_points().points)
    assert len(set(wanted.values())) == 3
    for name, run in receipt["runs"].items():
        assert client().get_run(run).data.tags[COLOUR] == wanted[name]
    (run,) = client().search_runs([receipt["experiment_id"]], "tags.kind = 'recommended'")
    (metric,) = client().get_metric_history(run.info.run_id, "fd")
    assert (metric.step, metric.value) == (2, 1.7)
    assert run.data.tags["reason"] == few_points().recommended.reason
    assert run.data.tags[COLOUR] not in wanted.values()
