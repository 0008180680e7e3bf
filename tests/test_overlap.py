"""Sampling beside a GPU: what is drawn ahead, brought back late or done in parts is what is done at once, bit for bit."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.meter import Meter
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import memory
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import karras
from diffcore.sampling import headroom, overlap
from diffcore.sampling import sampler as module
from diffcore.sampling.headroom import MOST, USUAL, Headroom, largest
from diffcore.sampling.overlap import NoiseAhead, one_behind, returning
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import ToyNet, gaussian, make_schedule, make_solver, toy_denoiser

SHAPE, CPU = (1, 4, 4), torch.device("cpu")
DRAWING = ["ddim", *(name for name in SOLVERS if make_solver(name).stochastic)]
"""A solver that draws no noise after the start, and all that do."""


def drawn(rows: range, role: str) -> torch.Tensor:
    return noises(SHAPE, 3, rows, role)


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("part", [1, 2, 512])
def test_noise_drawn_ahead_is_that_of_its_key(ahead, part, monkeypatch):
    """In the order of the plan, out of it, twice, and of keys that no plan names."""
    monkeypatch.setattr(overlap, "PART", part)
    plan = [(rows, role) for rows in (range(3), range(3, 6), range(6, 7)) for role in ("start", "step 0")]
    asked = [*plan, plan[2], (range(1, 2), "start"), *plan[::-1]]
    with NoiseAhead(drawn, plan, CPU, ahead) as noise:
        for key in asked:
            assert torch.equal(noise(*key), drawn(*key))


def test_the_next_noise_is_drawn_before_it_is_asked_for_and_once():
    calls = []
    plan = [(range(number, number + 1), "start") for number in range(6)]
    with NoiseAhead(lambda rows, role: calls.append(rows.start) or drawn(rows, role), plan, CPU, 2) as noise:
        for number, key in enumerate(plan):
            noise(*key)
            [future.result() for begun in noise._begun.values() for future in begun]
            assert sorted(calls) == list(range(min(number + 3, 6)))


def test_a_fault_of_a_thread_is_the_fault_of_the_draw():
    def fails(rows, role):
        raise UserError("no noise")

    with NoiseAhead(fails, [(range(2), "start")], CPU, 1) as noise, pytest.raises(UserError, match="no noise"):
        noise(range(2), "start")


def test_a_result_is_waited_for_when_the_next_is_begun():
    order = []

    def begin(number):
        order.append(f"begin {number}")
        return lambda: order.append(f"wait {number}") or torch.tensor(number)

    assert [int(each) for each in one_behind(begin(number) for number in range(3))] == [0, 1, 2]
    assert order == ["begin 0", "begin 1", "wait 0", "begin 2", "wait 1", "wait 2"]
    assert list(one_behind(iter(()))) == []


def test_what_comes_back_is_what_was_there():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(returning(x)(), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_samples_are_the_same_bytes_with_noise_drawn_ahead(name, monkeypatch):
    sampler = Sampler(toy_denoiser(), make_solver(name), karras(3, Cosine()))
    usual = sampler.draw(SHAPE, 7, 3, 3)
    monkeypatch.setattr(module, "NoiseAhead", lambda *words: NoiseAhead(*words, ahead=2))
    assert torch.equal(usual, sampler.draw(SHAPE, 7, 3, 3))


@pytest.mark.parametrize("name", DRAWING)
def test_all_noise_that_a_solver_asks_for_is_planned(name, monkeypatch):
    """What is not is drawn while a GPU waits."""
    plans, asked = [], []

    class Heard(NoiseAhead):
        def __init__(self, noise, plan, device):
            plans.extend(plan)
            super().__init__(noise, plan, device)

        def __call__(self, rows, role):
            asked.append((rows, role))
            return super().__call__(rows, role)

    monkeypatch.setattr(module, "NoiseAhead", Heard)
    Sampler(toy_denoiser(), make_solver(name), karras(3, Cosine())).draw(SHAPE, 5, 3, 3, headroom=Headroom(2))
    assert asked == plans
    assert {rows for rows, _ in plans} == {range(2), range(2, 3), range(3, 5)}


class FromHost(TorchDispatchMode):
    """Counts what reads a tensor of the host to make one of the device, and so makes the host wait for it."""

    count = 0

    def __torch_dispatch__(self, operation, kinds, arguments=(), words=None):
        result = operation(*arguments, **(words or {}))
        self.count += "meta" in _devices(result) and "cpu" in _devices((arguments, words))
        return result


def _devices(values) -> set[str]:
    return {each.device.type for each in tree_leaves(values) if isinstance(each, torch.Tensor)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in SOLVERS.items() if not kind.adaptive])
def test_no_step_of_a_solver_copies_from_the_host(name):
    """What is copied is copied once. A step that read a number of the device would be an error on this one."""
    schedule, start = make_schedule("discrete"), torch.zeros(3, 1, 4, 4, device="meta")
    solver = make_solver(name, gaussian(schedule))

    sampler = Sampler(NetDenoiser(Same(), schedule), solver, karras(3, schedule))
    sampler.sample(start, lambda k: start)  # tables are kept beside the device from then on
    with FromHost() as counted:
        sampler.sample(start, lambda k: start)
    assert counted.count == 0


class Same(torch.nn.Module):
    def forward(self, x, timestep):
        return x


# --- memory that is not enough


class Crowded(NetDenoiser):
    """Its memory is enough for so many samples, at the call of this number for half as many."""

    most, fewer_at, calls = 3, 10**9, 0

    def forward(self, x_t, t):
        Crowded.calls += 1
        if len(x_t) > (self.most // 2 if Crowded.calls >= self.fewer_at else self.most):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x_t, t)

    def with_condition(self, condition):
        return self


@pytest.fixture
def crowded(monkeypatch) -> Crowded:
    monkeypatch.setattr(Crowded, "calls", 0)
    return Crowded(ToyNet(), Cosine())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m_sde"])
@pytest.mark.parametrize("fewer_at", [10**9, 6])
def test_a_batch_that_does_not_fit_is_drawn_in_halves_that_are_told_once(name, fewer_at, crowded, monkeypatch):
    """The same samples, and no call counted that was made in vain, in the midst of a run or at its start."""
    count, condition = 13, of_classes(torch.arange(13))
    meters, told = [Meter(), Meter()], []
    usual = Sampler(NetDenoiser(crowded.net, Cosine()), make_solver(name), karras(4, Cosine()))
    wanted = usual.draw(SHAPE, count, 0, 1, condition, meters[0])
    monkeypatch.setattr(Crowded, "fewer_at", fewer_at)
    limit = Headroom(on_less=told.append)
    sampler = Sampler(crowded, make_solver(name), karras(4, Cosine()))
    drawn = sampler.draw(SHAPE, count, 0, 12, condition, meters[1], limit)
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))
    assert meters[1].settle() == meters[0].settle()
    assert told == ([6, 3] if fewer_at > 6 else [6, 3, 1])
    sampler.draw(SHAPE, count, 0, 12, condition, None, limit)
    assert len(told) == (2 if fewer_at > 6 else 3)


def test_no_memory_for_one_sample_is_a_mistake_in_one_line(crowded, monkeypatch):
    monkeypatch.setattr(Crowded, "most", 0)
    with pytest.raises(UserError, match="memory of the GPU is not enough for one sample"):
        Sampler(crowded, SOLVERS["ddim"](), karras(2, Cosine())).draw(SHAPE, 4, 0)


def test_other_errors_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="something else"):
        Headroom().split(range(4), lambda rows: torch.nn.Module.__call__(_Broken()))


class _Broken(torch.nn.Module):
    def forward(self):
        raise RuntimeError("something else")


@pytest.mark.parametrize("most", [None, 1, 2, 5, 9])
def test_parts_are_all_rows_in_order_and_none_is_larger(most):
    rows = range(3, 10)
    parts = Headroom(most).parts(rows)
    assert list(itertools.chain(*parts)) == list(rows) == list(itertools.chain(*Headroom(most).split(rows, list)))
    assert max(map(len, parts)) <= (most or len(rows))


GPU = torch.device("cuda")


@pytest.fixture
def bytes_each(monkeypatch) -> list[int]:
    """A GPU whose calls take a byte for each sample, and their sizes as they are tried."""
    tried = []
    monkeypatch.setattr(memory, "peak", lambda device, work: work() or tried[-1])
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    return tried


@pytest.mark.parametrize(("most", "fits"), [(10, 10), (100, 100), (300, 300), (400, 400), (5000, 512)])
def test_the_batch_is_doubled_while_twice_its_peak_fits(most, fits, bytes_each):
    """Of 1000 bytes 800 count: from 512 on twice as many take more."""
    assert largest(bytes_each.append, most, GPU) == fits
    assert bytes_each == [size for size in (64, 128, 256, 512) if size < most]


def test_a_batch_that_ran_out_of_memory_is_halved_and_one_beyond_use_not_tried(bytes_each, monkeypatch):
    def call(size):
        bytes_each.append(size)
        if size > 200:
            raise torch.OutOfMemoryError

    assert largest(call, 5000, GPU) == 128
    monkeypatch.setattr(memory, "free", lambda device: 10**9)
    assert largest(bytes_each.append, 10**6, GPU) == MOST == max(bytes_each) * 2


def test_on_a_cpu_the_batch_is_a_fixed_one_and_nothing_is_tried():
    assert largest(lambda size: 1 / 0, 10**6, CPU) == USUAL == 250
    assert largest(lambda size: 1 / 0, 30, CPU) == 30
    assert headroom.tried(len, range(3)) == 3
