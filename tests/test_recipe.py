import dataclasses
import json

import pytest
import torch

from diffcore import checkpoints
from diffcore.checkpoints import Checkpoint, Guidance
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling import recipe
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.deepcache import DeepCached
from diffcore.sampling.recipe import Options, Recipe, from_json, sampler_of
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.skip_tuning import SkipScaled
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.ancestral import DDIM
from diffcore.sampling.solvers.edm import EDM
from tasks.sections import Sampling
from tests.conftest import exact_gamma, gaussian, toy_denoiser
from tests.test_unet import FAMILY, stirred

ALL = Recipe(EDM(churn=5.0, noise=1.0), CacheConfig(3, 1, "quadratic", 4.0, 2.0), SkipConfig(0.8, 1.1), 2.5)
NAMES = ["zero", "one", "two", "three"]


def opened(classes: bool = False, guidance: Guidance | None = None, net=None) -> Checkpoint:
    """A checkpoint as it is when it was loaded, with only those facts on its card that a recipe asks for."""
    net = net or stirred(FAMILY["classes"] if classes else unet.default_config((1, 8, 8), channels=(8, 16), groups=4))
    takes_guidance = guidance is not None and guidance.is_input
    denoiser = NetDenoiser(
        net.requires_grad_(False), Cosine(), classes=4 if classes else None, takes_guidance=takes_guidance
    )
    card = object.__new__(checkpoints.Card)
    told = {"name": "toy", "image": [1, 8, 8], "classes": NAMES if classes else None, "method": "denoising"}
    vars(card).update(told, guidance=guidance and dataclasses.asdict(guidance))
    return Checkpoint(card, denoiser)


def adopted(**sampling) -> Checkpoint:
    """A teacher from elsewhere, whose scheduler does this to x_0."""
    found = opened()
    vars(found.card).update(method="adopted", parameters={"folder": "~/ddpm", "sampling": sampling})
    return found


def weighing() -> Checkpoint:
    """A student with the weight as an input, trained for 1 to 4."""
    net = stirred(dataclasses.replace(FAMILY["classes"], guidance_embeds=True))
    return opened(True, Guidance(1.0, 4.0), net)


# as data


def through(made: Recipe) -> Recipe:
    return from_json(json.loads(json.dumps(made.to_json())))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_goes_to_json_and_back(name):
    made = Recipe(SOLVERS[name]())
    assert made.to_json() == {"sampler": name}
    assert through(made) == made


@pytest.mark.parametrize("name", SOLVERS)
def test_every_option_goes_to_json_and_back(name):
    """One option at a time, another than the default: of words the other one, of numbers a near one."""
    solver = SOLVERS[name]()
    for field in dataclasses.fields(solver):
        for value in others(field, getattr(solver, field.name)):
            made = Recipe(dataclasses.replace(solver, **{field.name: value}))
            assert made.to_json()["options"] == {field.name: value}
            assert through(made) == made


def others(field: dataclasses.Field, value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [word for word in field.type.__args__ if word != value]
    if isinstance(value, int):
        return [value - 1] if value > 1 else [value + 1]
    return [0.5 * value if value else 0.5] if isinstance(value, float) else []


def test_all_parts_go_to_json_and_back():
    assert ALL.to_json() == {
        "sampler": "edm",
        "options": {"churn": 5.0, "noise": 1.0},
        "deepcache": {"interval": 3, "branch": 1, "spread": "quadratic", "center": 4.0, "power": 2.0},
        "skip": {"bottom": 0.8, "top": 1.1},
        "guidance": 2.5,
    }
    assert through(ALL) == ALL


@pytest.mark.parametrize("key", ["deepcache", "skip", "guidance"])
def test_a_part_alone_goes_to_json_and_back(key):
    made = Recipe(DDIM(), **{key: getattr(ALL, key)})
    assert set(made.to_json()) == {"sampler", key}
    assert through(made) == made


def test_no_guidance_is_not_guidance_to_no_class():
    """g = 0 is the unconditional belief, which is a number like others."""
    assert Recipe(DDIM(), guidance=0.0).to_json() == {"sampler": "ddim", "guidance": 0.0}
    assert through(Recipe(DDIM(), guidance=0.0)).guidance == 0.0
    assert through(Recipe(DDIM())).guidance is None


LIMITED = [{"clip": 1.5}, {"clip": False}, {"threshold": {"quantile": 0.9, "max": 2.0}}]


@pytest.mark.parametrize("limits", LIMITED)
def test_limits_of_x0_go_to_json_and_back(limits):
    made = from_json({"sampler": "ddim", **limits})
    assert made.to_json() == {"sampler": "ddim", **limits}
    assert through(made) == made


ONCE = {"negative": "two", "clip": 1.5, "threshold": Threshold(0.9, 2.0)}


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Options)])
def test_an_option_is_read_kept_and_named_because_it_is_a_field(key):
    (made,) = Sampling("ddim", "uniform", [4], guidance=2.0, **{key: ONCE[key]}).recipes()
    assert getattr(made, key) == ONCE[key]
    assert through(made) == made
    assert len(made.name_parts()) == len(dataclasses.replace(made, **{key: None}).name_parts()) + 1


@pytest.mark.parametrize("negative", ["two", 0])
def test_the_negative_class_goes_to_json_and_back(negative):
    made = Recipe(DDIM(), guidance=2.0, negative=negative)
    assert made.to_json() == {"sampler": "ddim", "guidance": 2.0, "negative": negative}
    assert through(made) == made


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "None"),
        ({"sampler": "ddmi"}, "ddmi"),
        ({"sampler": "ddim", "deepcach": {"interval": 2}}, "deepcach$"),
        ({"sampler": "ddim", "options": {"etta": 0.5}}, "etta"),
        ({"sampler": "ddim", "options": {"eta": 7.0}}, "eta"),
        ({"sampler": "ddim", "deepcache": {"interval": 2, "brnch": 1}}, "brnch"),
        ({"sampler": "ddim", "deepcache": {"interval": 0}}, "interval must be at least 1"),
        ({"sampler": "ddim", "skip": {"bottom": 0.0}}, "bottom and top must be positive"),
        ({"sampler": "ddim", "skip": {}}, "bottom"),
        ({"sampler": "ddim", "clip": 0.0}, "clip must be a positive number"),
        ({"sampler": "ddim", "threshold": {"quantile": 2.0}}, "quantile must be in"),
        ({"sampler": "ddim", "threshold": {"quantil": 0.9}}, "quantil"),
        ({"sampler": "ddim", "threshold": {}, "clip": 1.0}, "two ways to limit x_0"),
    ],
)
def test_what_is_unknown_is_refused(spec, words):
    with pytest.raises(UserError, match=f"this version knows no such recipe: .*{words}"):
        from_json(spec)


# as a sampler


def test_skips_are_scaled_beneath_the_cache():
    made = Recipe(DDIM(), CacheConfig(2), SkipConfig(0.8)).sampler(opened(), uniform(4))
    assert isinstance(made.denoiser, DeepCached)
    assert isinstance(made.denoiser.inner.net, SkipScaled)
    assert (made.solver, made.trajectory) == (DDIM(), uniform(4))


def test_nothing_done_is_the_plain_network():
    found = opened()
    made = Recipe(DDIM()).sampler(found, uniform(4))
    assert made.denoiser is found.denoiser
    noted = Recipe(DDIM(), CacheConfig(1), SkipConfig(1.0)).sampler(found, uniform(4))
    assert torch.equal(noted.draw((1, 8, 8), 3, 0), Sampler(found.denoiser, DDIM(), uniform(4)).draw((1, 8, 8), 3, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SOLVERS if not SOLVERS[name]().adaptive])
def test_all_parts_at_once_sample_with_every_solver(name):
    found, made = opened(True), dataclasses.replace(ALL, solver=SOLVERS[name]())
    labels = torch.tensor([0, 1, 3])
    sampler = made.sampler(found, karras(6, Cosine()), exact_gamma(gaussian()))
    samples = sampler.draw((1, 8, 8), 3, 0, condition=made.condition(found, {CLASS: labels}))
    assert isinstance(sampler.denoiser, Guided)
    assert torch.isfinite(samples).all()


def test_the_analytic_solver_is_told_gamma():
    gamma = exact_gamma(gaussian())
    made = Recipe(SOLVERS["analytic"]())
    assert made.sampler(opened(), uniform(4), gamma).solver == made.solver.with_gamma(gamma)
    with pytest.raises(UserError, match="run the stage `gamma`"):
        made.sampler(opened(), uniform(4))


def test_what_a_checkpoint_cannot_do_is_a_mistake():
    unlike = Checkpoint(opened().card, toy_denoiser())
    for made in (Recipe(DDIM(), CacheConfig(2)), Recipe(DDIM(), skip=SkipConfig(0.9))):
        with pytest.raises(UserError, match="needs our own U-Net"):
            made.sampler(unlike, uniform(4))
    with pytest.raises(UserError, match="not one of the network's 3 branches"):
        Recipe(DDIM(), CacheConfig(2, 3)).sampler(opened(), uniform(4))
    with pytest.raises(UserError, match="toy knows no classes and no texts, so there is nothing to guide to"):
        Recipe(DDIM(), guidance=2.0).sampler(opened(), uniform(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "limits", [{"clip": 0.5}, pytest.param({"threshold": {"quantile": 0.7, "max": 3.0}}, marks=pytest.mark.slow)]
)
def test_a_limit_is_put_around_all_that_is_done_to_a_network(limits, name):
    """Also around guidance, and a cache still begins with each run."""
    cached = {} if SOLVERS[name]().adaptive else {"deepcache": {"interval": 2}}
    made = from_json({"sampler": name, "guidance": 2.0, **cached, **limits})
    found, gamma = opened(True), exact_gamma(gaussian())
    sampler = made.sampler(found, karras(4, Cosine()), gamma)
    limit = Clip(0.5) if "clip" in limits else Threshold(0.7, 3.0)
    plain = dataclasses.replace(made, clip=None, threshold=None).sampler(found, karras(4, Cosine()), gamma)
    expected = dataclasses.replace(plain, denoiser=Clipped(plain.denoiser, limit))
    told = made.condition(found, {CLASS: torch.tensor([0, 1, 3])})
    assert torch.equal(*(each.draw((1, 8, 8), 3, 0, condition=told) for each in (sampler, expected)))


@pytest.mark.parametrize("own", [{"clip": 1.0}, {"threshold": {"quantile": 0.8, "max": 2.0}}])
def test_a_teacher_from_elsewhere_is_sampled_as_its_scheduler_says_unless_the_recipe_says_otherwise(own):
    found, plain = adopted(**own), Recipe(DDIM())
    assert plain.on(found) == from_json({"sampler": "ddim", **own})
    assert plain.sampler(found, uniform(4)).denoiser.limit == plain.on(found)._limited(found.denoiser).limit
    for limits in LIMITED:
        made = from_json({"sampler": "ddim", **limits})
        assert made.on(found) == made
    assert Recipe(DDIM(), clip=False).sampler(found, uniform(4)).denoiser is found.denoiser
    assert plain.on(opened()) == plain.on(adopted()) == plain


@pytest.mark.parametrize("parameters", [{}, {"folder": "~/ddpm"}, {"folder": "~/ddpm", "sampling": {}}])
def test_a_card_that_says_nothing_of_x0_is_sampled_as_it_is(parameters):
    """As the stage writes it of a scheduler that does nothing to x_0."""
    found = adopted()
    vars(found.card).update(parameters=parameters)
    assert Recipe(DDIM()).on(found) == Recipe(DDIM())
    assert Recipe(DDIM()).sampler(found, uniform(4)).denoiser is found.denoiser


# guidance


def test_a_teacher_of_classes_is_guided_where_a_weight_is_given():
    found = opened(True)
    assert isinstance(Recipe(DDIM(), guidance=2.0).sampler(found, uniform(4)).denoiser, Guided)
    assert Recipe(DDIM()).sampler(found, uniform(4)).denoiser is found.denoiser


def test_a_student_of_one_weight_is_that_of_no_other():
    found = opened(True, Guidance(2.0, 2.0))
    for weight in (None, 2.0):
        assert Recipe(DDIM(), guidance=weight).sampler(found, uniform(4)).denoiser is found.denoiser
    with pytest.raises(UserError, match="guidance weight of 2 alone, not for 3"):
        Recipe(DDIM(), guidance=3.0).sampler(found, uniform(4))


def test_a_student_with_the_weight_as_an_input_is_told_it():
    found, labels = weighing(), torch.tensor([0, 1, 3])
    drawn = []
    for weight in (1.5, 4.0):
        made = Recipe(DDIM(), CacheConfig(2), guidance=weight)
        sampler = made.sampler(found, uniform(4))
        assert isinstance(sampler.denoiser, DeepCached)  # one call, no Guided
        drawn.append(sampler.draw((1, 8, 8), 3, 0, condition=made.condition(found, {CLASS: labels})))
    assert not torch.equal(*drawn)
    with pytest.raises(UserError, match="1 to 4, not for 5"):
        Recipe(DDIM(), guidance=5.0).sampler(found, uniform(4))
    with pytest.raises(UserError, match="say which one with `guidance`"):
        Recipe(DDIM()).sampler(found, uniform(4))


def test_the_condition_says_classes_and_weight():
    labels = torch.tensor([0, 3, 1])
    told = Recipe(DDIM(), guidance=2.5).condition(opened(True), {CLASS: labels})
    assert torch.equal(told.class_labels, labels)
    assert torch.equal(told.guidance, torch.full((3,), 2.5, dtype=torch.float64))
    assert Recipe(DDIM()).condition(opened(True), {CLASS: labels}).guidance is None
    assert Recipe(DDIM()).condition(opened(), {CLASS: labels}) is None
    assert Recipe(DDIM()).condition(opened(True), {}) is None


@pytest.mark.parametrize("negative", ["two", 2])
def test_a_student_of_phases_is_led_away_from_a_class(negative):
    """One that learned no guidance: by two calls at its own steps."""
    found, labels = opened(True), torch.tensor([0, 1, 3])
    found.denoiser.grid = uniform(4)

    def drawn(**way):
        made = Recipe(DDIM(), guidance=3.0, **way)
        return made.sampler(found, uniform(4)).draw((1, 8, 8), 3, 0, condition=made.condition(found, {CLASS: labels}))

    told = Recipe(DDIM(), guidance=3.0, negative=negative).condition(found, {CLASS: labels})
    assert told.negative["class_labels"].tolist() == [2, 2, 2]
    by_hand = Sampler(Guided(found.denoiser), DDIM(), uniform(4))
    weight = torch.full((3,), 3.0).double()
    expected = by_hand.draw((1, 8, 8), 3, 0, condition=of_classes(labels, weight, torch.full((3,), 2)))
    assert torch.equal(drawn(negative=negative), expected)
    assert (drawn(negative=negative) - drawn()).abs().amax() > 1e-3
    with pytest.raises(UserError, match="only on its own 4 steps"):
        Recipe(DDIM(), guidance=3.0, negative=negative).sampler(found, uniform(8))


@pytest.mark.parametrize(
    ("made", "checkpoint", "words"),
    [
        (Recipe(DDIM(), guidance=2.0, negative="five"), opened(True), "no class 'five'; known: zero, one, two, three$"),
        (Recipe(DDIM(), guidance=2.0, negative=4), opened(True), "toy knows no class 4; known: zero"),
        (Recipe(DDIM(), guidance=2.0, negative=-1), opened(True), "toy knows no class -1; known: zero"),
        (Recipe(DDIM(), guidance=2.0, negative="one"), opened(), "toy knows no class 'one'; known: none"),
        (Recipe(DDIM(), negative="one"), opened(True), "negative 'one' is what guidance leads away from; give"),
        (Recipe(DDIM(), guidance=2.0, negative="one"), weighing(), "toy learned to be led away from nothing named"),
        (Recipe(DDIM(), guidance=2.0, negative="one"), opened(True, Guidance(2.0, 2.0)), "leave negative out"),
    ],
)  # fmt: skip
def test_a_negative_class_that_does_not_fit_is_refused(made, checkpoint, words):
    with pytest.raises(UserError, match=words) as caught:
        made.sampler(checkpoint, uniform(4))
    assert len(str(caught.value).splitlines()) == 1


def test_of_many_classes_the_first_twenty_are_named():
    for count, end in ((20, ", 19"), (21, ", 19, ...")):
        found = opened(True)
        vars(found.card).update(classes=[str(k) for k in range(count)])
        with pytest.raises(UserError, match="toy knows no class 'x'") as caught:
            Recipe(DDIM(), guidance=2.0, negative="x").sampler(found, uniform(4))
        assert str(caught.value).endswith(", 18" + end)


# classes


def test_classes_are_those_asked_for_or_each_in_turn():
    assert recipe.classes(opened(True), 6, None)[CLASS].tolist() == [0, 1, 2, 3, 0, 1]
    found = recipe.classes(opened(True), 2, [3, 1])
    assert found[CLASS].tolist() == [3, 1]
    assert found[CLASS].dtype == torch.int64
    assert recipe.classes(opened(), 6, None) == {}


@pytest.mark.parametrize("asked", [[0], [0, 4], [0, -1]])
def test_classes_that_do_not_fit_are_refused(asked):
    with pytest.raises(UserError, match=r"one label in 0\.\.3"):
        recipe.classes(opened(True), 2, asked)


def test_classes_of_a_network_that_knows_none_are_refused():
    with pytest.raises(UserError, match="toy knows no classes"):
        recipe.classes(opened(), 1, [0])


# a checkpoint by itself


def named(found: Checkpoint, **facts) -> Checkpoint:
    vars(found.card).update({"solver": "ddim", **facts})
    return found


def test_a_checkpoint_is_sampled_by_its_own_solver_at_its_own_times():
    student = named(opened(), solver="multistep_consistency")
    student.denoiser.grid = karras(3, Cosine())
    for steps in (None, 3):
        made = sampler_of(student, steps)
        assert (made.solver, made.trajectory) == (SOLVERS["multistep_consistency"](), karras(3, Cosine()))
        assert made.denoiser is student.denoiser
    with pytest.raises(UserError, match="toy is valid only on its own 3 steps, not on 4"):
        sampler_of(student, 4)


def test_one_that_is_valid_at_any_time_is_asked_for_a_number_of_steps():
    found = named(opened())
    assert sampler_of(found, 5).trajectory == uniform(5)
    with pytest.raises(UserError, match="toy is valid at any time; say how many steps"):
        sampler_of(found)
    theirs = sampler_of(named(adopted(clip=1.0)), 2)
    assert isinstance(theirs.denoiser, Clipped)  # with the limits of its own scheduler
