"""A newcomer's tour as pictures: the terminal, the report, MLflow's and Prefect's pages, of a run that has finished, and of a
training that goes on.

    python bench/tour.py FOLDER OUT [PART ...]

FOLDER is where a pipeline has run (`distill run`); it is copied, and nothing in it changes. OUT gets a PNG for each page.
PART: terminal, report, mlflow, prefect, live; all where none is named. Servers listen on free ports of 127.0.0.1 and end with
the tour. A page that does not show what it is for ends the tour with an error. Needs Chromium (`chromium`, or CHROMIUM names
it).
"""

import contextlib
import html
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.browser import Page, browser  # noqa: E402
from tasks import workspace  # noqa: E402

PARTS = ("terminal", "report", "mlflow", "prefect", "live")
COLUMNS = 110
WAITS = 90
"""Seconds that a page has to show a word."""

STARTS = 120
"""Seconds that a server has to start."""

LOOKS, TRAINS = 4, 600
"""After so many looks a training's pictures are taken; seconds that it has to get there."""

BARE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def main(finished: Path, out: Path, parts: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as room, browser(os.environ.get("CHROMIUM", "chromium")) as page:
        place = copied(finished, Path(room) / "run")
        if "terminal" in parts:
            terminal(place, Path(room) / "fresh", page, out)
        if "report" in parts:
            report(place, page, out)
        if not {"mlflow", "prefect", "live"} & set(parts):
            return
        with servers(Path(room)) as (mlflow, prefect):
            page.open(mlflow, 1500, 1100)
            panel = "'mlflow.assistant.panelOpen_v1'"
            page.wait(f"localStorage.getItem({panel}) == 'true'")  # it opens by itself on the first visit
            page.run(f"localStorage.setItem({panel}, 'false')")
            run = flow(place, mlflow, prefect) if {"mlflow", "prefect"} & set(parts) else ""
            if "mlflow" in parts:
                of_mlflow(place, mlflow, page, out)
            if "prefect" in parts:
                of_prefect(prefect, run, page, out)
            if "live" in parts:
                live(Path(room) / "live", mlflow, prefect, page, out)


def copied(finished: Path, place: Path) -> Path:
    """A workspace of this code with the results of another, which DVC takes as they are."""
    os.chdir(ROOT)
    workspace.make(place, None, [])
    shutil.copy(finished / "params.yaml", place)
    shutil.copytree(finished / "artifacts", place / "artifacts", dirs_exist_ok=True)
    (place / "artifacts/published.json").unlink(missing_ok=True)
    printed(place, "-m", "tasks", "frontier")
    stages = printed(place, "-m", "dvc", "stage", "list", "--name-only").split()
    printed(place, "-m", "dvc", "commit", "--force", *(name for name in stages if name != "publish"))
    return place


def printed(place: Path, *command: str, **surroundings: str) -> str:
    """What a command of Python's prints in a folder."""
    environment = {
        **os.environ,
        **BARE,
        "PYTHONPATH": str(place if (place / "tasks").exists() else ROOT),
        **surroundings,
    }
    done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# ---- the terminal


def terminal(place: Path, fresh: Path, page: Page, out: Path) -> None:
    workspace.make(fresh, None, [])
    shutil.copy(place / "params.yaml", fresh)
    frontier = json.loads((place / "artifacts/frontier.json").read_text())
    one = frontier["recommended"]["name"]
    own = next(point["checkpoint"] for point in frontier["points"] if point["name"] == one)
    others = [point for point in frontier["points"] if point["checkpoint"] != own]
    two = min(others, key=lambda point: point["metrics"]["fd"]["value"])["name"]
    for where, *words in ((fresh, "plan"), (place, "report"), (place, "compare", one, two)):
        text = printed(where, "-m", "tasks", *words)
        typed(" ".join(["distill", *words]), text, page, out / f"terminal-{words[0]}.png")


def typed(command: str, text: str, page: Page, path: Path) -> None:
    """What a terminal of COLUMNS shows."""
    style = f"margin:0;padding:18px;width:{COLUMNS}ch;white-space:pre-wrap;font:14px/1.45 DejaVu Sans Mono,monospace"
    block = f'<pre style="{style}"><b>$ {html.escape(command)}</b>\n{html.escape(text)}</pre>'
    file = path.with_suffix(".html")
    file.write_text(f'<meta charset="utf-8"><body style="margin:0;background:#14181b;color:#e8ecee">{block}')
    page.open(file.as_uri(), 1000, 100)
    page.picture(path, whole=True)
    file.unlink()


# ---- the report


def report(place: Path, page: Page, out: Path) -> None:
    """From the disk, as a person opens it; by mouse and keyboard too."""
    address = (place / "artifacts/report.html").as_uri()
    frontier = json.loads((place / "artifacts/frontier.json").read_text())
    page.open(address, 1280, 1000)
    page.wait("document.querySelectorAll('#chart svg path').length > 20")
    assert page.run("document.querySelector('h1').textContent") == frontier["recommended"]["name"]
    page.picture(out / "report.png", whole=True)
    page.run("document.querySelector('#chart svg').focus()")
    page.press("Home")
    first = page.run("document.querySelector('.tip b').textContent")
    page.press("ArrowRight")
    second = page.run("document.querySelector('.tip b').textContent")
    assert first != second, "the arrow keys do not go from point to point"
    page.press("Enter")
    assert page.run("document.querySelector('#panel h3').textContent").startswith(second)
    page.run("document.querySelector('#points thead th:nth-child(3) button').click()")
    rows = page.run(
        "[...document.querySelectorAll('#points tbody tr:not([hidden]) td:nth-child(3)')].map(c => +c.dataset.value)"
    )
    assert rows == sorted(rows), "the table is not sorted by a click on its head"
    page.run("document.querySelector('#frontier').scrollIntoView({behavior: 'instant'})")
    page.picture(out / "report-point.png")
    page.open(address, 390, 844, dark=True)
    chooser = "document.querySelector('#metric')"
    page.run(f"{chooser}.value = 'recall'; {chooser}.dispatchEvent(new Event('change'))")
    assert page.run("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
    page.picture(out / "report-phone.png", whole=True)


# ---- the servers


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def servers(room: Path) -> Iterator[tuple[str, str]]:
    """The addresses of an MLflow and a Prefect server with databases of their own."""
    ports = free_port(), free_port()
    mlflow, prefect = (f"http://127.0.0.1:{port}" for port in ports)
    store = room / "mlflow"
    store.mkdir()
    commands = {
        mlflow: f"-m mlflow server --workers 1 --port {ports[0]} --backend-store-uri sqlite:///{store}/mlflow.db "
        f"--artifacts-destination {store}/files",
        prefect: f"-m prefect server start --host 127.0.0.1 --port {ports[1]}",
    }
    surroundings = {**os.environ, **BARE, "PREFECT_HOME": str(room / "prefect"), "PREFECT_API_URL": f"{prefect}/api"}
    started = []
    try:
        for command in commands.values():
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
            started.append(subprocess.Popen([sys.executable, *command.split()], cwd=room, env=surroundings, **quiet))
        for address in (f"{mlflow}/health", f"{prefect}/api/health"):
            answers(address)
        yield mlflow, prefect
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(60)


def answers(address: str) -> None:
    last = time.monotonic() + STARTS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.5)


FLOW = (
    "import sys; from flows.distill import distill; state = distill(workspace=sys.argv[1], return_state=True); "
    "assert state.is_completed(), state.message; print(state.message); print(state.state_details.flow_run_id)"
)


def beside(place: Path, mlflow: str, prefect: str) -> dict[str, str]:
    """What a flow of that folder finds its servers by."""
    home = str(place.parent / "prefect")
    return {"MLFLOW_TRACKING_URI": mlflow, "PREFECT_API_URL": f"{prefect}/api", "PREFECT_HOME": home}


def flow(place: Path, mlflow: str, prefect: str) -> str:
    """The id of a run of the flow in that folder: all is up to date but `publish`."""
    lines = printed(ROOT, "-c", FLOW, str(place), **beside(place, mlflow, prefect))
    message, run = lines.splitlines()[-2:]
    print(message)
    return run


def look(page: Page, address: str, words: list[str], path: Path, height: int = 1100, lines: int = 0) -> None:
    """A picture of a page once all these words stand on it, and so many lines are drawn in its charts."""
    page.open(address, 1500, height)
    for word in words:
        page.wait(f"document.body.innerText.includes({json.dumps(word)})", WAITS)
    page.wait(f"document.querySelectorAll('.scatterlayer .trace').length >= {lines}", WAITS)
    time.sleep(3)  # charts move into their places
    page.picture(path)


def of_mlflow(place: Path, address: str, page: Page, out: Path) -> None:
    receipt = json.loads((place / "artifacts/published.json").read_text())
    chosen, model = receipt["version"]["point"], receipt["version"]["name"]
    version = f"#/models/{model}/versions/{receipt['version']['version']}"
    logged = f"#/experiments/{receipt['experiment_id']}/models/{receipt['models'][chosen]}"
    whole = f"#/experiments/{receipt['experiment_id']}/runs/{receipt['frontier']}/artifacts/report.html"
    look(page, f"{address}/{receipt['ui']}", ["Frontier", "recommended: ", "recall"], out / "mlflow-chart.png", lines=6)
    look(page, f"{address}/#/models/{model}", [chosen, "best_quality", "fastest"], out / "mlflow-registry.png", 1400)
    look(page, f"{address}/{version}", [chosen, "a perfect sampler", "challenger"], out / "mlflow-version.png", 1600)
    look(page, f"{address}/{logged}", [chosen, "a perfect sampler"], out / "mlflow-model.png", 1600)
    look(page, f"{address}/{whole}", ["report.html", "frontier"], out / "mlflow-report.png")


def of_prefect(address: str, run: str, page: Page, out: Path) -> None:
    """The run, whose last message names the checkpoint, and what lies on its page, each by itself."""
    look(page, f"{address}/runs/flow-run/{run}", ["Completed", "recommended: "], out / "prefect-run.png")
    ids = {each["key"]: each["id"] for each in answer_of(f"{address}/api/artifacts/filter", {})}
    for key, word in (
        ("recommendation", "the whole report"),
        ("frontier", "fd_se"),
        ("frontier-picture", "network calls"),
    ):
        look(page, f"{address}/artifacts/artifact/{ids[key]}", [word], out / f"prefect-{key}.png")


# ---- a training that goes on


def live(place: Path, mlflow: str, prefect: str, page: Page, out: Path) -> None:
    """A watched training of the preset `smoke`, made long, in MLflow and Prefect while it is at work; it is stopped then."""
    watch = "teachers.teacher.watch={every: 50, images: 200}"
    workspace.make(place, "smoke", ["teachers.teacher.iterations=20000", watch])
    surroundings = {**os.environ, **BARE, "PYTHONPATH": str(ROOT), **beside(place, mlflow, prefect)}
    words = [sys.executable, "-c", FLOW, str(place)]
    going = subprocess.Popen(words, cwd=ROOT, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run = training(mlflow)
        address = f"{mlflow}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
        chart = f"{address}/model-metrics?workflowType=machine_learning"
        look(page, chart, ["watch_fd", "train_loss"], out / "live-mlflow.png", 1400, lines=6)
        look(page, f"{address}?workflowType=machine_learning", ["watch_diversity"], out / "live-mlflow-run.png")
        for key, word in (("looks", "diversity"), ("samples", "at update")):
            each = answer_of(f"{prefect}/api/artifacts/latest/filter", {})
            ids = {artifact["key"]: artifact["latest_id"] for artifact in each}
            look(
                page,
                f"{prefect}/artifacts/artifact/{ids[f'live-teacher-{key}']}",
                [word],
                out / f"live-prefect-{key}.png",
            )
        assert training(mlflow)["status"] == "RUNNING", "it ended before its pictures were taken"
    finally:
        going.terminate()
        going.wait(60)


def training(mlflow: str) -> dict[str, str]:
    """MLflow's run of the only training that it shows, once it has been looked at LOOKS times."""
    last = time.monotonic() + TRAINS
    while time.monotonic() < last:
        experiments = answer_of(f"{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 100}).get(
            "experiments", []
        )
        ids = [each["experiment_id"] for each in experiments if each["name"].endswith("-live")]
        question = {"experiment_ids": ids, "max_results": 10}
        runs = answer_of(f"{mlflow}/api/2.0/mlflow/runs/search", question).get("runs", []) if ids else []
        for run in runs:
            question = f"run_id={run['info']['run_id']}&metric_key=watch_fd"
            with urllib.request.urlopen(
                f"{mlflow}/api/2.0/mlflow/metrics/get-history?{question}", timeout=30
            ) as answer:
                if len(json.load(answer).get("metrics", [])) >= LOOKS:
                    return run["info"]
        time.sleep(1)
    raise SystemExit(f"no training was looked at {LOOKS} times within {TRAINS} s")


def answer_of(address: str, question: dict) -> Any:
    """What a server answers."""
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


if __name__ == "__main__":
    folder, target, *wanted = sys.argv[1:]
    if strangers := set(wanted) - set(PARTS):
        raise SystemExit(f"{strangers.pop()} is no part; there are {', '.join(PARTS)}")
    main(Path(folder).resolve(), Path(target).resolve(), wanted or [*PARTS])
