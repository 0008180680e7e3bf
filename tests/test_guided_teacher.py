"""A teacher whose network takes the weight of guidance as an input, as Flux dev's: from its folder to its students."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from diffcore import checkpoints, exports
from diffcore.checkpoints import against_diffusers, from_diffusers
from diffcore.checkpoints.folded import fold
from diffcore.checkpoints.roles import roles
from diffcore.checkpoints.to_diffusers import pipeline_call
from diffcore.core.errors import UserError
from diffcore.data.config import TeacherSampling
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.meter import Meter
from diffcore.denoisers.network import NetDenoiser
from diffcore.lineage import Lineage, Root
from diffcore.nets import diffusers_model
from diffcore.nets.diffusers_model import DiffusersModel
from diffcore.noise.trajectory import uniform
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.teacher_images import TeacherImages
from tasks import export, params, paths
from tests.conftest import seeded
from tests.test_architectures import CASES as NETWORKS
from tests.test_lineage import student

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # between diffusers and numpy
ROOT = Path(__file__).parent.parent
IMAGE, TOLD = (1, 8, 8), ("text", "pooled")
ABSENT = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
RANGE, ONE = [1.0, 5.0], 3.5
TINY = {"in_channels": 4, "joint_attention_dim": 8, "pooled_projection_dim": 8, "guidance_embeds": True}


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def save(folder: Path, **change) -> None:
    """A tiny one of random weights, of digits."""
    kind = NETWORKS["Flux dev"]
    net = dataclasses.replace(kind, config={**kind.config, **TINY, **change}).network()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.FluxPipeline(transformer=net, scheduler=scheduler, **ABSENT).save_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(folder := tmp_path_factory.mktemp("a") / "flux-dev")
    return folder


SHORT = {"init": "teacher", "teacher": "teacher", "iterations": 2, "batch": 4, "lr": 1.0e-3, "ema": 0.9}
WITH = {
    "progressive": {"steps": 4},
    "consistency": {"steps": 10, "target_ema": 0.5},
    "distribution_matching": {"critic_updates": 1},
}
UNIFORM = {"sampler": "ddim", "trajectory": "uniform", "steps": [2], "guidance": ONE}
JUMPS = {"sampler": "multistep_consistency", "trajectory": "uniform", "steps": [2]}


def raw(folder: Path, guidance=RANGE, **change) -> dict:
    """Parameters by which it is adopted, of captioned digits."""
    content = params.load_yaml(ROOT / "params.yaml")
    line = {"from": str(folder), "inputs": list(TOLD)} | ({} if guidance is None else {"guidance": guidance})
    content |= {"teachers": {"teacher": line}, "distill": {}}
    content["data"] |= {"limit": 40, "captions": "caption"}
    content["text"] |= {"encoder": "words", "dimension": 8}
    content["features"] |= {"channels": 8, "dimension": 8, "iterations": 5, "batch": 32}
    content["gamma"] |= {"steps": 50, "images": 4}
    content["search"] |= {"most": 4}
    content["evaluate"] |= {"images": 20, "batch": 20, "teacher": [UNIFORM], "any_time_students": [JUMPS]}
    content["evaluate"] |= {"likelihood": {"images": 4, "probes": 1, "seed": 0}}
    return json.loads(json.dumps(content | change))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with the code, forty captioned digits and their embeddings."""
    from tasks import encode, shard

    folder = tmp_path_factory.mktemp("prepared")
    for name in ("diffcore", "tasks", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder):
        found = params.parse(raw(Path("x")), "p")
        shard.shard(found)
        encode.encode(found)
    return folder


@pytest.fixture
def workspace(prepared, pipeline, monkeypatch):
    """That folder, with parameters that adopt the pipeline."""
    monkeypatch.chdir(prepared)

    def change(guidance=RANGE, folder: Path = pipeline, **sections) -> params.Params:
        params.dump_yaml(raw(folder, guidance, **sections), paths.PARAMS)
        return params.read()

    return change


def adopted(found) -> checkpoints.Checkpoint:
    from tasks import adopt

    adopt.take(found, "teacher")
    return checkpoints.load(paths.CHECKPOINTS / "teacher")


def told(count: int = 3) -> dict[str, torch.Tensor]:
    return {
        "text": torch.randn(count, 5, 8, generator=seeded(1)),
        "pooled": torch.randn(count, 8, generator=seeded(2)),
    }


START = torch.randn(3, *IMAGE, generator=seeded(7))


@torch.no_grad()
def drawn(own: NetDenoiser, weight: float | None, inputs=None) -> torch.Tensor:
    inputs = told() if inputs is None else inputs
    weights = None if weight is None else torch.full((len(START),), weight, dtype=torch.float64)
    denoiser = own.with_condition(Condition(inputs, weights))
    return Recipe(SOLVERS["ddim"]()).of_network(denoiser, own.grid or uniform(4)).sample(START)


def theirs(folder: Path, weight: float) -> torch.Tensor:
    """What diffusers' own pipeline draws at those times."""
    whole = diffusers.FluxPipeline.from_pretrained(folder, local_files_only=True, **ABSENT)
    whole.set_progress_bar_config(disable=True)
    inputs, scale = told(), whole.vae_scale_factor
    packed = whole._pack_latents(START, *START.shape)
    sides = {"height": scale * START.shape[2], "width": scale * START.shape[3]}
    out = whole(
        prompt_embeds=inputs["text"], pooled_prompt_embeds=inputs["pooled"], latents=packed, guidance_scale=weight,
        sigmas=[1.0, 0.75, 0.5, 0.25], output_type="latent", **sides,
    ).images  # fmt: skip
    return whole._unpack_latents(out, *sides.values(), scale)


def far(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


# ------------------------------------------------------------------------------- adopted


@pytest.mark.parametrize(("guidance", "weights"), [(RANGE, (1.0, 5.0)), (ONE, (3.5, 3.5))])
def test_its_checkpoint_draws_at_a_weight_what_its_pipeline_draws_by_one_call_in_each_step(
    guidance, weights, workspace, pipeline, capsys
):
    found = workspace(guidance)
    checkpoint = adopted(found)
    assert (checkpoint.card.guidance["low"], checkpoint.card.guidance["high"]) == weights
    assert found.lines.guidance("teacher") == checkpoint.guidance
    assert (
        "4 steps of diffusers' FlowMatchEulerDiscreteScheduler from the same noise differ by" in capsys.readouterr().out
    )
    recipe, meter = Recipe(SOLVERS["ddim"](), guidance=ONE), Meter()
    sampler = recipe.sampler(checkpoint, uniform(4))
    assert not isinstance(sampler.denoiser, Guided)
    condition = recipe.condition(checkpoint, told())
    numbers = lambda rows, role: START[rows.start : rows.stop]  # noqa: E731
    samples = sampler.draw(checkpoint.shape, 3, 0, 3, condition, meter, numbers=numbers)
    assert meter.settle() == 3 * 4
    assert far(samples, theirs(pipeline, ONE)) < 1e-4
    assert far(samples, theirs(pipeline, 1.5)) > 1e-4


@pytest.fixture
def heard(monkeypatch) -> list[tuple[float, ...]]:
    """The weights that networks of diffusers are told from now on, those of each call."""
    weights: list[tuple[float, ...]] = []
    forward = DiffusersModel.forward

    def listening(self, *all, **by):
        weights.append(tuple(by["guidance"].tolist()))
        return forward(self, *all, **by)

    monkeypatch.setattr(DiffusersModel, "forward", listening)
    return weights


@pytest.mark.parametrize("weights", [(1.0, 5.0), (3.5, 3.5)])
def test_the_look_at_diffusers_own_steps_is_at_weights_that_it_was_trained_for(weights, pipeline, heard):
    """And sees where ours is told another."""
    model = from_diffusers.read(pipeline, IMAGE[1:]).with_weights("teacher", "theirs", weights)
    assert against_diffusers.gap(pipeline, model, IMAGE).largest < 1e-5
    assert set(heard) == {weights}
    wrong = dataclasses.replace(model, denoiser=model.denoiser.with_guidance(9.0))
    assert against_diffusers.gap(pipeline, wrong, IMAGE).largest > 1e-4


def test_a_single_weight_is_told_whatever_is_asked(pipeline):
    model = from_diffusers.read(pipeline, IMAGE[1:]).with_weights("teacher", "theirs", (ONE, ONE))
    range_ = from_diffusers.read(pipeline, IMAGE[1:]).with_weights("teacher", "theirs", (1.0, 5.0))
    assert torch.equal(drawn(model.denoiser, None), drawn(range_.denoiser, ONE))
    assert torch.equal(drawn(model.denoiser, 2.0), drawn(range_.denoiser, ONE))
    assert far(drawn(range_.denoiser, 2.0), drawn(range_.denoiser, ONE)) > 1e-4
    with pytest.raises(UserError, match="this network takes the guidance weight as an input; say which one"):
        drawn(range_.denoiser, None)


def test_a_line_that_says_otherwise_than_its_folder_is_refused(workspace, tmp_path):
    words = (
        r"^teachers\.teacher\.guidance: missing: the network in .* takes the weight of guidance as an input, and no file "
        r"says for which weights it was trained; write them, such as \[1, 5\], or a single one$"
    )
    plain = {**UNIFORM, "guidance": None}
    evaluate = {**raw(Path("x"))["evaluate"], "teacher": [plain]}
    with pytest.raises(UserError, match=words):
        adopted(workspace(None, evaluate=evaluate))
    save(tmp_path / "schnell", guidance_embeds=False)
    with pytest.raises(
        UserError, match=r"^teachers\.teacher\.guidance: the network in .* takes no weight of guidance as an"
    ):
        adopted(workspace(RANGE, tmp_path / "schnell"))
    with pytest.raises(
        UserError, match=r"teachers\.teacher\.guidance: must be a weight of at least 0, or \[lowest, highest\]"
    ):
        workspace([5.0, 1.0])


def test_a_consistency_student_of_others_is_no_teacher_whatever_its_line_says(tmp_path):
    for word in ("LCM", "Sana-Sprint"):
        (tmp_path / word).mkdir()
        net = NETWORKS[word].network()
        net.save_pretrained(tmp_path / word / ("unet" if word == "LCM" else "transformer"))
        diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / word / "scheduler")
        model = from_diffusers.read(tmp_path / word)
        with pytest.raises(
            UserError, match=r"teachers\.t\.from: .* a student that was trained for few steps does, and is no"
        ):
            model.with_weights("t", "theirs", (1.0, 5.0))


def test_its_checkpoint_is_a_teacher_elsewhere_for_the_weights_on_its_card(workspace):
    adopted(workspace())
    folder = paths.CHECKPOINTS / "teacher"
    model = from_diffusers.read(folder)
    assert model.with_weights("t", "there", (2.0, 4.0)).guidance == checkpoints.Guidance(2.0, 4.0)
    with pytest.raises(
        UserError, match=r"teachers\.t\.guidance: this teacher was trained for .* of 1 to 5, not for 6$"
    ):
        model.with_weights("t", "there", (2.0, 6.0))
    with pytest.raises(
        UserError,
        match=r"missing: the network in there takes .* as an input; write them, such as \[1, 5\], or a single",
    ):
        model.with_weights("t", "there", None)


def test_a_method_of_two_times_is_refused_as_it_is_adopted(workspace):
    """Before anything is trained: a network of diffusers is told one."""
    line = {"method": "flow_map", **SHORT}
    with pytest.raises(
        UserError, match=r"distill\.fm\.method: flow_map tells its network where a hop lands, for which that of"
    ):
        adopted(workspace(distill={"fm": line}))
    shape = {"family": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 1, "text": True}
    with pytest.raises(UserError, match="flow_map tells"):
        adopted(workspace(distill={"fm": line, "own": {**line, "network": shape}}))


# ------------------------------------------------------------------------------- params.yaml

TEACHER_RANGE = "this teacher was trained for a guidance weight of 1 to 5, not for"
REFUSED = {
    "no weight": (
        {"guidance": None},
        "evaluate.teacher.0: teacher takes the guidance weight as an input; give its samplings `guidance`, from 1 to 5",
    ),
    "a weight beyond": ({"guidance": 9.0}, f"evaluate.teacher.0.guidance: teacher: {TEACHER_RANGE} 9"),
    "a negative text": (
        {"negative": "a pale one"},
        "evaluate.teacher.0.negative: teacher learned to be led away from no class and no text; leave it out",
    ),
    "fitted times": (
        {"trajectory": "fitted"},
        "evaluate.teacher.0.trajectory: fitted times follow the teacher's path without guidance, and teacher is",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sampling_that_it_cannot_have_is_refused_as_params_yaml_is_read(name):
    change, words = REFUSED[name]
    content = raw(Path("x"))
    content["evaluate"]["teacher"][0] |= change
    with pytest.raises(UserError) as caught:
        params.parse(content, "p")
    assert any(line.startswith(f"p: {words}") for line in str(caught.value).splitlines()), str(caught.value)


def test_of_a_single_weight_nothing_need_be_said_and_times_are_fitted():
    content = raw(Path("x"), ONE)
    fitted = {**UNIFORM, "trajectory": "fitted", "steps": [2]}
    content["evaluate"]["teacher"] = [{**UNIFORM, "guidance": None}, fitted]
    content["distill"] = {"pd4": {"method": "progressive", "steps": 4, **SHORT}}
    found = params.parse(content, "p")
    assert found.lines.guidance("pd4") == checkpoints.Guidance(ONE, ONE)
    content["evaluate"]["teacher"][1]["guidance"] = 2.0
    with pytest.raises(UserError, match=r"this teacher was trained for a guidance weight of 3\.5 alone, not for 2"):
        params.parse(content, "p")


def test_a_student_is_for_weights_of_its_teacher():
    roots = {"teacher": Root(True, guidance=(1.0, 5.0)), "plain": Root(True)}

    def lineage(**students) -> Lineage:
        return Lineage(roots, students)

    found = lineage(one=student("progressive", "teacher", guidance=(3.5, 3.5)), all=student("progressive", "teacher"))
    assert [found.guidance(name) for name in ("one", "all")] == [
        checkpoints.Guidance(*each) for each in ((3.5, 3.5), (1.0, 5.0))
    ]
    assert list(found.weights()) == []
    beyond = lineage(last=student("progressive", "teacher", guidance=(2.0, 9.0)))
    assert list(beyond.weights()) == [f"distill.last.guidance: its teacher 'teacher': {TEACHER_RANGE} 9"]
    unsaid = lineage(last=student("progressive", "plain", "teacher"))
    assert list(unsaid.weights()) == [
        "distill.last.guidance: missing: teacher takes the weight of guidance as an input; say which one, from 1 to 5"
    ]
    wide = lineage(
        first=student("progressive", "plain", guidance=(1.0, 9.0)), last=student("progressive", "first", "teacher")
    )
    assert list(wide.weights()) == [f"distill.last.guidance: teacher: {TEACHER_RANGE} 9; say which one"]


def test_images_are_drawn_at_a_weight_by_one_call_in_each_step(pipeline):
    content = raw(Path("x"))
    content["data"] |= {"source": "teacher:4", "limit": None, "captions": "prompts.txt", "draw": {"steps": 2}}
    for weight, words in (
        (None, "takes the guidance weight as an input; say which one, from 1 to 5"),
        (7.0, TEACHER_RANGE),
    ):
        content["data"]["draw"]["guidance"] = weight
        with pytest.raises(UserError, match=rf"data\.draw\.guidance: teachers\.teacher:? {words}"):
            params.parse(content, "p")
    model = from_diffusers.read(pipeline, IMAGE[1:]).with_weights("teacher", "theirs", (1.0, 5.0))
    images = TeacherImages(model, IMAGE, TeacherSampling(steps=2, guidance=ONE), 3, 0)
    assert not isinstance(images.sampler.denoiser, Guided)


# ------------------------------------------------------------------------------- students


@pytest.mark.parametrize("method", WITH)
@pytest.mark.parametrize("guidance", [RANGE, ONE, None])
def test_a_student_keeps_the_input_of_its_class_and_is_told_the_weights_of_its_line(method, guidance, workspace, heard):
    from tasks import train

    line = {"method": method, **WITH[method], **SHORT} | ({} if guidance is None else {"guidance": guidance})
    found = workspace(distill={"last": line}, evaluate=evaluate_of(method, guidance))
    teacher = adopted(found)
    train.train(found, "last")
    checkpoint = checkpoints.load(paths.CHECKPOINTS / "last")
    own = checkpoint.denoiser
    assert checkpoint.guidance == (
        checkpoints.Guidance(ONE, ONE) if guidance == ONE else checkpoints.Guidance(1.0, 5.0)
    )
    assert own.net.config_json() == teacher.denoiser.net.config_json()
    assert (own.takes_guidance, own.guidance) == (True, ONE if guidance == ONE else None)
    start, trained = teacher.denoiser.net.state_dict(), own.net.state_dict()
    embedder = "time_text_embed.guidance_embedder.linear_1.weight"
    assert any(not torch.equal(trained[key], start[key]) for key in start)
    assert not torch.equal(trained[embedder], start[embedder])
    heard.clear()
    drawn(own, None if guidance == ONE else 2.0)
    assert set(heard) == {(ONE if guidance == ONE else 2.0,) * 3}


def evaluate_of(method: str, guidance) -> dict:
    """Samplings by which such a student can be measured."""
    sampler = {"sampler": "ddim" if method == "progressive" else "multistep_consistency", "trajectory": "own"}
    own = {**(JUMPS if method == "consistency" else sampler), "guidance": ONE}
    return raw(Path("x"))["evaluate"] | {"students": {} if guidance == ONE else {"last": [own]}}


def test_teacher_and_student_are_told_the_one_weight_of_a_line(workspace, heard):
    checkpoint = adopted(workspace())
    for weights in (checkpoints.Guidance(ONE, ONE), checkpoints.Guidance(2.0, 4.0)):
        own, teacher = roles(checkpoint, weights)
        assert teacher is checkpoint.denoiser
        assert own.guidance == (None if weights.is_input else ONE)
        heard.clear()
        drawn(own, 3.0)
        assert set(heard) == {(3.0 if weights.is_input else ONE,) * 3}
    assert roles(checkpoint, None)[0].guidance is None
    assert roles(adopted(workspace(ONE)), None)[0].guidance == ONE  # one that teaches a student of another


@pytest.mark.slow
def test_every_stage_takes_it(workspace):
    """Gamma at its lowest weight, searches, likelihoods, and points of a student at each weight."""
    from tasks import features, frontier, gamma, measure, search, train

    content = raw(Path("x"))["evaluate"]
    least = {"sampler": "analytic", "trajectory": ["uniform", "least_cost"], "steps": [2], "guidance": ONE}
    exact = {"sampler": "rk45", "trajectory": "uniform", "steps": [2], "guidance": ONE}
    content["teacher"] = [{**UNIFORM, "guidance": [ONE, 2.0]}, least, exact]
    content["students"] = {"cd": [{**JUMPS, "guidance": [1.0, ONE]}]}
    cd = {"method": "consistency", **WITH["consistency"], **SHORT}
    found = workspace(distill={"cd": cd}, evaluate=content)
    adopted(found)
    features.train(found)
    train.train(found, "cd")
    gamma.estimate(found)
    search.find(found)
    for name in ("teacher", "cd"):
        measure.measure(found, name)
    frontier.merge(found)
    points = json.loads(paths.FRONTIER.read_text())["points"]
    assert {point["checkpoint"] for point in points} == {"teacher", "cd"}
    calls = {point["nfe"] for point in points if point["sampler"] != "rk45"}
    assert calls == {2.0}
    assert {json.loads(point["recipe"])["guidance"] for point in points} == {1.0, 2.0, ONE}
    assert sum("bits" in json.dumps(point["metrics"]) for point in points) >= 2


@pytest.mark.slow
def test_times_are_fitted_to_the_path_of_a_teacher_of_one_weight(workspace, heard):
    from tasks import features, gamma, measure, search

    content = raw(Path("x"))["evaluate"]
    plain = {"sampler": "ddim", "trajectory": ["uniform", "fitted"], "steps": [2]}
    content |= {"teacher": [plain], "fitted": {"points": 4, "images": 4, "batch": 4, "seed": 0}}
    found = workspace(ONE, evaluate=content)
    adopted(found)
    features.train(found)
    gamma.estimate(found)
    search.find(found)
    measure.measure(found, "teacher")
    assert {weight for each in heard for weight in each} == {ONE}


@pytest.mark.slow
def test_it_is_planned_what_it_will_cost(workspace, tmp_path):
    """A checkpoint of each line is made, and a call of it timed."""
    from tasks import calibration
    from tasks.planned_data import planned_data

    found = workspace(distill={"last": {"method": "progressive", "steps": 4, **SHORT, "guidance": ONE}})
    networks = calibration.Networks(found, planned_data(found), tmp_path)
    for name, weights in (("teacher", (1.0, 5.0)), ("last", (ONE, ONE))):
        own = networks.checkpoint(name).guidance
        assert (own.low, own.high) == weights
        assert calibration.drawing(found, networks, name)["seconds"] > 0
    assert calibration.training(found, networks, "last", 1)["calls"] > 0


def test_gamma_is_that_of_its_lowest_weight(workspace, heard):
    from tasks import gamma

    adopted(found := workspace([2.0, 4.0]))
    heard.clear()
    gamma.estimate(found)
    assert {weight for each in heard for weight in each} == {2.0}


# ------------------------------------------------------------------------------- handed out


@pytest.mark.parametrize(
    ("guidance", "weight", "note"), [(ONE, 3.5, "3.5 alone"), (RANGE, 3.0, "any from 1 to 5")], ids=["one", "range"]
)
def test_its_model_card_calls_its_pipeline_at_its_weight(guidance, weight, note, workspace):
    """By one call in each step: none of them is led away from a text."""
    card = adopted(workspace(guidance)).card
    content = json.loads((paths.CHECKPOINTS / "teacher/unet/config.json").read_text())
    assert export._weight(card, None, diffusers_model.takes(content, "guidance")) == weight
    text = pipeline_call(card, uniform(2).times, "FluxPipeline", weight, True)
    call = f'images = pipeline("a prompt", sigmas=[1, 0.5], guidance_scale={weight:g}).images'
    assert f"{call}  # its network is told guidance_scale, {note}\n" in text
    alone = "the guidance weight 3.5" if guidance == ONE else "a guidance weight from 1 to 5"
    assert f"is told text, pooled, {alone} besides a time, and no pipeline" in export._code(card, (1.0, 0.0), content)


@pytest.mark.parametrize("guidance", [RANGE, ONE])
def test_it_is_exported_with_its_input(guidance, workspace, tmp_path):
    adopted(workspace(guidance))
    assert exports.export(paths.CHECKPOINTS / "teacher", tmp_path / "one.safetensors", "safetensors", "") < 1e-5
    assert exports.export(paths.CHECKPOINTS / "teacher", tmp_path / "one", "diffusers", "") < 1e-5


def test_one_weight_is_built_into_a_range_and_its_network_stays_the_class_that_it_was(workspace, tmp_path):
    checkpoint = adopted(workspace())
    card = fold(paths.CHECKPOINTS / "teacher", 2.0, tmp_path / "folded")
    again = checkpoints.load(tmp_path / "folded")
    assert (card.guidance["low"], card.guidance["high"], again.denoiser.guidance) == (2.0, 2.0, 2.0)
    assert torch.equal(drawn(again.denoiser, None), drawn(checkpoint.denoiser, 2.0))
    with pytest.raises(UserError, match="this teacher was trained for a guidance weight of 1 to 5, not for 6"):
        fold(paths.CHECKPOINTS / "teacher", 6.0, tmp_path / "other")
