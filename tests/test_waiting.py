"""What a training step asks of a GPU, without one: tensors on the device `meta` have a shape and no values.

On a GPU the CPU runs ahead, and whoever asks for a value waits until all is done that was asked for before. A tensor without
values has none to give, so a step that looks at one is seen here; so is one that mixes tensors of two devices.
"""

import contextlib
import copy
import dataclasses
import types
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcore.core import rng
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import consistency_training, denoising
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine, variance_preserving
from diffcore.training import loop
from diffcore.training.loop import Job, Loop
from tests.conftest import toy_denoiser
from tests.test_dropout import Dropped
from tests.test_methods import spied
from tests.test_precision import EACH, FULL, SHORT, denoiser, job

pytestmark = pytest.mark.usefixtures("without_shape_checks")

GPU = torch.device("meta")
ATEN = torch.ops.aten


class Refusing(TorchDispatchMode):
    """Refuses what would wait for a GPU, or fail there: copies that wait, copies back, and tensors of two devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ATEN._to_copy.default:
            there = torch.device(kwargs.get("device") or args[0].device)
            refuse_waiting(func, args[0].device, there, kwargs.get("non_blocking", False))
        elif func is ATEN.copy_.default:
            refuse_waiting(func, args[1].device, args[0].device, args[2:] == (True,))
        else:
            refuse_mixing(func, [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)])
        if func in (ATEN._fused_adamw_.tensor_lr, ATEN._fused_adamw_.default):
            return None  # torch cannot do it without values
        return func(*args, **kwargs)


def refuse_waiting(func, here: torch.device, there: torch.device, non_blocking: bool) -> None:
    if here != there and (here == GPU or not non_blocking):
        raise AssertionError(f"{func} from {here} to {there} waits")


def refuse_mixing(func, tensors: list[torch.Tensor]) -> None:
    """A single number may lie on the CPU: it is given to the GPU with the call."""
    devices = {tensor.device for tensor in tensors if tensor.ndim or tensor.device == GPU}
    if len(devices) > 1:
        raise AssertionError(f"{func} mixes devices: {devices}")


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Trainings inside compute on a GPU that is not there."""
    here = types.SimpleNamespace(
        device=GPU,
        process_index=0,
        num_processes=1,
        prepare=lambda net: net,
        no_sync=lambda net: contextlib.nullcontext(),
        backward=lambda loss: loss.backward(),
        reduce=lambda tensor, how: tensor,
    )
    kind = torch.Generator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "accelerator", lambda: here)
        patch.setattr(rng, "dice", lambda device: device)
        patch.setattr(torch, "Generator", lambda device="cpu": kind())
        patch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())  # which knows no such device
        yield


def on_gpu(work: Job) -> Job:
    """The same job, its images on the GPU and mirrored, with no point of the curve after the first update."""
    feed = copy.copy(work.feed)
    feed._pixels, feed._labels = (part if part is None else part.to(GPU) for part in (feed._pixels, feed._labels))
    feed._flip = True
    return dataclasses.replace(work, feed=feed, events=1)


def step(work: Job, student: Denoiser, teacher: Denoiser | None = None) -> Loop:
    """An update on the GPU."""
    with gpu():
        made = Loop(on_gpu(work), student, teacher, FULL)
        with Refusing():
            made.update()
    return made


@pytest.mark.slow
@EACH
@pytest.mark.parametrize(("conditional", "fit"), [(False, {"clip": 1.0}), (True, {"accumulate": 2})], ids=str)
def test_no_update_waits_for_the_gpu_or_mixes_devices(name, config, conditional, fit):
    """The batch, gradient, clipping, critic, AdamW and averages; with classes, guidance and label dropout, and in parts."""
    teacher = denoiser(conditional, whose="teacher")
    work = job(name, config, conditional, dataclasses.replace(SHORT, **fit))
    made = step(work, denoiser(conditional), Guided(teacher) if conditional else teacher)
    assert {tensor.device for tensor in made._tensors().values()} == {GPU}


@EACH
def test_nor_does_one_with_dropout(name, config):
    step(job(name, config), *(NetDenoiser(Dropped(0.3, whose=whose), Cosine()) for whose in ("student", "teacher")))


@pytest.mark.parametrize("method", [denoising.Denoising(), consistency_training.ConsistencyTraining()], ids=str)
def test_nor_does_one_on_any_schedule(method, schedule):
    step(job("", method), NetDenoiser(denoiser().net, variance_preserving(schedule)))


def test_nor_does_one_of_a_unet_that_is_told_classes_and_guidance():
    net = unet.build(unet.default_config((1, 4, 4), (8, 16), groups=4, classes=4, dropout=0.1), 0)
    student = NetDenoiser(unet.with_guidance(net), Cosine(), classes=3, takes_guidance=True)
    step(job("", denoising.Denoising(), True), student)


WRONG = {
    "a value": (lambda loss: loss * float(loss.mean()), r"Tensor.item\(\) cannot be called"),
    "a question": (lambda loss: loss if bool((loss > 0).all()) else -loss, r"Tensor.item\(\) cannot be called"),
    "a copy back": (lambda loss: loss + loss.detach().cpu().sum(), "waits"),
    "a copy that waits": (lambda loss: loss * torch.arange(len(loss)).to(loss.device), "waits"),
    "another device": (lambda loss: loss * torch.ones(len(loss)), "mixes devices"),
    "places by a mask": (lambda loss: loss[loss > 0].sum() + loss, "nonzero"),
    "places on the CPU": (lambda loss: loss[torch.arange(8)], "mixes devices"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_update_that_does_is_seen(what):
    wrong, said = WRONG[what]

    def loss(self, *given):
        return wrong(denoising.Denoising().loss(*given))

    with pytest.raises((AssertionError, RuntimeError), match=said):
        step(job("", spied(denoising.Denoising(), loss=loss)), toy_denoiser())
