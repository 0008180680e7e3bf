"""Toys that many tests share: small exact denoisers, the schedules of the registry, an empty database of MLflow."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from diffcore.core import rng
from diffcore.denoisers.exact import GaussianDenoiser, MixtureDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import bootstrap
from diffcore.metrics.estimate import Estimate
from diffcore.noise.schedule import SCHEDULES, Cosine, Discrete, Schedule
from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers import SOLVERS
from diffcore.search.gamma import Gamma, Moments
from tests import stores

DDPM_BETAS = tuple(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())


def make_schedule(name: str) -> Schedule:
    return Discrete(DDPM_BETAS) if name == "discrete" else SCHEDULES[name]()


@pytest.fixture(params=list(SCHEDULES))
def schedule(request) -> Schedule:
    return make_schedule(request.param)


@pytest.fixture(autouse=True)
def one_thread():
    """Each process of the suite keeps to a core of its own."""
    torch.set_num_threads(1)


@pytest.fixture
def without_shape_checks():
    """For tests of many small steps, most of whose time is the checks of their shapes: others check the same functions."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """The parameters of a module's `finished` run; a copy of its folder, to change or break, is the working directory."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return finished[1]


@pytest.fixture(scope="module")
def fresh_store(pytestconfig, tmp_path_factory) -> Iterator[Path]:
    """An empty database of MLflow, to be copied. A module that has copies of it waits for no disk when it writes to them."""
    path = stores.made_once(stores.common(pytestconfig, tmp_path_factory) / "mlflow.db", stores.migrated)
    with stores.hasty():
        yield path


def estimates(numbers: dict[str, float | None]) -> dict[str, Estimate]:
    """By {NAME: value, NAME_se: standard error}; what is None was not measured."""
    names = [name for name, value in numbers.items() if not name.endswith("_se") and value is not None]
    return {name: Estimate(numbers[name], numbers.get(f"{name}_se") or 0.0) for name in names}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(schedule: Schedule | None = None) -> GaussianDenoiser:
    """Anisotropic Gaussian data on [2, 3] samples."""
    mean = torch.tensor([[0.3, -0.2, 0.0], [0.1, 0.5, -0.4]], dtype=torch.float64)
    variance = torch.tensor([[0.25, 1.0, 0.04], [2.0, 0.5, 0.09]], dtype=torch.float64)
    return GaussianDenoiser(mean, variance, schedule or Cosine())


def exact_gamma(denoiser: GaussianDenoiser, steps: int = 1000) -> Gamma:
    """What `gamma.estimate` aims at, in closed form: the means over the coordinates of Gaussian data."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha2, sigma2 = denoiser.schedule.alpha(t) ** 2, denoiser.schedule.sigma(t) ** 2
    c2 = denoiser.variance.flatten()
    total = alpha2[:, None] * c2 + sigma2[:, None]
    rows = torch.stack([sigma2[:, None] / total, alpha2[:, None] * c2 / total, c2 * sigma2[:, None] / total]).mean(2)
    return Gamma(steps, 0, alpha2, sigma2, Moments(rows * 4, rows**2 * 4, 4))


def make_solver(name: str, denoiser: GaussianDenoiser | None = None) -> Solver:
    """A solver of the registry with its default options, and with the exact Gamma if it needs one."""
    solver = SOLVERS[name]()
    return solver.with_gamma(exact_gamma(denoiser or gaussian())) if name == "analytic" else solver


def mixture(schedule: Schedule | None = None) -> MixtureDenoiser:
    """Two well separated blobs on [2] samples."""
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-0.8, 0.2], [0.7, -0.1]], dtype=torch.float64)
    return MixtureDenoiser(weights, means, torch.full((2, 2), 0.05, dtype=torch.float64), schedule or Cosine())


class ToyNet(nn.Module):
    """A tiny network with a time input, for training tests: [b, c, h, w] in and out, deterministic weights."""

    def __init__(self, channels: int = 1, width: int = 8, seed: int = 0):
        super().__init__()
        self.conv_in = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=seeded(seed)))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        plane = (timestep / 1024).to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return self.conv_out(torch.nn.functional.silu(self.conv_in(torch.cat([x, plane], 1))))

    def features(self, x: Tensor, timestep: Tensor) -> list[Tensor]:
        plane = (timestep / 1024).to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return [torch.nn.functional.silu(self.conv_in(torch.cat([x, plane], 1)))]


def toy_denoiser(seed: int = 0) -> NetDenoiser:
    return NetDenoiser(ToyNet(seed=seed), Cosine())


def labels_like(labels: Tensor, count: int, seed: int) -> Tensor:
    """The classes that `count` samples are asked for, as frequent as in `labels`."""
    return labels[rng.places_like(len(labels), count, seed)]
