"""What an option is where params.yaml does not say: a change of one changes the next run of everybody who left it out."""

import dataclasses
import importlib
import pkgutil

import diffcore
from diffcore.clipping import Clip, Threshold
from diffcore.schedule import SCHEDULES
from diffcore.solvers import SOLVERS
from tasks.params import Distill, Way

SINGLESTEP = {"solver_type": "midpoint", "spacing": "half_logsnr"}
MULTISTEP = {"lower_order_final": True, "solver_type": "midpoint"}
ADAPTIVE = {"rtol": 0.05, "atol": 0.0078, "predicts": "eps"}  # 0.0078 is two grey values of 256

CONFIGS = {
    "deepcache": {"branch": 0, "spread": "uniform", "center": 15.0, "power": 1.4},
    "features": {},
    "fit": {
        "warmup": 0,
        "decay": "cosine",
        "weight_decay": 0.01,
        "clip": None,
        "accumulate": 1,
        "label_dropout": 0.0,
    },
    "gamma": {},
    "hops": {"late": 1.15},
    "methods.consistency": {
        "distance": "pseudo_huber",
        "huber": 0.00054,
        "floor": 0.1,
        "hop": "ddim",
        "substeps": 4,
        "steps_end": None,
        "anneal": 0.5,
    },
    "methods.consistency_training": {
        "schedule": "ict",
        "mean": -1.1,
        "std": 2.0,
        "first": 10,
        "last": 1280,
        "q": 2.0,
        "k": 8.0,
        "b": 1.0,
        "stages": 8,
        "huber": None,
        "weight": "gap",
    },
    "methods.continuous": {
        "data": "distillation",
        "mean": -1.0,
        "std": 1.4,
        "warmup": 0.1,
        "norm": 0.1,
        "weight": "one",
    },
    "methods.denoising": {"weight": "one", "gamma": 5.0},
    "methods.distribution_matching": {"steps": 1, "critic_updates": 5, "critic_lr": 1e-3, "adversarial": 0.0},
    "methods.guided": {"weight": "truncated_snr"},
    "methods.phased": {
        "steps": 64,
        "phases": 4,
        "target_ema": 0.0,
        "distance": "pseudo_huber",
        "huber": 0.00054,
        "weight": "one",
        "adversarial": 0.0,
        "critic_lr": 1e-3,
    },
    "methods.progressive": {"weight": "truncated_snr", "factor": 2, "clip": False},
    "skip_tuning": {"top": 1.0},
    "sources": {
        "size": None,
        "channels": None,
        "filter": "lanczos",
        "crop": "center",
        "flip": False,
        "limit": None,
        "license": None,
        "members": "auto",
        "labels": None,
        "split": None,
        "tolerance": 0.01,
        "bits": None,
    },
}
"""Of each module's Config; what has no default must be said."""

OF_SOLVERS = {
    "analytic": {"eta": 1.0, "estimator": "residual", "last": None},
    "ddim": {"eta": 0.0},
    "dpm_solver_12": ADAPTIVE,
    "dpm_solver_23": ADAPTIVE,
    "dpm_solver_2": SINGLESTEP,
    "dpm_solver_3": SINGLESTEP,
    "dpmpp_2s": SINGLESTEP,
    "dpmpp_3s": SINGLESTEP,
    "dpm_solver_2m": MULTISTEP,
    "dpmpp_2m": MULTISTEP,
    "dpmpp_2m_sde": MULTISTEP,
    "dpm_solver_3m": {**MULTISTEP, "corrected": False},
    "dpmpp_3m": {**MULTISTEP, "corrected": False},
    "dpm_solver_fast": {"predicts": "eps", "uses": 3, "solver_type": "midpoint"},
    "edm": {"churn": 20.0, "s_min": 0.05, "s_max": 50.0, "noise": 1.003},
    "langevin": {"inner": 5, "rate": 0.2},
    "predictor_corrector": {"predictor": "reverse_diffusion", "snr": 0.16, "corrections": 1},
    "rk45": {"rtol": 1e-3, "atol": 1e-3},
    "unipc": {"uses": 2, "variant": "bh2", "lower_order_final": True, "predicts": "x0"},
}
"""Solvers that are not named have no options."""

OF_SCHEDULES = {
    "linear": {"beta_min": 0.1, "beta_max": 20.0},
    "subvp": {"beta_min": 0.1, "beta_max": 20.0},
    "ve": {"sigma_min": 0.01, "sigma_max": 50.0},
}


def defaults(kind: type) -> dict[str, object]:
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def test_every_config_has_these_and_no_others():
    names = [module.name for module in pkgutil.walk_packages(diffcore.__path__, "diffcore.")]
    kinds = {name: vars(importlib.import_module(name)).get("Config") for name in names}
    own = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and kind.__module__ == name}
    assert {name.removeprefix("diffcore."): defaults(kind) for name, kind in own.items()} == CONFIGS


def test_every_solver_and_schedule_has_these_and_no_others():
    assert {name: found for name, kind in SOLVERS.items() if (found := defaults(kind))} == OF_SOLVERS
    made = {name: kind for name, kind in SCHEDULES.items() if dataclasses.is_dataclass(kind)}
    assert {name: found for name, kind in made.items() if (found := defaults(kind))} == OF_SCHEDULES


def test_limits_students_and_ways_have_these_and_no_others():
    assert defaults(Clip) == {"bound": 1.0}
    assert defaults(Threshold) == {"quantile": 0.995, "max": 1.0}
    assert defaults(Distill) == {"guidance": None, "head": None, "dropout": 0.0}
    unsaid = dict.fromkeys(("deepcache", "skip", "guidance", "negative", "clip", "threshold"))
    assert defaults(Way) == {"steps": [], "options": {}, **unsaid}
