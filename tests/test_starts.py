"""What a stage imports while it works: what takes long and does nothing for one process is left alone."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from diffcore.core.adamw import AdamW
from diffcore.data.read import Images
from diffcore.metrics import features
from diffcore.training.learner import Learner, accelerator

begun = set(sys.modules)
net = torch.nn.Linear(2, 2)
learner = Learner(net, AdamW(net.parameters()), accelerator(), wrapped=True)
learner.gradient([slice(0, 4)], lambda part: net(torch.ones(4, 2)[part]).square().mean(1))
learner.clip(1.0)
images = Images(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), None, None)
trained = features.train(images, features.Config(8, 4, 1, 8, 1e-3, 0))
features.save(trained, Path(sys.argv[1]))
assert features.load(Path(sys.argv[1])).digest == trained.digest
print(*sorted(set(sys.modules) - begun))
"""


@pytest.mark.slow
def test_one_process_that_trains_and_looks_imports_no_sympy_and_no_sharded_tensors(tmp_path):
    """accelerate's `prepare` and torch's way out of the meta device do, for some half a second each."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "seen"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"sympy", "torch.distributed.tensor", "torch._dynamo"} & set(done.stdout.split())
