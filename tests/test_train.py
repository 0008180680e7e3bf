"""What a line of `distill` says reaches the training."""

import copy
import dataclasses
import fcntl
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from diffcore import checkpoints, methods
from diffcore.checkpoints.roles import roles
from diffcore.core import disk, processes, rng
from diffcore.core.errors import UserError
from diffcore.data import read
from diffcore.data.manifest import Manifest
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.metrics import bootstrap, features
from diffcore.nets import unet
from diffcore.noise.schedule import SCHEDULES, Cosine, Discrete, Flow, Linear, variance_preserving
from diffcore.noise.trajectory import uniform
from diffcore.training.config import torch_version
from diffcore.training.loop import Event, Fitted, Job, Stopped
from diffcore.training.resume import SCHEMA, Resume
from diffcore.watching.config import Watch
from diffcore.watching.look import Look
from tasks import gamma, graph, live, paths, search, train
from tasks.params import Params
from tests import test_measure
from tests.conftest import ToyNet, randn
from tests.test_dropout import dropouts
from tests.test_measure import FIT, FROM, SHAPE, make
from tests.test_unet import FAMILY, stirred


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_line_s_own_dropout_is_its_student_s_and_not_its_teacher_s(p, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    found = make(tmp_path, monkeypatch, 0, False)
    jobs = {}
    monkeypatch.setattr(train, "_train", lambda name, job, *_: jobs.update({name: job}))
    changed = dataclasses.replace(found.distill["cd"], dropout=p)
    train.train(dataclasses.replace(found, distill={**found.distill, "cd": changed}), "cd")
    job = jobs["cd"]
    assert job.student.net.config_json()["dropout"] == p
    assert dropouts(job.student.net) - {0.0} == ({p} if p else set())
    assert dropouts(job.teacher.net) <= {0.0}
    assert (job.method, job.fit) == (changed.method, changed.fit)


@pytest.fixture
def keyed(tmp_path, monkeypatch):
    """(parameters, the key of a saved state of `cd`'s training with given ones)."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    found, keys = make(tmp_path, monkeypatch, 0, False), []
    monkeypatch.setattr(train, "Resume", lambda *words: keys.append(Resume(*words).fingerprint) or 1 / 0)

    def key(changed=found) -> str:
        with pytest.raises(ZeroDivisionError):
            train.train(changed, "cd")
        return keys[-1]

    return found, key


def computing(found: Params, **change) -> Params:
    """The same run with another way to compute."""
    return dataclasses.replace(found, compute=dataclasses.replace(found.compute, **change))


def test_a_saved_state_is_keyed_by_all_that_its_training_depends_on(keyed, monkeypatch):
    found, key = keyed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = {**found.raw["distill"]["cd"], "lr": 0.5}
    others = [
        dataclasses.replace(found, seed=found.seed + 1),
        dataclasses.replace(found, data=dataclasses.replace(found.data, flip=not found.data.flip)),
        dataclasses.replace(found, raw={**found.raw, "distill": {**found.raw["distill"], "cd": line}}),
    ]
    keys = [key(), *map(key, others)]
    assert key(computing(found, precision="bf16")) not in keys
    assert key(computing(found, precision="auto")) == key(computing(found, precision="no"))  # without a GPU
    for change in ({"threads": 2}, {"save_seconds": 3.0}, {"memory_gb": 0.25}):
        assert key(computing(found, **change)) == keys[0]
    for place, name in ((train.graph, "code_digest"), (train.config, "torch_version")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: "another")
            keys.append(key())
    (paths.CHECKPOINTS / "teacher").rename("aside")
    (paths.CHECKPOINTS / "v").rename(paths.CHECKPOINTS / "teacher")
    keys.append(key())
    assert len(set(keys)) == len(keys) == 7
    (paths.CHECKPOINTS / "teacher").rename(paths.CHECKPOINTS / "v")
    (paths.RESUME.parent / "aside").rename(paths.CHECKPOINTS / "teacher")
    assert key() == keys[0]


# --- what is handed on, and what is written of it

LINE = {"lr": 1e-3, "ema": 0.9}
TEACHER = {"iterations": 8, "batch": 9, "lr": 2e-3, "ema": 0.8, "label_dropout": 0.25}
CD = {"method": "consistency", "init": "v", "teacher": "v", "steps": 4, "target_ema": 0.5}
LINES = {
    "v": {"method": "denoising", **FROM, "iterations": 2, "batch": 3, **LINE},
    "cd": {
        "method": "consistency",
        "init": "v",
        "teacher": "v",
        "steps": 4,
        "iterations": 3,
        "batch": 4,
        "target_ema": 0.5,
        **LINE,
    },
    "dm": {
        "method": "distribution_matching",
        "init": "cd",
        "teacher": "v",
        "steps": 1,
        "iterations": 4,
        "batch": 5,
        **LINE,
    },
    "g": {"method": "guided", **FROM, "guidance": [1.0, 4.0], "iterations": 5, "batch": 6, **LINE},
    "pg": {"method": "progressive", "init": "g", "teacher": "g", "steps": 4, "iterations": 6, "batch": 7, **LINE},
}
PLAIN = {"sampler": "ddim", "trajectory": "uniform", "steps": [2]}
GUIDED = {"g": [{**PLAIN, "guidance": 2.0}], "pg": [{"sampler": "ddim", "trajectory": "own", "guidance": 2.0}]}
RANGE = checkpoints.Guidance(1.0, 4.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two classes, no two numbers of two sections or lines alike, and every checkpoint another network."""
    with pytest.MonkeyPatch.context() as patch:
        for stage, name in ((test_measure.features, "train"), (gamma, "estimate"), (search, "find")):
            patch.setattr(stage, name, lambda *_: None)
        samplings = {
            "teacher": [PLAIN],
            "any_time_students": [{**PLAIN, "sampler": "multistep_consistency"}],
            "students": GUIDED,
        }
        for key, value in {
            "seed": 5,
            "compute": {"threads": 1, "save_seconds": 7.0, "memory_gb": 0.5},
            "teachers": {
                "teacher": {
                    "network": SHAPE,
                    "iterations": 8,
                    "batch": 9,
                    "lr": 2e-3,
                    "ema": 0.8,
                    "label_dropout": 0.25,
                    "cores": 1,
                }
            },
            "distill": LINES,
            "evaluate": samplings,
        }.items():
            patch.setitem(test_measure.SMALL, key, value)
        found = make(tmp_path_factory.mktemp("wired"), patch, 2, True, flip=True)
        card = checkpoints.read_card(paths.CHECKPOINTS / "g")
        net = stirred(found.teachers["teacher"].network.config(tuple(card.image), 2), seed=40)
        denoiser = NetDenoiser(unet.with_guidance(net), Cosine(), classes=2, takes_guidance=True)
        about = {key: getattr(card, key) for key in ABOUT}
        checkpoints.save(
            paths.CHECKPOINTS / "g", denoiser, tuple(card.image), {**about, "guidance": dataclasses.asdict(RANGE)}
        )
        home = paths.PARAMS.resolve().parent
    return home, found


ABOUT = ("name", "method", "solver", "weights", "parent", "teacher", "data", "parameters", "seed", "code", "torch")
ABOUT += ("cost", "classes", "compute")


@pytest.fixture
def wired(project, tmp_path, monkeypatch):
    """A copy, which is the working directory."""
    shutil.copytree(project[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return project[1]


def told(monkeypatch, stage, *arguments) -> SimpleNamespace:
    """What a stage hands to the engine, whose training is another network at once: its words by name."""
    heard = SimpleNamespace(trained=[])
    monkeypatch.setattr(train.signals, "StopFlag", lambda: "the flag")
    feed = train.feed.feed
    monkeypatch.setattr(
        train.feed, "feed", lambda *words: vars(heard).update(feed=words, batches=feed(*words)) or heard.batches
    )

    def learn(job, student, teacher, compute, resume, on_event, stop, on_resume):
        heard.job, heard.student, heard.teacher, heard.compute, heard.stop = job, student, teacher, compute, stop
        heard.resume, heard.held = resume, not free(resume.folder / "lock")
        on_resume(1)
        event = Event(job.training.iterations, 77, 0.51239, 0.25, 0.125)
        on_event(event)
        heard.net = copy.deepcopy(student.net)
        with torch.no_grad():
            for parameter in heard.net.parameters():
                parameter.add_(0.5)
        return Fitted(heard.net, [dataclasses.replace(event, step=1), event], 12.34, 56.0)

    monkeypatch.setattr(train.loop, "fit", learn)
    stage(*arguments)
    return heard


def free(path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def opened(name: str) -> checkpoints.Checkpoint:
    return checkpoints.load(paths.CHECKPOINTS / name)


def weights(net: torch.nn.Module) -> dict[str, list]:
    return {key: tensor.tolist() for key, tensor in net.state_dict().items()}


def rows(name: str) -> list[str]:
    return disk.read_summed(paths.CURVES / f"{name}.csv", "x").splitlines()


@pytest.mark.parametrize("name", LINES)
def test_a_student_s_training_is_that_of_its_line_and_its_card_tells_it(name, wired, monkeypatch, capsys):
    line, parent, mentor = wired.distill[name], opened(LINES[name]["init"]), opened(LINES[name]["teacher"])
    heard = told(monkeypatch, train.train, wired, name)
    said = capsys.readouterr().out
    seed, weighed = rng.seed(5, name), RANGE if name in GUIDED else None
    memory, device = 2**29, wired.compute.device
    assert heard.feed == (paths.DATA, LINES[name]["batch"], seed, True, memory, device, None)
    between = weighed and (1.0, 4.0)
    assert heard.job == Job(line.method, line.fit, heard.batches, seed, guidance=between)
    assert (heard.compute, heard.stop, heard.held) == (wired.compute, "the flag", True)
    assert (heard.resume.root, heard.resume.name, heard.resume.log) == (paths.RESUME, name, train.log)
    assert free(heard.resume.folder / "lock")
    # a guided teacher is asked twice, one that knows the weight once; a range of weights is an input
    teacher = heard.teacher
    assert isinstance(teacher, Guided) == (name == "g")
    assert weights((teacher.inner if name == "g" else teacher).net) == weights(mentor.denoiser.net)
    start = dict(weights(heard.student.net))
    if name == "g":
        start.pop("time_embedding.cond_proj.weight", None)
    known = weights(parent.denoiser.net)
    assert {key: start[key] for key in known} == known
    assert heard.student.takes_guidance == (weighed is not None)
    assert heard.student.classes == 2
    card, made = opened(name).card, opened(name).denoiser
    cost = {"iterations": line.fit.iterations, "images": line.fit.iterations * line.fit.batch, "network_calls": 56.0}
    assert {key: getattr(card, key) for key in (*ABOUT, "guidance", "image", "parameterization")} == {
        "name": name,
        "method": LINES[name]["method"],
        "solver": line.method.sampler,
        "weights": "ema",
        "parent": parent.card.digest,
        "teacher": mentor.card.digest,
        "data": Manifest.read(paths.DATA).digest,
        "parameters": {**wired.raw["distill"][name], "flip": True},
        "seed": 5,
        "code": graph.code_digest("distill", LINES[name]["method"]),
        "torch": torch_version(),
        "compute": train.loop.provenance(wired.compute),
        "cost": cost,
        "classes": ["class0", "class1"],
        "guidance": weighed and dataclasses.asdict(weighed),
        "image": [1, 4, 4],
        "parameterization": "v",
    }
    assert weights(made.net) == weights(heard.net)
    assert made.grid == line.method.grid
    assert (made.grid is not None) == (name in ("dm", "pg"))
    last = line.fit.iterations
    assert rows(name) == ["step,images,loss,grad_norm,lr", "1,77,0.51239,0.25,0.125", f"{last},77,0.51239,0.25,0.125"]
    assert disk.read_sealed(paths.COST / f"{name}.json", None, "x") == {"seconds": 12.3, **cost}
    assert f"{name}: goes on after 1 of {last} updates\n" in said
    assert f"{last}/{last}  loss 0.5124" in said
    assert f"{name}: {cost['images']} images in 12 s; checkpoint {card.digest[:12]}\n" in said
    assert (f"{name}: starts as cd and learns from v\n" in said) == (name == "dm")


def test_student_and_mentor_are_cast_with_all_that_the_line_says(wired, monkeypatch):
    """`dm` starts as `cd` and learns from `v`: guided by its own weight, whoever teaches."""
    own, casts, tells = checkpoints.Guidance(2.0, 2.0), [], []
    line = dataclasses.replace(wired.distill["dm"], guidance=(2.0, 2.0), parameterization="v", dropout=0.25)
    cast = train.roles
    monkeypatch.setattr(train, "roles", lambda one, *words: casts.append((one.card.name, *words)) or cast(one, *words))
    monkeypatch.setattr(train, "_tell", lambda *words: tells.append(words))
    changed = dataclasses.replace(wired, distill={**wired.distill, "dm": line})
    heard = told(monkeypatch, train.train, changed, "dm")
    assert casts == [("cd", own, "v", 0.25, None, False), ("v", own)]
    assert isinstance(heard.teacher, Guided)
    assert weights(heard.teacher.inner.net) == weights(opened("v").denoiser.net)
    assert heard.job.guidance == (2.0, 2.0)
    assert tells == [("dm", heard.student, line.method.grid)]


@pytest.mark.parametrize(
    ("conditional", "parameterization", "schedule"),
    [(True, "v", Cosine()), (False, "x0", Linear()), (False, "x0_eps", Cosine())],
)
def test_the_teacher_s_training_is_that_of_its_line_and_its_card_tells_it(
    conditional, parameterization, schedule, wired, monkeypatch
):
    line = wired.teachers["teacher"]
    network = dataclasses.replace(
        line.network, conditional=conditional, parameterization=parameterization, max_phase=7.0
    )
    method = methods.load("denoising")("min_snr" if parameterization == "x0" else "one")
    line = dataclasses.replace(
        line,
        network=network,
        conditional=conditional,
        reading=Reading(parameterization),
        schedule=schedule,
        method=method,
    )
    raw = {**wired.raw, "teachers": {"teacher": {"anything": 7.0}}}
    changed = dataclasses.replace(wired, teachers={"teacher": line}, raw=raw)
    heard = told(monkeypatch, train.train, changed, "teacher")
    seed = rng.seed(5, "teacher")
    assert heard.feed == (paths.DATA, 9, seed, True, 2**29, wired.compute.device, None)
    assert heard.job == Job(method, line.fit, heard.batches, seed)
    assert (heard.teacher, heard.compute, heard.resume.name) == (None, wired.compute, "teacher")
    shape = network.config((1, 4, 4), 2)
    assert weights(heard.student.net) == weights(unet.build(shape, seed, 7.0))
    assert weights(heard.student.net) != weights(unet.build(shape, seed, None))
    assert (heard.student.reading.parameterization, heard.student.schedule, heard.student.grid) == (
        parameterization,
        schedule,
        None,
    )
    classes = ["class0", "class1"] if conditional else None
    card = opened("teacher").card
    assert (heard.student.classes, card.classes) == (classes and 2, classes)
    assert (card.parent, card.teacher, card.guidance, card.method, card.parameterization) == (
        None,
        None,
        None,
        "denoising",
        parameterization,
    )
    assert card.parameters == {"anything": 7.0, "flip": True}
    assert card.code == graph.code_digest("teachers", "denoising") != graph.code_digest("distill", "denoising")
    assert card.cost == {"iterations": 8, "images": 72, "network_calls": 56.0}
    kind = wired.compute.device.type
    assert card.compute == {"device": kind, "precision": wired.compute.numbers, "dice": kind, "processes": 1}
    assert disk.read_sealed(paths.COST / "teacher.json", None, "x") == {"seconds": 12.3, **card.cost}
    assert len(rows("teacher")) == 3


@pytest.mark.parametrize(("name", "guidance"), [("cd", None), ("g", RANGE)])
def test_a_student_with_a_network_of_its_own_starts_as_its_init_where_that_fits(
    name, guidance, wired, monkeypatch, capsys
):
    """Its group norms and the layers whose size it left as it was; the rest is new, and of its own seed."""
    line = dataclasses.replace(wired.distill[name], network={"layers": 2, "max_phase": 3.0})
    changed = dataclasses.replace(wired, distill={**wired.distill, name: line})
    heard = told(monkeypatch, train.train, changed, name)
    parent, seed = opened(line.init), rng.seed(5, name)
    shape = changed.shape(name)
    assert (shape.layers, shape.max_phase, shape.conditional) == (2, 3.0, True)
    new = unet.build(shape.config((1, 4, 4), 2), seed, 3.0).state_dict()
    old, start = parent.denoiser.net.state_dict(), heard.student.net.state_dict()
    taken = [key for key in new if key in old and old[key].shape == new[key].shape]
    assert 0 < len(taken) < len(new)
    assert all(torch.equal(start[key], old[key] if key in taken else new[key]) for key in new)
    assert set(start) - set(new) == ({"time_embedding.cond_proj.weight"} if guidance else set()) or guidance
    assert heard.student.takes_guidance == (guidance is not None)
    assert weights(heard.teacher.net if guidance is None else heard.teacher.inner.net) == weights(
        opened(line.teacher).denoiser.net
    )
    told_ = f"{name}: {len(taken)} of {len(new)} tensors start as those of {line.init}, the others are new\n"
    assert told_ in capsys.readouterr().out
    assert opened(name).denoiser.net.config_json()["layers_per_block"] == 2


def test_a_student_of_an_input_for_the_weight_may_begin_a_network_without(wired, monkeypatch):
    line = dataclasses.replace(wired.distill["pg"], network={"layers": 2})
    heard = told(monkeypatch, train.train, dataclasses.replace(wired, distill={**wired.distill, "pg": line}), "pg")
    assert heard.student.takes_guidance
    x, t = torch.zeros(2, 1, 4, 4), torch.full((2,), 0.5, dtype=torch.float64)
    known = of_classes(torch.tensor([0, 1]), torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert heard.student.with_condition(known)(x, t).x0.isfinite().all()


def test_a_teacher_of_another_schedule_is_no_teacher(wired, monkeypatch):
    """Of adopted ones the file does not know it; their cards do."""
    card, denoiser = opened("v").card, opened("v").denoiser
    about = {key: getattr(card, key) for key in ABOUT}
    other = NetDenoiser(denoiser.net, Linear(), classes=2)
    checkpoints.save(paths.CHECKPOINTS / "v", other, (1, 4, 4), about)
    with pytest.raises(UserError, match="v has another schedule than cd; name a teacher that comes from the same"):
        train.train(wired, "dm")


def test_a_curve_has_a_critic_s_loss_where_there_is_a_critic():
    event = Event(1, 2, 0.5, 0.25, 0.125, critic_loss=0.75)
    assert train._csv([event]).splitlines() == ["step,images,loss,grad_norm,lr,critic_loss", "1,2,0.5,0.25,0.125,0.75"]


def look(step: int) -> Look:
    return Look(0.5, 0.25, 0.9, 0.125, 1.0, 0.0, None, None, step=step, best=step)


def test_looks_stand_in_the_row_of_their_update_or_in_one_of_their_own():
    curve = [Event(2, 16, 0.5, 0.25, 0.125, 0.75), Event(4, 32, 0.25, 0.25, 0.125, 0.75)]
    looks = train._looks(SimpleNamespace(looks=[look(3), look(4)]), curve)
    assert train._csv(curve, looks).splitlines() == [
        "step,images,loss,grad_norm,lr,critic_loss,fd,fd_se,diversity,diversity_se,contrast,beyond,memorised,"
        "memorised_se,critic_ratio",
        "2,16,0.5,0.25,0.125,0.75,,,,,,,,,",
        "3,24,,,,,0.5,0.25,0.9,0.125,1.0,0.0,,,1.5",
        "4,32,0.25,0.25,0.125,0.75,0.5,0.25,0.9,0.125,1.0,0.0,,,3.0",
    ]
    plain = [Event(2, 16, 0.5, 0.25, 0.125)]
    assert train._csv(plain, train._looks(SimpleNamespace(looks=[look(2)]), plain)).splitlines()[1:] == [
        "2,16,0.5,0.25,0.125,0.5,0.25,0.9,0.125,1.0,0.0,,"
    ]
    assert train._csv(plain, train._looks(None, plain)) == train._csv(plain)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_watched_line_is_looked_at_and_its_card_names_the_network(keep, wired, capsys):
    """By the network of the stage `features`, made once for all lines; the weights are those without a watch."""
    line = wired.distill["pg"]
    train.train(wired, "pg")
    plain = weights(opened("pg").denoiser.net)
    assert opened("pg").card.watch is None
    watched = dataclasses.replace(line, watch=Watch(2, 12, keep))
    train.train(dataclasses.replace(wired, distill={**wired.distill, "pg": watched}), "pg")
    own, updates = opened("pg").card, line.fit.iterations
    (kept,) = paths.RESUME.glob("watch.features-*/network")
    network = features.train(read.open_images(paths.DATA, 2**20), wired.features)
    assert own.watch["features"] == features.load(kept).digest == network.digest
    assert (own.watch["images"], own.watch["updates"]) == (12, updates)
    table = [dict(zip(rows("pg")[0].split(","), row.split(","))) for row in rows("pg")[1:]]
    (row,) = [row for row in table if int(row["step"]) == own.watch["kept"]]
    assert (float(row["fd"]), float(row["fd_se"])) == (own.watch["fd"], own.watch["fd_se"])
    assert [int(row["step"]) for row in table if row["diversity"]] == [2, 4, 6]
    assert own.cost["watch_calls"] == 3 * 12 * line.method.steps
    cost = disk.read_sealed(paths.COST / "pg.json", None, "x")
    assert {key: cost[key] for key in own.cost} == own.cost
    assert 0 <= cost["watch_seconds"] <= cost["seconds"]
    assert [step for step, _ in cost["looks"]] == [2, 4, 6]
    assert 0 <= cost["looks"][0][1] <= cost["looks"][1][1] <= cost["looks"][2][1] <= cost["seconds"] + 0.1
    if own.watch["kept"] == updates:
        assert weights(opened("pg").denoiser.net) == plain
    assert (own.watch["kept"] == updates) >= (keep == "last")
    assert f"pg: update {updates}: fd " in capsys.readouterr().out
    own_file = live.read(live.folder() / "pg.jsonl")
    assert (own_file.ended, own_file.watched, own_file.iterations) == ("finished", True, updates)
    of_table = [(int(row["step"]), float(row["fd"]), float(row["diversity"])) for row in table if row["fd"]]
    assert [(line["step"], line["look"]["fd"], line["look"]["diversity"]) for line in own_file.looks] == of_table
    losses = [(int(row["step"]), float(row["loss"])) for row in table if row["loss"]]
    assert [(line["step"], line["point"]["loss"]) for line in own_file.points] == losses
    assert own_file.samples().shape == (12, 4, 4, 1)


def test_what_is_allowed_and_seldom_wanted_is_told(capsys):
    """Of 1000 noise levels 10 steps meet each, 3 fall between two; a flow knows all times."""
    flow = NetDenoiser(ToyNet(), Flow(), Reading.of("flow", "flow", 1))
    train._tell("pd", flow, uniform(3))
    for parameterization, num_timesteps, steps in (("v", 1000, 10), ("v", 1000, 3), ("eps", 1000, None)):
        train._tell(
            "pd",
            NetDenoiser(ToyNet(), Cosine(), Reading(parameterization, num_timesteps)),
            steps and uniform(steps),
        )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("pd: 3 steps do not divide 1000 noise levels")
    assert second.startswith("pd: an eps network hardly learns few steps")


def test_a_line_that_is_not_there_is_a_mistake_that_names_those_that_are(wired):
    told_ = r"params\.yaml has no line 'nobody' in teachers or distill; known: teacher, v, cd, dm, g, pg"
    with pytest.raises(UserError, match=told_):
        train.train(wired, "nobody")


def test_a_stage_that_is_told_to_stop_ends_with_143_and_a_whole_one_with_0(capsys):
    heard = []

    def stopped(*words):
        heard.append(words)
        raise Stopped("stopped after 3 of 9 steps")

    assert train.until_stopped(stopped, "a", 2) == 143
    assert heard == [("a", 2)]
    assert capsys.readouterr().out.startswith("stopped after 3 of 9 steps; the state is saved")
    assert train.until_stopped(lambda *words: heard.append(words), "b") == 0
    assert heard[1:] == [("b",)]


def changed(what: str, found: Params, monkeypatch) -> Params:
    """The same run after one change, of the parameters or of what is around them."""
    raw = found.raw
    line = found.teachers["teacher"]
    untold = dataclasses.replace(line, conditional=False, network=dataclasses.replace(line.network, conditional=False))
    lines = {"teachers": {"teacher": {**raw["teachers"]["teacher"], "lr": 0.5}}}
    lines |= {"distill": {**raw["distill"], "cd": {**raw["distill"]["cd"], "lr": 0.5}}}
    parameters = {
        "seed": {"seed": 6},
        "flip": {"data": dataclasses.replace(found.data, flip=False)},
        "lr": {"raw": {**raw, **lines}},
        "classes": {"teachers": {"teacher": untold}},
        "precision": {"compute": dataclasses.replace(found.compute, precision="bf16")},
    }
    manifest = dataclasses.replace(Manifest.read(paths.DATA), digest="f" * 64)
    around = {
        "data": lambda: monkeypatch.setattr(train.Manifest, "read", lambda *_, **more: manifest),
        "code": lambda: monkeypatch.setattr(train.graph, "code_digest", lambda *_: "another"),
        "torch": lambda: monkeypatch.setattr(train.config, "torch_version", lambda: "another"),
        "device": lambda: monkeypatch.setattr(processes, "device", lambda: torch.device("meta")),
        "dice": lambda: monkeypatch.setattr(train.loop, "dice", lambda device: torch.device("cuda")),
        "processes": lambda: monkeypatch.setattr(processes, "count", lambda: 2),
    }
    around.get(what, lambda: None)()
    return dataclasses.replace(found, **parameters.get(what, {}))


WORDS = ("seed", "flip", "lr", "data", "code", "torch", "classes", "precision", "device", "dice")


@pytest.mark.parametrize("change", WORDS)
def test_a_saved_state_of_the_teacher_is_keyed_by_all_that_its_training_depends_on(change, wired, monkeypatch):
    keys = []

    def made(root, name, about, say):
        keys.append((root, name, Resume(root, name, about).fingerprint))
        return 1 / 0

    monkeypatch.setattr(train, "Resume", made)

    def key(found) -> None:
        with pytest.raises(ZeroDivisionError):
            train.train(found, "teacher")

    key(wired)
    key(changed(change, wired, monkeypatch))
    assert len(set(keys)) == 2
    assert {key[:2] for key in keys} == {(paths.RESUME, "teacher")}


def test_a_saved_state_serves_another_number_of_processes(wired, monkeypatch):
    """They go on with it; the card tells how many they are."""
    keys = []
    monkeypatch.setattr(train, "Resume", lambda root, name, about, log: keys.append(Resume(root, name, about)) or 1 / 0)
    for change in ("nothing", "processes"):
        with pytest.raises(ZeroDivisionError):
            train.train(changed(change, wired, monkeypatch), "teacher")
    assert keys[0].fingerprint == keys[1].fingerprint


def broken_off(monkeypatch, found: Params, name: str, updates: int) -> None:
    """Trains a line until so many updates are made and saved."""
    calls = iter(range(1, 1000))
    with monkeypatch.context() as patch:
        patch.setattr(train.signals, "StopFlag", lambda: lambda: next(calls) == updates)
        with pytest.raises(Stopped):
            train.train(found, name)


CHANGES = {
    "seed": "seed 5, now 6",
    "lr": "parameters.lr 0.001, now 0.5",
    "flip": "parameters.flip true, now false",
    "data": "data {data:.12}, now ffffffffffff",
    "code": "code {code:.12}, now another",
    "torch": "torch {torch}, now another",
    "precision": "precision float32, now bf16",
    "device": "device {compute[device]}, now meta",
    "dice": "dice cpu, now cuda",
}
"""What is said of a state that was saved before the change."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_that_begins_anew_says_which_saved_state_is_not_used_and_why(change, wired, monkeypatch, capsys):
    full = computing(wired, precision="no")
    broken_off(monkeypatch, full, "cd", 2)
    (state,) = paths.RESUME.glob("cd-*")
    what = CHANGES[change].format(**disk.read_sealed(state / "about.json", SCHEMA, "x")["about"])
    loaded = []
    monkeypatch.setattr(train.loop, "fit", lambda *words: loaded.append(words[4].load()) or 1 / 0)
    capsys.readouterr()
    with pytest.raises(ZeroDivisionError):
        train.train(changed(change, full, monkeypatch), "cd")
    assert loaded == [None]
    assert capsys.readouterr().out.splitlines() == [
        f"cd: a saved state of 2 updates is there and is not used: {what}; go back to go on from it, or remove {state}"
    ]
    assert [path.name for path in state.glob("step-*")] == ["step-000000002"]


def test_what_was_begun_in_one_precision_does_not_go_on_in_another(wired, monkeypatch, tmp_path, capsys):
    """The card says in which it was made, and the weights are those of a training in it from the first update."""
    shutil.copytree(tmp_path / "copy", tmp_path / "fresh", symlinks=True)
    full, half = (computing(wired, precision=word) for word in ("no", "bf16"))
    broken_off(monkeypatch, full, "cd", 2)
    train.train(half, "cd")
    said, found = capsys.readouterr().out, opened("cd")
    assert "cd: a saved state of 2 updates is there and is not used: precision float32, now bf16; go back" in said
    assert "goes on after" not in said
    monkeypatch.chdir(tmp_path / "fresh")
    train.train(half, "cd")
    assert opened("cd").card == found.card
    assert disk.sha256(paths.CHECKPOINTS / "cd/card.json") == disk.sha256(
        tmp_path / "copy/artifacts/checkpoints/cd/card.json"
    )
    train.train(full, "cd")
    assert opened("cd").card.files != found.card.files
    precisions = {**train.loop.provenance(full.compute), "precision": None}
    assert opened("cd").card.compute == {**precisions, "precision": "float32"}
    assert found.card.compute == {**precisions, "precision": "bf16"}


# --- who takes part in guidance


def cast_from(
    guidance: checkpoints.Guidance | None = None, net=None, parameterization: str = "v", **change
) -> checkpoints.Checkpoint:
    """What a checkpoint of classes is asked for; with a weight as an input where the guidance is a range."""
    config = dataclasses.replace(FAMILY["classes"], guidance_embeds=guidance is not None and guidance.is_input)
    takes_guidance = guidance is not None and guidance.is_input
    schedule = Discrete((0.1, 0.2, 0.9))
    known = {"classes": 4, "takes_guidance": takes_guidance, **change}
    card = object.__new__(checkpoints.Card)
    vars(card).update(guidance=guidance and dataclasses.asdict(guidance))
    return checkpoints.Checkpoint(
        card, NetDenoiser(net or stirred(config), schedule, Reading(parameterization, 3), **known)
    )


def beliefs(denoiser, weight: float | None):
    x, t, labels = (
        randn(3, 1, 8, 8).float(),
        torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64),
        torch.tensor([0, 3, 1]),
    )
    told = None if weight is None else torch.full((3,), weight, dtype=torch.float64)
    return denoiser.with_condition(of_classes(labels, told))(x, t).x0


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_a_student_of_one_weight_begins_as_its_teacher_of_many_is_at_that_weight(weight):
    parent = cast_from(checkpoints.Guidance(1.0, 4.0))
    student, teacher = roles(parent, checkpoints.Guidance(weight, weight))
    assert teacher is parent.denoiser
    assert not student.takes_guidance
    torch.testing.assert_close(beliefs(student, None), beliefs(teacher, weight), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(beliefs(student, None), beliefs(teacher, 3.5), atol=1e-4)


@pytest.mark.parametrize("weights", [None, checkpoints.Guidance(2.0, 2.0), checkpoints.Guidance(1.0, 4.0)])
def test_a_student_s_process_classes_levels_and_head_are_its_parent_s(weights):
    parent = cast_from(parameterization="eps")
    student, _ = roles(parent, weights)
    assert (student.schedule, student.classes, student.reading.num_timesteps, student.reading.parameterization) == (
        parent.denoiser.schedule,
        4,
        3,
        "eps",
    )
    assert student.takes_guidance == (weights is not None and weights.is_input)
    assert roles(parent, weights, "v")[0].reading.parameterization == "v"
    assert student.net is not parent.denoiser.net


def test_a_student_of_a_student_with_steps_of_its_own_may_get_others():
    parent = cast_from()
    parent.denoiser.grid = uniform(3)
    assert roles(parent, None)[0].grid is None


def test_what_no_network_can_be_made_to_say_is_a_mistake():
    both = cast_from()
    both.denoiser.reading = Reading("x0_eps")
    assert roles(both, None)[0].reading.parameterization == "x0_eps"
    with pytest.raises(
        UserError, match="parameterization x0_eps says twice as much as one of v; leave `parameterization` out"
    ):
        roles(both, None, "v")
    theirs = cast_from(net=Other())
    roles(theirs, checkpoints.Guidance(2.0, 2.0))
    with pytest.raises(UserError, match="needs our own U-Net or transformer, not Other; give one weight"):
        roles(theirs, checkpoints.Guidance(1.0, 4.0))


class Other(ToyNet):
    """A network that is not our U-Net."""

    def with_dropout(self, p: float) -> "Other":
        return self


# --- every schedule, from the file to a measured student

NUMBERS = {"discrete": {"betas": [0.1, 0.3, 0.5, 0.9]}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "subvp")) for name in SCHEDULES]
)
def test_every_schedule_goes_from_the_file_to_a_measured_student(name, tmp_path, monkeypatch):
    """Trained, distilled, Gamma estimated, times sought and fitted, measured; and written so that it is read again."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    chosen = {"network": SHAPE, **FIT, "schedule": {"name": name, **NUMBERS.get(name, {})}}
    lines = {
        "pd2": {"method": "progressive", **FROM, "steps": 2, **FIT},
        "cd": {"method": "consistency", **FROM, "steps": 4, "target_ema": 0.5, **FIT},
    }
    monkeypatch.setattr(
        test_measure, "SMALL", {**test_measure.SMALL, "teachers": {"teacher": chosen}, "distill": lines}
    )
    found = make(tmp_path, monkeypatch, 0, False)
    for line in test_measure.names(found):
        train.train(found, line)
    for picture in ("frontier", "curves"):
        monkeypatch.setattr(test_measure.charts, picture, lambda *_: None)
    gamma.estimate(found)
    search.find(found)
    test_measure.measure_all(found)
    schedule = variance_preserving(
        SCHEDULES[name](**{key: tuple(value) for key, value in NUMBERS.get(name, {}).items()})
    )
    assert all(opened(line).denoiser.schedule == schedule for line in test_measure.names(found))
    table = json.loads(paths.FRONTIER.read_text())
    assert {point["checkpoint"] for point in table["points"]} == {"teacher", "pd2", "cd"}
