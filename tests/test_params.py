import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffcore import methods, nets
from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Threshold
from diffcore.denoisers.reading import KINDS, Reading
from diffcore.lineage import Lineage, Root
from diffcore.nets import dit, unet
from diffcore.noise.schedule import SCHEDULES, Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.training.config import Training
from diffcore.watching.config import Watch
from tasks import params, rules, sections, strict_yaml, workspace
from tasks.lines import _student, read_lines

ROOT = Path(__file__).parent.parent
SHIPPED = (ROOT / "tests/compact.yaml").read_text()


def read(tmp_path, text: str = SHIPPED):
    (tmp_path / "params.yaml").write_text(text)
    return params.read(tmp_path / "params.yaml")


def faults(tmp_path, *changes: tuple[str, str]) -> list[str]:
    text = SHIPPED
    for old, new in changes:
        assert re.search(old, text), f"{old} is not in params.yaml"
        text = re.sub(old, new, text, count=1)
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return [line.partition("params.yaml: ")[2] for line in str(caught.value).splitlines()]


def test_the_shipped_file_is_in_order(tmp_path):
    found = read(tmp_path)
    chain = ["pd16", "pd8", "pd4", "pd2", "pd1"]
    assert list(found.distill) == [*chain, "cd", "dm1"]
    assert [found.distill[name].method.steps for name in chain] == [16, 8, 4, 2, 1]
    assert found.lines.grid("pd4") == uniform(4)
    assert found.lines.grid("cd") is None
    assert found.distill["pd4"].fit.iterations > found.distill["pd8"].fit.iterations  # the last rounds are longer


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
def test_every_preset_is_in_order(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    merged = params.load_yaml(ROOT / "params.yaml")
    workspace._merge(merged, workspace._preset(preset), preset)
    params.dump_yaml(merged, tmp_path / "params.yaml")
    assert params.read(tmp_path / "params.yaml").distill


# ruff: noqa: E501

WRONG = {
    "an unknown section": (("teachers:", "techers:"), "techers: unknown section; did you mean 'teachers'?"),
    "an unknown key": (("max_phase", "max_fase"), "teachers.teacher.network.max_fase: unknown key; did you mean 'max_phase'?"),
    "an unknown key of a student": (("target_ema", "target_emma"), "distill.cd.target_emma: unknown key; did you mean 'target_ema'?"),
    "a string for a number": (("iterations: 1000", 'iterations: "1000"'), "teachers.teacher.iterations: Input should be a valid integer"),
    "a word for a number or auto": (("batch: 250", "batch: most"), "evaluate.batch: Input should be 'auto', or: Input should be a valid integer, got"),
    "a judge that is none": (("batch: 250", "judges: {incepton: weights.pth}\n  batch: 250"), "evaluate: judges: 'incepton' is none; did you mean 'inception'?"),
    "a judge without weights": (("batch: 250", "judges: {inception: weights.pth}\n  batch: 250"), "evaluate: judges.inception: there is no file 'weights.pth'; download its weights and name them here"),
    "a judge's unknown key": (("batch: 250", "judges: {inception: {file: weights.pth, sha265: x}}\n  batch: 250"), "evaluate: judges.inception.sha265: unknown key; did you mean 'sha256'?"),
    "a judge without a file": (("batch: 250", "judges: {inception: {size: 3}}\n  batch: 250"), "evaluate: judges.inception.file: missing"),
    "a judge that is no file": (("batch: 250", "judges: {inception: 3}\n  batch: 250"), "evaluate: judges.inception: "),
    "a judge's digest that is none": (("batch: 250", "judges: {inception: {file: params.yaml, sha256: 67-89}}\n  batch: 250"), "evaluate: judges.inception: sha256 must be 8 to 64 hexadecimal digits, in quotes"),
    "a judge's folder that is not there": (("batch: 250", "judges: {dinov2: weights/dinov2}\n  batch: 250"), "evaluate: judges.dinov2: there is no folder 'weights/dinov2'; download config.json and model.safetensors of a model into one"),
    "a judge's folder that is a file": (("batch: 250", "judges: {clip: {file: params.yaml}}\n  batch: 250"), "evaluate: judges.clip: there is no folder 'params.yaml'"),
    "a judge's folder in a package": (("batch: 250", "judges: {clip: package}\n  batch: 250"), "evaluate: judges.clip: no package ships the weights of clip; download them and name the"),
    "a judge without its package": (("batch: 250", "judges: {inception: package}\n  batch: 250"), "evaluate: judges.inception: no package ships the weights of inception; download them and name the file here"),
    "a size for a judge of ours": (("batch: 250", "judges: {inception: {file: params.yaml, size: 64}}\n  batch: 250"), "evaluate: judges.inception: size: inception is a network of ours and has its own preprocessing; leave size out"),
    "a judge's reference that is not there": (("batch: 250", "judges: {inception: {file: params.yaml, reference: stats.npz}}\n  batch: 250"), "evaluate: judges.inception: there is no file 'stats.npz', its reference; `distill statistics` writes one"),
    "a program that nobody trusts": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5], std: [0.5]}}\n  batch: 250"), "evaluate: judges.mine: loading 'mine.pt2' executes what is in it; write trusted: true if you trust who made it"),
    "a program without its preprocessing": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: std is missing: mine is no network of ours (clip, dinov2, efficientnet, inception) but a program of yours"),
    "a program by its path alone": (("batch: 250", "judges: {mine: mine.pt2}\n  batch: 250"), "evaluate: judges.mine: size is missing: mine is no network of ours (clip, dinov2, efficientnet, inception) but a program of yours, which needs size, mean, std and trusted"),
    "a program that is none": (("batch: 250", "judges: {mine: {file: mine.pth, size: 64, mean: [0.5], std: [0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: 'mine.pth' is no program; name a file of torch.export (.pt2) or TorchScript (.pt)"),
    "a program that is not there": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5], std: [0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: there is no file 'mine.pt2'"),
    "a program of two channels": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5, 0.5], std: [0.5, 0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: mean and std must have 1 number for grey images or 3 for RGB"),
    "a program's uneven numbers": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5], std: [0.5, 0.5, 0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: mean and std must be as many, got 1 and 3"),
    "a program's std of nothing": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 64, mean: [0.5], std: [0.0], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: std must be positive"),
    "a program of no size": (("batch: 250", "judges: {mine: {file: mine.pt2, size: 0, mean: [0.5], std: [1.0], trusted: true}}\n  batch: 250"), "evaluate: judges.mine: size must be at least 1, got 0"),
    "a program called as a metric": (("batch: 250", "judges: {infinity: {file: mine.pt2, size: 64, mean: [0.5], std: [0.5], trusted: true}}\n  batch: 250"), "evaluate: judges.infinity: a judge's name must be small letters and digits, at most 20, and no metric's"),
    "true for a number": (("groups: 8", "groups: true"), "teachers.teacher.network.groups: Input should be a valid integer"),
    "a fraction for a count": (("layers: 1", "layers: 1.5"), "teachers.teacher.network.layers: Input should be a valid integer"),
    "a missing key": ((r"\n      layers: 1", ""), "teachers.teacher.network.layers: missing"),
    "a missing section": (("search:\n(  .*\n)+", ""), "search: missing section"),
    "a missing key of a student": ((", target_ema: 0.5", ""), "distill.cd.target_ema: missing"),
    "a number out of range": (("ema: 0.995", "ema: 1.0"), "teachers.teacher: ema must be in [0, 1), got 1.0: an average with decay 1 never moves"),
    "a dropout of all": (("method: consistency, init", "method: consistency, dropout: 1, init"), "distill.cd.dropout: must be at least 0 and below 1, got 1"),
    "an unknown method": (("method: consistency", "method: consistancy"), "distill.cd.method: 'consistancy' is unknown; did you mean 'consistency'?"),
    "an unknown sampler": (("sampler: multistep_consistency", "sampler: multistep_consistancy"), "sampler 'multistep_consistancy' is unknown; did you mean 'multistep_consistency'?"),
    "an unknown trajectory": (("trajectory: least_cost", "trajectory: least_cast"), "'uniform', 'quadratic', 'uniform_logsnr', 'karras', 'least_cost', 'fitted' or 'own'"),
    "an unknown teacher": (("teacher: pd16", "teacher: pd_16"), "distill.pd8.teacher: no checkpoint 'pd_16'; did you mean 'pd16'?"),
    "an unknown start": (("init: pd16", "init: pd_16"), "distill.pd8.init: no checkpoint 'pd_16'; did you mean 'pd16'?"),
    "a circle": (("init: teacher, teacher: teacher, steps: 16", "init: pd1, teacher: teacher, steps: 16"), "distill.pd16.init: the chain 'pd1' comes from goes round in a circle"),
    "a circle of teachers": (("init: teacher, teacher: teacher, steps: 16", "init: teacher, teacher: pd1, steps: 16"), "distill.pd16.teacher: the chain 'pd1' comes from goes round in a circle"),
    "nobody who teaches": (("init: cd, teacher: teacher,", "init: cd,"), "distill.dm1.teacher: missing: who teaches it; write teacher"),
    "nobody to start from": (("init: cd, teacher: teacher,", "teacher: teacher,"), "distill.dm1.init: missing: whose weights it starts from, which `teacher` said before; write init: teacher, and in teacher who teaches it"),
    "one that knows no velocities": (("init: cd, teacher: teacher,", "init: cd, teacher: cd,"), "distill.dm1.teacher: cd knows no velocities and cannot teach dm1; write teacher"),
    "one that knows them at its own times": (("init: cd, teacher: teacher,", "init: cd, teacher: pd8,"), "distill.dm1.teacher: pd8 is valid only on its own steps and cannot teach dm1; write teacher"),
    "an older file's network": (("seed: 0", "seed: 0\nnetwork: {layers: 1}"), "network: belongs to a line of `teachers` now: write it under teachers.teacher.network"),
    "an older file's teacher": (("seed: 0", "seed: 0\nteacher: {iterations: 1}"), "teacher: is a line of `teachers` now"),
    "an older file's fitted times": (("  most: 64", "  fitted: {points: 3}\n  most: 64"), "search.fitted: is evaluate.fitted now"),
    "no teacher at all": (("\n  teacher: ", "\n  another: "), "teachers.teacher: missing: the line that all else is held against"),
    "another method for a teacher": (("method: denoising", "method: progressive"), "teachers.teacher.method: must be denoising"),
    "an unknown schedule": (("schedule: cosine", "schedule: cosinus"), "teachers.teacher.schedule: 'cosinus' is no schedule; did you mean 'cosine'?"),
    "a schedule's unknown number": (("schedule: cosine", "schedule: {name: linear, beta: 3}"), "teachers.teacher.schedule.beta: unknown key"),
    "a schedule without its numbers": (("schedule: cosine", "schedule: discrete"), "teachers.teacher.schedule.betas: missing"),
    "a schedule out of range": (("schedule: cosine", "schedule: {name: linear, beta_min: 30.0}"), "teachers.teacher.schedule: linear schedule: 0 < beta_min < beta_max"),
    "a parameterization in a student's network": (("init: cd, teacher", "network: {parameterization: v}, init: cd, teacher"), "distill.dm1.network.parameterization: unknown key"),
    "a student's network that cannot be": (("init: cd, teacher", "network: {channels: [9]}, init: cd, teacher"), "distill.dm1.network: every one of channels [9] must divide into 8 groups"),
    "a round that does not halve": (("pd16, steps: 8", "pd16, steps: 5"), "distill.pd8: steps 5 needs a teacher of 10 steps or one valid at any time, but its teacher has 16; set steps to 8"),
    "a teacher that cannot": (("method: consistency, init: teacher, teacher: teacher", "method: consistency, init: teacher, teacher: pd4"), "distill.cd: consistency needs a teacher valid at any time"),
    "no name": ((r"  pd16: \{", "  PD-16: {"), "distill.PD-16: a name must be"),
    "no steps": ((r"steps: \[4, 2, 1\]", "steps: []"), "steps must be a list of numbers of at least 1"),
    "a branch that is not there": ((r"\{interval: 4\}", "{interval: 4, branch: 3}"), ".deepcache.branch: 3 is not one of the network's 3 branches, which are counted from 0"),
    "a branch for students": ((r"\n  any_time_students: .*\n", r"\g<0>    - {sampler: ddim, trajectory: uniform, steps: [8], deepcache: {interval: 2, branch: 9}}\n"), "evaluate.any_time_students.0.deepcache.branch: 9 is not one of the network's 3 branches"),
    "a branch for one student": ((r"students: \{\}", "students: {cd: [{sampler: ddim, trajectory: uniform, steps: [8], deepcache: {interval: 2, branch: 3}}]}"), "evaluate.students.cd.0.deepcache.branch: 3 is not one of the network's 3 branches"),
    "an interval of nothing": ((r"\[\{interval: 2\}, \{interval: 4\}\]", "{interval: 0}"), "interval must be at least 1 and branch at least 0, got 0 and 0"),
    "a watch without its images": (("init: cd, teacher", "watch: {every: 10}, init: cd, teacher"), "distill.dm1.watch.images: missing"),
    "a watch of an unknown key": (("init: cd, teacher", "watch: {every: 10, images: 50, keeps: best}, init: cd, teacher"), "distill.dm1.watch.keeps: unknown key; did you mean 'keep'?"),
    "a watch that keeps neither": (("init: cd, teacher", "watch: {every: 10, images: 50, keep: first}, init: cd, teacher"), "distill.dm1.watch.keep: Input should be 'last' or 'best'"),
    "a watch with too few images": (("init: cd, teacher", "watch: {every: 10, images: 3}, init: cd, teacher"), "distill.dm1.watch: images must be at least 10, got 3"),
    "a watch with no patience": (("init: cd, teacher", "watch: {every: 10, images: 50, patience: 0}, init: cd, teacher"), "distill.dm1.watch: patience must be at least 1, got 0"),
    "a watch that never looks": (("init: cd, teacher", "watch: {every: 61, images: 50}, init: cd, teacher"), "distill.dm1.watch.every: 61 is more than the 60 updates of this line"),
    "a watch with other steps": (("init: cd, teacher", "watch: {every: 10, images: 50, steps: 2}, init: cd, teacher"), "distill.dm1.watch.steps: dm1 has steps of its own; leave it out"),
    "a watch beyond this machine": (("init: cd, teacher", "watch: {every: 10, images: 900000000}, init: cd, teacher"), "distill.dm1.watch.images: measuring 900000000 images of 1x8x8 needs about"),
    "a watch of no training": (("init: cd, teacher", "watch: {every: 200000000, images: 50}, init: cd, teacher"), "distill.dm1.watch.every: 200000000 is more than 100000000: no training has so many updates"),
    "a watch that is none": (("init: cd, teacher", "watch: true, init: cd, teacher"), "distill.dm1.watch: "),
    "a teacher's watch": (("method: denoising", "method: denoising\n    watch: {every: 0, images: 50}"), "teachers.teacher.watch: every must be at least 1, got 0"),
    "a pipe": (("source: digits", 'source: "shards:pipe:cat x.tar"'), "data: source names a pipe:"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_is_named_with_its_path_and_the_nearest_word(tmp_path, case):
    change, message = WRONG[case]
    found = faults(tmp_path, change)
    assert any(message in line for line in found), found


def test_the_last_branch_of_a_deeper_network_is_in_order(tmp_path):
    """Three levels of one layer make six skips and five branches, 0 to 4."""
    text = SHIPPED.replace("channels: [16, 32]", "channels: [16, 32, 32]").replace(
        "{interval: 4}", "{interval: 4, branch: 4}"
    )
    assert read(tmp_path, text).evaluate.teacher
    with pytest.raises(UserError, match=r"deepcache\.branch: 5 is not one of the network's 5 branches"):
        read(tmp_path, text.replace("branch: 4", "branch: 5"))


def test_a_way_is_led_away_from_a_class(tmp_path):
    sampling = "    - {sampler: ddim, trajectory: least_cost, steps: [8, 4, 2]}"
    led = sampling.replace("]}", "], guidance: [2.0, 4.0], negative: an odd/one}")
    told = SHIPPED.replace(sampling, led).replace("conditional: false", "conditional: true")
    recipes = read(tmp_path, told).evaluate.teacher[1].recipes()
    assert [(each.guidance, each.negative) for each in recipes] == [(2.0, "an odd/one"), (4.0, "an odd/one")]
    assert [each.name_parts() for each in recipes] == [["g2", "not-an-odd-one"], ["g4", "not-an-odd-one"]]
    for wrong, words in (
        (led.replace("an odd/one", "3"), "negative: Input should be a valid string, got 3"),
        (led.replace("guidance: [2.0, 4.0], ", ""), "negative is what guidance leads away from; give guidance too"),
    ):
        (fault,) = faults(tmp_path, (re.escape(sampling), wrong))
        assert fault.startswith("evaluate.teacher.1")
        assert words in fault


GUIDED = ("conditional: false", "conditional: true")
LINE = "  cd: {method: consistency, init: teacher, teacher: teacher,"
BUILT_IN, INPUT = (LINE, f"{LINE} guidance: 2.0,"), (LINE, f"{LINE} guidance: [1.0, 4.0],")
FITTED = r"\{sampler: ddim, trajectory: fitted, steps: \[8, 4, 2\]\}"
WEIGHT = r"\{sampler: ddim, trajectory: uniform, steps: \[64, 8, 4, 2, 1\]\}"
STUDENTS = r"students: \{\}"


TOLD = {"family": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 1, "text": True}


def test_texts_want_captions_and_who_is_told_them_an_encoder():
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["evaluate"] |= {
        "teacher": [{"sampler": "ddim", "trajectory": "uniform", "steps": [64, 8]}],
        "any_time_students": [],
    }
    raw["text"]["encoder"] = "words"
    with pytest.raises(UserError, match=r"^p: text\.encoder: the images have no captions; say in data\.captions"):
        params.parse(raw, "p")
    raw["data"]["captions"] = "caption"
    for line, names in (
        ({**raw["teachers"]["teacher"], "network": TOLD}, "text, text_mask"),
        ({"from": "x", "inputs": ["text"]}, "text"),
    ):
        raw |= {"teachers": {"teacher": line}, "distill": {}}
        raw["text"]["encoder"] = "words"
        assert params.parse(raw, "p").teachers["teacher"].inputs == tuple(names.split(", "))
        raw["text"]["encoder"] = None
        with pytest.raises(
            UserError, match=rf"^p: teachers\.teacher: it is told {names}, and text\.encoder is null; name"
        ):
            params.parse(raw, "p")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [GUIDED, (FITTED, "{sampler: ddim, trajectory: fitted, steps: [8], guidance: 2.0}")],
            "evaluate.teacher.2.trajectory: fitted times follow the teacher's path without guidance, and teacher is "
            "sampled with guidance; name another trajectory",
        ),
        ([GUIDED, (FITTED, "{sampler: ddim, trajectory: [uniform, fitted], steps: [8], guidance: 0.0}")], "evaluate.teacher.2.trajectory: fitted times"),
        ([GUIDED, BUILT_IN], "evaluate.any_time_students.1.trajectory: fitted times follow the teacher's path without guidance, and cd"),
        ([(WEIGHT, "{sampler: ddim, trajectory: uniform, steps: [64], guidance: 2.0}")], "evaluate.teacher.0.guidance: there is no class or text"),
        ([(WEIGHT, "{sampler: ddim, trajectory: uniform, steps: [64], guidance: 0.0}")], "evaluate.teacher.0.guidance: there is no class or text"),
        (
            [GUIDED, INPUT, (STUDENTS, "students: {cd: [{sampler: multistep_consistency, trajectory: uniform, steps: [2], guidance: [2.0, 9.0]}]}")],
            "evaluate.students.cd.0.guidance: cd: ",
        ),
        (
            [GUIDED, INPUT, (STUDENTS, "students: {cd: [{sampler: multistep_consistency, trajectory: uniform, steps: [2], guidance: [2.0, 0.5]}]}")],
            "evaluate.students.cd.0.guidance: cd: ",
        ),
        ([GUIDED, INPUT], "evaluate.any_time_students.0: cd takes the guidance weight as an input; give evaluate.students.cd samplings with"),
        (
            [GUIDED, BUILT_IN, (STUDENTS, "students: {cd: [{sampler: multistep_consistency, trajectory: uniform, steps: [2], guidance: 3.0}]}")],
            "evaluate.students.cd.0.guidance: cd: this student was trained for a guidance weight of 2 alone, not for 3",
        ),
        (
            [GUIDED, BUILT_IN, (STUDENTS, "students: {cd: [{sampler: multistep_consistency, trajectory: uniform, steps: [2], guidance: 2.0, negative: a}]}")],
            "evaluate.students.cd.0.negative: cd learned to be led away from no class",
        ),
    ],
)  # fmt: skip
def test_guidance_that_no_sampler_will_have_is_refused_when_it_is_read(tmp_path, changes, message):
    found = faults(tmp_path, *changes)
    assert any(message in line for line in found), found


def test_times_are_fitted_for_classes(tmp_path):
    assert read(tmp_path, SHIPPED.replace(*GUIDED)).teachers["teacher"].conditional


def test_the_head_of_the_network(tmp_path):
    for parameterization in ("v", "x0_eps", "flow"):
        config = (
            read(tmp_path, SHIPPED.replace("parameterization: v ", f"parameterization: {parameterization} "))
            .teachers["teacher"]
            .network.config((3, 8, 8))
        )
        assert (config.in_channels, config.out_channels) == (3, 6 if parameterization == "x0_eps" else 3)
    wrong = {
        "eps": "teachers.teacher.network: parameterization eps has no image at t = 1.*take v",
        "w": "teachers.teacher.network.parameterization: .*'flow', got \"w\"",
        "x0": "teachers.teacher.weight: the error of v has no bound near the data for a network of parameterization x0; write min_snr",
    }
    for parameterization, words in wrong.items():
        (fault,) = faults(tmp_path, ("parameterization: v ", f"parameterization: {parameterization} "))
        assert re.search(words, fault)
    bounded = ("method: denoising", "method: denoising\n    weight: min_snr")
    (fault,) = faults(tmp_path, ("parameterization: v ", "parameterization: x0 "), bounded)
    assert fault.startswith("distill.dm1.method: distribution_matching asks for velocities close to the data")
    text = re.sub("\n  dm1: .*", "", SHIPPED.replace("parameterization: v ", "parameterization: x0 ").replace(*bounded))
    assert read(tmp_path, text).teachers["teacher"].parameterization == "x0"


def test_all_faults_come_at_once(tmp_path):
    found = faults(tmp_path, ("groups: 8", "groups: x"), ("most: 64", "most: 0"), ("seed: 0", "sead: 0"))
    assert [line.split(":")[0] for line in found] == [
        "sead",
        "teachers.teacher.network.groups",
        "search",
    ]  # in the order of the file


def test_a_misspelt_word_and_what_is_missing_for_it_are_one_line(tmp_path):
    assert faults(tmp_path, ("features:", "feetures:")) == ["feetures: unknown section; did you mean 'features'?"]
    assert faults(tmp_path, ("max_phase", "max_fase")) == [
        "teachers.teacher.network.max_fase: unknown key; did you mean 'max_phase'?"
    ]
    both = faults(tmp_path, ("target_ema", "target_emma"))
    assert both == ["distill.cd.target_emma: unknown key; did you mean 'target_ema'?"]
    assert faults(tmp_path, ("      layers: 1", "      xyz: 1")) == [
        "teachers.teacher.network.layers: missing",
        "teachers.teacher.network.xyz: unknown key; known: channels, layers, attention, groups, dropout, max_phase, conditional, parameterization",
    ]


def test_faults_come_in_the_order_of_the_file(tmp_path):
    changes = [
        ("publish:", "publsh:"),
        ("seed: 0", "seed: x"),
        ("teacher: pd16", "teacher: 3"),
    ]
    changes += [("sampler: unipc", "sampler: unipk"), ("lr: 3.0e-3", "lr: .nan"), ("most: 64", "most: 0")]
    places = ["seed", "teachers.teacher.lr", "distill.pd8.teacher", "search", "evaluate.teacher.4", "publsh"]
    assert [line.split(": ")[0] for line in faults(tmp_path, *changes)] == places


def with_students(tmp_path, conditional: bool, **lines: dict):
    """Reads the shipped file with these students instead of its own, sampled with guidance where they take its weight."""
    raw = params.load_yaml(ROOT / "params.yaml")
    raw["teachers"]["teacher"]["network"]["conditional"] = conditional
    own = [{"sampler": "ddim", "trajectory": "own", "guidance": 2.0}]
    taught = {"cfg", *(name for name, line in lines.items() if line.get("teacher") == "cfg")}
    any_time = [{"sampler": "ddim", "trajectory": "uniform", "steps": [4], "guidance": [1.0, 3.0]}]
    samplings = {name: own if "steps" in lines[name] else any_time for name in sorted(taught & set(lines))}
    raw["evaluate"]["students"] = samplings if isinstance(lines.get("cfg", {}).get("guidance"), list) else {}
    short = {"iterations": 1, "batch": 8, "lr": 1e-3, "ema": 0.9}
    raw["distill"] = {
        name: {"init": (above := line.get("teacher", "teacher")), "teacher": above, **short, **line}
        for name, line in lines.items()
    }
    params.dump_yaml(raw, tmp_path / "params.yaml")
    return params.read(tmp_path / "params.yaml")


def test_what_a_method_needs_of_guidance_is_asked_of_the_file(tmp_path):
    guided, halves = {"method": "guided"}, {"method": "progressive", "teacher": "cfg", "steps": 8}
    missing = "params.yaml: distill.cfg: guided needs weights to learn; say `guidance: [lowest, highest]` in its line"
    for conditional in (False, True):
        with pytest.raises(UserError) as caught:
            with_students(tmp_path, conditional, cfg=guided, pd8=halves)
        assert str(caught.value).endswith(missing)
        assert len(str(caught.value).splitlines()) == 1
    for weights in ([1, 4], 3.0):
        found = with_students(tmp_path, True, cfg={**guided, "guidance": weights}, pd8=halves).lines
        assert found.guidance("pd8") == found.guidance("cfg") is not None
    assert with_students(tmp_path, True, cfg={**guided, "guidance": [1, 4]}, again={**guided, "teacher": "cfg"}).distill


@pytest.mark.parametrize(
    ("weights", "wrong"),
    [([1, 3], None), ([1, 4], None), ([0.5, 3], "0.5"), ([2, 9], "9"), (0.5, "0.5"), (9.0, "9")],
)
def test_both_ends_of_a_student_s_weights_are_those_that_its_teacher_learned(tmp_path, weights, wrong):
    lines = {"cfg": {"method": "guided", "guidance": [1, 4]}}
    lines["below"] = {"method": "guided", "teacher": "cfg", "guidance": weights}
    if wrong is None:
        assert with_students(tmp_path, True, **lines).distill
    else:
        told = f"distill.below.guidance: its teacher 'cfg': this student was trained for a guidance weight of 1 to 4, not for {wrong}"
        with pytest.raises(UserError) as caught:
            with_students(tmp_path, True, **lines)
        assert told in str(caught.value)


def test_a_fault_that_students_inherit_is_told_once(tmp_path):
    guided = {"method": "guided", "guidance": [1, 4]}
    with pytest.raises(UserError) as caught:
        with_students(tmp_path, False, cfg=guided, pd8={"method": "progressive", "teacher": "cfg", "steps": 8})
    (line,) = str(caught.value).splitlines()
    assert line.endswith(
        "distill.cfg.guidance: the teacher knows no class or text to guide to; set `conditional` of teachers.teacher to true, "
        "or tell it a text"
    )


def test_numbers_read_as_dvc_reads_them(tmp_path):
    assert read(tmp_path, SHIPPED.replace("lr: 3.0e-3", "lr: 3e-3")).teachers["teacher"].fit.lr == 0.003
    assert strict_yaml.parse_yaml("[1e-4, on, yes]", "x") == [1e-4, "on", "yes"]


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: [1, 2", "- 1"])
def test_what_is_no_mapping_is_one_line(tmp_path, text):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_says_where_to_run_from(tmp_path):
    with pytest.raises(UserError, match="run from the folder that holds it"):
        params.read(tmp_path / "params.yaml")


@pytest.mark.slow
def test_the_command_line_exits_with_2_and_no_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED.replace("groups: 8", "groups: eight"))
    command = [sys.executable, "-m", "tasks", "check"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: teachers.teacher.network.groups: ")
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------- workspaces


@pytest.fixture
def merged(monkeypatch):
    monkeypatch.chdir(ROOT)
    return params.load_yaml(ROOT / "params.yaml")


def test_a_change_touches_one_number(merged):
    before = params.load_yaml(ROOT / "params.yaml")
    workspace._merge(merged, workspace._change("distill.pd4.iterations=5"), "x")
    assert merged["distill"]["pd4"].pop("iterations") == 5
    before["distill"]["pd4"].pop("iterations")
    assert merged == before


def test_a_presets_students_take_the_place_of_all(merged):
    workspace._merge(merged, workspace._preset("smoke"), "x")
    assert list(merged["distill"]) == ["pd4", "pd2", "pd1", "cd", "dm1"]


def test_a_change_of_what_is_not_there_is_a_mistake(merged):
    with pytest.raises(UserError, match=r"params\.yaml has no features\.chanels"):
        workspace._merge(merged, workspace._change("features.chanels=8"), "x")
    with pytest.raises(UserError, match="write it as section"):
        workspace._change("network.channels")
    with pytest.raises(UserError, match="no preset 'smoky'; known: classes, dit, flow, smoke"):
        workspace._preset("smoky")


def test_trajectories_that_will_not_be_there_are_refused(tmp_path):
    def with_sampling(old: str, new: str) -> list[str]:
        return faults(tmp_path, (re.escape(old), new))

    searched = "    - {sampler: ddim, trajectory: least_cost, steps: [8, 4, 2]}"
    assert with_sampling(searched, searched.replace("8, 4", "65, 4")) == [
        "evaluate.teacher.1.steps: 65 on the trajectory least_cost; search.most allows 64"
    ]
    fitted = "    - {sampler: ddim, trajectory: fitted, steps: [8, 4, 2]}"
    assert with_sampling(fitted, fitted.replace("8, 4", "61, 4")) == [
        "evaluate.teacher.2.steps: 61 on the trajectory fitted; evaluate.fitted.points allows 60"
    ]
    first, second = with_sampling(
        fitted, "    - {sampler: ddim, trajectory: [uniform, least_cost, fitted], steps: [4, 65]}"
    )
    assert first == "evaluate.teacher.2.steps: 65 on the trajectory least_cost; search.most allows 64"
    assert second == "evaluate.teacher.2.steps: 65 on the trajectory fitted; evaluate.fitted.points allows 60"
    own = "    - {sampler: ddim, trajectory: own}"
    words = "own is for a student with steps of its own; name another"
    assert with_sampling(fitted, own) == [f"evaluate.teacher.2.trajectory: {words}"]
    any_time_students = "    - {sampler: multistep_consistency, trajectory: uniform, steps: [4, 2, 1]}"
    assert with_sampling(any_time_students, own) == [f"evaluate.any_time_students.0.trajectory: {words}"]
    assert with_sampling("students: {}", "students: {cd: [{sampler: ddim, trajectory: own}]}") == [
        f"evaluate.students.cd.0.trajectory: {words}"
    ]
    wrong = "students: {pd4: [{sampler: ddim, trajectory: uniform, steps: [3]}], pd5: []}"
    assert with_sampling("students: {}", wrong) == [
        "evaluate.students.pd4.0.trajectory: pd4 is valid only on its own 4 steps; say `trajectory: own`",
        "evaluate.students.pd5: no student is called so; did you mean 'pd8'?",
    ]
    between = "students: {pd4: [{sampler: dpm_solver_2, trajectory: own}]}"
    (fault,) = with_sampling("students: {}", between)
    assert fault.startswith("evaluate.students.pd4.0.sampler: this student is valid only at its own times")
    eta = "    - {sampler: analytic, trajectory: uniform, steps: [8], options: {eta: 1.5}}"
    (fault,) = with_sampling(fitted, eta)
    assert fault.startswith("evaluate.teacher.2: ")
    assert "eta must be in 0..1, got 1.5" in fault
    for kinds in ("uniform", "[least_cost, uniform]"):
        (fault,) = with_sampling(fitted, f"    - {{sampler: langevin, trajectory: {kinds}, steps: [8]}}")
        assert fault.startswith("evaluate.teacher.2: langevin cannot begin at t = 1")
    assert with_sampling("gamma: {steps: 1000", "gamma: {steps: 50") == [
        "search.most: 64 is more than gamma.steps, 50; lower it"
    ]


def test_who_teaches_whom():
    """A student that jumps to images teaches nobody; what needs every time goes further up."""
    found = lineage(
        pd4=line_of("progressive", "teacher", steps=4),
        cd=line_of("consistency", "teacher"),
        again=line_of("consistency", "cd", "teacher"),
        pd2=line_of("progressive", "pd4", steps=2),
        dm=line_of("distribution_matching", "pd2", "teacher", steps=1),
        learns=line_of("denoising", "cd"),
    )
    taught = {name: found.usual_teacher(name) for name in found.students}
    assert taught == {
        "pd4": "teacher", "cd": "teacher", "again": "teacher", "pd2": "pd4", "dm": "teacher", "learns": "teacher",
    }  # fmt: skip
    assert list(found.unfit()) == []


def test_every_package_is_installed():
    import tomllib

    from setuptools import find_packages

    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    listed = find_packages(str(ROOT), include=found["include"])
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("diffcore", "tasks", "flows", "console")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == there


# ------------------------------------------------------------------------------- each refusal by itself

SAMPLING = {"sampler": "ddim", "trajectory": "uniform", "steps": [8]}
LOOKS = {
    "images": 10,
    "seed": 0,
    "batch": 1,
    "likelihood": None,
    "fitted": None,
    "teacher": [None],
    "any_time_students": [],
    "students": {},
}
NAMES = {"experiment": "e", "model": "m", "tolerance": 1.0}
SEARCH = {"estimator": "norm", "most": 1, "repair": True, "decoder": True}

REFUSED = {
    "own steps and others": (sections.Sampling, {**SAMPLING, "trajectory": "own"}, "has steps of its own"),
    "own times and others": (sections.Sampling, {"sampler": "ddim", "trajectory": ["own", "uniform"]}, "has steps of its own"),
    "no step": (sections.Sampling, {**SAMPLING, "steps": [8, 0]}, "at least 1"),
    "a cache of an adaptive sampler": (sections.Sampling, {**SAMPLING, "sampler": "rk45", "deepcache": CacheConfig(2)}, "deepcache"),
    "a class without a name": (sections.Sampling, {**SAMPLING, "guidance": 1.0, "negative": ""}, "negative must be"),
    "a class of 65 letters": (sections.Sampling, {**SAMPLING, "guidance": 1.0, "negative": "n" * 65}, "negative must be"),
    "two limits": (sections.Sampling, {**SAMPLING, "clip": 1.0, "threshold": Threshold()}, "give one of them"),
    "a limit of nothing": (sections.Sampling, {**SAMPLING, "clip": 0.0}, "clip must be"),
    "less than no images": (sections.Likelihood, {"images": -1, "probes": 1, "seed": 0}, "images must not"),
    "no probe": (sections.Likelihood, {"images": 0, "probes": 0, "seed": 0}, "probes at least 1"),
    "nine images": (sections.Evaluate, {**LOOKS, "images": 9}, "images must be at least 10"),
    "an empty batch": (sections.Evaluate, {**LOOKS, "batch": 0}, "batch at least 1"),
    "nothing to compare with": (sections.Evaluate, {**LOOKS, "teacher": []}, "at least one sampling"),
    "better than the best": (sections.Publish, {**NAMES, "tolerance": 0.99}, "tolerance must be at least 1"),
    "a model with a blank before it": (sections.Publish, {**NAMES, "model": " m"}, "model must be a name"),
    "an experiment with one after it": (sections.Publish, {**NAMES, "experiment": "e "}, "experiment must be a name"),
    "a model of 201 letters": (sections.Publish, {**NAMES, "model": "m" * 201}, "model must be a name"),
    "a model that is a dot": (sections.Publish, {**NAMES, "model": "."}, "without / and :"),
    "no search": (sections.Search, {**SEARCH, "most": 0}, "most must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_each_part_refuses_what_it_cannot_be(case):
    kind, given, words = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        kind(**given)


def test_what_is_just_within_its_limits_is_taken():
    sections.Sampling(**{**SAMPLING, "steps": [1], "guidance": 0.0, "negative": "n" * 64, "clip": False})
    sections.Sampling("ddim", "own")
    sections.Sampling(**{**SAMPLING, "sampler": "rk45", "steps": [1]})
    sections.Likelihood(0, 1, 0)
    sections.Evaluate(**LOOKS)
    sections.Publish(**{**NAMES, "experiment": "e/ f" * 50, "model": "m" * 200})
    sections.Search(**SEARCH)


def test_a_sampler_that_needs_more_steps_refuses_fewer(monkeypatch):
    monkeypatch.setattr(sections.SOLVERS["heun"], "min_steps", 3)
    sections.Sampling(**{**SAMPLING, "sampler": "heun", "steps": [4, 3]})
    with pytest.raises(ValueError, match="heun needs at least 3 steps, got 2"):
        sections.Sampling(**{**SAMPLING, "sampler": "heun", "steps": [4, 2]})


def test_a_way_is_tried_in_all_combinations_of_its_lists_each_with_all_that_it_says():
    caches, skips, threshold = [CacheConfig(2), CacheConfig(3)], [None, SkipConfig(0.8)], Threshold(0.9, 2.0)
    sampling = sections.Sampling(
        "ddpm", ["uniform", "karras"], [8], {}, caches, skips, [1.0, 2.0], negative="a", threshold=threshold
    )
    assert sampling.trajectories == ["uniform", "karras"]
    solver = sections.SOLVERS["ddpm"]()
    assert sampling.recipes() == [
        Recipe(solver, cache, skip, weight, negative="a", threshold=threshold)
        for cache in caches
        for skip in skips
        for weight in (1.0, 2.0)
    ]
    assert sections.Sampling("analytic", "uniform", [8], {"eta": 0.5}, clip=0.5).recipes() == [
        Recipe(sections.SOLVERS["analytic"](eta=0.5), clip=0.5)
    ]


SHORT = {"iterations": 1, "batch": 8, "lr": 1e-3, "ema": 0.9}


def student(**line) -> tuple:
    """(the student of a line, its faults)."""
    faults: list[str] = []
    whole = {"method": "progressive", "init": "i", "teacher": "t", "steps": 8, **SHORT, **line}
    return _student("s", whole, "s", faults), faults


def test_all_that_a_line_says_is_its_students():
    network = {"channels": [8]}
    found, _ = student(guidance=[1, 4], parameterization="v", dropout=0.25, warmup=3, weight_decay=0.5, network=network)
    fitting = Training(**SHORT, warmup=3, weight_decay=0.5)
    method = methods.load("progressive")(steps=8)
    own = {"name": "s", "init": "i", "teacher": "t", "method": method}
    whole = {
        **own,
        "fit": fitting,
        "guidance": (1.0, 4.0),
        "parameterization": "v",
        "dropout": 0.25,
        "network": network,
    }
    assert found == sections.Distill(**whole)
    assert student()[0] == sections.Distill(**own, fit=Training(**SHORT))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [(None, None), (0, (0.0, 0.0)), (2.5, (2.5, 2.5)), ([0, 3], (0.0, 3.0)), ([1.5, 2], (1.5, 2.0))],
)
def test_one_weight_of_guidance_or_a_range_of_them(weights, wanted):
    found, faults = student(guidance=weights)
    assert (found.guidance, faults) == (wanted, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [("guidance", value) for value in (-1, True, "2", [], [1], [2, 2], [3, 1], [-1, 1], [1, 2, 3], [1, True], {})]
    + [("dropout", value) for value in (-0.1, 1, 1.5, True, "0.1", None)]
    + [("parameterization", value) for value in ("x0", "x0_eps", "eps", 1, True)]
    + [("network", value) for value in ({}, [], 8, "small")]
    + [("teacher", value) for value in (3, None, ["t"])],
)
def test_a_line_s_own_numbers_are_within_their_limits(key, value):
    found, faults = student(**{key: value})
    assert found is None
    (fault,) = faults
    assert fault.startswith(f"s.{key}: must be ")


@pytest.mark.parametrize("name", ["teacher", "real", "Pd", "1pd", "_pd", "p-d", "p" * 65, "p.d", ""])
def test_a_name_that_files_and_tables_cannot_have_is_no_student(name):
    faults: list[str] = []
    assert read_lines("distill", {name: {"method": "progressive"}}, faults) == {}
    (fault,) = faults
    assert fault.startswith(f"distill.{name}: a name must be")


def test_a_name_of_letters_and_digits_is_one():
    line = {"method": "progressive", "init": "t", "teacher": "t", "steps": 8, **SHORT}
    names = ["p", "p" * 64, "really", "teachers", "p_2"]
    assert list(read_lines("distill", dict.fromkeys(names, line), [])) == names


NETWORK = {"channels": [8], "layers": 1, "attention": False, "groups": 8, "dropout": 0.0, "max_phase": 12.0}
TRAINED = {"method": "denoising", "schedule": "cosine", "network": NETWORK, **SHORT}


def root(line) -> tuple:
    """(the line of `teachers`, its faults)."""
    faults: list[str] = []
    return read_lines("teachers", {"t": line}, faults).get("t"), faults


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"from": "x", "iterations": 3, "lr": 0.1}, "teachers.t: give from or the numbers of a training, not both; leave out iterations, lr"),
        ({"from": "x", "networks": 3}, "teachers.t.networks: unknown key; known: from, conditional"),
        ({"from": " "}, "teachers.t.from: must be the path"),
        ({"from": 3}, "teachers.t.from: must be the path"),
        ({"from": "x", "conditional": "no"}, "teachers.t.conditional: must be true or false, got 'no'"),
        ({**TRAINED, "method": "progressive"}, "teachers.t.method: must be denoising"),
        ({"from": "x", "watch": {"every": 1, "images": 10}}, "teachers.t: give from or the numbers of a training, not both"),
        (SHORT, "teachers.t.method: must be denoising, by which a network learns from nothing, or give from: PATH"),
        ({"method": "denoising", **SHORT}, "teachers.t.network: missing"),
        ({"method": "denoising", **SHORT}, "teachers.t.schedule: missing"),
        ({**TRAINED, "iteration": 3}, "teachers.t.iteration: unknown key; did you mean 'iterations'?"),
        ({**TRAINED, "weight": "twice"}, "teachers.t.weight: Input should be"),
        (None, "teachers.t: must be a mapping"),
        ("x", "teachers.t: must be a mapping"),
    ],
)  # fmt: skip
def test_a_teacher_is_a_training_or_a_folder(given, words):
    found, faults = root(given)
    assert found is None
    assert any(fault.startswith(words) for fault in faults), faults


def test_a_line_says_how_its_training_is_watched():
    line = {"every": 1, "images": 30, "keep": "best", "patience": 4}
    watch = Watch(1, 30, "best", 4)
    assert student(watch=line)[0].watch == root({**TRAINED, "watch": line})[0].watch == watch
    assert root({**TRAINED, "watch": {**line, "steps": 1}})[0].watch == replace(watch, steps=1)
    assert student(watch=None)[0].watch is None


def test_all_that_a_teacher_s_line_says_is_its():
    told = {**NETWORK, "conditional": True, "parameterization": "x0_eps"}
    found, faults = root({**TRAINED, "network": told, "weight": "snr", "schedule": {"name": "linear", "beta_max": 9.0}})
    assert faults == []
    assert found == sections.Teacher(
        name="t",
        method=methods.load("denoising")(weight="snr"),
        fit=Training(**SHORT),
        network=unet.Shape(**{**told, "channels": (8,)}),
        schedule=SCHEDULES["linear"](beta_max=9.0),
        conditional=True,
        reading=Reading("x0_eps"),
    )
    assert found.parameterization == "x0_eps"
    assert root({"from": "x"}) == (sections.Adopted(name="t", folder="x", conditional=False), [])
    assert root({"from": "x", "conditional": True})[0] == sections.Adopted(name="t", folder="x", conditional=True)


SEEN = {"vp": "cosine", "flow": "flow", "edm": "edm", "ve": "ve"}


@pytest.mark.parametrize("word", KINDS)
def test_every_reading_can_be_chosen_by_its_name(word):
    line = {**TRAINED, "schedule": SEEN[word]}
    sized = [({"name": word, "sigma_data": size}, float(size)) for size in (0.5, 2)]
    for value, size in ((word, 1.0), ({"name": word}, 1.0), *sized):
        found, faults = root({**line, "reading": value})
        assert faults == []
        assert found.reading == Reading.of(word, found.network.parameterization, sigma_data=size)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("emd", "teachers.t.reading: 'emd' is no reading; did you mean 'edm'?"),
        (3, "teachers.t.reading: 3 is no reading"),
        ({"name": "edm", "sigma": 1}, "teachers.t.reading.sigma: unknown key; did you mean 'sigma_data'?"),
        ({"name": "edm", "sigma_data": 0}, "teachers.t.reading.sigma_data: must be a positive number, got 0"),
        ({"name": "edm", "sigma_data": True}, "teachers.t.reading.sigma_data: must be a positive number, got True"),
        (
            "edm",
            "teachers.t.reading: a network with input unit that is told log_sigma has nothing to be told at t = 0 of this",
        ),
    ],
)
def test_a_reading_that_is_none_is_refused_with_its_path(value, fault):
    found, faults = root({**TRAINED, "schedule": "cosine", "reading": value})
    assert found is None
    assert any(line.startswith(fault) for line in faults), faults


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_chosen_by_its_name(name):
    """A network is trained on the variance-preserving one of the same log-SNR."""
    numbers = {"discrete": {"betas": [0.1, 0.2, 0.3]}}.get(name, {})
    found, faults = root({**TRAINED, "schedule": {"name": name, **numbers}})
    assert faults == []
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    kind = SCHEDULES[name](**{key: tuple(value) for key, value in numbers.items()})
    torch.testing.assert_close(found.schedule.half_logsnr(t), kind.half_logsnr(t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.schedule.alpha(t) ** 2 + found.schedule.sigma(t) ** 2, torch.ones_like(t))
    if not numbers:
        assert root({**TRAINED, "schedule": name})[0] == found


@dataclasses.dataclass(frozen=True)
class Plain(nets.Shape):
    """Another family's: one number."""

    width: int
    conditional: bool = False
    parameterization: str = "v"

    def build(self, image, classes, seed):
        return torch.nn.Conv2d(image[0], image[0], self.width)

    def parameters(self, channels):
        return channels * self.width

    def kept(self, image):
        return self.width


def test_a_family_of_networks_is_chosen_by_its_word(tmp_path, monkeypatch):
    """The U-Net unless a line names another; a student's is its init's, or that of its own `family` with all its keys."""
    monkeypatch.setitem(nets.FAMILIES, "plain", nets.Family(Plain, (), lambda *_: None))
    assert root({**TRAINED, "network": {"family": "plain", "width": 3}})[0].network == Plain(3)
    assert root({**TRAINED, "network": {"family": "unet", **NETWORK}})[0].network == root(TRAINED)[0].network
    for network, words in (
        ({"family": "plane", "width": 3}, "teachers.t.network.family: 'plane' is unknown; did you mean 'plain'?"),
        ({"family": "plain"}, "teachers.t.network.width: missing"),
        ({"family": "plain", "width": 3, "layers": 1}, "teachers.t.network.layers: unknown key"),
    ):
        assert any(fault.startswith(words) for fault in root({**TRAINED, "network": network})[1])
    text = SHIPPED.replace("init: cd,", "network: {family: plain, width: 5}, init: cd,")
    assert read(tmp_path, text).shape("dm1") == Plain(5)
    for line in (
        ", steps: [8, 4], skip: [{bottom: 0.8}, {bottom: 0.9}, {bottom: 1.1}]",
        ", deepcache: [{interval: 2}, {interval: 4}]",
    ):
        text = text.replace(line, line.partition(", skip")[0] if "skip" in line else "")
    teacher = json.dumps({**TRAINED, "network": {"family": "plain", "width": 3}})
    alone = re.sub(r"teachers:(.|\n)*?\nx-round", f"teachers: {{teacher: {teacher}}}\nx-round", text)
    found = read(tmp_path, alone.replace("network: {family: plain, width: 5}", "network: {width: 7}"))
    assert (found.shape("teacher"), found.shape("dm1"), found.shape("cd")) == (Plain(3), Plain(7), None)


TRANSFORMER = {"patch": 2, "width": 32, "depth": 2, "heads": 4}


def test_of_a_transformer_all_is_read_and_no_skip_is_asked_for(tmp_path, monkeypatch):
    """By a chain of students that are transformers too."""
    monkeypatch.chdir(ROOT)
    words = json.dumps({"family": "dit", **TRANSFORMER, "parameterization": "flow"})
    with pytest.raises(UserError) as caught:
        params.parse(workspace.merged(None, [f"teachers.teacher.network={words}"]), "p")
    assert str(caught.value).splitlines() == [
        f"p: evaluate.teacher.{k}.{key}: teacher has no skips, as our own U-Net has; leave it out"
        for k, key in ((8, "deepcache"), (9, "skip"))
    ]
    plain = "evaluate.teacher=[{sampler: ddim, trajectory: uniform, steps: [8]}]"
    changes = [f"teachers.teacher.network={words}", plain, "distill.pd8.network={depth: 1}"]
    whole = params.parse(workspace.merged(None, changes), "p")
    assert whole.shape("teacher") == dit.Shape(**TRANSFORMER, parameterization="flow")
    assert whole.shape("pd8") == replace(whole.shape("teacher"), depth=1)
    raw = workspace.merged(None, [*changes, "teachers.teacher.network.heads=5", "distill.pd8.network={channels: [8]}"])
    with pytest.raises(UserError) as caught:
        params.parse(raw, "p")
    assert (
        str(caught.value) == "p: teachers.teacher.network: width 32 must divide by 4, for positions, and into 5 heads"
    )
    raw["teachers"]["teacher"]["network"]["heads"] = 4
    with pytest.raises(UserError, match=r"^p: distill\.pd8\.network\.channels: unknown key"):
        params.parse(raw, "p")


def test_a_student_s_network_is_its_init_s_with_what_its_line_changes(tmp_path):
    text = SHIPPED.replace(
        "init: teacher, teacher: teacher, steps: 16,",
        "network: {layers: 2, dropout: 0.5}, init: teacher, teacher: teacher, steps: 16,",
    )
    text = (
        text.replace("init: cd,", "network: {channels: [8]}, init: cd,")
        .replace("conditional: false", "conditional: true")
        .replace("parameterization: v ", "parameterization: x0_eps ")
    )
    text = text.replace(
        "{sampler: multistep_consistency, trajectory: fitted, steps: [2]}",
        "{sampler: multistep_consistency, trajectory: uniform, steps: [2]}",
    )
    found = read(tmp_path, text)
    assert [found.shape(name) is None for name in ("teacher", "cd", "dm1", "pd8")] == [False, False, False, True]
    whole = found.teachers["teacher"].network
    assert found.shape("cd") == replace(whole, layers=2, dropout=0.5)
    assert found.shape("dm1") == replace(whole, layers=2, dropout=0.5, channels=(8,))  # of cd's
    assert (found.shape("dm1").conditional, found.shape("dm1").parameterization) == (True, "x0_eps")


def test_what_was_estimated_of_the_teacher_is_asked_of_nobody_else(tmp_path):
    line = json.dumps({**TRAINED, "schedule": "linear"})
    another = SHIPPED.replace("\nx-round", f"\n  another: {line}\n\nx-round")
    assert read(tmp_path, another).lines.root("another").schedule == SCHEDULES["linear"]()
    led = another.replace("init: pd4, teacher: pd4", "init: another, teacher: another")
    assert read(tmp_path, led).lines.root_name("pd1") == "another"
    with pytest.raises(UserError) as caught:
        read(tmp_path, another.replace("init: pd4, teacher: pd4", "init: another, teacher: pd4"))
    assert "distill.pd2.teacher: pd4 has another schedule than another" in str(caught.value)
    first = "- {sampler: ddim, trajectory: uniform, steps: [64, 8, 4, 2, 1]}"
    for sampling, words in (
        (
            first.replace("uniform", "least_cost"),
            "evaluate.teacher.0.trajectory: least_cost times are those of teacher",
        ),
        (
            first.replace("uniform", "fitted").replace("64, ", ""),
            "evaluate.teacher.0.trajectory: fitted times are those of teacher",
        ),
        (first.replace("ddim", "analytic"), "evaluate.teacher.0.sampler: Gamma is estimated of teacher, and another"),
    ):
        with pytest.raises(UserError) as caught:
            read(tmp_path, another.replace(first, sampling))
        assert words in str(caught.value)


def test_a_section_of_anchors_is_no_section_and_holds_what_a_file_may(tmp_path):
    assert read(tmp_path, SHIPPED + "\nx-more: {anything: [1, {b: c}]}\n").distill
    for odd, words in ((".nan", "must be a finite number"), ("1e30", "is beyond all use"), ("{1: 2}", "is no word")):
        (fault,) = faults(tmp_path, (r"x-grids:", f"x-more: {{b: {odd}}}\nx-grids:"))
        assert fault.startswith("x-more")
        assert words in fault


def line_of(method: str, init: str, teacher: str | None = None, **more) -> dict:
    own = {"steps": more.pop("steps")} if "steps" in more else {}
    needed = {"consistency": {"target_ema": 0.5, "steps": 16}}.get(method, {})
    return {"method": method, "init": init, "teacher": teacher or init, **SHORT, **needed, **own, **more}


def lineage(parameterization: str = "v", **lines: dict) -> Lineage:
    faults: list[str] = []
    found = read_lines("distill", lines, faults)
    assert faults == []
    return Lineage({"teacher": Root(False, parameterization, Cosine())}, found)


def test_how_each_checkpoint_is_sampled():
    """The teacher in all its samplings; who jumps to images `any_time_students`; who knows velocities as the teacher's first
    sampling; who has steps of its own on these; and who is named as is said there."""
    found = lineage(
        jumps=line_of("consistency", "teacher"),
        knows=line_of("denoising", "teacher"),
        halves=line_of("progressive", "teacher", steps=8),
        leaps=line_of("distribution_matching", "teacher", steps=2),
        named=line_of("consistency", "teacher"),
    )
    samplings = [sections.Sampling("ddim", "uniform", [steps]) for steps in (1, 2, 3, 4, 5)]
    evaluate = sections.Evaluate(10, 0, 1, None, None, samplings[:2], samplings[2:4], {"named": samplings[4:]})
    assert {name: rules.samplings_of(name, evaluate, found) for name in found} == {
        "teacher": [("evaluate.teacher.0", samplings[0]), ("evaluate.teacher.1", samplings[1])],
        "jumps": [("evaluate.any_time_students.0", samplings[2]), ("evaluate.any_time_students.1", samplings[3])],
        "knows": [("evaluate.teacher.0", samplings[0])],
        "halves": [("distill.halves", sections.Sampling("ddim", "own"))],
        "leaps": [("distill.leaps", sections.Sampling("multistep_consistency", "own"))],
        "named": [("evaluate.students.named.0", samplings[4])],
    }
    assert list(rules.samplings(evaluate)) == [
        ("evaluate.teacher.0", "teacher", samplings[0]),
        ("evaluate.teacher.1", "teacher", samplings[1]),
        ("evaluate.any_time_students.0", "", samplings[2]),
        ("evaluate.any_time_students.1", "", samplings[3]),
        ("evaluate.students.named.0", "named", samplings[4]),
    ]


def test_a_method_asks_about_who_teaches_and_not_about_where_its_network_starts():
    lines = {
        "pd16": line_of("progressive", "teacher", steps=16),
        "jumps": line_of("consistency_training", "pd16"),
        "pd8": line_of("progressive", "jumps", "pd16", steps=8),
    }
    assert list(lineage(**lines).unfit()) == []
    ((name, _, fault),) = lineage(**{**lines, "pd8": line_of("progressive", "jumps", "pd16", steps=5)}).unfit()
    assert name == "pd8"
    assert fault.startswith("steps 5 needs a teacher of 10 steps or one valid at any time, but its teacher has 16")


def test_who_learns_from_the_images_names_no_teacher_but_its_init():
    ((name, key, fault),) = lineage(
        pd4=line_of("progressive", "teacher", steps=4), more=line_of("denoising", "pd4", "teacher")
    ).unfit()
    assert (name, key) == ("more", "teacher")
    assert fault == "denoising learns from the images and asks no teacher; write pd4, as in init"


def test_the_head_of_a_network_is_its_line_s_or_that_of_the_one_it_starts_from():
    found = lineage(
        "x0",
        first=line_of("denoising", "teacher", parameterization="v"),
        child=line_of("progressive", "first", steps=8),
        own=line_of("progressive", "teacher", steps=8),
    )
    assert {name: found.parameterization(name) for name in found} == {
        "teacher": "x0",
        "first": "v",
        "child": "v",
        "own": "x0",
    }


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ({"first": line_of("denoising", "teacher", parameterization="v")}, []),
        ({"first": line_of("denoising", "teacher")}, ["first"]),
        ({"first": line_of("denoising", "teacher", weight="min_snr")}, []),
        ({"halves": line_of("progressive", "teacher", steps=8), "jumps": line_of("consistency", "teacher")}, []),
        (
            {"leaps": line_of("distribution_matching", "teacher", parameterization="v")},
            ["leaps"],
        ),  # whose teacher says x0
        (
            {
                "first": line_of("denoising", "teacher", parameterization="v"),
                "leaps": line_of("distribution_matching", "first"),
            },
            [],
        ),
    ],
)
def test_who_asks_for_velocities_close_to_the_data_has_a_network_and_a_teacher_that_know_them(lines, told):
    assert [(name, key) for name, key, _ in lineage("x0", **lines).parameterizations()] == [
        (name, "method") for name in told
    ]
    assert list(lineage("x0_eps", **lines).parameterizations()) == []


def test_as_many_steps_as_there_will_be_are_taken_and_one_more_is_not(tmp_path):
    line = "gamma: {steps: 1000"
    assert read(tmp_path, SHIPPED.replace(line, "gamma: {steps: 64")).search.most == 64
    assert faults(tmp_path, (line, "gamma: {steps: 63")) == ["search.most: 64 is more than gamma.steps, 63; lower it"]
    sampling = "    - {sampler: ddim, trajectory: least_cost, steps: [8, 4, 2]}"
    assert read(tmp_path, SHIPPED.replace(sampling, sampling.replace("8, 4", "64, 4")))
