"""`distill promote`: the alias `production`, moved by a person alone, and who held it before."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks import command, paths
from tasks.tracking.models import identity_of
from tasks.tracking.promotion import promote
from tests.test_tracking import (  # noqa: F401  (fixtures)
    aliases,
    client,
    pytestmark,
    room,
    written,
)

ROOT = Path(__file__).parent.parent
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
        f"previous_production is version 1, {FIRST}; `distill promote @previous_production` goes back",
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
        (
            "cd",
            f"is not registered as 'sampler'; registered: {SECOND}, {FIRST}, @challenger, @production; `distill publish`",
        ),
        (
            "teacher-ddim-uniform-4",
            f"is not registered as 'sampler', did you mean {FIRST}? `distill publish` registers",
        ),
        ("pd2-ddim-unifrm-2", f"did you mean {FIRST}?"),
        ("chalenger", "did you mean @challenger?"),
        (
            "@chalenger",
            "no version holds the alias 'chalenger'; the aliases of 'sampler' in MLflow are challenger, production",
        ),
        ("@pd1-ddim-uniform-1", "no version holds the alias 'pd1-ddim-uniform-1'; "),
        (
            "@production",
            f"production is version 1 of 'sampler', {FIRST}, which is production already; a note alone: `distill ",
        ),
        ("production", "which is production already"),
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


@pytest.mark.parametrize("word", ["challenger", "@challenger"])
def test_an_alias_is_promoted_by_the_version_that_holds_it(two, word):
    promote("sampler", FIRST, here(FIRST))
    assert promote("sampler", word, None, "half the cost") == [
        f"production of 'sampler' is version 2 now, {SECOND}",
        f"previous_production is version 1, {FIRST}; `distill promote @previous_production` goes back",
        "note: half the cost",
    ]
    assert aliases() == {"challenger": "2", "production": "2", "previous_production": "1"}
    assert client().get_model_version("sampler", "2").tags["production_note"] == "half the cost"
    with pytest.raises(UserError, match=f"challenger is version 2 of 'sampler', {SECOND}, which is production already"):
        promote("sampler", word, None, "another note")
    assert client().get_model_version("sampler", "2").tags["production_note"] == "half the cost"


def test_the_alias_of_who_held_it_before_goes_back_and_forth_whatever_the_frontier_has_by_now(two):
    for name in (FIRST, SECOND):
        promote("sampler", name, here(name))
    for number, before in (("1", "2"), ("2", "1")):
        promote("sampler", "previous_production", None)
        assert aliases() == {"challenger": "2", "production": number, "previous_production": before}


def test_a_point_and_what_lies_here_come_before_an_alias_of_the_same_name(two):
    client().set_registered_model_alias("sampler", FIRST, "2")
    promote("sampler", FIRST, here(FIRST))
    assert aliases()["production"] == "1"
    with pytest.raises(UserError, match=r"challenger is not registered as 'sampler', did you mean @challenger\?"):
        promote("sampler", "challenger", None, here=True)
    assert aliases()["production"] == "1"
    promote("sampler", f"@{FIRST}", None)
    assert aliases()["production"] == "2"


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ({"damaged": "replaced"}, "version 3 of 'sampler' is damaged in MLflow; run `distill publish`"),
        ({"recipe": None}, "version 3 of 'sampler' is no sampler that `distill publish` registered"),
        ({"point": None}, "version 3 of 'sampler' is no sampler that `distill publish` registered"),
    ],
)
def test_an_alias_of_a_version_that_cannot_be_served_is_refused(two, tags, line):
    tags = {**identity_of(here(FIRST)), "point": FIRST, **tags}
    tags = {key: value for key, value in tags.items() if value is not None}
    client().create_model_version("sampler", str(two / "other"), tags=tags)
    client().set_registered_model_alias("sampler", "candidate", "3")
    before = aliases()
    with pytest.raises(UserError) as caught:
        promote("sampler", "candidate", None)
    assert line in str(caught.value)
    assert aliases() == before


def test_of_a_version_that_a_person_put_in_production_no_command_is_claimed_to_go_back(two):
    client().create_model_version("sampler", str(two / "other"))
    client().set_registered_model_alias("sampler", "production", "3")
    assert promote("sampler", "@challenger", None)[1] == (
        "previous_production is version 3, which `distill publish` did not register; going back is to set the alias in MLflow"
    )


def test_the_command_line_takes_an_alias_but_no_checkpoint_of_that_name(two, capsys):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    assert command.main(["promote", "@challenger", "--note", "why"]) == 0
    assert f"production of 'sampler' is version 2 now, {SECOND}" in capsys.readouterr().out
    for word, line in (
        ("challenger", "which is production already"),
        ("@nobody", "no version holds the alias 'nobody'"),
    ):
        assert command.main(["promote", word]) == 2
        (refusal,) = capsys.readouterr().err.splitlines()
        assert line in refusal
    (paths.CHECKPOINTS / "previous").mkdir(parents=True)
    (paths.CHECKPOINTS / "previous/card.json").write_text("{}")
    client().set_registered_model_alias("sampler", "previous", "1")
    assert command.main(["promote", "previous"]) == 2
    assert "did you mean @previous?" in capsys.readouterr().err
    assert aliases()["production"] == "2"
    assert command.main(["promote", "@previous"]) == 0
    assert aliases()["production"] == "1"


@pytest.mark.parametrize("note", ["", "  ", "x" * 501])
def test_a_note_that_mlflow_cannot_take_is_refused(two, note):
    with pytest.raises(UserError, match="--note must have 1 to 500 characters"):
        promote("sampler", FIRST, here(FIRST), note)
    assert "production" not in aliases()
