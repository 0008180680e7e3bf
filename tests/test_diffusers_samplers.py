"""diffusers' schedulers as peers: the same eps, the same times and the same noise give the same samples.

Our time of diffusers' integer timestep j is (j + 1)/T, on the discrete schedule with the same betas.
"""

import pytest
import torch

from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import VE
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import DDPM_BETAS, make_schedule, randn

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # between it and numpy

STEPS = pytest.mark.parametrize("steps", [4, 10, 20])


def denoiser() -> Denoiser:
    return GaussianDenoiser(0.3 * randn(2, 3), randn(2, 3, seed=1).square() + 0.05, make_schedule("discrete"))


def times(scheduler) -> Trajectory:
    return Trajectory((*(float((j + 1) / 1000) for j in unrepeated(scheduler.timesteps.tolist())), 0.0))


def unrepeated(values: list[float]) -> list[float]:
    return [value for k, value in enumerate(values) if k == 0 or value != values[k - 1]]


def eps(model: Denoiser, x: torch.Tensor, j: float) -> torch.Tensor:
    return model(x, per_sample((float(j) + 1) / 1000, x)).eps


def theirs(scheduler, steps: int, model: Denoiser, start: torch.Tensor) -> torch.Tensor:
    """Their loop. Our level is reached with `scale_model_input` where theirs explodes."""
    scheduler.set_timesteps(steps)
    x = start * scheduler.init_noise_sigma
    for j in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, j)
        x = scheduler.step(eps(model, seen, j), j, x).prev_sample
    return x


def compare(solver: Solver, scheduler, steps: int, noise=None, last: float = 0.0) -> None:
    model, start = denoiser(), randn(5, 2, 3, seed=4)
    expected = theirs(scheduler, steps, model, start)
    path = Trajectory((*times(scheduler).times[:-1], last))
    found = Sampler(model, solver, path).sample(start, noise)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=2e-5)


COMMON = {"num_train_timesteps": 1000, "trained_betas": DDPM_BETAS, "prediction_type": "epsilon"}
PLAIN = {**COMMON, "timestep_spacing": "trailing"}


def in_float64(scheduler, steps: int, ends_at_zero: bool) -> None:
    """Their sigmas are float32, which the long steps of eps magnify to 6e-4."""
    scheduler.set_timesteps(steps)
    alpha2 = (1 - torch.tensor(DDPM_BETAS, dtype=torch.float64)).cumprod(0)
    sigmas = ((1 - alpha2) / alpha2).sqrt()[[*map(int, scheduler.timesteps), 0]]
    scheduler.sigmas = torch.cat([sigmas[:-1], torch.zeros(1)]) if ends_at_zero else sigmas
    scheduler.set_timesteps = lambda steps: None


@STEPS
def test_ddim(steps):
    scheduler = diffusers.DDIMScheduler(**PLAIN, clip_sample=False, set_alpha_to_one=True)
    compare(SOLVERS["ddim"](), scheduler, steps)


def draw(k: int) -> torch.Tensor:
    return randn(5, 2, 3, seed=50 + k)


draws = draw


@STEPS
def test_ddim_with_noise(steps):
    """eta = 1; their variance_noise is given a step at a time, the last of which they add to nothing."""
    scheduler = diffusers.DDIMScheduler(**PLAIN, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    model = denoiser()
    start = x = randn(5, 2, 3, seed=4)
    for k, j in enumerate(scheduler.timesteps):
        x = scheduler.step(eps(model, x, j), j, x, eta=1.0, variance_noise=draws(k)).prev_sample
    for solver in (SOLVERS["ddim"](eta=1.0), SOLVERS["ddpm"]()):
        found = Sampler(model, solver, times(scheduler)).sample(start, draws)
        torch.testing.assert_close(found, x.double(), rtol=0, atol=2e-5)


def injected(monkeypatch, module) -> None:
    """Their noise becomes our k-th draw, in the order of their calls."""
    calls = iter(range(1000))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draws(next(calls)))


@STEPS
@pytest.mark.parametrize(("name", "variance"), [("ddpm", "fixed_small"), ("ddpm_large", "fixed_large")])
def test_ddpm(monkeypatch, steps, name, variance):
    from diffusers.schedulers import scheduling_ddpm

    injected(monkeypatch, scheduling_ddpm)
    scheduler = diffusers.DDPMScheduler(**PLAIN, clip_sample=False, variance_type=variance)
    # of the large variance theirs adds noise in the last step too, which here is nought
    silent = steps - 1 if name == "ddpm_large" else None
    monkeypatch.setitem(globals(), "draws", lambda k: draw(k) * (k != silent))
    compare(SOLVERS[name](), scheduler, steps, draws)


@STEPS
@pytest.mark.parametrize(
    ("order", "name", "kind"),
    [
        *((order, name, kind) for order, name in ((1, "ddim"), (2, "dpmpp_2m")) for kind in ("midpoint", "heun")),
        *((3, "dpmpp_3m", kind) for kind in ("midpoint", "heun")),  # of the second step, which has two beliefs
    ],
)
def test_dpm_solver_multistep(steps, order, name, kind):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **PLAIN, solver_order=order, solver_type=kind, algorithm_type="dpmsolver++", lower_order_final=True
    )
    options = {"solver_type": kind} if order > 1 else {}
    compare(SOLVERS[name](**options), scheduler, steps)


@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
@STEPS
@pytest.mark.parametrize(("order", "name"), [(2, "dpm_solver_2m"), (3, "dpm_solver_3m")])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("lower", [True, False])
def test_dpm_solver_multistep_of_eps(steps, order, name, kind, lower):
    """Theirs cannot end at sigma = 0."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **PLAIN,
        solver_order=order,
        solver_type=kind,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
        lower_order_final=lower,
    )
    in_float64(scheduler, steps, ends_at_zero=False)
    compare(SOLVERS[name](solver_type=kind, lower_order_final=lower), scheduler, steps, last=0.001)


@STEPS
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_sde_dpm_solver_multistep(monkeypatch, steps, kind):
    from diffusers.schedulers import scheduling_dpmsolver_multistep

    injected(monkeypatch, scheduling_dpmsolver_multistep)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **PLAIN, solver_order=2, solver_type=kind, algorithm_type="sde-dpmsolver++", lower_order_final=True
    )
    compare(SOLVERS["dpmpp_2m_sde"](solver_type=kind), scheduler, steps, draws)


def as_published(scheduler):
    """Their second look of three weighs the change with the midpoint, the paper with the integral: what they call heun."""
    inner = scheduler.singlestep_dpm_solver_second_order_update

    def update(*given, **named):
        of_three = 3 in scheduler.order_list[scheduler.step_index + 1 :][:1]
        scheduler.register_to_config(solver_type="heun" if of_three else "midpoint")
        found = inner(*given, **named)
        scheduler.register_to_config(solver_type="midpoint")
        return found

    scheduler.singlestep_dpm_solver_second_order_update = update
    return scheduler


@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
@pytest.mark.parametrize("steps", [4, 9, 10, 11, 20])
@pytest.mark.parametrize("uses", [2, 3])
@pytest.mark.parametrize(("algorithm", "predicts"), [("dpmsolver++", "x0"), ("dpmsolver", "eps")])
def test_dpm_solver_singlestep(steps, uses, algorithm, predicts):
    # their dpmsolver cannot end at sigma = 0
    last, word = (0.0, "zero") if predicts == "x0" else (0.001, "sigma_min")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **COMMON, solver_order=uses, algorithm_type=algorithm, lower_order_final=True, final_sigmas_type=word
    )
    in_float64(scheduler, steps, ends_at_zero=predicts == "x0")
    compare(SOLVERS["dpm_solver_fast"](predicts=predicts, uses=uses), as_published(scheduler), steps, last=last)


@STEPS
@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(steps, uses, variant):
    # their bh1 is not a number at sigma = 0, so it ends at the first of the thousand steps
    last, word = (0.001, "sigma_min") if variant == "bh1" else (0.0, "zero")
    scheduler = diffusers.UniPCMultistepScheduler(
        **PLAIN, solver_order=uses, solver_type=variant, lower_order_final=True, final_sigmas_type=word
    )
    compare(SOLVERS["unipc"](uses=uses, variant=variant), scheduler, steps, last=last)


@pytest.mark.slow
@STEPS
@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("predicts", "lower"), [("eps", True), ("eps", False), ("x0", False)])
def test_unipc_of_eps_and_without_a_lower_order_at_the_end(steps, uses, variant, predicts, lower):
    scheduler = diffusers.UniPCMultistepScheduler(
        **PLAIN,
        solver_order=uses,
        solver_type=variant,
        predict_x0=predicts == "x0",
        final_sigmas_type="sigma_min",
        lower_order_final=lower,
    )
    in_float64(scheduler, steps, ends_at_zero=False)
    options = {"uses": uses, "variant": variant, "predicts": predicts, "lower_order_final": lower}
    compare(SOLVERS["unipc"](**options), scheduler, steps, last=0.001)


LIMITED = {
    "clip": ({"clip_sample": True, "clip_sample_range": 0.5}, Clip(0.5)),
    "threshold": (
        {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.3},
        Threshold(0.6, 1.3),
    ),
}
THRESHOLD = LIMITED["threshold"]


def wide() -> Denoiser:
    """Data far beyond every limit."""
    return GaussianDenoiser(randn(2, 3), 4 * torch.ones(2, 3).double(), make_schedule("discrete"))


def compare_limited(monkeypatch, solver: Solver, scheduler, limit, steps: int, noise=None, **given) -> None:
    monkeypatch.setitem(globals(), "denoiser", wide)
    step = scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda *args: step(*args, **given))
    model, start = wide(), randn(5, 2, 3, seed=4)
    expected = theirs(scheduler, steps, model, start)
    path = times(scheduler)
    found = Sampler(Clipped(model, limit), solver, path).sample(start, noise)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=5e-5)
    plain = Sampler(model, solver, path).sample(start, noise)
    assert (found - plain).abs().max() > 0.1


@STEPS
@pytest.mark.parametrize("case", LIMITED)
def test_ddim_with_a_limit_on_x0(monkeypatch, steps, case):
    """Theirs makes eps anew of the limited x_0 where it is asked to, as ours always does and PD's code."""
    settings, limit = LIMITED[case]
    scheduler = diffusers.DDIMScheduler(**PLAIN, **{"clip_sample": False, **settings}, set_alpha_to_one=True)
    compare_limited(monkeypatch, SOLVERS["ddim"](), scheduler, limit, steps, use_clipped_model_output=True)


@STEPS
@pytest.mark.parametrize("case", LIMITED)
def test_ddpm_with_a_limit_on_x0(monkeypatch, steps, case):
    from diffusers.schedulers import scheduling_ddpm

    injected(monkeypatch, scheduling_ddpm)
    settings, limit = LIMITED[case]
    scheduler = diffusers.DDPMScheduler(**PLAIN, **{"clip_sample": False, **settings}, variance_type="fixed_small")
    compare_limited(monkeypatch, SOLVERS["ddpm"](), scheduler, limit, steps, draws)


@STEPS
@pytest.mark.parametrize(("name", "uses"), [("dpmpp_2m", 2), ("dpmpp_3m", 3), ("unipc", 2)])
def test_multistep_with_dynamic_thresholding(monkeypatch, steps, name, uses):
    kind = diffusers.UniPCMultistepScheduler if name == "unipc" else diffusers.DPMSolverMultistepScheduler
    settings, limit = THRESHOLD
    scheduler = kind(**PLAIN, **settings, solver_order=uses, lower_order_final=True)
    compare_limited(monkeypatch, SOLVERS[name](), scheduler, limit, steps)


@STEPS
def test_heun(steps):
    """Theirs lists every time but the first twice, as its two stages, and works in x/alpha."""
    scheduler = diffusers.HeunDiscreteScheduler(**PLAIN)
    model, start = denoiser(), randn(5, 2, 3, seed=4)
    scheduler.set_timesteps(steps)
    path = times(scheduler)
    # theirs interpolates sigma at the listed times, which are whole, and starts at sigma_max
    x = start * scheduler.sigmas[0].double() / denoiser().schedule.sigma(torch.tensor([path.times[0]]))
    for j in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, j)
        x = scheduler.step(eps(model, seen, j), j, x).prev_sample
    found = Sampler(model, SOLVERS["heun"](), path).sample(start)
    torch.testing.assert_close(found, x.double(), rtol=0, atol=2e-5)


@STEPS
def test_lcm(monkeypatch, steps):
    """With its boundary scalings switched off (timestep_scaling large), a step is: believe, then add fresh noise."""
    from diffusers.schedulers import scheduling_lcm

    injected(monkeypatch, scheduling_lcm)
    scheduler = diffusers.LCMScheduler(**PLAIN, clip_sample=False, timestep_scaling=1e6, original_inference_steps=50)
    compare(SOLVERS["multistep_consistency"](), scheduler, steps, draws)


class Boundary(Denoiser):
    """A consistency model of Song et al. 2023: c_skip x + c_out F around any network, in sigma, with x_0 = its output."""

    def __init__(self, scheduler):
        super().__init__()
        self.schedule, self.grid = VE(0.002, 50.0), None
        self.get = scheduler.get_scalings_for_boundary_condition

    def network(self, x):
        return torch.tanh(0.7 * x)

    def forward(self, x_t, t):
        sigma = self.schedule.sigma(t)[:, None, None]
        skip, out = self.get(sigma)
        x0 = out * self.network(x_t) + skip * x_t
        return Prediction(x0, (x_t - x0) / sigma, self.schedule.level(t, x_t))


def test_consistency_multistep(monkeypatch):
    """Theirs adds sqrt(sigma^2 - sigma_min^2) of noise; with sigma_min tiny that is our re-noising on a VE schedule."""
    from diffusers.schedulers import scheduling_consistency_models

    injected(monkeypatch, scheduling_consistency_models)
    scheduler = diffusers.CMStochasticIterativeScheduler(40, sigma_min=0.002, sigma_max=50.0, clip_denoised=False)
    scheduler.set_timesteps(timesteps=[22, 10, 0])
    model = Boundary(scheduler)
    start = randn(5, 2, 3, seed=4) * 50.0
    x = start
    for j in scheduler.timesteps:
        x = scheduler.step(model.network(x), j, x).prev_sample
    ratios = scheduler.sigmas[: len(scheduler.timesteps)].double()
    path = Trajectory((*(model.schedule.time(-ratios.log())).clamp(max=1).tolist(), 0.0))
    found = model(start, per_sample(path.times[0], start)).x0
    for k, sigma in enumerate(ratios[1:]):
        found = found + sigma * draws(k)
        found = model(found, per_sample(path.times[k + 1], found)).x0
    torch.testing.assert_close(found, x.double(), rtol=0, atol=2e-5)
    solved = Sampler(model, SOLVERS["multistep_consistency"](), Trajectory(path.times[:-1])).sample(start, draws)
    torch.testing.assert_close(model(solved, per_sample(path.times[-2], solved)).x0, found, rtol=0, atol=1e-6)
