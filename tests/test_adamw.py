"""AdamW: its steps are those of torch's class, bit for bit, and by hand; and no training loads a compiler for them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcore.core.adamw import MOMENTS, AdamW
from tests.conftest import randn

ROOT = Path(__file__).parent.parent


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [
        nn.Parameter(randn(*shape, seed=seed).to(dtype)) for seed, shape in enumerate([(30, 7), (5,), (4, 3, 3, 3)])
    ]


def gradients(step: int) -> list[torch.Tensor]:
    return [randn(*one.shape, seed=100 + 3 * step + k).float() for k, one in enumerate(parameters())]


@pytest.mark.parametrize("fused", [True, False])
def test_its_steps_are_those_of_torchs_own_class_bit_for_bit(fused):
    """At another rate each time; its moments have the same names and values too."""
    ours, theirs = parameters(), parameters()
    own = AdamW(ours, (0.8, 0.95), 0.1, fused)
    torchs = torch.optim.AdamW(theirs, betas=(0.8, 0.95), weight_decay=0.1, fused=fused or None)
    for step in range(4):
        for one, other, gradient in zip(ours, theirs, gradients(step)):
            one.grad, other.grad = gradient.clone(), gradient.clone()
        torchs.param_groups[0]["lr"] = 0.01 * (step + 1)
        own.step(0.01 * (step + 1))
        torchs.step()
    for one, other in zip(ours, theirs):
        assert torch.equal(one, other)
        assert one.grad is None
        assert set(torchs.state[other]) == set(MOMENTS)
        assert all(torch.equal(own.state[one][name], torchs.state[other][name]) for name in MOMENTS)


@pytest.mark.parametrize("fused", [True, False])
def test_two_steps_by_hand(fused):
    """m = b1 m + (1 - b1) g, s = b2 s + (1 - b2) g^2; w - lr decay w - lr m' / (sqrt(s') + eps), both without their bias."""
    weight = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer, mean, square, right = AdamW([weight], (0.9, 0.99), 0.5, fused), 0.0, 0.0, 3.0
    for step, (gradient, rate) in enumerate([(2.0, 0.1), (-5.0, 0.3)], 1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step(rate)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        moved = (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)) ** 0.5 + 1e-8)
        right = right - rate * 0.5 * right - rate * moved
        assert weight.item() == pytest.approx(right, rel=1e-12)
    assert float(optimizer.state[weight]["step"]) == 2


def test_a_step_that_is_to_be_skipped_changes_nothing_but_the_gradient():
    ours = parameters()
    before = [one.detach().clone() for one in ours]
    optimizer = AdamW(ours)
    for skip in (1.0, 0.0):
        for one in ours:
            one.grad = torch.full_like(one, torch.nan if skip else 1.0)
        optimizer.step(0.1, torch.tensor(skip))
        for one, was in zip(ours, before):
            assert torch.equal(one, was) == bool(skip)
            assert float(optimizer.state[one]["step"]) == 1 - skip
            assert optimizer.state[one]["exp_avg"].isfinite().all()
            assert one.grad is None


def test_a_parameter_without_a_gradient_stays_as_it_is():
    learning, idle = parameters()[:2]
    before, optimizer = idle.detach().clone(), AdamW([learning, idle], weight_decay=0.5)
    learning.grad = torch.ones_like(learning)
    optimizer.step(0.1)
    assert torch.equal(idle, before)
    assert [float(optimizer.state[one]["step"]) for one in (learning, idle)] == [1, 0]


TRAINING = """
import sys
from tests.test_precision import WITH_A_CRITIC, run
from tests.test_features import ONE, bars, learn
for name, config in WITH_A_CRITIC:
    run(name, config, True)
learn(*bars(40), ONE)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_no_training_loads_a_compiler():
    """It takes longer than many a step: AdamW's own class does, and whoever disables compilation of a function."""
    done = subprocess.run([sys.executable, "-c", TRAINING], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stdout + done.stderr
