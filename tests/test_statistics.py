"""Reference statistics as EDM keeps them: what is read, what is refused, what is written, and what is held against them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics import statistics
from diffcore.metrics.frechet import Moments, frechet
from diffcore.metrics.judge import Court, Judge
from tests.conftest import randn
from tests.test_judges import Flat

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def judge(sha: str = "5" * 64) -> Judge:
    return Judge("flat", Flat(), sha, "none")


def images(count: int, seed: int = 0) -> torch.Tensor:
    return (randn(count, 1, 2, 3, seed=seed) * 30 + 128).round().clamp(0, 255).to(torch.uint8)


def edm(path: Path, x: torch.Tensor, **more) -> Path:
    """As EDM's fid.py writes it: mean and covariance (divisor n - 1) of features."""
    np.savez(path, **({"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)} | more))
    return path


def test_samples_are_held_against_the_file_in_the_place_of_the_images(tmp_path):
    real, samples = images(90), to_float(images(40, 1))
    features = real.flatten(1).double() / 64
    own = judge().features(samples)
    read = statistics.read(edm(tmp_path / "edm.npz", features, mu_s=np.zeros(3)))
    court = Court.against_file(judge(), read, (1, 2, 3))
    measures = court.measure(samples)
    assert list(measures) == ["fd_flat"]  # of pairs of images a file says nothing
    assert measures["fd_flat"].value == pytest.approx(frechet(Moments.of(own), Moments.of(features)), rel=1e-9)
    whole = Court.of(judge(), Images(real, None, None)).measure(samples)
    assert measures["fd_flat"].se == pytest.approx(whole["fd_flat"].se, rel=1e-6)
    assert str(court) == f"{judge()} against {read.about}"
    assert read.about.startswith("edm.npz ")
    assert len(read.about) == len("edm.npz ") + 12


def test_what_is_written_is_read_as_it_was_and_numpy_alone_opens_it(tmp_path):
    court = Court.of(judge(), Images(images(90), None, None))
    statistics.write(tmp_path / "ours.npz", court.moments, str(judge()), 90, "d" * 64)
    read = statistics.read(tmp_path / "ours.npz")
    assert torch.equal(read.mean, court.moments.mean)
    assert torch.equal(read.covariance, court.moments.covariance)
    assert read.judge == str(judge())
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert set(file) == {"mu", "sigma", "judge", "images", "data"}
        assert (file["mu"].dtype, file["sigma"].shape, file["images"], file["data"]) == (
            np.float64,
            (6, 6),
            90,
            "d" * 64,
        )
    Court.against_file(judge(), read, (1, 2, 3))
    with pytest.raises(
        UserError, match=r"evaluate\.judges\.flat: ours\.npz is of the features of flat 5.*; not of flat 6"
    ):
        Court.against_file(judge("6" * 64), read, (1, 2, 3))


def test_statistics_of_another_number_of_features_are_refused(tmp_path):
    read = statistics.read(edm(tmp_path / "edm.npz", randn(30, 5)))
    with pytest.raises(UserError, match=r"edm\.npz is of 5 features, and flat has 6; name statistics of its own"):
        Court.against_file(judge(), read, (1, 2, 3))


class Wicked:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_files_that_hold_no_statistics_are_refused_and_nothing_in_them_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = randn(30, 4)
    lop = np.eye(4)
    lop[0, 1] = 0.1
    negative = np.diag([1.0, 1.0, 1.0, -0.01])
    Path("edm2.pkl").write_bytes(pickle.dumps({"fid": {"mu": Wicked()}}))
    Path("pickled.npz").write_bytes(pickle.dumps(Wicked()))
    Path("text.npz").write_text("no statistics")
    Path("empty.npz").touch()
    np.savez("objects.npz", mu=np.array([Wicked()], dtype=object), sigma=np.eye(1))
    np.save("array.npy", np.eye(4))
    Path("array.npy").rename("array.npz")
    np.savez("less.npz", mu=np.zeros(4))
    edm(Path("flat.npz"), x, mu=np.zeros((1, 4)))
    edm(Path("unlike.npz"), x, mu=np.zeros(3))
    edm(Path("nan.npz"), x, sigma=np.full((4, 4), np.nan))
    edm(Path("whole.npz"), x, mu=np.zeros(4, dtype=np.int64))
    edm(Path("lop.npz"), x, sigma=lop)
    edm(Path("negative.npz"), x, sigma=negative)
    for name, words in {
        "edm2.pkl": "edm2.pkl is a pickle, which would be executed; save its mu and sigma with numpy.savez",
        "pickled.npz": "pickled.npz cannot be read as statistics",
        "text.npz": "text.npz cannot be read as statistics",
        "empty.npz": "empty.npz cannot be read as statistics",
        "objects.npz": "objects.npz cannot be read as statistics",
        "array.npz": "array.npz cannot be read as statistics",
        "less.npz": "less.npz: sigma is missing",
        "flat.npz": r"flat.npz: mu is \[1, 4\] and sigma \[4, 4\]",
        "unlike.npz": r"unlike.npz: mu is \[3\] and sigma \[4, 4\]",
        "nan.npz": "nan.npz: sigma is not finite",
        "whole.npz": "whole.npz: mu is no array of floats",
        "lop.npz": "lop.npz: sigma is no covariance",
        "negative.npz": "negative.npz: sigma is no covariance",
    }.items():
        with pytest.raises(UserError, match=words) as refused:
            statistics.read(Path(name))
        assert "\n" not in str(refused.value)
    assert not Path("executed").exists()
