"""All verbs: those of the stages, and those of the local servers."""

from pathlib import Path
from typing import Annotated

import typer

from tasks import verbs
from tasks.verbs import Verb

app = typer.Typer(
    **{**verbs.SETTINGS, "add_completion": True},
    help="A distillation pipeline for diffusion models, run from its root or from a workspace: `distill run` does it all.",
)
app.registered_commands += verbs.app.registered_commands  # first, as they are in the help


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(metavar="PORT", help="4200 unless told", show_default=False)] = 4200,
    mlflow_port: Annotated[int, typer.Option(metavar="PORT", help="5000 unless told", show_default=False)] = 5000,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="where the servers listen; 0.0.0.0 for other hosts too", show_default=False
        ),
    ] = "127.0.0.1",
) -> Verb:
    """start the local servers and a worker; what is up already stays"""
    return Verb(lambda: _up(prefect_port, mlflow_port, host), attached=False)


@app.command()
def down() -> Verb:
    """end what up has started here"""
    return Verb(_down, attached=False)


@app.command()
def status() -> Verb:
    """say what is up (exit code 1 if something is not)"""
    return Verb(_status, attached=False)


# ---- what they do


def _up(prefect_port: int, mlflow_port: int, host: str) -> None:
    from flows import services

    services.up(Path.cwd(), prefect_port, mlflow_port, host)


def _down() -> None:
    from flows import services

    services.down(Path.cwd())


def _status() -> int:
    from flows import services

    return 0 if services.status(Path.cwd()) else 1
