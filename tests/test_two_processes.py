"""Two processes that train together end where one ends: real ones, over gloo, on a CPU."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffcore.core import processes
from diffcore.core.shapes import CLASS, lift
from diffcore.data.read import Images
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.methods import (
    Method,
    consistency,
    consistency_training,
    denoising,
    distribution_matching,
    flow_map,
    phased,
    progressive,
)
from diffcore.nets import open_folder, unet
from diffcore.nets.conditioned import with_end
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Fitted, Stopped, fit
from diffcore.training.resume import Resume
from diffcore.watching.config import Watch
from diffcore.watching.gauge import Gauge
from diffcore.watching.samples import FixedSamples
from diffcore.watching.watcher import Watcher
from tests import test_captioned, test_dit
from tests.test_fit import stop_at
from tests.test_precision import Told, job, one_of_each
from tests.test_quality import Flat, normal_images
from tests.test_unet import stirred

ROOT = Path(__file__).parent.parent
COMPUTE = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
PLAIN = Training(iterations=4, batch=16, lr=1e-2, ema=0.9, clip=1.0)

CASES = {
    **{
        f"{name}, {'classes' if conditional else 'no classes'}": (name, config, conditional, 0.0, 1)
        for name, config in one_of_each()
        for conditional in (False, True)
    },
    "a target, classes, label dropout, guidance": ("consistency", consistency.Consistency(16, 0.9), True, 0.0, 1),
    "accumulation": ("consistency_training", consistency_training.ConsistencyTraining(), True, 0.0, 2),
    "a critic": (
        "distribution_matching",
        distribution_matching.DistributionMatching(2, 2, adversarial=0.1),
        True,
        0.0,
        1,
    ),
    "heads, accumulation": ("phased", phased.Phased(16, 4, 0.5, adversarial=0.1), False, 0.0, 2),
    "dropout": ("consistency", consistency.Consistency(16, 0.0), False, 0.3, 1),
    "a U-Net": ("progressive", progressive.Progressive(2), False, 0.0, 2),
    "a transformer of diffusers": ("progressive", progressive.Progressive(2), True, 0.0, 2),
    "a transformer": ("progressive", progressive.Progressive(2), False, 0.0, 2),
    "a transformer told a text": ("progressive", progressive.Progressive(2), False, 0.0, 2),
    "texts without images": ("distribution_matching", distribution_matching.DistributionMatching(2, 2), False, 0.0, 2),
    "two times": ("flow_map", flow_map.FlowMap(8, 0.5, 0.5, 0.5), False, 0.0, 2),
    "data alone": ("denoising", denoising.Denoising(), False, 0.0, 1),
    "a watch": ("progressive", progressive.Progressive(2), True, 0.0, 1),
}
"""(method, its config, told of classes, dropout, parts that each process cuts its share into)."""


UNET = unet.default_config((1, 4, 4), (8, 16), groups=4)


def transformer() -> nn.Module:
    """Of diffusers, with all its weights random: none begins as zero."""
    config = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "norm_num_groups": 2}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.DiTTransformer2DModel(**config, in_channels=1, sample_size=4, num_embeds_ada_norm=3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        net.save_pretrained(folder)
        return open_folder(Path(folder))


NETS = {
    "a U-Net": lambda: stirred(UNET),
    "two times": lambda: with_end(stirred(UNET)),
    "a transformer": lambda: test_dit.small().net.requires_grad_(True),
    "a transformer of diffusers": transformer,
    "a transformer told a text": lambda: test_captioned.denoiser().net.requires_grad_(True),
    "texts without images": lambda: test_captioned.denoiser().net.requires_grad_(True),
}
CAPTIONED = {"a transformer told a text": test_captioned.captioned, "texts without images": test_captioned.texts_alone}


class Dropping(Told):
    """Its dropout comes last, so that any number of them leaves the rest alone."""

    def __init__(self, p: float, **more):
        super().__init__(**more)
        self.drop = nn.Dropout(p)

    def forward(self, *told, end_timestep=None, **named):
        out = super().forward(*told, **named)
        if end_timestep is not None:
            out = out + 1e-4 * lift(end_timestep - told[1], out)
        return self.drop(out)


def train(case: str, strategy: str = "ddp", **more) -> Fitted:
    name, config, conditional, dropout, parts = CASES[case]
    classes = 3 if conditional else None
    net = NETS[case]() if case in NETS else Dropping(dropout, classes=classes)
    is_captioned = case in CAPTIONED
    nothing, end = test_captioned.NOTHING if is_captioned else None, ANY if config.two_times else None
    student = NetDenoiser(net, Cosine(), classes=classes, nothing=nothing, end=end)
    teacher = NetDenoiser(Told(classes, seed=2, whose="teacher"), Cosine(), classes=classes)
    # one process has the parts that two would have, and where each of the two has one the same sums of them
    # AdamW makes steps of lr of gradients that are nothing but rounding, as those of biases before a group norm are, and of
    # an attention's keys
    fitting = dataclasses.replace(PLAIN, accumulate=parts, cores=2, lr=2e-5 if case in NETS else PLAIN.lr)
    work = job(name, config, conditional, fitting)
    if is_captioned:
        work = dataclasses.replace(work, feed=CAPTIONED[case](fitting.batch))
    if case == "a watch":
        work = dataclasses.replace(work, watcher=watcher(config, student))
    compute = dataclasses.replace(COMPUTE, strategy=strategy)
    return fit(work, student, Guided(teacher) if conditional else teacher, compute, **more)


WATCHERS: list[Watcher] = []
"""The last one is that of the last training that was watched."""


def watcher(config: Method, student: NetDenoiser) -> Watcher:
    """Of more samples than are drawn at once; the main process alone reads."""
    samples = FixedSamples(config, student, (1, 4, 4), 300, 0, inputs={CLASS: torch.arange(300) % 3})
    with processes.alone():
        gauge = Gauge.of(Images(normal_images(120), None, None), Flat())
    own = gauge if processes.is_main() else None
    WATCHERS.append(Watcher(Watch(1, 300, "best"), PLAIN.iterations, samples, own))
    return WATCHERS[-1]


def looks() -> torch.Tensor:
    """The update of each and what was seen; not how long it took."""
    seen = [
        [look.step, *look.columns().values(), look.best, look.behind, look.behind_se] for look in WATCHERS[-1].looks
    ]
    return torch.tensor(seen, dtype=torch.float64)


def state_of(folder: Path, number: int) -> Resume:
    return Resume(folder / "states", f"case{number}", {"case": number}, print)


def main(folder: Path, strategy: str, rank: int) -> None:
    """One of two processes. In each case the second alone is asked to stop, both do, and both go on."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for number, case in enumerate(CASES):
        resume = state_of(folder, number)
        with pytest.raises(Stopped, match="stopped after 2 of 4"):
            train(case, strategy, resume=resume, stop=stop_at(2) if rank else lambda: False)
        found = train(case, strategy, resume=resume)
        tensors = {name: tensor.contiguous() for name, tensor in found.net.state_dict().items()}
        tensors |= {"curve": curve(found), "calls": torch.tensor([found.calls])}
        tensors |= {"looks": looks()} if case == "a watch" else {}
        save_file(tensors, folder / f"{rank}-{number}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(strategy, tmp_path, capsys):
    """And one goes on from the state that two have saved."""
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    known |= {"MASTER_ADDR": "127.0.0.1"}  # accelerate asks for it; a file brings them together
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.test_two_processes", str(tmp_path), strategy]
    started = [
        subprocess.Popen(
            [*command, str(rank)],
            cwd=ROOT,
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=1500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    for number, case in enumerate(CASES):
        alone = train(case)
        for rank in (0, 1):
            found = load_file(tmp_path / f"{rank}-{number}.safetensors")
            assert float(found.pop("calls")) == alone.calls, case
            if case == "a watch":
                assert looks()[:, 0].tolist() == [1, 2, 3, 4]
                rtol = 0 if strategy == "ddp" else 1e-3
                torch.testing.assert_close(found.pop("looks"), looks(), rtol=rtol, atol=rtol)
            exactly = strategy == "ddp" and CASES[case][-1] == 1
            if exactly:
                assert all(torch.equal(found[name], tensor) for name, tensor in alone.net.state_dict().items()), case
            compare(case, alone, found.pop("curve"), found, 1e-5 if strategy == "ddp" else 1e-4)
        resume = state_of(tmp_path, number)
        shutil.rmtree(resume.folder / "step-000000004")
        capsys.readouterr()
        resumed = train(case, resume=resume)
        assert capsys.readouterr().out.startswith(f"case{number}: its state was saved by 2 processes, 1 process now")
        compare(case, alone, curve(resumed), resumed.net.state_dict(), 1e-4)


def curve(fitted: Fitted) -> torch.Tensor:
    events = [(event.loss, event.grad_norm, event.critic_loss or 0.0) for event in fitted.curve]
    return torch.tensor(events, dtype=torch.float64)


def compare(
    case: str, alone: Fitted, events: torch.Tensor, weights: dict[str, torch.Tensor], norms: float = 1e-5
) -> None:
    """norms: how far gradient norms may be apart, which grow where a loss has a corner."""
    for column, rtol in enumerate((1e-5, norms, 1e-5)):
        torch.testing.assert_close(events[:, column], curve(alone)[:, column], rtol=rtol, atol=1e-6, msg=case)
    for name, tensor in alone.net.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6, msg=f"{case}: {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
