"""Denoisers of two times: told where their hop lands, they land on the flow; told nothing, they are the denoiser itself."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcore import checkpoints, exports
from diffcore.checkpoints import Guidance
from diffcore.checkpoints.folded import fold
from diffcore.checkpoints.roles import roles
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Clip, Clipped
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianFlowMap
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import ANY, SAME, NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import CONFIG, WEIGHTS, dit, is_own, open_folder, unet
from diffcore.nets.conditioned import ended, folded, with_end, with_guidance
from diffcore.nets.unet.config import FORMAT, FORMATS
from diffcore.noise.angle import between, compose
from diffcore.noise.schedule import Cosine, Schedule
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.deepcache import Config, DeepCached
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.skip_tuning import Config as Skip
from diffcore.sampling.skip_tuning import skip_tuned
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import gaussian, make_solver, randn, seeded
from tests.test_checkpoint import ABOUT
from tests.test_dit import KINDS
from tests.test_dit import stirred as stirred_dit
from tests.test_unet import FAMILY
from tests.test_unet import stirred as stirred_unet
from tests.test_wrappers import WRAPPERS

HOPPING = {"ddim", "multistep_consistency"}
"""The solvers that make one call for a hop and say where it lands."""


def flow_map(schedule: Schedule | None = None) -> GaussianFlowMap:
    exact = gaussian(schedule)
    return GaussianFlowMap(exact.mean, exact.variance, exact.schedule)


def begun(schedule: Schedule, count: int = 4) -> torch.Tensor:
    """Samples at t = 1."""
    return float(schedule.level(torch.ones(1).double(), torch.ones(1, 1).double()).sigma) * randn(count, 2, 3)


def ends(x: torch.Tensor, t: float, s: float) -> tuple[torch.Tensor, torch.Tensor]:
    return per_sample(t, x), per_sample(s, x)


# ------------------------------------------------------------------------------------------- the exact one


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 40])
def test_ddim_of_any_steps_lands_where_the_flow_lands(schedule, steps):
    x = begun(schedule)
    found = Sampler(flow_map(schedule), SOLVERS["ddim"](), uniform(steps)).sample(x)
    expected = gaussian(schedule).flow(x, *ends(x, 1.0, 0.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(x.abs().max()))


def test_steps_of_any_lengths_do(schedule):
    x, times = begun(schedule), (1.0, 0.93, 0.4, 0.39, 0.05)
    found = Sampler(flow_map(schedule), SOLVERS["ddim"](), Trajectory(times)).sample(x)
    expected = gaussian(schedule).flow(x, *ends(x, 1.0, 0.05))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(x.abs().max()))


@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_whatever_is_put_around_it_lands_there(kind):
    """Of a limit that limits nothing, and of two equal halves; of another schedule from its own noise."""
    wrapped = Clipped(flow_map(), Clip(1e9)) if kind is Clipped else WRAPPERS[kind][0](flow_map())
    if kind is Guided:
        wrapped = wrapped.with_condition(of_classes(torch.tensor([1, 0, 1, 1]), torch.full((4,), 3.0).double()))
    x = begun(wrapped.schedule)
    found = Sampler(wrapped, SOLVERS["ddim"](), Trajectory((0.9, 0.5, 0.1))).sample(x)
    expected = gaussian(wrapped.schedule).flow(x, *ends(x, 0.9, 0.1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(x.abs().max()))


def test_two_hops_are_one():
    """The semigroup law, in the angle: compose(F(t, m), F(m, s)) is F(t, s)."""
    exact, z = flow_map(), randn(4, 2, 3)
    for t, m, s in [(1.0, 0.5, 0.0), (0.7, 0.69, 0.2), (0.3, 0.01, 0.0)]:
        t, m, s = (per_sample(time, z) for time in (t, m, s))
        angle = exact.schedule.angle
        first = exact.toward(m)(z, t).v
        second = exact.toward(s)(exact.flow(z, t, m), m).v
        whole = compose(z, first, second, angle(t) - angle(m), angle(m) - angle(s))
        torch.testing.assert_close(exact.toward(s)(z, t).v, whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole, between(z, exact.flow(z, t, s), angle(t) - angle(s)), rtol=0, atol=1e-12)


def test_a_hop_of_no_length_is_the_velocity(schedule):
    x, t = randn(4, 2, 3), per_sample(0.6, randn(4, 2, 3))
    exact = flow_map(schedule)
    own = gaussian(schedule)(x, t)
    for found in (exact(x, t), exact.toward(t)(x, t)):
        assert torch.equal(found.x0, own.x0)
        assert torch.equal(found.eps, own.eps)
    near = exact.toward(t - 1e-5)(x, t)
    torch.testing.assert_close(near.v, own.v, rtol=0, atol=1e-3)


@pytest.mark.parametrize("word", sorted(SOLVERS))
def test_a_solver_asks_for_a_hop_or_for_velocities(word):
    """All but those of one call for a hop see the denoiser of one time, to the bit."""
    solver, trajectory = make_solver(word), Trajectory((0.9, 0.6, 0.3, 0.0))
    x = randn(4, 2, 3)
    found, plain = (
        Sampler(denoiser, solver, trajectory).sample(x, lambda k: randn(4, 2, 3, seed=k + 1))
        for denoiser in (flow_map(), gaussian())
    )
    assert torch.equal(found, plain) == (word not in HOPPING)


def test_a_jump_to_the_data_is_told_so():
    x = randn(4, 2, 3)
    found = Sampler(flow_map(), SOLVERS["multistep_consistency"](), uniform(1)).sample(x, lambda k: x)
    torch.testing.assert_close(found, gaussian().flow(x, *ends(x, 1.0, 0.0)), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------- networks

NETS = {
    "unet": lambda: stirred_unet(FAMILY["default"]),
    "classes": lambda: stirred_unet(FAMILY["classes"]),
    "dit": lambda: stirred_dit(KINDS["classes"][0]),
}


def classes_of(net) -> int | None:
    return None if net.class_embedding is None else net.class_embedding.num_embeddings - 1


def listening(net, seed: int = 5):
    """With an input for the end of the hop that changes what it says."""
    net = with_end(net).eval().requires_grad_(False)
    net.end_embedding.weight.normal_(std=0.3, generator=seeded(seed))
    return net


def sample_like(net, count: int = 4) -> torch.Tensor:
    return torch.randn(count, net.config.in_channels, 8, 8, generator=seeded(1))


@pytest.mark.parametrize("name", NETS)
def test_a_network_begins_as_the_one_that_it_was(name):
    plain = NETS[name]()
    two, x = with_end(plain), sample_like(plain)
    t = torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    one, other = (
        NetDenoiser(net, Cosine(), classes=classes_of(plain), end=end) for net, end in ((plain, None), (two, ANY))
    )
    assert torch.equal(other.toward(t / 2)(x, t).v, one(x, t).v)
    assert "end_embeds" not in plain.config_json()
    assert one.toward(t) is one


@pytest.mark.parametrize("name", NETS)
def test_what_is_learned_reaches_its_weights(name):
    net = with_end(NETS[name]())
    two = NetDenoiser(net, Cosine(), classes=classes_of(net), end=ANY)
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    two.toward(t / 2)(x, t).v.square().sum().backward()
    assert net.end_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("reading", [Reading(), Reading("eps", 1000), Reading.of("flow", "flow", 1000)], ids=str)
def test_a_network_is_told_the_end_by_the_reading_of_its_time(name, reading, monkeypatch):
    net, heard = listening(NETS[name]()), []
    hidden = net.time_embedding.hidden
    monkeypatch.setattr(net.time_embedding, "hidden", lambda timestep: heard.append(timestep) or hidden(timestep))
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 0.9]).double()
    two = NetDenoiser(net, Cosine(), reading, classes=classes_of(net), end=ANY)
    s = torch.tensor([0.1, 0.5, 0.2, 0.3]).double()
    hop, velocity = two.toward(s)(x, t), two(x, t)
    two.toward(s).features(x, t)
    for found, expected in zip(heard, (t, s, t, t, t, t, t, s, t), strict=True):  # its own embedding, and a difference
        assert torch.equal(found, reading.timestep(expected, Cosine()))
    assert not torch.equal(hop.v, velocity.v)
    assert torch.equal(hop.v[1], velocity.v[1])


def test_what_was_trained_for_velocities_is_asked_for_no_hop():
    net = listening(NETS["unet"]())
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    same, two = (NetDenoiser(net, Cosine(), end=end) for end in (SAME, ANY))
    assert same.toward(t / 2) is same
    assert torch.equal(same(x, t).v, two(x, t).v)


def test_rows_conditions_and_ends_are_told_in_any_order():
    net = listening(with_guidance(NETS["classes"]()))
    two = NetDenoiser(net, Cosine(), classes=classes_of(net), takes_guidance=True, end=ANY)
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    condition, s, rows = of_classes(torch.tensor([0, 1, 2, 3]), t + 1), t / 3, torch.tensor([2, 0])
    whole = two.with_condition(condition).toward(s)(x, t).v
    for found in (
        two.with_condition(condition).toward(s).select(rows),
        two.toward(s).with_condition(condition).select(rows),
        two.with_condition(condition).select(rows).toward(s[rows]),
    ):
        torch.testing.assert_close(found(x[rows], t[rows]).v, whole[rows])


def test_both_halves_of_guidance_land_there():
    net = listening(NETS["classes"]())
    two = NetDenoiser(net, Cosine(), classes=classes_of(net), end=ANY)
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    labels, s = torch.tensor([0, 1, 2, 0]), t / 3
    with_, without = (two.with_condition(of_classes(c)).toward(s)(x, t) for c in (labels, torch.full((4,), -1)))
    told = Guided(two).toward(s).with_condition(of_classes(labels, torch.full((4,), 2.0).double()))
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(told(x, t).v, 2 * with_.v - without.v)
    torch.testing.assert_close(told.select(rows)(x[rows], t[rows]).v, told(x, t).v[rows])


@pytest.mark.parametrize("skip", [None, Skip(0.8)])
def test_a_cached_run_is_told_where_each_hop_lands(skip):
    """With every call a full one it is the plain network; with some cached it counts the calls of one run."""
    net = listening(NETS["unet"]())
    two, x = NetDenoiser(net, Cosine(), end=ANY), sample_like(net)
    two = two if skip is None else skip_tuned(two, skip)
    plain = Sampler(two, SOLVERS["ddim"](), uniform(4)).sample(x)
    full = Sampler(DeepCached(two, Config(1)), SOLVERS["ddim"](), uniform(4)).sample(x)
    assert torch.equal(full, plain)
    run = DeepCached(two, Config(2)).start_run(4)
    with torch.no_grad():
        costs = [run.toward(t - 0.25)(x, t).cost for t in (per_sample(k / 4, x) for k in (4, 3, 2, 1))]
    assert costs[0] == costs[2] == 1.0
    assert costs[1] == costs[3] < 1.0
    assert run.inner.s is None


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("guided", [False, True])
def test_a_config_tells_of_both_inputs(name, guided, tmp_path):
    net = listening(NETS[name]())
    net = with_guidance(net) if guided else net
    save_file(net.state_dict(), tmp_path / WEIGHTS)
    disk.write_json(tmp_path / CONFIG, net.config_json())
    again = open_folder(tmp_path)
    assert again.config == net.config
    assert is_own(net.config_json()["_class_name"])
    assert all(torch.equal(again.state_dict()[key], part) for key, part in net.state_dict().items())


def test_configs_of_ours_alone_have_names_that_diffusers_does_not_know():
    diffusers = pytest.importorskip("diffusers")
    for guided, two in itertools.product((False, True), repeat=2):
        net = stirred_unet(FAMILY["default"])
        net = with_guidance(net) if guided else net
        word = (with_end(net) if two else net).config_json()["_class_name"]
        assert (word == FORMAT) == hasattr(diffusers, word) == (not guided and not two)
        assert FORMATS[word] == (guided, two)


@pytest.mark.parametrize("name", NETS)
def test_hops_to_one_end_are_a_network_of_one_time(name):
    net = listening(NETS[name]())
    x, t = sample_like(net), torch.tensor([0.2, 0.5, 0.7, 1.0]).double()
    two = NetDenoiser(net, Cosine(), classes=classes_of(net), end=ANY)
    s = torch.full_like(t, 0.25)
    told = float(two.reading.timestep(s, Cosine())[0])
    plain = NetDenoiser(ended(net, told), Cosine(), classes=classes_of(net))
    torch.testing.assert_close(plain(x, t).v, two.toward(s)(x, t).v, rtol=1e-5, atol=1e-6)


def test_a_weight_can_be_built_in_beside_it():
    net = listening(with_guidance(NETS["classes"]()))
    x, t = sample_like(net), torch.tensor([5.0, 100.0, 500.0, 900.0])
    labels, g = torch.tensor([0, 1, 2, 3]), torch.full((4,), 2.5)
    one = folded(net, 2.5)(x, t, labels, end_timestep=t / 2)
    torch.testing.assert_close(one, net(x, t, labels, g, t / 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_network_takes_just_the_times_that_it_has_an_input_for(family):
    plain = NETS[family]()
    labels = () if plain.class_embedding is None else (torch.zeros(4, dtype=torch.int64),)
    x, t = sample_like(plain), torch.full((4,), 300.0)
    with pytest.raises(UserError, match="told one time: leave end_timestep out"):
        plain(x, t, *labels, end_timestep=t)
    with pytest.raises(UserError, match="told two times: give end_timestep"):
        with_end(plain)(x, t, *labels)


def test_another_network_cannot_be_told_two_times():
    with pytest.raises(UserError, match="to be told two times needs our own U-Net or transformer, not Linear"):
        with_end(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("family", [unet, dit])
def test_a_new_network_of_two_times_pays_no_attention_to_the_second(family):
    config = {unet: FAMILY["default"], dit: KINDS["classes"][0]}[family]
    net = family.build(dataclasses.replace(config, end_embeds=True), 0)
    plain = family.build(config, 0)
    assert not net.end_embedding.weight.any()
    assert all(torch.equal(net.state_dict()[key], part) for key, part in plain.state_dict().items())


# ------------------------------------------------------------------------------------------- checkpoints


def saved(folder: Path, name: str = "classes", end: str | None = ANY, guided: bool = False) -> NetDenoiser:
    """A student of two times, as a checkpoint."""
    net = NETS[name]()
    net = with_guidance(net) if guided else net
    net = listening(net) if end else net.requires_grad_(False)
    classes = classes_of(net)
    denoiser = NetDenoiser(net, Cosine(), classes=classes, takes_guidance=guided, end=end)
    weights = dataclasses.asdict(Guidance(1.0, 4.0)) if guided else None
    words = [str(k) for k in range(classes)] if classes else None
    about = {**ABOUT, "solver": "ddim", "classes": words, "guidance": weights, "name": "x"}
    checkpoints.save(folder, denoiser, (1, 8, 8), about)
    return denoiser


def known(denoiser: NetDenoiser) -> NetDenoiser:
    """Of four samples their classes and weights."""
    return denoiser.with_condition(of_classes(torch.tensor([0, 1, 2, -1]), torch.full((4,), 2.0).double()))


T = torch.tensor([0.2, 0.5, 0.7, 1.0]).double()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("end", [None, SAME, ANY])
def test_a_checkpoint_says_what_its_network_is_told(name, end, tmp_path):
    own = saved(tmp_path / "x", name, end)
    again = checkpoints.load(tmp_path / "x")
    x = sample_like(own.net)
    assert again.card.end == again.denoiser.end == end
    assert ("end" in disk.parse_json((tmp_path / "x/card.json").read_text())) == (end is not None)
    for one, other in ((own, again.denoiser), (own.toward(T / 2), again.denoiser.toward(T / 2))):
        assert torch.equal(known(one)(x, T).v, known(other)(x, T).v)


@pytest.mark.parametrize("guidance", [None, Guidance(1.0, 4.0), Guidance(2.0, 2.0)], ids=str)
@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize("end", [None, SAME, ANY])
def test_a_student_begins_as_its_parent_and_is_told_what_its_method_says(end, two_times, guidance, tmp_path):
    """One of a single time keeps the input that its parent has, and is asked for velocities alone."""
    own = saved(tmp_path / "x", end=end)
    student, teacher = roles(checkpoints.load(tmp_path / "x"), guidance, two_times=two_times)
    one_time = SAME if end else None
    assert student.end == (ANY if two_times else one_time)
    x = sample_like(own.net)
    assert torch.equal(known(student)(x, T).v, known(own)(x, T).v)
    hops = torch.equal(known(student.toward(T / 2))(x, T).v, known(student)(x, T).v)
    assert hops == (not two_times or end is None)
    assert isinstance(teacher, Guided) == (guidance is not None)


def test_a_network_of_its_own_gets_the_input_too(tmp_path):
    saved(tmp_path / "x", end=ANY)
    parent = checkpoints.load(tmp_path / "x")
    for two_times, end in ((True, ANY), (False, None)):
        student, _ = roles(parent, None, new=NETS["classes"](), two_times=two_times)
        assert student.end == end
        assert student.net.config.end_embeds == two_times


@pytest.mark.parametrize("guided", [False, True])
def test_jumps_to_the_data_are_a_checkpoint_that_diffusers_has_a_class_for(guided, tmp_path):
    own = saved(tmp_path / "x", guided=guided)
    card = fold(tmp_path / "x", 2.0 if guided else None, tmp_path / "y", to_data=True)
    plain = checkpoints.load(tmp_path / "y").denoiser
    x, jump = sample_like(own.net), own.toward(torch.zeros(4).double())
    torch.testing.assert_close(known(plain)(x, T).v, known(jump)(x, T).v, rtol=1e-4, atol=1e-5)
    assert (card.solver, card.end, plain.takes_guidance) == ("multistep_consistency", None, False)
    assert disk.parse_json((tmp_path / "y/unet/config.json").read_text())["_class_name"] == FORMAT
    if not guided:
        assert exports.export(tmp_path / "y", tmp_path / "out", "diffusers", "") < exports.TOLERANCE


def test_a_student_of_one_time_has_no_jumps_to_hand_out(tmp_path):
    saved(tmp_path / "x", end=None)
    with pytest.raises(UserError, match="x is told of no hop where it lands"):
        fold(tmp_path / "x", None, tmp_path / "y", to_data=True)


@pytest.mark.parametrize("name", ["classes", "unet", "dit"])
@pytest.mark.parametrize("form", ["safetensors", pytest.param("torch_export", marks=pytest.mark.slow)])
def test_both_times_are_exported(form, name, tmp_path):
    saved(tmp_path / "x", name, guided=name == "classes")
    assert exports.export(tmp_path / "x", tmp_path / "out", form, "") < exports.TOLERANCE


def test_diffusers_is_handed_no_network_of_two_times(tmp_path):
    saved(tmp_path / "x")
    with pytest.raises(UserError, match="no class TwoTimesUNet2DModel; choose another --format or give --to-data"):
        exports.export(tmp_path / "x", tmp_path / "out", "diffusers", "")
