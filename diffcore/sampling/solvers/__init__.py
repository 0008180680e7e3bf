"""The known solvers. A new one is one class in a file here and one line of SOLVERS; the tests find it there."""

from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers.adaptive import DPM12, DPM23
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.sampling.solvers.ancestral import DDIM, DDPM, DDPMLarge, Renoise
from diffcore.sampling.solvers.dpm_solver import (
    DPM2,
    DPM2M,
    DPM3,
    DPM3M,
    DPMFast,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3S,
)
from diffcore.sampling.solvers.edm import EDM, Heun
from diffcore.sampling.solvers.langevin import Langevin, PredictorCorrector
from diffcore.sampling.solvers.rk45 import RK45
from diffcore.sampling.solvers.sde import EulerMaruyama, ReverseDiffusion
from diffcore.sampling.solvers.unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {
    # towards the probability flow
    "ddim": DDIM,
    "heun": Heun,
    "dpm_solver_2": DPM2,
    "dpm_solver_3": DPM3,
    "dpm_solver_2m": DPM2M,
    "dpm_solver_3m": DPM3M,
    "dpm_solver_12": DPM12,
    "dpm_solver_23": DPM23,
    "dpm_solver_fast": DPMFast,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_3m": DPMpp3M,
    "dpmpp_3s": DPMpp3S,
    "unipc": UniPC,
    "rk45": RK45,
    # with noise
    "ddpm": DDPM,
    "ddpm_large": DDPMLarge,
    "analytic": Analytic,
    "edm": EDM,
    "dpmpp_2m_sde": DPMpp2MSDE,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "langevin": Langevin,
    "predictor_corrector": PredictorCorrector,
    "renoise": Renoise,
}
