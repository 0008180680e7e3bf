"""A network that learns, in one process or in several: the gradient of a batch in parts, and a step along it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffcore.core import processes
from diffcore.core.adamw import MOMENTS, AdamW
from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample
from diffcore.training import sharding


class Learner:
    """A network and its AdamW; a student is one, and so is the critic that is trained beside it.

    averages: networks of the same shape that follow its weights, by name. wrapped: of several processes accelerate wraps it,
    and its gradients travel between them while the last part's backward pass goes on. The hooks that do so expect gradients
    in every backward pass that the network takes part in: one through which another learns is left as it is, and its
    gradients are averaged after the last part. A sharded network (`sharding.shard`) exchanges them by itself. prepared: the
    network as a loss must call it.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: AdamW,
        accelerator: Accelerator,
        averages: Mapping[str, nn.Module] | None = None,
        wrapped: bool = False,
    ):
        self.net, self.optimizer, self.accelerator, self.wrapped = net, optimizer, accelerator, wrapped
        self.averages, self.sharded = dict(averages or {}), sharding.is_sharded(net)
        # in one process `prepare` wraps nothing, and imports for most of a second what would
        travels = wrapped and not self.sharded and accelerator.num_processes > 1
        self.prepared = accelerator.prepare(net) if travels else net

    def gradient(self, parts: Sequence[slice], loss_of: Callable[[slice], PerSample]) -> Tensor:
        """Leaves the gradient of the mean loss, over this process's parts and all processes, in the parameters; that loss,
        [], where it was worked out."""
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts, 1):
            with self._exchange(number == len(parts)):
                loss = loss_of(part).float().mean() / len(parts)
                # outside of the loss's own autocast, which would take what ran in full precision back in bfloat16
                self.accelerator.backward(loss)
            total += loss.detach()
        if not self.wrapped:
            processes.average([parameter.grad for parameter in self.optimizer.parameters])
        return self.accelerator.reduce(total, "mean")

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager[None]:
        # gradients travel between processes once a step, with the last part
        if self.sharded:
            self.net.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared)

    def clip(self, largest: float | None) -> Tensor:
        """Scales a gradient down whose norm is above `largest`, if that is given; the norm before, []."""
        norm = sharding.whole(nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None]))
        if largest is not None:
            nn.utils.clip_grads_with_norm_(self.net.parameters(), largest, norm)
        return norm

    def step(self, lr: float, skip: Tensor | None = None, **decays: float) -> None:
        """One update along the gradient, which is gone then; the averages follow, each by its decay. skip: as of `AdamW`."""
        self.optimizer.step(lr, skip)
        for name, decay in decays.items():
            follow(self.averages[name], self.net, decay)

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Its parameters require a gradient here, and none afterwards, when others learn through it."""
        try:
            self._require(True)
            yield
        finally:
            self._require(False)

    def _require(self, gradient: bool) -> None:
        for parameter in self.optimizer.parameters:
            parameter.requires_grad_(gradient)

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Everything that a step reads, the tensors themselves: `NAME/PARAMETER` of the network, the averages by their
        names, and the moments as `PREFIXexp_avg/PARAMETER`."""
        nets = {name: self.net, **self.averages}
        each = ((name, _read_by_a_step(sharding.give_back(net))) for name, net in nets.items())
        weights = {f"{net}/{key}": value.detach() for net, parts in each for key, value in parts}
        return weights | dict(self._moments(prefix))

    def _moments(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        state = self.optimizer.state
        for name, parameter in self.net.named_parameters():
            if parameter in state:
                yield from ((f"{prefix}{key}/{name}", state[parameter][key]) for key in MOMENTS)


def _read_by_a_step(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters and buffers, those too that its state_dict leaves out."""
    return itertools.chain(net.named_parameters(), net.named_buffers())


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first one with a value that is not finite, of what this process has of them; None if all are."""
    finite = torch.stack([sharding.part(tensor).isfinite().all() for tensor in tensors.values()]).cpu()
    return None if finite.all() else list(tensors)[int(finite.long().argmin())]


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Moves an average by 1 - decay towards the network."""
    own, others = (sharding.give_back(one).parameters() for one in (net, average))
    weights, averaged = ([sharding.part(each) for each in parameters] for parameters in (own, others))
    torch._foreach_lerp_(averaged, weights, 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers()):  # no weights: some count, some are averages already
        kept.copy_(buffer)


def import_wrapping() -> None:
    """What accelerate imports where it wraps a network, for who asks how much memory several processes take."""
    import torch.distributed.tensor  # noqa: F401


def accelerator() -> Accelerator:
    """What accelerate makes of the environment: device and processes. A UserError where it can make nothing of it.

    Precision is ours: accelerate would open autocast inside the student's own forward, within what turns it off.
    """
    try:
        several = processes.count() > 1
        # it would take several processes without a GPU for as many strangers
        here = Accelerator(mixed_precision="no", cpu=several and not torch.cuda.is_available())
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"accelerate cannot start here: {' '.join(str(error).split())}; look at LOCAL_RANK, RANK, WORLD_SIZE, "
            "MASTER_ADDR, MASTER_PORT and ACCELERATE_* in the environment"
        ) from None
    if here.num_processes != processes.count():
        raise UserError(
            f"accelerate sees {here.num_processes} of {processes.count()} processes; look at ACCELERATE_* in the environment"
        )
    return here
