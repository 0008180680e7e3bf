"""Which guidance weights a student is trained for, and who takes part in that."""

from diffcore.checkpoint import Checkpoint, Guidance
from diffcore.denoiser import Denoiser, Guided, NetDenoiser
from diffcore.mistake import Mistake
from diffcore.nets import unet


def cast(parent: Checkpoint, weights: Guidance | None) -> tuple[NetDenoiser, Denoiser]:
    """(student, teacher): the student as it begins, a copy of the parent's network with an input for the weight if there is
    a range of them; the teacher guided by classifier-free guidance unless it knows the weights itself."""
    own, known = parent.denoiser, parent.guidance
    teacher = Guided(own) if weights is not None and known is None else own
    is_input = weights is not None and weights.is_input
    net = own.net
    if is_input != own.weighs:
        if not isinstance(net, unet.UNet):
            raise Mistake("an input for the guidance weight needs our own U-Net; give one weight instead of a range")
        net = unet.with_guidance(net) if is_input else unet.folded(net, weights.low)
    return NetDenoiser(net, own.schedule, own.head, None, own.classes, is_input, labels=own.labels), teacher
