"""A network of the user's own: a torch module, by the path of its class.

The class is imported because params.yaml names it, or a checkpoint of ours whose card vouches for the folder; what a file
from elsewhere names is never imported. Its samples may have any shape. It is called as forward(x [b, *x], timestep [b]),
with timestep = T t - 1 and T = 1024, a conditional one as forward(x, timestep, class_labels [b]), of which the index after
the last class stands for no class, and with what `inputs` names by those names, such as text [b, l, d]; one that may be told
where a hop lands takes end_timestep [b] by that name, or none; it answers with what its parameterization says, like x, or
[b, 2c, ...] for `x0_eps`.
"""

import copy
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import PerSample, Sample
from diffcore.core.source import syntax
from diffcore.denoisers.reading import NUM_TIMESTEPS
from diffcore.nets import family
from diffcore.nets.dropout import without
from diffcore.nets.files import CONFIG, fill
from diffcore.nets.inputs import blank

FORMAT = "UserModule"
NAME = r"[A-Za-z_]\w*"
PATH = re.compile(rf"{NAME}(\.{NAME})*:{NAME}")
DROPOUT, END = "dropout", "end_timestep"


class UserModule(nn.Module):
    """A module of the user's own, behind the forward of ours. Its state_dict is the module's.

    path: module:Class. arguments: what the class was called with. source: digest of the class's file, without what stands
    there for readers alone; None where there is no such file.
    """

    def __init__(self, net: nn.Module, path: str, arguments: dict[str, Any], source: str | None):
        super().__init__()
        self.net, self.path, self.arguments, self.source = net, path, arguments, source

    def forward(
        self,
        x: Sample,
        timestep: PerSample,
        class_labels: Tensor | None = None,
        guidance: None = None,
        end_timestep: PerSample | None = None,
        **inputs: Tensor,
    ) -> Sample:
        """guidance: in its place, as our own networks take it; no module of a user's own does."""
        labels = () if class_labels is None else (class_labels,)
        end = {} if end_timestep is None else {END: end_timestep}
        return self.net(x, timestep, *labels, **end, **inputs)

    @property
    def takes_end(self) -> bool:
        """Whether it can be told where a hop lands, and be asked without it too."""
        return _takes_end(type(self.net))

    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return {"_class_name": FORMAT, "module": self.path, "arguments": self.arguments, "source": self.source}

    def with_dropout(self, dropout: float) -> "UserModule":
        """A network of the same weights with this dropout in training: made anew where the class takes `dropout`; else
        without any, or a UserError."""
        if DROPOUT not in _parameters(_kind(self.path)):
            if dropout:
                raise UserError(f"{self.path} takes no argument dropout; leave `dropout` out")
            return without(copy.deepcopy(self))
        net = _construct(self.path, {**self.arguments, DROPOUT: dropout})
        net.load_state_dict(self.state_dict())
        return net

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        return self.net.load_state_dict(state, strict, assign)


@dataclass(frozen=True)
class Shape(family.Shape):
    """module: package.sub:Class. arguments: what the class is called with; under `network` they stand beside the others.
    conditional, parameterization: of any family. inputs: what it is told of an image's caption, by name, text, text_mask,
    pooled; and image, a copy of it (`data.image_condition`)."""

    module: str
    arguments: dict[str, Any] = field(default_factory=dict)
    conditional: bool = False
    parameterization: Literal["v", "x0", "eps", "x0_eps", "flow"] = "v"
    inputs: tuple[str, ...] = ()

    def __post_init__(self):
        if self.parameterization == "eps":
            raise ValueError(family.NO_EPS)
        if not PATH.fullmatch(self.module):
            raise ValueError(f"module must be a class by its path, as package.sub:Class, got {self.module!r}")

    @property
    def takes_end(self) -> bool:
        """True too where the class is not there, which `build` says."""
        try:
            return _takes_end(_kind(self.module))
        except UserError:
            return True

    def keys(self) -> dict[str, Any]:
        return {
            "module": self.module,
            **self.arguments,
            "conditional": self.conditional,
            "parameterization": self.parameterization,
            **({"inputs": list(self.inputs)} if self.inputs else {}),
        }

    def build(
        self,
        image: Sequence[int],
        classes: int | None,
        seed: int,
        span: int | float = NUM_TIMESTEPS,
        inputs: family.Inputs = family.NO_INPUTS,
    ) -> UserModule:
        """All weights are what the class's constructor draws from torch's generator of the CPU, which begins with the seed
        here and is put back afterwards. A UserError where it cannot be made, answers in another shape, draws random numbers
        as it is called, or is another one the second time that it is made.
        """
        if self.conditional and not classes:
            raise UserError(family.NO_CLASSES)
        family.check_inputs(self.inputs, inputs)
        example = self._example(image, classes, inputs)
        start = generator(seed, "module", self.module).initial_seed()
        with torch.random.fork_rng(devices=[]):
            net, again = (_seeded(start, lambda: _construct(self.module, self.arguments)) for _ in range(2))
            _check_weights(net, again)
            self._check_output(net.eval(), image, example)
            self._check_chance(without(copy.deepcopy(net)).train(), example)
        return net.train()

    def parameters(self, channels: int) -> int:
        """As its class makes them on torch's meta device; 0 where it cannot, which `build` then says."""
        try:
            return sum(parameter.numel() for parameter in self._on_meta().parameters())
        except UserError:
            return 0

    def kept(self, image: Sequence[int]) -> int:
        """What autograd keeps of the second image of two, counted on torch's meta device; 0 where that knows no way."""
        try:
            net = self._on_meta()
            one, two = (_kept(net, (count, *image), self.conditional) for count in (1, 2))
        except (UserError, *ODD):
            return 0
        return max(0, two - one)

    def _on_meta(self) -> UserModule:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return _construct(self.module, self.arguments)

    def _example(self, image: Sequence[int], classes: int | None, inputs: family.Inputs) -> "Example":
        """Two samples of zeros, at the first and the last time, of the first class and of none, told zeros."""
        args = [torch.zeros(2, *image), torch.tensor([0.0, 1023.0])]
        args += [torch.tensor([0, classes])] if self.conditional else []
        return args, blank(self.inputs, inputs, 2)

    def _call(self, net: UserModule, example: "Example") -> Any:
        args, inputs = example
        try:
            with torch.no_grad():
                return net.net(*args, **inputs)
        except ODD as error:
            labels = ["class_labels [2]"] if self.conditional else []
            words = [f"x {list(args[0].shape)}", "timestep [2]", *labels]
            words += [f"{name} {list(part.shape)}" for name, part in inputs.items()]
            raise UserError(f"{self.module} cannot be called as forward({', '.join(words)}): {_line(error)}") from None

    def _check_chance(self, net: UserModule, example: "Example") -> None:
        before = torch.get_rng_state()
        self._call(net, example)
        if not torch.equal(torch.get_rng_state(), before):
            raise UserError(
                f"{self.module} draws random numbers as it is called, other than by nn.Dropout, so that a training that is "
                "resumed would be another one; leave them out"
            )

    def _check_output(self, net: UserModule, image: Sequence[int], example: "Example") -> None:
        out, batch = self._call(net, example), [2, *image]
        shape = [2, (2 if self.parameterization == "x0_eps" else 1) * image[0], *image[1:]]
        if not isinstance(out, Tensor) or list(out.shape) != shape or not out.is_floating_point():
            output = f"{list(out.shape)} of {out.dtype}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise UserError(
                f"{self.module} makes {output} of {batch}; with parameterization {self.parameterization} it must "
                f"make {shape} of floating point"
            )


Example = tuple[list[Tensor], dict[str, Tensor]]
"""What a module is called with, by place and by name."""

ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""Whatever a module that does not fit makes of what it is given."""


def _kept(net: UserModule, shape: tuple[int, ...], conditional: bool) -> int:
    """Numbers in all that autograd keeps of a call on the meta device, without the weights."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes() // 4
        return tensor

    inputs = [torch.empty(shape, device="meta"), torch.empty(shape[0], device="meta")]
    inputs += [torch.zeros(shape[0], dtype=torch.int64, device="meta")] if conditional else []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = net(*inputs)
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    total = sum(size for place, size in kept.items() if place not in own)
    del alive
    return total


def _seeded(start: int, make: Callable[[], UserModule]) -> UserModule:
    torch.default_generator.manual_seed(start)
    return make()


def _kind(path: str) -> type[nn.Module]:
    """The class itself, imported. A UserError where there is none."""
    module, _, name = path.partition(":")
    try:
        kind: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a user's module may fail in any way
        raise UserError(
            f"{module}, of network.module {path}, cannot be imported: {_line(error)}; mend it, or put it beside params.yaml"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{path} is no class of a torch module; name one as package.sub:Class")
    return kind


def _construct(path: str, arguments: dict[str, Any]) -> UserModule:
    kind = _kind(path)
    try:
        net = kind(**arguments)
    except Exception as error:  # a user's constructor may fail in any way
        words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"{path} cannot be made as {path.partition(':')[2]}({words}): {_line(error)}") from None
    return UserModule(net.float(), path, arguments, _source(kind))


def _parameters(kind: type[nn.Module]) -> set[str]:
    """What its constructor takes by name."""
    return set(inspect.signature(kind).parameters)


def _takes_end(kind: type[nn.Module]) -> bool:
    """Whether its forward has an argument `end_timestep` that may be left out."""
    end = inspect.signature(kind.forward).parameters.get(END)
    return end is not None and end.default is not end.empty


def _source(kind: type[nn.Module]) -> str | None:
    try:
        return disk.digest(syntax(Path(inspect.getsourcefile(kind) or "").read_bytes()))
    except (OSError, SyntaxError, TypeError, ValueError):
        return None


def _check_weights(net: UserModule, again: UserModule) -> None:
    if not any(True for _ in net.parameters()):
        raise UserError(f"{net.path} has no weights, so there is nothing to train; name another class")
    places: dict[int, str] = {}
    for name, tensor in net.state_dict().items():
        if (other := places.setdefault(tensor.untyped_storage().data_ptr(), name)) != name and tensor.numel():
            raise UserError(f"{net.path}: {other} and {name} are one tensor, which safetensors cannot hold; part them")
    second = again.state_dict()
    for name, tensor in net.state_dict().items():
        if not torch.equal(tensor, second[name]):
            raise UserError(
                f"{net.path}: {name} is another one each time that it is made: draw all that is random from torch's generator"
            )


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def opened(content: dict[str, Any], weights: Path, x0_eps: bool) -> UserModule:
    """The network; a UserError for a config that names none, and for a class whose code is not the one that was saved."""
    where, path, arguments = weights.parent / CONFIG, content.get("module"), content.get("arguments")
    if not (isinstance(path, str) and PATH.fullmatch(path) and isinstance(arguments, dict)):
        raise UserError(f"{where} names no module and its arguments; run the stage that makes it again")
    with torch.random.fork_rng(devices=[]):
        net = _construct(path, arguments)
    if content.get("source") not in (None, net.source):
        raise UserError(
            f"the file of {path} was changed since {weights.parent.parent} was trained with it; put it back, or train again"
        )
    fill(net, weights)
    return net


FAMILY = family.Family(Shape, (FORMAT,), opened, own=(FORMAT,))
