"""The known solvers. A new one is one class in a file here and one line of SOLVERS; the tests find it there."""

from diffcore.solver import Solver
from diffcore.solvers.analytic import Analytic
from diffcore.solvers.ancestral import DDIM, DDPM, DDPMLarge, Renoise

SOLVERS: dict[str, type[Solver]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "ddpm_large": DDPMLarge,
    "analytic": Analytic,
    "renoise": Renoise,
}
