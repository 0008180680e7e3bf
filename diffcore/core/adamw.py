"""AdamW by torch's own kernels, without torch.optim.Optimizer, whose constructor imports torch's compiler: a second or two
of every process that trains.

Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What is remembered of a parameter, by the names of torch's optimizers."""

EPS = 1e-8


class AdamW:
    """Parameters on one device, which learn from their gradients.

    weight_decay: times the rate, beside the gradient's step. fused: one kernel for all parameters, which rounds in its own
    way. state: of each parameter its MOMENTS, zero before the first step. On a GPU the rate lies there too, so that a step
    waits for nothing and can be captured in a CUDA graph.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        fused: bool = True,
    ):
        self.parameters = list(parameters)
        self.betas, self.weight_decay, self.fused = betas, weight_decay, fused
        self.state = {parameter: _start(parameter) for parameter in self.parameters}
        device = self.parameters[0].device
        self._rate = None if device.type == "cpu" else torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor | None = None) -> None:
        """One step at this rate, after which the gradients are gone. A parameter without one stays as it is.

        skip: a number that is 1 where nothing may change, else 0; asked on the device itself, and only if `fused`.
        """
        learning = [parameter for parameter in self.parameters if parameter.grad is not None]
        steps, means, squares = ([self.state[parameter][name] for parameter in learning] for name in MOMENTS)
        adamw(
            learning,
            [parameter.grad for parameter in learning],
            means,
            squares,
            [],
            steps,
            fused=self.fused or None,
            capturable=self._rate is not None,
            found_inf=skip,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr if self._rate is None else self._rate.fill_(lr),
            weight_decay=self.weight_decay,
            eps=EPS,
            maximize=False,
        )
        for parameter in learning:
            parameter.grad = None


def _start(parameter: nn.Parameter) -> dict[str, Tensor]:
    step = torch.zeros((), device=parameter.device)
    mean, square = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
    return dict(zip(MOMENTS, (step, mean, square)))
