"""Who may look at a training while it goes on."""

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Watcher(Protocol):
    """Looks at the averaged network, and changes nothing of the training but its end.

    keeps_best: whether the result is the averaged network of the best look, which is then kept beside the last one. is_over:
    whether the training is to end though updates are left.
    """

    keeps_best: bool
    is_over: bool

    def is_due(self, step: int) -> bool:
        """Whether it looks after `step` updates; the last one is always due."""
        ...

    def look(self, step: int, net: nn.Module, seconds: float) -> bool:
        """Looks at the averaged network, in all processes; whether it is the best so far. Draws from no generator of the
        training. seconds: what the training took until now, of all its runs."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is saved of it with the training's state, JSON."""
        ...

    def restore(self, facts: dict[str, Any]) -> None:
        """Goes on from what `facts` gave."""
        ...
