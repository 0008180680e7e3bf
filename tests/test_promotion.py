"""`distill promote`: the alias `production`, moved by a person alone, and who held it before."""

import dataclasses
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks import paths
from tasks.tracking.models import identity_of
from tasks.tracking.promotion import promote
from tests.test_tracking import (  # noqa: F401  (fixtures)
    aliases,
    client,
    pytestmark,
    room,
    written,
)

FIRST, SECOND = "pd2-ddim-uniform-2", "pd1-ddim-uniform-1"


def here(name: str) -> Point | None:
    points = {point.name: point for point in Frontier.read(paths.FRONTIER, "").points}
    return points.get(name)


@pytest.fixture
def two(room) -> Path:  # noqa: F811
    """Two points, registered as `publish` registers what is recommended, the second of them the challenger."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{room}/mlflow.db")
    store = client()
    store.create_registered_model("sampler")
    for number, name in enumerate((FIRST, SECOND), 1):
        tags = {**identity_of(here(name)), "point": name}
        assert store.create_model_version("sampler", str(room / name), tags=tags).version in (number, str(number))
    store.set_registered_model_alias("sampler", "challenger", "2")
    return room


def test_production_moves_and_who_held_it_is_kept(two):
    assert promote("sampler", FIRST, here(FIRST), "first to ship") == [
        f"production of 'sampler' is version 1 now, {FIRST}",
        "note: first to ship",
    ]
    assert aliases() == {"challenger": "2", "production": "1"}
    assert promote("sampler", SECOND, here(SECOND)) == [
        f"production of 'sampler' is version 2 now, {SECOND}",
        f"previous_production is version 1, {FIRST}; `distill promote {FIRST}` goes back",
    ]
    assert aliases() == {"challenger": "2", "production": "2", "previous_production": "1"}
    assert client().get_model_version("sampler", "1").tags["production_note"] == "first to ship"
    promote("sampler", FIRST, here(FIRST))
    assert aliases() == {"challenger": "2", "production": "1", "previous_production": "2"}


def test_who_holds_it_already_stays_and_so_does_who_held_it_before(two):
    for name in (FIRST, SECOND):
        promote("sampler", name, here(name))
    before = aliases()
    assert promote("sampler", SECOND, here(SECOND), "still the best") == [
        f"{SECOND} is production of 'sampler' already (version 2)",
        "note: still the best",
    ]
    assert aliases() == before


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cd", f"is not registered as 'sampler'; registered: {SECOND}, {FIRST}; `distill publish` registers"),
        (
            "teacher-ddim-uniform-4",
            f"is not registered as 'sampler', did you mean {FIRST}? `distill publish` registers",
        ),
        ("pd2-ddim-unifrm-2", f"did you mean {FIRST}?"),
    ],
)
def test_what_is_not_registered_is_refused_and_nothing_moves(two, name, line):
    promote("sampler", FIRST, here(FIRST))
    before = aliases()
    with pytest.raises(UserError) as caught:
        promote("sampler", name, here(name))
    assert line in str(caught.value)
    assert aliases() == before


def test_weights_of_an_earlier_run_are_not_promoted_under_the_name_of_todays(two):
    other = dataclasses.replace(here(FIRST), checkpoint_digest="f" * 64)
    with pytest.raises(UserError, match="with the weights of an earlier run"):
        promote("sampler", FIRST, other)
    assert "production" not in aliases()
    promote("sampler", FIRST, None)  # no frontier here has it any more: the registered one is meant
    assert aliases()["production"] == "1"


def test_a_damaged_version_is_not_promoted(two):
    client().set_model_version_tag("sampler", "1", "damaged", "replaced")
    with pytest.raises(UserError, match=f"version 1 of 'sampler', {FIRST}, is damaged in MLflow"):
        promote("sampler", FIRST, here(FIRST))
    assert "production" not in aliases()


def test_a_model_that_was_never_registered_and_a_store_that_is_not_there(room, monkeypatch, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=f"{FIRST} is not registered as 'sampler'; registered: nothing yet;"):
        promote("sampler", FIRST, here(FIRST))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match=r"none\.db is missing: nothing was published from here; run `distill publish`"):
        promote("sampler", FIRST, here(FIRST))
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("note", ["", "  ", "x" * 501])
def test_a_note_that_mlflow_cannot_take_is_refused(two, note):
    with pytest.raises(UserError, match="--note must have 1 to 500 characters"):
        promote("sampler", FIRST, here(FIRST), note)
    assert "production" not in aliases()
