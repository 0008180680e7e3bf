"""What a GPU is measured by runs where there is none, and prints every row."""

import os
import subprocess
import sys

import pytest

from bench import gpu
from tests.test_params import ROOT

ROWS = [
    "plain loop",
    "operations",
    "measured peak",
    "training, eager",
    "training, compiled",
    "MFU",
    *(f"sampling, {name}, batch 8" for name in ("ddim, 8 steps", "ddpm, 8 steps", "ddim, 1 steps")),
    "largest batch of samples",
    "host waits, a sampling step",
    "operations of a sampling step",
    "host waits, an update",
    "an update",
    *(f"of it {part}" for part in ("random numbers", "EMA", "optimizer and EMA")),
    "larger batches of a training",
]


@pytest.mark.slow
def test_every_row_is_there_without_a_gpu():
    done = subprocess.run(
        [sys.executable, "bench/gpu.py", "--small"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    head, rows, end = done.stdout.strip().split("\n\n")
    assert head.startswith("CPU, torch ")
    assert [row[:36].strip() for row in rows.splitlines()] == ROWS
    assert all(row[36:].strip() for row in rows.splitlines())
    assert end.endswith(" s")


def test_the_network_is_ddpm_s_of_cifar():
    """36 million parameters, attention at 16 pixels and in the middle."""
    config = gpu.config(gpu.Size())
    net = gpu.unet.UNet(config)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == 35.7
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    assert config.up_block_types == ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)],
)
def test_a_device_has_the_peak_of_its_name(name, peak):
    machine = gpu.Machine()
    machine.name = name
    assert machine.peak == peak
    machine.name = "another one"
    assert machine.peak is None
