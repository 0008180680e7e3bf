"""How many threads a process computes with on a CPU."""

import torch


def use(threads: int) -> None:
    torch.set_num_threads(threads)
