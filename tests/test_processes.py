"""What several processes say to each other, in real ones over gloo; who starts them, and hears why one ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffcore.core import launch, processes
from diffcore.core.errors import UserError
from diffcore.data.read import Images
from diffcore.metrics import features, likelihood
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.search import fitted, gamma
from tests.conftest import randn, seeded, toy_denoiser

ROOT = Path(__file__).parent.parent
DTYPES = processes.DTYPES
WORKED = []


def piece(item: int) -> torch.Tensor:
    WORKED.append(item)
    with torch.inference_mode():
        return torch.arange(item * 2).reshape(item, 2).to(DTYPES[item])


def speak() -> None:
    """Every function, in each of the processes."""
    rank, count, items = processes.rank(), processes.count(), range(len(DTYPES))
    dealt = list(processes.dealt(items, piece))
    assert [*WORKED] == list(processes.share(items)) == list(items[rank::count])
    for item, each in zip(items, dealt):
        assert each.dtype == DTYPES[item]
        assert torch.equal(each, piece(item))
    assert processes.total(rank + 0.5) == sum(each + 0.5 for each in range(count))
    assert processes.from_main({"rank": rank, "none": None, "text": "ä"}) == {"rank": 0, "none": None, "text": "ä"}
    assert processes.from_main(None if rank == 0 else 1) is None
    own = [torch.full((2, 3), float(rank)), torch.full((4,), rank), torch.full((3, 2), float(rank)).t()]
    processes.spread(own)
    assert all((each == 0).all() for each in own)
    means = [torch.full((2,), float(rank)), torch.full((1, 3), 2.0 * rank)]
    processes.average(means)
    assert [each.unique().tolist() for each in means] == [[(count - 1) / 2], [count - 1.0]]
    assert processes.is_main() == (rank == 0)


def compute(network: features.Features) -> dict[str, torch.Tensor]:
    """All that is dealt to several processes, in three batches each, the last one smaller."""
    denoiser, x0 = toy_denoiser().eval().requires_grad_(False), randn(5, 1, 4, 4).float() / 3
    sampler = Sampler(denoiser, SOLVERS["ddpm"](), uniform(3))
    flow = Sampler(denoiser, SOLVERS["rk45"](), uniform(1))
    sums = gamma.estimate(denoiser, x0, gamma.Config(steps=3, images=5, batch=6, seed=1)).moments
    hops = fitted.hop_errors(denoiser, denoiser, fitted.Config(points=4, images=5, batch=2, seed=0), (1, 4, 4))
    return {
        "samples": sampler.draw((1, 4, 4), 5, seed=2, batch=2),
        "bits": likelihood.estimate(sampler, x0, seed=3, batch=2).values,
        "bits of the flow": likelihood.estimate(flow, x0, seed=3, batch=2).values,
        "sums": sums.total,
        "squares": sums.square,
        "hops": torch.from_numpy(hops).tril(-1),
        "features": features.extract(network, randn(5, 1, 8, 8).float(), batch=2),
    }


def learn() -> features.Features:
    images = Images(torch.randint(0, 256, (40, 1, 8, 8), generator=seeded()).to(torch.uint8), None, None)
    return features.train(images, features.Config(channels=8, dimension=4, iterations=3, batch=7, lr=1e-3, seed=0))


def share_stages() -> None:
    """What several compute is what each of them computes alone: the same bits, and in training the same up to rounding."""
    together = learn()
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr(processes, "count", lambda: 1)
        alone.setattr(processes, "rank", lambda: 0)
        network = learn()
        expected = compute(network)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    for name, value in compute(network).items():
        assert torch.equal(value, expected[name]), name


def work(how: str, rank: str) -> int:
    """One of the processes; `how` says who of them ends, and how."""
    try:
        with processes.together():
            processes.wait()
            if how == "speak":
                speak()
                share_stages()
            if how == f"mistake {rank}":
                raise UserError("nobody can do that; do another thing")
            if how == f"kill {rank}":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == f"code {rank}":
                os._exit(9)
            if how != "speak":
                processes.wait()
            return 143 if how == "stopped" else 0
    except UserError as error:
        launch.report(str(error))
        return 2
    except processes.Lost:
        return launch.end_lost()


def main(how: str) -> int:
    if launch.is_started():
        return work(how, os.environ["RANK"])
    try:
        return launch.start(["-m", "tests.test_processes", how], 2, print)
    except UserError as error:
        print(f"error: {error}")
        return 2


def outcome(how: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_processes", how], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_what_is_dealt_is_what_one_process_alone_works_out():
    assert outcome("speak") == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("mistake", 2, "error: nobody can do that; do another thing"),
        ("kill", 137, "process {} was ended by SIGKILL, and the others with it; "),
        ("code", 9, None),
    ],
)
def test_where_one_process_ends_all_end_and_it_is_the_one_that_is_told_of(how, code, line, rank):
    ended, lines = outcome(f"{how} {rank}")
    assert ended == code
    assert [each.startswith((line or "-").format(rank)) for each in lines] == [True] * (line is not None)


@pytest.mark.slow
def test_where_all_were_asked_to_stop_the_exit_code_says_so():
    assert outcome("stopped") == (143, [])


def test_alone_a_process_is_the_whole_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another program: without the rest it names no group
    WORKED.clear()
    with processes.together():
        assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
        speak()


@pytest.mark.parametrize(("asked", "gpus", "count"), [("auto", 0, 1), ("auto", 8, 8), (3, 0, 3), (1, 8, 1), (8, 8, 8)])
def test_how_many_processes_a_host_has(asked, gpus, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.wanted(asked) == count


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"compute.processes is 3, but 2 GPU\(s\) can be seen here; lower it"):
        launch.wanted(3)


@pytest.mark.parametrize(("names", "place"), [({}, "cuda"), ({"LOCAL_RANK": "2", "WORLD_SIZE": "4"}, "cuda:2")])
def test_each_process_of_a_host_has_a_gpu_of_its_own(names, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in processes.NAMES if names else ():
        monkeypatch.setenv(name, names.get(name, "0"))
    assert processes.device() == torch.device(place)


@pytest.mark.parametrize(("rank", "quiet"), [(None, False), ("0", False), ("1", True)])
def test_the_main_process_speaks_for_all(rank, quiet, monkeypatch):
    assert not launch.is_follower()
    if rank is not None:
        monkeypatch.setenv(launch.FAILURE, "x")
        monkeypatch.setenv("RANK", rank)
    assert launch.is_follower() == quiet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
