"""In which precision samples are drawn, in how large batches, and what a point says of it; bfloat16 is a CPU's here."""

import dataclasses
import math

import pytest
import torch

from diffcore.core import precision
from diffcore.core.errors import UserError
from diffcore.denoisers.bfloat16 import BFloat16
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.metrics import bootstrap, features
from diffcore.metrics.drawing import Drawing, held_against
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.point import Point
from diffcore.nets import unet
from diffcore.nets.unet import UNet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks import measure, params
from tests.test_frontier import frontier, point
from tests.test_measure import Killed, change, die_after, make
from tests.test_unet import stirred

# --- the check


def held(exact: dict[str, tuple[float, float]], rounded: dict[str, float], count: int = 100, of: int = 100) -> Drawing:
    def scores(is_rounded: bool) -> dict[str, Estimate]:
        return {name: Estimate(rounded[name] if is_rounded else value, se) for name, (value, se) in exact.items()}

    return held_against(scores, count, of)


@pytest.mark.parametrize(("moved", "word"), [(0.0, "bf16"), (0.99, "bf16"), (-0.99, "bf16"), (1.01, "float32")])
def test_bf16_is_taken_where_no_metric_moves_by_more_than_its_error(moved, word):
    """Up or down; one metric that moves too far is enough, whatever the others do."""
    exact = {"fd": (2.0, 0.1), "kid": (0.3, 0.01)}
    verdict = held(exact, {"fd": 2.0, "kid": 0.3 + moved * 0.01})
    assert verdict.precision == word
    name = "kid" if moved else "fd"
    assert verdict.check.startswith(f"bf16 moves {name} by {abs(moved):.2g} standard errors")
    assert "100 samples" in verdict.check


def test_the_error_is_that_of_all_samples_of_a_point():
    """It is half as large over four times as many: what moves by 0.6 errors of the check moves by 1.2 of a point's."""
    exact, rounded = {"fd": (2.0, 0.1)}, {"fd": 2.06}
    assert held(exact, rounded, 100, 100).precision == "bf16"
    verdict = held(exact, rounded, 100, 400)
    assert (verdict.precision, "1.2 standard errors" in verdict.check) == ("float32", True)


def test_a_number_without_an_error_may_not_move_at_all():
    assert held({"accuracy": (1.0, 0.0)}, {"accuracy": 1.0}).precision == "bf16"
    assert held({"accuracy": (1.0, 0.0)}, {"accuracy": 0.99}).precision == "float32"


def test_samples_that_are_not_finite_in_bf16_are_drawn_in_float32():
    def scores(rounded: bool) -> dict[str, Estimate]:
        if rounded:
            raise UserError("3 of 12 samples are not finite")
        return {"fd": Estimate(1.0, 0.1)}

    assert held_against(scores, 9, 9) == Drawing("float32", "bf16 was refused: 3 of 12 samples are not finite")


def test_what_is_wrong_in_float32_too_is_no_matter_of_precision():
    def scores(rounded: bool) -> dict[str, Estimate]:
        raise UserError("not finite")

    with pytest.raises(UserError):
        held_against(scores, 9, 9)


# --- bfloat16 and float32


def believed(parameterization: str) -> NetDenoiser:
    return NetDenoiser(stirred(unet.default_config((1, 8, 8))), Cosine(), Reading(parameterization))


def test_the_network_rounds_as_in_training_and_nothing_else_does():
    """By hand: the network under autocast, its velocity in float32 from there on."""
    denoiser, x = believed("v"), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = per_sample(0.4, x)
    belief, exact = BFloat16(denoiser)(x, t), denoiser(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        v = denoiser.net(x, (t * 1024 - 1).float())
    assert v.dtype == torch.bfloat16
    c, s = (f(torch.tensor(math.pi / 2 * 0.4)) for f in (torch.cos, torch.sin))
    torch.testing.assert_close(belief.x0, c * x - s * v.float(), rtol=0, atol=1e-6)
    assert belief.x0.dtype == belief.eps.dtype == torch.float32
    assert not torch.equal(belief.x0, exact.x0)
    torch.testing.assert_close(belief.x0, exact.x0, rtol=0, atol=0.05)


def test_samples_in_bf16_are_float32_images_of_the_same_noise():
    samplers = [Sampler(wrap(believed("v")), SOLVERS["ddpm"](), uniform(4)) for wrap in (BFloat16, lambda same: same)]
    rounded, exact = (sampler.draw((1, 8, 8), 5, 0, 3) for sampler in samplers)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_no_tf32_where_numbers_are_compared_and_what_was_allowed_is_again():
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    try:
        for allowed in ((True, False), (False, True), (True, True)):
            for part, value in zip(parts, allowed):
                part.allow_tf32 = value
            with precision.exact():
                assert [part.allow_tf32 for part in parts] == [False, False]
            assert [part.allow_tf32 for part in parts] == [*allowed]
    finally:
        for part, value in zip(parts, before):
            part.allow_tf32 = value


def test_features_are_taken_without_tf32(monkeypatch):
    seen = []
    card = features.Card(features.Config(8, 4, 1, 4, 0.1, 0), (1, 4, 4), "classes", 2, 24, 2)
    network = features._build(card).eval()
    forward = features.Features.forward
    monkeypatch.setattr(
        features.Features,
        "forward",
        lambda *words: seen.append(torch.backends.cudnn.allow_tf32) or forward(*words),
    )
    features.extract(network, torch.zeros(5, 1, 4, 4), batch=2)
    assert seen == [False] * 3


def test_a_cpu_has_no_bf16_that_is_faster():
    assert not precision.has_bf16(torch.device("cpu"))


# --- the points of a checkpoint


@pytest.fixture
def project(tmp_path, monkeypatch) -> params.Params:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    return make(tmp_path, monkeypatch, 2, False)


@pytest.fixture
def able(monkeypatch):
    """This machine as one whose bfloat16 is fast."""
    monkeypatch.setattr(measure.precision, "has_bf16", lambda device: True)


def points(found: params.Params, name: str = "v") -> list[tuple[torch.Tensor, Point]]:
    bench = measure.Bench(found, name)
    return [bench.measure(plan) for plan in measure.plan(bench)]


def timeless(measured: list[tuple[torch.Tensor, Point]]) -> list[Point]:
    return [dataclasses.replace(each, ms_per_image=0.0, check="") for _, each in measured]


def wreck(monkeypatch) -> None:
    """A network that bfloat16 wrecks."""
    forward = UNet.forward
    monkeypatch.setattr(
        UNet,
        "forward",
        lambda net, *words: forward(net, *words) * (-3 if torch.is_autocast_enabled("cpu") else 1),
    )


def test_without_fast_bf16_auto_is_float32_and_nothing_is_checked(project):
    usual, exact = points(project), points(change(project, precision="float32"))
    assert [(each.precision, each.check) for _, each in usual] == [("float32", "")] * len(usual)
    assert timeless(usual) == timeless(exact)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(usual, exact))


@pytest.mark.slow
def test_a_network_that_bf16_hardly_moves_is_drawn_in_it_and_its_points_say_so(project, able, capsys):
    """Drawn as when bf16 is asked for, once it was checked, and its bits are those of float32."""
    exact = points(change(project, precision="float32"), "teacher")
    capsys.readouterr()
    usual, asked = points(project, "teacher"), points(change(project, precision="bf16"), "teacher")
    lines = [line for line in capsys.readouterr().out.splitlines() if "samples are drawn in" in line]
    assert {each.precision for _, each in usual} == {"bf16"}
    (check,) = {each.check for _, each in usual}
    assert lines == [f"measure teacher: samples are drawn in bf16: {check}"]
    assert {(each.precision, each.check) for _, each in asked} == {("bf16", "")}
    assert timeless(usual) == timeless(asked)
    assert not any(torch.equal(one, other) for (one, _), (other, _) in zip(usual, exact))
    bits = [[each.metrics.get("bits") for _, each in way] for way in (usual, exact)]
    assert bits[0] == bits[1]
    assert any(bits[0])


def test_a_network_that_bf16_wrecks_is_drawn_in_float32(project, able, monkeypatch, capsys):
    wanted = points(change(project, precision="float32"))
    wreck(monkeypatch)
    usual = points(project)
    assert timeless(usual) == timeless(wanted)
    assert all("bf16 moves" in each.check for _, each in usual)
    assert "measure v: samples are drawn in float32: bf16 moves" in capsys.readouterr().out
    wrecked = points(change(project, precision="bf16"))
    assert all(one.fd != other.fd for (_, one), (_, other) in zip(wrecked, wanted))


def test_a_network_that_says_eps_is_not_said_to_compute_in_bf16(project, able, monkeypatch):
    bench = measure.Bench(project, "v")
    monkeypatch.setattr(bench.opened.denoiser, "reading", Reading("eps"))
    assert bench._drawing(None, None) == Drawing(check="a network that says eps computes in float32")


def test_a_measuring_that_goes_on_draws_as_it_did_before(project, able, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        die_after(patched, 1)
        with pytest.raises(Killed):
            measure.measure(project, "teacher")
    assert "samples are drawn in bf16" in capsys.readouterr().out
    monkeypatch.setattr(measure, "held_against", lambda *_: pytest.fail("checked once more"))
    measure.measure(project, "teacher")
    _, found, _ = measure.measured.read(measure.paths.POINTS / "teacher", "")
    assert {each.precision for each in found} == {"bf16"}
    assert len({each.check for each in found}) == 1


def test_the_batch_of_a_cpu_is_a_fixed_one_where_it_is_auto(project, capsys):
    usual, auto = points(change(project, batch=250)), points(change(project, batch="auto"))
    assert timeless(usual) == timeless(auto)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(usual, auto))
    assert "measure v: 12 samples are drawn at once\n" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_halved_in_one_line_and_the_points_are_the_same(project, monkeypatch, capsys):
    wanted = points(project)
    forward = NetDenoiser.forward

    def crowded(denoiser, x_t, t):
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(denoiser, x_t, t)

    capsys.readouterr()
    monkeypatch.setattr(measure.Bench, "_model", lambda *_: None)
    monkeypatch.setattr(NetDenoiser, "forward", crowded)
    found = points(change(project, fitted=dataclasses.replace(project.evaluate.fitted, batch=2)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "memory" in line]
    assert lines == ["measure v: the memory of the GPU is not enough for more than 2 samples at once"]
    for (one, mine), (other, theirs) in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert mine.nfe == theirs.nfe


# --- what is written


def test_a_point_of_before_was_drawn_in_float32():
    value = point("a", 2, 1.0).to_json()
    old = {key: each for key, each in value.items() if key not in ("precision", "check")}
    assert Point.from_json(old) == point("a", 2, 1.0) == Point.from_json(value)
    assert (value["precision"], value["check"]) == ("float32", "")


def test_the_table_tells_points_of_two_precisions_apart():
    exact = point("a", 2, 1.0)
    rounded = point("b", 1, 2.0, precision="bf16", check="bf16 moves fd by 0.1 standard errors")
    plain_lines = frontier(exact).table().splitlines()
    assert "precision" not in plain_lines[0]
    heading, *rows = frontier(exact, rounded).table().splitlines()[:3]
    assert heading.split()[-1] == "precision"
    assert [row.split()[-1] for row in rows] == ["bf16", "float32"]
    assert frontier(exact, rounded).to_json()["points"][1]["check"] == rounded.check
    assert ",bf16,bf16 moves fd by 0.1 standard errors," in frontier(exact, rounded).to_csv()
