"""deploy/, without Docker or Kubernetes: the templates name what there is, in versions that are tested, and no password."""

import asyncio
import configparser
import contextlib
import importlib.util
import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.workers.base import BaseJobConfiguration
from ruamel.yaml import YAML

from flows import distill, planning, watch

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
POOLS = ("process", "docker", "kubernetes")
PLACEHOLDER = re.compile(r"\{\{ ([\w.-]+) \}\}")
SECRETS = ("POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY")


def loaded(name: str):
    return YAML(typ="safe").load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def compose() -> dict:
    return loaded("compose.yaml")


@pytest.fixture(scope="module")
def automations():
    spec = importlib.util.spec_from_file_location("automations", DEPLOY / "automations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pool(kind: str) -> dict:
    return json.loads((DEPLOY / f"pool-{kind}.json").read_text())


def instructions() -> list[list[str]]:
    """The Dockerfile's, each as its words."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


# ---- the image


def test_the_image_holds_the_versions_that_are_tested_and_belongs_to_no_root():
    lines = instructions()
    stages = {line[3] for line in lines if line[0] == "FROM"}
    assert stages == {"libraries", "servers", "launcher", "worker"}
    assert [line for line in lines if line[0] == "FROM"][-1][3] == "worker"  # the default
    assert ["USER", "1000:1000"] in lines
    pip = [" ".join(line) for line in lines if "pip install" in " ".join(line)]
    checked = ("--require-hashes", "--constraint constraints.txt", "--no-deps")
    for part in (part for line in pip for part in line.split("&&") if "pip install" in part):
        assert any(word in part for word in checked), part
    (python,) = [line[1] for line in lines if line[0] == "ARG" and line[1].startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-\w+", python)
    locks = ("constraints.txt", "requirements.lock", "requirements-pip.lock")
    assert next(line for line in lines if line[0] == "COPY")[2:5] == list(locks)
    assert all((ROOT / name).is_file() for name in locks)


def test_nothing_that_git_ignores_gets_into_the_image():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in (ROOT / ".gitignore").read_text().split():
        name = line.strip("/")
        matching = {name, f"**/{name}", "**/.*_cache" if name.endswith("_cache") else name}
        assert matching & set(ignored), f"{line} is not in Dockerfile.dockerignore"
    assert {".git", "deploy/.env"} <= set(ignored)


def test_the_servers_drivers_and_passwords_are_in_the_lists():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["servers"]
    assert {re.match(r"[\w-]+", line)[0] for line in extra} == {"psycopg", "Flask-WTF"}
    lock = (ROOT / "requirements.lock").read_text()
    assert all(f"\n{name}==" in lock for name in ("psycopg", "psycopg-binary", "flask-wtf", "asyncpg"))


# ---- compose


def test_compose_names_only_what_there_is(compose):
    targets = {line[3] for line in instructions() if line[0] == "FROM"}
    for name, service in compose["services"].items():
        build = service.get("build")
        if build:
            assert ((DEPLOY / build["context"]).resolve(), build["target"] in targets) == (ROOT, True), name
            assert (ROOT / build["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0] if not volume.startswith("$") else "remote"
            there = (DEPLOY / source).is_file() if source.startswith("./") else source in compose["volumes"]
            assert there, f"{name}: {volume}"
        for needed in service.get("depends_on", ()):
            assert needed in compose["services"]
        words = " ".join(service["command"]) if isinstance(service.get("command"), list) else service.get("command", "")
        assert all((ROOT / file).is_file() for file in re.findall(r"deploy/[\w.-]+", words)), name
    assert loaded("compose.gpu.yaml")["services"].keys() <= compose["services"].keys()


def test_every_image_has_a_version_and_every_server_says_whether_it_works(compose):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert tag == version if "build" in service else re.match(r"\d+\.\d+", tag), name
    assert all("healthcheck" in compose["services"][name] for name in ("postgres", "prefect", "mlflow"))
    images = [pool(kind)["variables"]["properties"]["image"]["default"] for kind in ("docker", "kubernetes")]
    assert set(images) == {compose["services"]["worker"]["image"]}


def test_every_variable_of_compose_is_explained_and_no_password_is_in_the_tree(compose):
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used <= example.keys()
    assert example.keys() - used == {"COMPOSE_PROJECT_NAME"}  # compose's own
    assert {name for name in SECRETS if example[name] == ""} == set(SECRETS)
    for name in SECRETS:  # one that is missing is named, not empty
        assert f"${{{name}:?set it in deploy/.env}}" in text
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().split()
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert {name: example[name] for name in defaults} == defaults


def test_ports_are_published_to_this_host_alone_unless_a_person_says_so(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)
    assert "ports" not in compose["services"]["postgres"]


def test_mlflow_serves_its_files_to_users_with_a_password_and_stands_on_postgresql(compose):
    service = compose["services"]["mlflow"]
    words = service["command"].split()
    assert "--serve-artifacts" in words
    assert words[words.index("--app-name") + 1] == "basic-auth"
    assert service["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://")
    config = configparser.ConfigParser()
    config.read(DEPLOY / "mlflow-auth.ini")
    assert "admin_password" not in config["mlflow"]
    assert config["mlflow"].getint("auth_cache_ttl_seconds") > 0  # else each request costs a slow hash
    databases = re.findall(r"CREATE DATABASE (\w+);", (DEPLOY / "databases.sql").read_text())
    addresses = [value for each in ("prefect", "mlflow") for value in compose["services"][each]["environment"].values()]
    assert all(any(f"/{name}" in value for value in addresses if "@postgres:" in value) for name in databases)


def test_each_worker_shares_the_remote_that_dvc_is_told_of(compose):
    config = configparser.ConfigParser()
    config.read(DEPLOY / "dvc.config")
    place = config["'remote \"shared\"'"]["url"]
    assert config["core"]["remote"] == "shared"
    assert compose["services"]["worker"]["volumes"] == [f"${{REMOTE:-remote}}:{place}"]
    mounts = pool("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "remote", "mountPath": place} in mounts["volumeMounts"]
    assert pool("docker")["variables"]["properties"]["volumes"]["default"] == [f"distill_remote:{place}"]


# ---- the pools


@pytest.mark.parametrize("kind", POOLS)
def test_a_template_names_each_of_its_variables_and_only_those(kind):
    template = pool(kind)
    properties = template["variables"]["properties"]
    named = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
    blocks = {name for name in named if name.startswith("prefect.blocks.")}
    assert blocks == ({"prefect.blocks.secret.mlflow-password"} if kind == "docker" else set())
    extra = {"env"} if kind != "kubernetes" else set()  # laid over the pool's own by Prefect
    assert (named - blocks) | extra == set(properties)
    assert all("default" in each and each["title"] for each in properties.values())


@pytest.mark.parametrize("kind", POOLS)
def test_a_deployment_s_own_variables_reach_the_runs_of_every_pool(kind):
    """Among them the heartbeat, which says that a run is alive."""
    (variables,) = {json.dumps(one["work_pool"]["job_variables"]) for one in loaded("../prefect.yaml")["deployments"]}
    environment = json.loads(variables)["env"]
    job = asyncio.run(BaseJobConfiguration.from_template_and_values(pool(kind), {"env": environment}, client=Blocks()))
    assert environment.items() <= job.env.items()


class Blocks:
    """A client whose every block document is a password."""

    async def read_block_document_by_name(self, name, block_type_slug):
        return SimpleNamespace(id=None, data={"value": "s3same"})


def test_a_job_asks_for_gpus_and_has_its_secrets_by_reference():
    manifest = pool("kubernetes")["job_configuration"]["job_manifest"]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert container["envFrom"] == [{"secretRef": {"name": "{{ secret }}"}}]
    assert manifest["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    (devices,) = pool("docker")["variables"]["properties"]["devices"]["default"]
    assert devices == {"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}
    assert pool("docker")["job_configuration"]["container_create_kwargs"]["device_requests"] == "{{ devices }}"


def test_what_a_kubernetes_pool_needs_has_the_names_that_its_template_uses():
    documents = list(YAML(typ="safe").load_all((DEPLOY / "kubernetes.yaml").read_text()))
    names = {each["kind"]: each["metadata"]["name"] for each in documents}
    defaults = {name: each["default"] for name, each in pool("kubernetes")["variables"]["properties"].items()}
    assert (defaults["namespace"], defaults["volume_claim"]) == (names["Namespace"], names["PersistentVolumeClaim"])
    (launcher,) = [each for each in documents if each["kind"] == "Deployment"]
    (container,) = launcher["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": defaults["secret"]}}]
    assert container["image"] == "distill-launcher:" + defaults["image"].partition(":")[2]
    assert not [each for each in documents if each["kind"] == "Secret"]
    assert container["args"][:5] == ["prefect", "worker", "start", "--pool", planning.POOL]


# ---- the automations


class Server:
    """What automations.py asks of Prefect's client."""

    def __init__(self):
        self.kept, self.updates = {}, []

    def read_automations_by_name(self, name):
        return [self.kept[name]] if name in self.kept else []

    def create_automation(self, wanted):
        self.kept[wanted.name] = wanted.model_copy(update={"trigger": wanted.trigger.model_copy()})
        object.__setattr__(self.kept[wanted.name], "id", f"id of {wanted.name}")

    def update_automation(self, number, wanted):
        self.updates.append((number, wanted))

    def read_deployment_by_name(self, name):
        pass


BLOCK = "6f1c2f4e-0000-4000-8000-000000000001"


def test_automations_made_twice_are_there_once_and_one_that_is_off_stays_off(automations, monkeypatch):
    server = Server()
    every = [*watch.automations(), automations.failed(BLOCK), automations.challenger(BLOCK)]
    assert [automations.apply(server, each).split()[0] for each in every] == ["created"] * 4
    assert [automations.apply(server, each).split()[0] for each in every] == ["unchanged"] * 4
    first = every[0].name
    server.kept[first].__dict__["enabled"] = False
    monkeypatch.setattr(watch, "SILENCE", timedelta(seconds=300))
    assert automations.apply(server, watch.automations()[0]).split()[0] == "updated"
    ((number, wanted),) = server.updates
    assert (number, wanted.enabled, wanted.trigger.within.seconds) == (f"id of {first}", False, 300)
    assert len(server.kept) == 4


def test_a_spread_run_and_the_script_share_the_automations_of_lost_runs(automations, monkeypatch):
    server = Server()
    monkeypatch.setattr(automations, "get_client", lambda **_: contextlib.nullcontext(server))
    monkeypatch.setattr(watch, "get_client", lambda **_: contextlib.nullcontext(server))
    assert automations.main([]) == 0
    before = dict(server.kept)
    watch.ensure("distill/stage", pytest.fail)
    assert server.kept == before
    assert set(before) == {each.name for each in watch.automations()}


def test_the_automations_name_the_flow(automations):
    assert distill.distill.name == automations.FLOW
    assert automations.failed(BLOCK).trigger.match_related.root["prefect.resource.name"] == distill.distill.name
