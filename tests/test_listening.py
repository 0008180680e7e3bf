"""`distill up --host`: where the servers listen, what others need of them, and in whose folder deployed runs work."""

import base64
import contextlib
import http.server
import os
import socket
import sys
import threading
from pathlib import Path

import psutil
import pytest

from diffcore.core.errors import UserError
from flows import deploying, listening, planning, services
from flows.service import MARK, NAMES, Folder, Record, Service, elsewhere
from tasks.tracking import client
from tests.test_flows import at_work

OTHERS = "0.0.0.0"
OWN = {"eth0": [(socket.AF_INET6, "fe80::1%eth0"), (socket.AF_INET6, "fd00::7"), (socket.AF_INET, "10.1.2.3")]}
LOOPBACK = {"lo": [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with one address for others; nothing in the environment leads elsewhere."""
    for name in (*planning.AIMS, "MLFLOW_TRACKING_URI", listening.SERVER_PASSWORD, listening.CLIENT_PASSWORD):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_UI_API_URL"):
        monkeypatch.delenv(name, raising=False)
    table = {
        name: [psutil._ntuples.snicaddr(family, address, None, None, None) for family, address in each]
        for name, each in (LOOPBACK | OWN).items()
    }
    monkeypatch.setattr(listening.psutil, "net_if_addrs", lambda: table)
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "box.lab")


def planned(tmp_path: Path, host: str) -> list[Service]:
    return planning.planned(tmp_path, 4300, 5100, host)


@pytest.mark.parametrize(("host", "near"), [(OTHERS, "127.0.0.1"), ("10.1.2.3", "10.1.2.3")])
def test_for_other_hosts_both_servers_listen_there_and_mlflow_serves_its_files(tmp_path, host, near):
    prefect, mlflow, worker = planned(tmp_path, host)
    assert prefect.command[-4:] == ("--host", host, "--port", "4300")
    assert mlflow.command[4:] == (
        *("--host", host, "--port", "5100", "--workers", "1"),
        *("--serve-artifacts", "--artifacts-destination", str(tmp_path / "mlruns")),
    )
    assert [each.url for each in (prefect, mlflow, worker)] == [
        f"http://{near}:4300",
        f"http://{near}:5100",
        f"http://{near}:4300/api",
    ]
    assert [each.host for each in (prefect, mlflow, worker)] == [host] * 3
    assert worker.environment["PREFECT_API_URL"] == f"http://{near}:4300/api"
    assert worker.environment["MLFLOW_TRACKING_URI"] == f"http://{near}:5100"
    assert near in worker.environment["NO_PROXY"].split(",")


def test_the_pages_work_from_another_host_by_each_of_the_machine_s_names(tmp_path, monkeypatch):
    environment = planned(tmp_path, OTHERS)[1].environment
    names = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"10.1.2.3:5100", "[fd00::7]:5100", "box:5100", "box.lab:5100", "localhost:5100", "127.0.0.1:5100"} < set(
        names
    )
    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",") == [f"http://{name}" for name in names]
    assert environment["PREFECT_SERVER_UI_API_URL"] == "/api"
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "models.lab")
    assert planned(tmp_path, OTHERS)[1].environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "models.lab"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_for_this_host_alone_nothing_is_told_of_others(tmp_path, host):
    prefect, mlflow, _ = servers = planned(tmp_path, host)
    assert "--no-serve-artifacts" in mlflow.command
    assert not [name for name in prefect.environment if name.startswith(("MLFLOW_SERVER_A", "PREFECT_SERVER_UI"))]
    assert list(listening.exposed(servers[:-1])) == []


@pytest.mark.parametrize("host", [OTHERS, "10.1.2.3"])
def test_without_a_password_each_server_that_others_reach_is_warned_of(tmp_path, monkeypatch, host):
    lines = list(listening.exposed(planned(tmp_path, host)[:-1]))
    assert [line.partition(":")[0] for line in lines] == ["warning", "warning"]
    assert f"prefect-server listens on {host} port 4300 without a password" in lines[0]
    assert "set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD" in lines[0]
    assert f"mlflow-server listens on {host} port 5100 without a password" in lines[1]
    monkeypatch.setenv(listening.SERVER_PASSWORD, "me:s3same")
    servers = planned(tmp_path, host)
    assert [line.split()[1] for line in listening.exposed(servers[:-1])] == ["mlflow-server"]
    assert {each.environment[listening.CLIENT_PASSWORD] for each in servers} == {"me:s3same"}
    assert not [word for server in servers for word in server.command if "s3same" in word]


def test_what_is_set_on_another_host_names_an_address_that_it_can_reach(tmp_path):
    assert listening.settings_for_others(planned(tmp_path, OTHERS)[:-1]) == (
        "PREFECT_API_URL=http://10.1.2.3:4300/api MLFLOW_TRACKING_URI=http://10.1.2.3:5100"
    )
    assert (
        listening.settings_for_others(planned(tmp_path, "10.9.9.9")[:1]) == "PREFECT_API_URL=http://10.9.9.9:4300/api"
    )


@pytest.mark.parametrize("host", ["203.0.113.1", "1.2.3.4.5", ""])
def test_an_address_of_no_machine_or_another_one_is_one_line(host):
    with pytest.raises(UserError, match=rf"^--host {host} is no address of this machine: it has 127.0.0.1, 10.1.2.3, "):
        listening.check(host)
    listening.check("127.0.0.1")
    listening.check(OTHERS)


def test_a_server_that_is_up_for_this_host_alone_is_not_taken_for_one_that_others_reach(tmp_path):
    folder = Folder(tmp_path)
    folder.path.mkdir()
    me = psutil.Process()
    folder.write("prefect-server", Record(me.pid, me.create_time(), "http://127.0.0.1:4300"))
    (service, *_) = planned(tmp_path, OTHERS)
    with pytest.raises(UserError, match=r"is up already and listens on 127.0.0.1: end it with `distill down`"):
        services._check(service, folder)
    folder.write("prefect-server", Record(me.pid, me.create_time(), "http://127.0.0.1:4300", host=OTHERS))
    services._check(service, folder)


# ---- the password of Prefect's server


@contextlib.contextmanager
def guarded():
    """A server that answers those who send the password alone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = f"Basic {base64.b64encode(b'me:s3same').decode()}"
            self.send_response(200 if self.headers.get("Authorization") == wanted else 401)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_prefect_is_asked_with_its_password(monkeypatch):
    with guarded() as address:
        assert planning.ask(address) is None
        monkeypatch.setenv(listening.SERVER_PASSWORD, "me:s3same")
        assert planning.ask(address) is True
        monkeypatch.setenv(listening.CLIENT_PASSWORD, "me:other")  # what a person sets for clients goes before it
        assert planning.ask(address) is None


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is to outlive us
def test_a_later_command_has_the_password_of_the_server_that_is_up(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.path.mkdir()
    sleeping = (sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(300)")
    service = Service(NAMES[0], sleeping, "http://a", lambda: True, {listening.SERVER_PASSWORD: "me:s3same"})
    services._start(service, folder, [])
    try:
        while "ready" not in folder.log(NAMES[0]).read_text():
            assert folder.alive(NAMES[0])
        monkeypatch.setenv(listening.SERVER_PASSWORD, "")
        monkeypatch.delenv(listening.SERVER_PASSWORD)
        listening.authenticate(folder.environment(NAMES[0]))
        assert listening.client_password(os.environ) == {listening.CLIENT_PASSWORD: "me:s3same"}
    finally:
        services._end(NAMES[0], folder)
    assert folder.environment(NAMES[0]) == {}


def test_down_asks_a_server_with_a_password_for_its_runs(tmp_path, monkeypatch):
    folder, heard = Folder(tmp_path), []
    folder.path.mkdir()
    folder.write(NAMES[2], Record(1, 0.0, "http://h/api"))
    monkeypatch.setattr(Folder, "alive", lambda self, name: True)
    monkeypatch.setattr(Folder, "environment", lambda self, name: {listening.SERVER_PASSWORD: f"me:{name}"})
    monkeypatch.setattr(services, "_end", lambda name, folder: True)
    monkeypatch.setattr(services, "_cancel", lambda api: heard.append(listening.client_password(os.environ)))
    monkeypatch.setenv(listening.SERVER_PASSWORD, "")  # which is undone with the test
    monkeypatch.delenv(listening.SERVER_PASSWORD)
    services.down(tmp_path)
    assert heard == [{listening.CLIENT_PASSWORD: "me:prefect-server"}]


# ---- in whose folder deployed runs work


def worker(host: str = "127.0.0.1") -> Service:
    return Service("worker", (), "http://h/api", lambda: True, {"A": "us", "DISTILL_ROOT": "/here"}, host=host)


def deployed(directory: str) -> dict:
    return {"pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": directory}}]}


@pytest.mark.parametrize(
    ("host", "deployments", "root"),
    [
        ("127.0.0.1", [], "/here"),
        ("127.0.0.1", [deployed("/there"), {"pull_steps": None}], "/here"),
        ("127.0.0.1", [deployed("/there"), deployed("{{ $DISTILL_ROOT }}")], None),
        (OTHERS, [], None),
    ],
)
def test_a_deployment_for_several_hosts_stays_one(monkeypatch, capsys, host, deployments, root):
    asked = []
    monkeypatch.setattr(deploying, "ask", lambda *words: asked.append(words) or deployments)
    assert deploying.environment(worker(host)).get("DISTILL_ROOT") == root
    assert capsys.readouterr().out == (
        "" if root else "several hosts: each worker works in the folder that its DISTILL_ROOT names\n"
    )
    assert asked == (
        [] if host == OTHERS else [("http://h/api/deployments/filter", {"flows": {"name": {"any_": ["distill"]}}})]
    )


def test_a_server_that_does_not_tell_is_asked_again_and_nothing_is_repointed(monkeypatch):
    answers = [None, [deployed("{{ $DISTILL_ROOT }}")]]
    monkeypatch.setattr(deploying, "POLL_SECONDS", 0)
    monkeypatch.setattr(deploying, "ask", lambda *_: answers.pop(0))
    assert "DISTILL_ROOT" not in deploying.environment(worker())
    monkeypatch.setattr(deploying, "ask", lambda *_: None)
    with pytest.raises(UserError, match="does not tell which deployments it has"):
        deploying.environment(worker())


# ---- servers of another folder


def test_status_and_down_name_the_folder_whose_servers_run(tmp_path, monkeypatch, capsys):
    with at_work(env={MARK: "x", "DISTILL_ROOT": str(tmp_path / "other")}):
        assert str(tmp_path / "other") in elsewhere(tmp_path / "here")
        assert str(tmp_path / "other") not in elsewhere(tmp_path / "other")
    monkeypatch.setattr(services, "elsewhere", lambda root: ["/a clone"])
    services.status(tmp_path)
    services.down(tmp_path)
    (tmp_path / ".services").mkdir()
    services.down(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [
        "servers are up in /a clone: cd there",
        *["nothing is up", "servers are up in /a clone: cd there"] * 2,
    ]


# ---- where an experiment keeps its files


@pytest.mark.parametrize(
    ("address", "location", "line"),
    [
        ("http://h:1", "mlflow-artifacts:/1", None),
        ("http://h:1", "s3://bucket/1", None),
        ("sqlite:///mlflow.db", "/no/such/folder/mlruns/1", None),  # MLflow makes it
        ("http://h:1", "{here}/mlruns/1", None),  # this host's, the first file is still to come
        ("http://h:1", "file://{here}/mlruns/1", None),
        (
            "https://me:s3same@h/a",
            "/no/such/folder/mlruns/1",
            r"MLflow at https://h/a keeps .* in /no/such/folder/mlruns/1, ",
        ),
        (
            "http://h:1",
            "file:///no/such/folder/mlruns/1",
            "a folder of another host; choose another publish.experiment",
        ),
        (
            "sqlite:///mlflow.db",
            "mlflow-artifacts:/1",
            "'distill' began on a server, .*: set MLFLOW_TRACKING_URI to that",
        ),
    ],
)
def test_an_experiment_whose_files_this_host_cannot_reach_is_refused_in_one_line(tmp_path, address, location, line):
    location = location.format(here=tmp_path)
    if line is None:
        client._check_files(address, "distill", location)
        return
    with pytest.raises(UserError, match=line) as caught:
        client._check_files(address, "distill", location)
    assert "\n" not in str(caught.value)
