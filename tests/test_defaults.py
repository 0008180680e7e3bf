"""What an option is where params.yaml does not say: a change of one changes the next run of everybody who left it out."""

import dataclasses
import importlib
import pkgutil

import pytest

import diffcore
from diffcore import methods
from diffcore.denoisers.clipping import Clip, Threshold
from diffcore.methods import (
    consistency,
    consistency_training,
    continuous,
    denoising,
    distribution_matching,
    flow_map,
    phased,
    progressive,
)
from diffcore.nets.unet import Shape
from diffcore.noise.schedule import SCHEDULES
from diffcore.sampling import deepcache
from diffcore.sampling.solvers import SOLVERS
from diffcore.search import fitted
from diffcore.training.config import Compute, Training
from diffcore.watching.config import Watch
from tasks.sections import Distill, Sampling

SINGLESTEP = {"solver_type": "midpoint", "spacing": "half_logsnr"}
MULTISTEP = {"lower_order_final": True, "solver_type": "midpoint"}
ADAPTIVE = {"rtol": 0.05, "atol": 0.0078, "predicts": "eps"}  # 0.0078 is two grey values of 256

CONFIGS = {
    "sampling.deepcache": {"branch": 0, "spread": "uniform", "center": 15.0, "power": 1.4},
    "metrics.features": {},
    "training.config": {
        "warmup": 0,
        "decay": "cosine",
        "weight_decay": 0.01,
        "clip": None,
        "accumulate": 1,
        "cores": 1,
        "label_dropout": 0.0,
    },
    "search.gamma": {},
    "search.fitted": {"late": 1.15},
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
    "methods.flow_map": {
        "steps": 64,
        "first": 0.25,
        "velocity": 0.25,
        "target_ema": 0.5,
        "distance": "squared",
        "huber": 0.00054,
    },
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
    "sampling.skip_tuning": {"top": 1.0},
    "texts.config": {"encoder": None, "length": None, "dimension": 64, "precision": "float32"},
    "data.config": {
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
        "captions": None,
        "unseen": None,
        "prompts": None,
        "image_condition": None,
        "draw": None,
    },
}
"""Of each module's Config, of each method, and of a training; what has no default must be said."""

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
    "flow": {"shift": 1.0},
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
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
    own |= {f"diffcore.methods.{name}": methods.load(name) for name in methods.names()}
    own |= {Training.__module__: Training}
    assert {name.removeprefix("diffcore."): defaults(kind) for name, kind in own.items()} == CONFIGS


def test_every_solver_and_schedule_has_these_and_no_others():
    assert {name: found for name, kind in SOLVERS.items() if (found := defaults(kind))} == OF_SOLVERS
    made = {name: kind for name, kind in SCHEDULES.items() if dataclasses.is_dataclass(kind)}
    assert {name: found for name, kind in made.items() if (found := defaults(kind))} == OF_SCHEDULES


def test_limits_students_and_ways_have_these_and_no_others():
    assert defaults(Clip) == {"bound": 1.0}
    assert defaults(Threshold) == {"quantile": 0.995, "max": 1.0}
    line = {"guidance": None, "parameterization": None, "dropout": 0.0, "network": None, "watch": None, "seeds": 1}
    assert defaults(Distill) == line
    assert defaults(Watch) == {"keep": "last", "patience": None, "steps": None}
    unsaid = dict.fromkeys(("deepcache", "skip", "guidance", "negative", "clip", "threshold"))
    assert defaults(Sampling) == {"steps": [], "options": {}, **unsaid}


NUMBERS = {
    "denoisers.reading": {"NUM_TIMESTEPS": 1024},
    "metrics.features": {"TURNS": 4, "SMALLEST": 4, "ENOUGH": 2000},
    "data.feed": {"GROUP": 8},
    "metrics.recommendation": {"FAR": 3.0},
    "search.gamma": {"RANGE": (-1.0, 1.0), "GREYS": 256},
    "methods.consistency_training": {"SIGMAS": (0.002, 80.0), "RHO": 7},
    "methods.distribution_matching": {"LEVELS": (0.02, 0.98), "DISCRIMINATOR_HEADS": 4},
    "methods.phased": {"DISCRIMINATOR_HEADS": 4},
    "methods.flow_map": {"PARTS": 4096},
    "nets.conditioned": {"GUIDANCE_FEATURES": 16},
    "nets.dit": {"FEATURES": 64, "SLOWEST": 0.1, "RATIO": 4},
    "nets.unet.config": {"MAX_PERIOD": 10000},
    "metrics.bootstrap": {"RESAMPLES": 200},
    "metrics.skill": {"NEAR_CHANCE": 0.2},
    "metrics.reference": {"SIDE": 8, "KERNEL_ROWS": 50_000, "GROUPS": 128},
    "metrics.halvings": {"SPLITS": 64},
    "data.write": {"BLOCK": 256, "SMALL": 12288, "SHARD_BYTES": 33554432},
    "data.tally": {"MOST_BAD": 100, "MOST_AFTER": 10_000},
    "data.fitting": {"FULL": 65535, "MOST_PIXELS": 134217728},
    "data.sources.folder": {"MOST_BYTES": 1073741824},
    "data.tars": {"MOST_CLASSES": 65536},
}
"""Numbers that no file names and every result rests on: tests that set them aside for speed do not notice one that moves."""


@pytest.mark.parametrize("module", NUMBERS)
def test_numbers_that_results_rest_on_are_what_they_were(module):
    found = vars(importlib.import_module(f"diffcore.{module}"))
    assert {name: found[name] for name in NUMBERS[module]} == NUMBERS[module]


SMALL = 1e-9
FIT = {"iterations": 8, "batch": 8, "lr": 1e-3, "ema": 0.5}
SHAPE = {"channels": (4,), "layers": 1, "attention": False, "groups": 1, "dropout": 0.0, "max_phase": 12.0}
HOPS = {"points": 5, "images": 5, "batch": 5, "seed": 0}
COMPUTE = {"threads": 2, "precision": "no", "compile": False, "save_seconds": 1.0, "memory_gb": 1.0}
EDGES = [
    (Clip, {}, "bound", [SMALL], [0.0]),
    (Threshold, {}, "quantile", [SMALL, 1.0], [0.0, 1 + SMALL]),
    (Threshold, {}, "max", [1.0], [1 - SMALL, float("inf")]),
    (deepcache.Config, {}, "interval", [1], [0]),
    (deepcache.Config, {"interval": 2}, "branch", [0], [-1]),
    (deepcache.Config, {"interval": 2}, "center", [0.0], [-SMALL]),
    (deepcache.Config, {"interval": 2}, "power", [1.0], [1 - SMALL]),
    (fitted.Config, HOPS, "points", [2], [1]),
    (fitted.Config, HOPS, "images", [1], [0]),
    (fitted.Config, HOPS, "batch", [1], [0]),
    (fitted.Config, HOPS, "late", [SMALL], [0.0]),
    (Training, FIT, "iterations", [1], [0]),
    (Training, FIT, "batch", [1], [0]),
    (Training, FIT, "accumulate", [1], [0]),
    (Training, FIT, "cores", [1], [0]),
    (Training, FIT, "lr", [SMALL], [0.0]),
    (Training, FIT, "ema", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (Training, FIT, "label_dropout", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (Training, FIT, "warmup", [0], [-1]),
    (Training, FIT, "weight_decay", [0.0], [-SMALL]),
    (Training, FIT, "clip", [None, SMALL], [0.0]),
    (Compute, COMPUTE, "threads", [1], [0]),
    (Compute, COMPUTE, "save_seconds", [SMALL], [0.0]),
    (Compute, COMPUTE, "memory_gb", [0.0], [-SMALL]),
    (Compute, COMPUTE, "cache_gb", [0.0], [-SMALL]),
    (Shape, SHAPE, "channels", [(1,)], [(), (0,), (4, 0)]),
    (Shape, SHAPE, "layers", [1], [0]),
    (Shape, SHAPE, "groups", [1, 4], [0, 3]),
    (Shape, SHAPE, "dropout", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (Shape, SHAPE, "max_phase", [SMALL], [0.0]),
    (consistency.Consistency, {"target_ema": 0.0}, "steps", [2], [1]),
    (consistency.Consistency, {"steps": 4}, "target_ema", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (consistency.Consistency, {"steps": 4, "target_ema": 0.0}, "huber", [SMALL], [0.0]),
    (consistency.Consistency, {"steps": 4, "target_ema": 0.0}, "floor", [SMALL], [0.0]),
    (consistency.Consistency, {"steps": 4, "target_ema": 0.0}, "substeps", [2], [1]),
    (consistency.Consistency, {"steps": 4, "target_ema": 0.0}, "steps_end", [None, 2], [1]),
    (consistency.Consistency, {"steps": 4, "target_ema": 0.0}, "anneal", [SMALL, 1.0], [0.0, 1 + SMALL]),
    (consistency_training.ConsistencyTraining, {}, "std", [SMALL], [0.0]),
    (consistency_training.ConsistencyTraining, {}, "first", [1, 1280], [0, 1281]),
    (consistency_training.ConsistencyTraining, {}, "q", [1 + SMALL], [1.0]),
    (consistency_training.ConsistencyTraining, {}, "k", [0.0], [-SMALL]),
    (consistency_training.ConsistencyTraining, {}, "b", [0.0], [-SMALL]),
    (consistency_training.ConsistencyTraining, {}, "stages", [1], [0]),
    (consistency_training.ConsistencyTraining, {}, "huber", [None, 0.0], [-SMALL]),
    (continuous.Continuous, {}, "std", [SMALL], [0.0]),
    (continuous.Continuous, {}, "warmup", [0.0, 1.0], [-SMALL, 1 + SMALL]),
    (continuous.Continuous, {}, "norm", [SMALL], [0.0]),
    (denoising.Denoising, {}, "gamma", [SMALL], [0.0]),
    (distribution_matching.DistributionMatching, {}, "steps", [1], [0]),
    (distribution_matching.DistributionMatching, {}, "critic_updates", [1], [0]),
    (distribution_matching.DistributionMatching, {}, "critic_lr", [SMALL], [0.0]),
    (distribution_matching.DistributionMatching, {}, "adversarial", [0.0], [-SMALL]),
    (flow_map.FlowMap, {}, "steps", [1], [0]),
    (flow_map.FlowMap, {}, "first", [SMALL, 1 - SMALL], [0.0, 1.0]),
    (flow_map.FlowMap, {}, "velocity", [SMALL, 1 - SMALL], [0.0, 1.0]),
    (flow_map.FlowMap, {}, "target_ema", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (flow_map.FlowMap, {}, "huber", [SMALL], [0.0]),
    (phased.Phased, {"phases": 1}, "steps", [1], [0]),
    (phased.Phased, {}, "phases", [1, 64], [0, 3, 128]),
    (phased.Phased, {}, "target_ema", [0.0, 1 - SMALL], [-SMALL, 1.0]),
    (phased.Phased, {}, "adversarial", [0.0], [-SMALL]),
    (phased.Phased, {}, "huber", [SMALL], [0.0]),
    (phased.Phased, {}, "critic_lr", [SMALL], [0.0]),
    (progressive.Progressive, {}, "steps", [1], [0]),
    (progressive.Progressive, {"steps": 1}, "factor", [2], [1]),
    (progressive.Progressive, {"steps": 2}, "weight", ["snr"], []),
    (progressive.Progressive, {"steps": 1}, "weight", ["one", "truncated_snr", "snr_plus_one"], ["snr"]),
    (SOLVERS["ddim"], {}, "eta", [0.0, 1.0], [-SMALL, 1 + SMALL]),
    (SOLVERS["analytic"], {}, "eta", [0.0, 1.0], [-SMALL, 1 + SMALL]),
    (SOLVERS["analytic"], {}, "last", [None, SMALL], [0.0]),
    (SOLVERS["dpm_solver_12"], {}, "rtol", [SMALL], [0.0]),
    (SOLVERS["dpm_solver_12"], {}, "atol", [SMALL], [0.0]),
    (SOLVERS["dpm_solver_fast"], {}, "uses", [2, 3], [1, 4]),
    (SOLVERS["edm"], {}, "churn", [0.0], [-SMALL]),
    (SOLVERS["edm"], {}, "s_min", [0.0, 50.0], [-SMALL, 51.0]),
    (SOLVERS["edm"], {}, "noise", [SMALL], [0.0]),
    (SOLVERS["langevin"], {}, "inner", [1], [0]),
    (SOLVERS["langevin"], {}, "rate", [SMALL, 2 - SMALL], [0.0, 2.0]),
    (SOLVERS["predictor_corrector"], {}, "snr", [SMALL], [0.0]),
    (SOLVERS["predictor_corrector"], {}, "corrections", [1], [0]),
    (SOLVERS["rk45"], {}, "rtol", [SMALL], [0.0]),
    (SOLVERS["rk45"], {}, "atol", [SMALL], [0.0]),
    (SOLVERS["unipc"], {}, "uses", [1, 3], [0, 4]),
]
"""What an option may still be, and what it may not be any more."""


@pytest.mark.parametrize(
    ("kind", "rest", "option", "within", "beyond"),
    EDGES,
    ids=[f"{kind.__module__}-{name}" for kind, _, name, *_ in EDGES],
)
def test_an_option_may_be_what_lies_within_its_edges_and_nothing_beyond(kind, rest, option, within, beyond):
    for value in within:
        assert getattr(kind(**{**rest, option: value}), option) == value
    for value in beyond:
        with pytest.raises(ValueError, match=r"must|weight snr is 0"):
            kind(**{**rest, option: value})
