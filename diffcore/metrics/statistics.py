"""Reference statistics as EDM and its followers keep them: mean and covariance of features, `mu` and `sigma` in an .npz
(Karras et al. 2022, arXiv 2206.00364, fid.py)."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics.frechet import Moments

ALIKE = 1e-6
"""How far, of the largest variance, sigma may be from symmetric and its eigenvalues below 0, by rounding."""

REMEDY = "name an .npz that holds mu [d] and sigma [d, d]"


@dataclass(frozen=True)
class Statistics:
    """mean: [d], covariance: [d, d], float64. about: the file's name and the first digits of its sha256. judge: of whose
    features they are, in the words of `Judge`, where the file says so."""

    mean: Tensor
    covariance: Tensor
    about: str
    judge: str | None = None


def write(path: Path, moments: Moments, judge: str, images: int, data: str) -> None:
    """A new .npz of mu and sigma, float64, and whose features they are of, of how many images, and their digest."""
    content = io.BytesIO()
    arrays = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    np.savez(content, **arrays, judge=np.array(judge), images=np.array(images), data=np.array(data))
    disk.write(path, content.getvalue(), new=True)


def read(path: Path) -> Statistics:
    """Raises UserError for a file that holds no mean and covariance of features; no pickle in it is loaded."""
    if path.suffix == ".pkl":
        raise UserError(
            f"{path} is a pickle, which would be executed; save its mu and sigma with numpy.savez and name that"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mu", "sigma", "judge") if name in file}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as statistics ({str(error).splitlines()[0][:120]}); {REMEDY}") from None
    mean, covariance = (_floats(arrays.get(name), name, path) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu is {[*mean.shape]} and sigma {[*covariance.shape]}; {REMEDY}")
    _check(covariance, path)
    about = f"{path.name} {disk.sha256(path)[:12]}"
    return Statistics(mean, covariance, about, str(arrays["judge"]) if "judge" in arrays else None)


def _floats(array: np.ndarray | None, name: str, path: Path) -> Tensor:
    if array is None or array.dtype.kind != "f" or not array.size:
        raise UserError(f"{path}: {name} is {'missing' if array is None else 'no array of floats'}; {REMEDY}")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} is not finite; {REMEDY}")
    return torch.from_numpy(array.astype(np.float64))


def _check(covariance: Tensor, path: Path) -> None:
    limit = ALIKE * covariance.diagonal().max().item()
    if (covariance - covariance.T).abs().max() > limit or torch.linalg.eigvalsh(covariance).min() < -limit:
        raise UserError(f"{path}: sigma is no covariance, it must be symmetric and positive semidefinite; {REMEDY}")
