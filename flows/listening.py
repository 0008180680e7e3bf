"""Where the servers listen, to this host alone or to others too (`distill up --host ADDRESS`), and what others need then."""

import base64
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil

from diffcore.core.errors import UserError
from flows.service import HOST, NAMES, Service

ANY = {"0.0.0.0": HOST, "::": "::1"}
"""What means all addresses of the machine, and the one by which its own processes then reach it."""
SERVER_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"
RISKS = {
    NAMES[0]: f"can run code here as you; set {SERVER_PASSWORD}=USER:PASSWORD before `distill up`",
    NAMES[1]: "can read and change what it holds; let no network reach it that you do not trust",
}


def check(host: str) -> None:
    """UserError if no server of this machine can listen there."""
    try:
        family, kind, protocol, _, address = _resolved(host)
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        own = ", ".join((HOST, *addresses()))
        raise UserError(f"--host {host} is no address of this machine: it has {own}; 0.0.0.0 is all of them") from None


def _resolved(host: str) -> tuple:
    return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return ipaddress.ip_address(_resolved(host)[4][0]).is_loopback


def addresses() -> list[str]:
    """The machine's addresses that others may reach, IPv4 first."""
    interfaces = [one for each in psutil.net_if_addrs().values() for one in each]
    own = [one.address for family in (socket.AF_INET, socket.AF_INET6) for one in interfaces if one.family == family]
    return [each for each in own if "%" not in each and not ipaddress.ip_address(each).is_loopback]


def near(host: str) -> str:
    """The address by which the machine's own processes reach a server that listens at `host`."""
    return ANY.get(host, host)


def url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def environment(host: str, mlflow_port: int) -> dict[str, str]:
    """What the servers need to be used from other hosts; a person's own settings stay."""
    if is_local(host):
        return {}
    names = dict.fromkeys((host, *addresses(), socket.gethostname(), socket.getfqdn(), "localhost", HOST))
    origins = [url(name, mlflow_port) for name in names]
    wanted = {
        "PREFECT_SERVER_UI_API_URL": "/api",  # else its pages look for the server at the reader's own 127.0.0.1
        # MLflow refuses requests that name the machine in another way, and what its pages send from another host
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(origin.removeprefix("http://") for origin in origins),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def settings_for_others(servers: Sequence[Service]) -> str:
    """What is set on another host whose worker shall work for these servers."""
    host = servers[0].host
    own = (addresses() or [HOST])[0] if host in ANY else host
    names = dict(zip(NAMES, ("PREFECT_API_URL={}/api", "MLFLOW_TRACKING_URI={}")))
    return " ".join(names[server.name].format(url(own, server.port)) for server in servers)


def exposed(servers: Sequence[Service]) -> Iterator[str]:
    """One line for each server that others reach without a password."""
    for server in servers:
        protected = server.name == NAMES[0] and server.environment.get(SERVER_PASSWORD)
        if not is_local(server.host) and not protected:
            where = f"{server.name} listens on {server.host} port {server.port} without a password"
            yield f"warning: {where}: whoever reaches it {RISKS[server.name]}"


# ---- the password of Prefect's server


def client_password(environment: Mapping[str, str]) -> dict[str, str]:
    """The setting by which Prefect's clients have the password that its server asks for."""
    password = environment.get(CLIENT_PASSWORD) or environment.get(SERVER_PASSWORD)
    return {CLIENT_PASSWORD: password} if password else {}


def authenticate(server: Mapping[str, str]) -> None:
    """Takes over the password of a running server. server: the environment of its process."""
    for name in (SERVER_PASSWORD, CLIENT_PASSWORD):
        if name in server:
            os.environ.setdefault(name, server[name])


def header() -> dict[str, str]:
    """That of a request to Prefect's server; none without a password."""
    password = client_password(os.environ).get(CLIENT_PASSWORD)
    return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"} if password else {}
