"""Losses that are one graph, compiled whole: in a process of their own, as checks of shapes cannot be compiled."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.methods import Method
from diffcore.nets import dit, unet
from diffcore.nets.conditioned import with_end
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Training
from diffcore.training.loop import Job, Loop
from tests import test_captioned
from tests.test_methods import configs
from tests.test_precision import FULL, feed

WHOLE = {name: config for name, config in configs() if config.one_graph}
"""One of each method whose loss is one graph."""

TRAINING = Training(iterations=5, batch=8, lr=1e-3, ema=0.9, label_dropout=0.2)


def small_unet(dropout: float, seed: int) -> unet.UNet:
    config = unet.default_config((1, 4, 4), (8,), groups=4, classes=4)
    return unet.build(dataclasses.replace(config, dropout=dropout), seed)


def transformer(dropout: float, seed: int) -> dit.DiT:
    return dit.Shape(2, 16, 2, 2, dropout, conditional=True).build((1, 4, 4), 3, seed)


Build = Callable[[float, int], nn.Module]


def loop(method: Method, accumulate: int, compiled: bool, dropout: float = 0.2, build: Build = small_unet) -> Loop:
    """A network with dropout that is told classes, and a guided teacher; for every batch denoisers are made anew."""
    student, teacher = (NetDenoiser(build(p, seed), Cosine(), classes=3) for seed, p in enumerate((dropout, 0.0)))
    work = Job(method, dataclasses.replace(TRAINING, accumulate=accumulate), feed(True), 0, guidance=(1.0, 3.0))
    return Loop(work, student, Guided(teacher), dataclasses.replace(FULL, compile=compiled))


def captioned_loop(method: Method, compiled: bool) -> Loop:
    """Of transformers that are told captions, some of which are dropped."""
    student, teacher = test_captioned.denoiser(0, 0.2), Guided(test_captioned.denoiser(1))
    work = Job(method, TRAINING, test_captioned.captioned(), 0, guidance=(2.0, 2.0))
    return Loop(work, student, teacher, dataclasses.replace(FULL, compile=compiled))


def two_times_loop(method: Method, compiled: bool) -> Loop:
    """Of a student that is told where its hops land."""
    student = NetDenoiser(with_end(small_unet(0.2, 0)), Cosine(), classes=3, end=ANY)
    teacher = Guided(NetDenoiser(small_unet(0.0, 1), Cosine(), classes=3))
    work = Job(method, TRAINING, feed(True), 0, guidance=(1.0, 3.0))
    return Loop(work, student, teacher, dataclasses.replace(FULL, compile=compiled))


def main() -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")
    for method in WHOLE.values():
        for accumulate in (1, 2):
            check(method, accumulate)
    check(WHOLE["denoising"], 2, transformer)
    check(WHOLE["progressive"], 1, transformer)
    check(WHOLE["progressive"], 1, make=lambda compiled: captioned_loop(WHOLE["progressive"], compiled))
    check(WHOLE["flow_map"], 1, make=lambda compiled: two_times_loop(WHOLE["flow_map"], compiled))


def check(
    method: Method, accumulate: int, build: Build = small_unet, make: Callable[[bool], Loop] | None = None
) -> None:
    """One graph, made in the first update and never again; the same training, and the same calls of networks counted."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    make = make or (lambda compiled: loop(method, accumulate, compiled, build=build))
    whole, plain = (make(compiled) for compiled in (True, False))
    for _ in range(TRAINING.iterations - 1):
        whole.update()
        plain.update()
        assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (1, {}), (method, accumulate)
    assert whole.calls() == plain.calls() > 0
    for name, tensor in plain._tensors().items():
        torch.testing.assert_close(whole._tensors()[name], tensor, rtol=1e-4, atol=1e-6, msg=f"{method}: {name}")


@pytest.mark.slow
def test_a_loss_that_can_be_is_one_graph_and_the_same_training():
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_compiled"], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_only_a_gpu_runs_it_as_a_cuda_graph_and_only_a_whole_batch_without_dropout(
    gpu, accumulate, dropout, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss, **how: compiled.append(how) or loss)
    monkeypatch.setattr(Loop, "is_on_gpu", property(lambda self: gpu))
    made = loop(WHOLE["denoising"], accumulate, True, dropout)
    assert made.captured == (gpu and accumulate == 1 and dropout == 0)
    assert compiled == [{"dynamic": False, "mode": "reduce-overhead" if made.captured else None}]


if __name__ == "__main__":
    main()
