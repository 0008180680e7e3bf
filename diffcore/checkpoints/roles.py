"""Who takes part in a training: the student as it begins, and its teacher, guided where that is asked."""

from torch import nn

from diffcore.checkpoints import Checkpoint, Guidance
from diffcore.core.errors import Mistake
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet


def roles(
    parent: Checkpoint,
    weights: Guidance | None,
    head: str | None = None,
    dropout: float = 0.0,
    new: nn.Module | None = None,
) -> tuple[NetDenoiser, Denoiser]:
    """(student, teacher): the student as it begins, a copy of the parent's network with an input for the weight if there is
    a range of them; the teacher guided by classifier-free guidance unless it knows the weights itself. head: what the
    student's network shall say from now on, None for what the parent's says. dropout: of the student's network. new: the
    student's own network, without an input for the weight, where it is no copy of the parent's."""
    own, known = parent.denoiser, parent.guidance
    teacher = Guided(own) if weights is not None and known is None else own
    is_input = weights is not None and weights.is_input
    net = (new or own.net).with_dropout(dropout)
    if is_input != (own.weighs and new is None):
        if not isinstance(net, unet.UNet):
            raise Mistake("an input for the guidance weight needs our own U-Net; give one weight instead of a range")
        net = unet.with_guidance(net) if is_input else unet.folded(net, weights.low)
    if head is not None and own.head == "both" and new is None:
        raise Mistake(f"a network of head both says twice as much as one of head {head}; leave `head` out")
    return NetDenoiser(net, own.schedule, head or own.head, None, own.classes, is_input, labels=own.labels), teacher
