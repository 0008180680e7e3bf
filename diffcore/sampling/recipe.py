"""One sampling of a checkpoint, as data: what a point of the frontier was made by, and what is shipped."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffcore.checkpoints import Checkpoint
from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.condition import CLASS, TEXT, Condition
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.deepcache import DeepCached
from diffcore.sampling.sampler import Sampler, name
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.skip_tuning import skip_tuned
from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search.gamma import Gamma


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a sampling may say once: a field here is a key in params.yaml, a part of the recipe and of its JSON.

    negative: what guidance leads away from: of a network told texts a text, else a class, by name or number of the card's;
    None for nothing. clip, threshold: what is done to the believed x_0, see diffcore.denoisers.clipping; where both are None
    it is what an adopted teacher's own scheduler does, and with clip False it is nothing.
    """

    negative: str | int | None = None
    clip: float | Literal[False] | None = None
    threshold: Threshold | None = None


@dataclass(frozen=True)
class Recipe(Options):
    """solver: with its options. deepcache, skip: what is done to the network, None for nothing. guidance: the weight g of
    classifier-free guidance, None for none."""

    solver: Solver
    deepcache: CacheConfig | None = None
    skip: SkipConfig | None = None
    guidance: float | None = None

    def __post_init__(self):
        if self.clip is not None and self.threshold is not None:
            raise ValueError("clip and threshold are two ways to limit x_0; give one of them")
        if self.clip is not None and self.clip is not False:
            Clip(self.clip)

    def on(self, checkpoint: Checkpoint) -> "Recipe":
        """With nothing left to the checkpoint: what it does to x_0 by itself stands in the recipe."""
        if self.clip is not None or self.threshold is not None or checkpoint.card.method != "adopted":
            return self
        own = checkpoint.card.parameters.get("sampling", {})
        return dataclasses.replace(self, **_fields({key: own[key] for key in ("clip", "threshold") if key in own}))

    def sampler(self, checkpoint: Checkpoint, times: Trajectory, gamma: Gamma | None = None) -> Sampler:
        """A UserError if the checkpoint cannot be sampled so."""
        solver = self.solver
        if isinstance(solver, Analytic):
            if gamma is None:
                raise UserError("the analytic sampler needs an estimate of Gamma; run the stage `gamma`")
            solver = solver.with_gamma(gamma)
        return Sampler(self.on(checkpoint)._limited(self._denoiser(checkpoint)), solver, times)

    def of_network(self, denoiser: NetDenoiser, times: Trajectory) -> Sampler:
        """Of a teacher from elsewhere that is no checkpoint yet, and of which the recipe says all; guided by two calls unless
        its network takes the weight. A UserError where it cannot be sampled so."""
        if isinstance(self.solver, Analytic):
            raise UserError(
                "the analytic sampler needs an estimate of Gamma, which there is not yet; name another sampler"
            )
        if self.guidance is not None and not denoiser.is_told:
            raise UserError(
                "the teacher knows no classes and no texts, so there is nothing to guide to; leave guidance out"
            )
        is_guided = self.guidance is not None and not denoiser.takes_guidance
        return Sampler(self._limited(Guided(denoiser) if is_guided else denoiser), self.solver, times)

    def condition(
        self, checkpoint: Checkpoint, inputs: Mapping[str, Tensor], away: Mapping[str, Tensor] | None = None
    ) -> Condition | None:
        """What a network is told of samples of which this is known, by the name of its input [n, ...]: of it all that it has
        an input for; None for one that takes no notice. away: what it is told by the negative text, [1, ...] by name."""
        told = {name: part for name, part in inputs.items() if name in checkpoint.denoiser.inputs}
        if not told:
            return None
        count = len(next(iter(told.values())))
        weight = None if self.guidance is None else torch.full((count,), self.guidance, dtype=torch.float64)
        return Condition(told, weight, self._away(checkpoint, told, away))

    def text_away(self, checkpoint: Checkpoint) -> str | None:
        """The negative text, of which `condition` wants the embedding; None where guidance leads away from none."""
        self._negative(checkpoint)
        return self.negative if TEXT in checkpoint.denoiser.inputs else None

    def _away(
        self, checkpoint: Checkpoint, told: Mapping[str, Tensor], away: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor] | None:
        """What guidance leads away from, as much as is told of the samples."""
        if self.text_away(checkpoint) is not None:
            if away is None:
                raise UserError(f"negative {self.negative!r} is a text, and its embedding is not there; leave it out")
            text = {name: part.expand_as(told[name]) for name, part in away.items() if name in told}
            return {**told, **text}
        negative = self._negative(checkpoint)
        return None if negative is None else {**told, CLASS: torch.full_like(told[CLASS], negative)}

    def to_json(self) -> dict[str, Any]:
        """Non-default fields as JSON: the word of the solver, its options that are not the defaults, and the rest."""
        spec = {"sampler": name(self.solver), "options": _changed(self.solver)}
        for key in KEYS:
            value = getattr(self, key)
            spec[key] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        return {key: value for key, value in spec.items() if value not in (None, {})}

    def name_parts(self) -> list[str]:
        """What tells it from others of the same sampler in a point's name."""
        options = self.to_json().get("options", {})
        parts = [f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}" for key, value in options.items()]
        if self.deepcache:
            cache = self.deepcache
            crowded = f"c{cache.center:g}p{cache.power:g}" if cache.spread == "quadratic" else ""
            parts.append(f"cache{cache.interval}b{cache.branch}{crowded}")
        if self.skip:
            parts.append(f"skip{self.skip.bottom:g}to{self.skip.top:g}")
        if self.clip is not None:
            parts.append(f"clip{self.clip:g}" if self.clip else "unclipped")
        if self.threshold:
            parts.append(f"threshold{self.threshold.quantile:g}to{self.threshold.max:g}")
        if self.guidance is not None:
            parts.append(f"g{self.guidance:g}")
        if self.negative is not None:  # a class's name, which may hold anything
            parts.append("not-" + re.sub(r"\W+", "-", str(self.negative)))
        return parts

    def _limited(self, denoiser: Denoiser) -> Denoiser:
        limit = Clip(self.clip) if self.clip else self.threshold
        return Clipped(denoiser, limit) if limit else denoiser

    def _denoiser(self, checkpoint: Checkpoint) -> Denoiser:
        denoiser = checkpoint.denoiser
        if self.skip is not None:
            denoiser = skip_tuned(denoiser, self.skip)
        if self.deepcache is not None:
            denoiser = DeepCached(denoiser, self.deepcache)
        guidance = checkpoint.guidance
        self._negative(checkpoint)
        if guidance is not None:
            checkpoint.check_weight(guidance.low if self.guidance is None and not guidance.is_input else self._weight())
            return denoiser
        if self.guidance is None:
            return denoiser
        if not checkpoint.denoiser.is_told:
            raise UserError(
                f"{checkpoint.card.name} knows no classes and no texts, so there is nothing to guide to; leave guidance out"
            )
        return Guided(denoiser)

    def _negative(self, checkpoint: Checkpoint) -> int | None:
        """The index of the negative class, None for none or a text; a UserError where it is none of the card's, or nothing
        leads away from it."""
        card = checkpoint.card
        if self.negative is None:
            return None
        if self.guidance is None:
            raise UserError(
                f"negative {self.negative!r} is what guidance leads away from; give `guidance` too, or leave it out"
            )
        if checkpoint.guidance is not None:
            raise UserError(f"{card.name} learned to be led away from nothing named; leave negative out")
        if TEXT in checkpoint.denoiser.inputs:
            if not isinstance(self.negative, str):
                raise UserError(f"{card.name} is told texts, and negative {self.negative} is none; write it in words")
            return None
        names = card.classes or []
        if self.negative in names:
            return names.index(self.negative)
        if isinstance(self.negative, str) or not 0 <= self.negative < len(names):
            listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UserError(f"{card.name} knows no class {self.negative!r}; known: {listing or 'none'}")
        return int(self.negative)

    def _weight(self) -> float:
        if self.guidance is None:
            raise UserError("this network takes the guidance weight as an input; say which one with `guidance`")
        return self.guidance


KEYS = [field.name for field in dataclasses.fields(Recipe) if field.name != "solver"]
PARTS = {"deepcache": CacheConfig, "skip": SkipConfig, "threshold": Threshold}


def from_json(spec: dict[str, Any]) -> Recipe:
    """The inverse of `to_json`; a UserError for what this version does not know."""
    unknown = spec.keys() - {"sampler", "options", *KEYS}
    if unknown or spec.get("sampler") not in SOLVERS:
        raise UserError(f"this version knows no such recipe: {', '.join(sorted(unknown)) or spec.get('sampler')}")
    try:
        solver = SOLVERS[spec["sampler"]](**spec.get("options", {}))
        return Recipe(solver, **_fields({key: spec[key] for key in KEYS if key in spec}))
    except (TypeError, ValueError) as error:
        raise UserError(f"this version knows no such recipe: {error}") from None


def classes(checkpoint: Checkpoint, count: int, labels: Sequence[int] | None) -> dict[str, Tensor]:
    """The classes of `count` samples, as an input: `labels`, or each class in turn; empty for a network that knows none. A
    UserError if they do not fit the network, and for one that is told a text, which no class stands for."""
    names = checkpoint.card.classes
    if not names:
        if labels is not None:
            raise UserError(f"{checkpoint.card.name} knows no classes; leave the labels out")
        return {}
    chosen = torch.arange(count) % len(names) if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    if len(chosen) != count or bool((chosen < 0).any()) or bool((chosen >= len(names)).any()):
        raise UserError(f"give each image one label in 0..{len(names) - 1}, got {chosen.tolist()[:10]}")
    return {CLASS: chosen}


def _fields(spec: dict[str, Any]) -> dict[str, Any]:
    """JSON as fields of a recipe."""
    return {key: PARTS[key](**value) if key in PARTS else value for key, value in spec.items()}


def _changed(solver: Solver) -> dict[str, Any]:
    defaults = type(solver)()
    options = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    return {key: value for key, value in options.items() if value != getattr(defaults, key)}


def sampler_of(checkpoint: Checkpoint, steps: int | None = None) -> Sampler:
    """The checkpoint with the solver that its method samples it with, at its own times, or at `steps` uniform ones where it
    is valid at any time. A UserError for steps that it has not, and for none where it needs them."""
    return own_recipe(checkpoint).sampler(checkpoint, own_times(checkpoint, steps))


def own_recipe(checkpoint: Checkpoint, guidance: float | None = None) -> Recipe:
    """How a checkpoint is sampled where nothing else is asked for: by the solver that its method samples it with."""
    return Recipe(SOLVERS[checkpoint.card.solver](), guidance=guidance)


def own_times(checkpoint: Checkpoint, steps: int | None = None) -> Trajectory:
    """The checkpoint's own times, or `steps` uniform ones where it is valid at any time; UserErrors as of `sampler_of`."""
    grid = checkpoint.denoiser.grid
    if grid is None and steps is None:
        raise UserError(f"{checkpoint.card.name} is valid at any time; say how many steps")
    if grid is not None and steps not in (None, grid.steps):
        raise UserError(f"{checkpoint.card.name} is valid only on its own {grid.steps} steps, not on {steps}")
    return grid or uniform(steps)
