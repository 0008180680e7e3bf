"""Who takes part in a training: the student as it begins, and its teacher, guided where that is asked."""

from dataclasses import replace

from torch import nn

from diffcore.checkpoints import Checkpoint, Guidance
from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import ANY, SAME, NetDenoiser
from diffcore.nets.conditioned import folded, with_end, with_guidance
from diffcore.nets.diffusers_model import DiffusersModel


def roles(
    parent: Checkpoint,
    weights: Guidance | None,
    parameterization: str | None = None,
    dropout: float = 0.0,
    new: nn.Module | None = None,
    two_times: bool = False,
) -> tuple[NetDenoiser, Denoiser]:
    """(student, teacher): the student as it begins, a copy of the parent's network with an input for the weight if there is
    a range of them (one of diffusers keeps an input that it has, and is always told a single weight); the teacher guided by
    classifier-free guidance unless it knows the weights itself. weights: None for those of the parent. parameterization: what
    the student's network shall say from now on, None for what the parent's says. dropout: of the student's network. new: the
    student's own network, without an input for the weight, where it is no copy of the parent's. two_times: whether the
    student is told where its hops land, for which it then gets an input; one that is not, of a parent that has such an
    input, is asked for velocities alone."""
    own, weights = parent.denoiser, weights or parent.guidance
    teacher = Guided(own) if weights is not None and parent.guidance is None else own
    is_input = weights is not None and weights.is_input
    net = (new or own.net).with_dropout(dropout)
    takes = own.takes_guidance and new is None
    keeps = takes and isinstance(net, DiffusersModel)
    if is_input != takes and not keeps:
        net = with_guidance(net) if is_input else folded(net, weights.low)
    if parameterization is not None and own.reading.parameterization == "x0_eps" and new is None:
        raise UserError(
            f"a network of parameterization x0_eps says twice as much as one of {parameterization}; "
            f"leave `parameterization` out"
        )
    has_end = own.end is not None and new is None
    net = with_end(net) if two_times and not has_end else net
    one_time = SAME if has_end else None
    student = NetDenoiser(
        net,
        own.schedule,
        replace(own.reading, parameterization=parameterization or own.reading.parameterization),
        None,
        own.classes,
        is_input or keeps,
        nothing=own.nothing.parts(),
        end=ANY if two_times else one_time,
        guidance=weights.low if keeps and not is_input else None,
    )
    return student, teacher
