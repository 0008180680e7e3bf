"""The training loop: batches in, weights out, on whatever device accelerate gives.

A step is a pure function of (seed, step) and the weights. So a run that is killed at any instant and started again ends
with the same bytes on a CPU, and the global batch does not depend on the number of processes.
"""

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffcore.core import threads
from diffcore.core.errors import Mistake
from diffcore.core.rng import Draw, draw, generator
from diffcore.core.shapes import Sample
from diffcore.data.feed import Feed
from diffcore.denoisers.denoiser import Condition, Denoiser
from diffcore.denoisers.meter import Meter, Metered, with_backward
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Method, Roles
from diffcore.nets.dropout import Masks, masked, without
from diffcore.training.resume import Resume


@dataclass(frozen=True)
class Config:
    """How long and how fast.

    iterations: updates. batch: images per update over all processes. lr: AdamW's learning rate, reached after `warmup`
    updates, then lowered to 0 along a half cosine or kept. ema: decay of the average that is the result, ramped up as
    (1 + n)/(10 + n); 0 keeps the last weights themselves. clip: largest norm of the gradient, null for none. accumulate:
    parts a batch is split into, to save memory; each has dropout masks of its own. weight_decay: AdamW's, 0.01 in
    distillation too, where papers have 0. label_dropout: share of the samples whose class is not told, by which a conditional
    network learns to do without.
    """

    iterations: int
    batch: int
    lr: float
    ema: float
    warmup: int = 0
    decay: Literal["cosine", "none"] = "cosine"
    weight_decay: float = 0.01
    clip: float | None = None
    accumulate: int = 1
    label_dropout: float = 0.0

    def __post_init__(self):
        for name in ("iterations", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}: an average with decay 1 never moves")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if self.warmup < 0 or self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError("warmup and weight_decay must not be negative, and clip must be positive or null")

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "none":
            return self.lr
        done = (step - self.warmup) / max(1, self.iterations - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Compute:
    """Where and in which numbers; changes nothing that a result is keyed by.

    threads: of one process on a CPU. precision: `auto` is bf16 on a GPU that has it and float32 elsewhere. compile:
    torch.compile the networks (minutes to start with). save_seconds: how much work a kill may cost. memory_gb: data up to
    this size are kept in memory (on the GPU where there is one), larger ones are streamed.
    """

    threads: int
    precision: Literal["auto", "no", "bf16"]
    compile: bool
    save_seconds: float
    memory_gb: float

    def __post_init__(self):
        if self.threads < 1 or self.save_seconds <= 0 or self.memory_gb < 0:
            raise ValueError("threads must be at least 1, save_seconds positive and memory_gb not negative")

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 2**30)

    @property
    def device(self) -> torch.device:
        """Where one process computes: its own GPU, or the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Event:
    """What is reported: losses and gradient norm are means over the steps since the event before."""

    step: int
    images: int
    loss: float
    grad_norm: float
    lr: float
    critic_loss: float | None = None


@dataclass(frozen=True)
class Job:
    """One training: which method, for how long, on what, with which dice.

    guidance: range of the weights that samples are given; None for no guidance.
    """

    method: Method
    config: Config
    feed: Feed
    seed: int
    events: int = 100
    guidance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Fitted:
    """The averaged network, the curve, and what it took over all the processes that worked at it in turn.

    calls: forward calls of networks, times samples; a backward pass counts as two.
    """

    net: nn.Module
    curve: list[Event]
    seconds: float
    calls: float


class Diverged(Mistake):
    """A loss, a gradient or a weight is not finite; the last state on disk is finite, and no worse one was saved."""


REMEDY = "Lower lr, set clip, or look for odd images in the data"


class Stopped(Exception):
    """The run was asked to stop; its state is saved, and the same command goes on from there."""


def fit(
    job: Job,
    student: NetDenoiser,
    teacher: Denoiser | None,
    compute: Compute,
    resume: Resume | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    on_resume: Callable[[int], None] = lambda step: None,
) -> Fitted:
    """Trains a copy of `student` by one method; returns its EMA.

    `resume` holds the state of this very job, if there is any. The state is saved about every `compute.save_seconds`, at
    the end, and when `stop()` turns true, which raises Stopped.
    """
    threads.use(compute.threads)
    loop = _Loop(job, student, teacher, compute)
    loop.restore(resume)
    if loop.step:
        on_resume(loop.step)
    saved = time.monotonic()
    while loop.step < job.config.iterations:
        event = loop.update()
        if event:
            on_event(event)
        stopping, due = loop.anywhere(stop(), time.monotonic() - saved > compute.save_seconds)
        done = loop.step == job.config.iterations
        if done or (resume and (stopping or due)):
            loop.check()
        if resume and (stopping or due or done):
            loop.save(resume)
            saved = time.monotonic()
        if stopping and loop.step < job.config.iterations:
            raise Stopped(f"stopped after {loop.step} of {job.config.iterations} steps")
    return Fitted(loop.ema.cpu(), loop.curve, loop.seconds(), loop.calls())


class _Loop:
    """What changes from step to step."""

    def __init__(self, job: Job, student: NetDenoiser, teacher: Denoiser | None, compute: Compute):
        self.job, self.accelerator = job, accelerator()
        device = self.accelerator.device
        self.half = _precision(compute.precision) == "bf16"
        self.net = copy.deepcopy(student.net).to(device, memory_format=torch.channels_last).train()
        self.net.requires_grad_(True)
        self.ema, self.masks = _frozen(self.net), Masks()
        decay = job.method.target_decay
        self.target_decay, self.target = decay, masked(_frozen(self.net), self.masks) if decay else self.net
        masked(self.net, self.masks)
        if teacher is not None:
            teacher = copy.deepcopy(teacher).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=job.config.lr, betas=(0.9, 0.99), weight_decay=job.config.weight_decay, fused=True
        )
        self.prepared, self.optimizer = self.accelerator.prepare(self.net, optimizer)
        roles = Roles(_with(student, self.prepared), teacher, _with(student, self.target))
        critic = job.method.critic(roles, job.seed)
        self.critic = None if critic is None else _Critic(job, critic, self.accelerator, self.computing, self.net)
        if compute.compile:
            _compile(self.net, self.target, teacher, self.critic and self.critic.net)
        self.meter = self.critic.meter if self.critic else Meter()
        self.roles = replace(
            roles,
            student=Metered(roles.student, self.meter, learns=True),
            teacher=roles.teacher and Metered(roles.teacher, self.meter),
            target=Metered(roles.target, self.meter),
            critic=self.critic and self.critic.net,
        )
        self.step, self.kept, self.curve, self.since = 0, 0, [], []
        self.started, self.before, self.calls_before = time.monotonic(), 0.0, 0.0
        self.rows = _rows(job.config, self.accelerator.process_index, self.accelerator.num_processes)

    def update(self) -> Event | None:
        """One step; an Event where the curve has a point."""
        job, config = self.job, self.job.config
        loss, norm = self._gradient()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss} and the gradient norm {norm}; nothing was updated with it")
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        _average(self.ema, self.net, min(config.ema, (1 + self.step) / (10 + self.step)))
        if self.target_decay:
            _average(self.target, self.net, self.target_decay)
        self.since.append((loss, norm))
        if self.step % max(1, config.iterations // job.events) and self.step < config.iterations:
            return None
        return self._event()

    def _diverged(self, fault: str, remedy: str = REMEDY, step: int | None = None) -> Diverged:
        whence = f"goes back to step {self.kept} and comes" if self.kept else "begins anew and comes"
        return Diverged(
            f"step {step or self.step + 1}: {fault}. {remedy}; with nothing changed the same command {whence} here again"
        )

    def check(self) -> None:
        """Raises Diverged where anything that a step reads is not finite: an update may overflow though its loss did not."""
        tensors = self._tensors()
        finite = torch.stack([tensor.isfinite().all().cpu() for tensor in tensors.values()])
        if not finite.all():
            name = list(tensors)[int(finite.long().argmin())]
            raise self._diverged(f"{name} is not finite after the update, and such a state is not kept", step=self.step)

    def _gradient(self) -> tuple[float, float]:
        """Leaves the gradient of the global batch in the parameters; its loss and norm."""
        job, config = self.job, self.job.config
        x0, roles = self._batch()
        if self.critic:
            loss = self.critic.update(x0, roles, self.step, self.rows)
            if not math.isfinite(loss):
                raise self._diverged(f"the critic's loss is {loss}; nothing was updated with it", "Lower critic_lr")
        dice = draw(x0, job.seed, "train", self.step, count=config.batch)
        total, progress = torch.zeros((), device=x0.device), self.step / config.iterations
        for number, rows in enumerate(self.rows):
            last, own = number + 1 == len(self.rows), _from(rows, self.rows)
            with _sync(self.accelerator, self.prepared, last):
                with self.computing("train", self.step, rows.start):
                    per = job.method.loss(_of(roles, own), x0[own], dice[rows], progress)
                loss = per.float().mean() / len(self.rows)
                # outside of autocast, which would take what ran in full precision back in bfloat16
                self.accelerator.backward(loss)
            total += loss.detach()
        loss = float(self.accelerator.reduce(total, "mean"))
        norm = nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        if config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.net.parameters(), config.clip, norm)
        return loss, float(norm)

    def computing(self, *words: int | str) -> torch.autocast:
        """Where a loss is computed: in the precision asked for, with dropout's masks of these words."""
        self.masks.throw(self.job.seed, *words)
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, self.half)

    def _batch(self) -> tuple[Sample, Roles]:
        """This process's images, and the roles that know their classes and guidance weights."""
        own = slice(self.rows[0].start, self.rows[-1].stop)
        x0, labels = self.job.feed.batch(self.step, own)
        x0 = x0.to(self.accelerator.device, memory_format=torch.channels_last)
        return x0, self.roles.given(self._condition(labels, own).to(x0.device))

    def _condition(self, labels: Tensor | None, own: slice) -> Condition:
        config, words = self.job.config, (self.job.seed, "condition", self.step)
        if labels is not None and config.label_dropout:
            kept = torch.rand(config.batch, generator=generator(*words, "labels")) >= config.label_dropout
            labels = torch.where(kept[own].to(labels.device), labels, -1)
        if self.job.guidance is None:
            return Condition(labels)
        low, high = self.job.guidance
        share = torch.rand(config.batch, generator=generator(*words, "guidance"), dtype=torch.float64)[own]
        return Condition(labels, (low + (high - low) * share).to(None if labels is None else labels.device))

    def _event(self) -> Event:
        losses, norms = zip(*self.since)
        count, self.since = len(self.since), []
        config, critic = self.job.config, self.critic.mean_loss() if self.critic else None
        loss, norm = sum(losses) / count, sum(norms) / count
        event = Event(self.step, self.step * config.batch, loss, norm, config.rate(self.step - 1), critic)
        self.curve.append(event)
        return event

    def anywhere(self, *flags: bool) -> list[bool]:
        """Whether each flag is up in any process, so that all act together."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        up = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(up, "sum")]

    def save(self, resume: Resume) -> None:
        if self.accelerator.is_main_process:
            curve = [asdict(event) for event in self.curve]
            facts = {"curve": curve, "since": self.since, "seconds": self.seconds(), "calls": self.calls()}
            facts |= {"critic": self.critic.losses} if self.critic else {}
            resume.save(self.step, self._tensors(), facts)
        self.kept = self.step
        self.accelerator.wait_for_everyone()

    def restore(self, resume: Resume | None) -> None:
        """Goes on from the newest state of this job, if there is one."""
        found = resume.load() if resume else None
        if found is None:
            return
        self.step, tensors, facts = found
        self.kept = self.step
        self.curve, self.since = [Event(**event) for event in facts["curve"]], [tuple(pair) for pair in facts["since"]]
        self.before, self.calls_before = facts["seconds"], facts["calls"]
        _start_moments(self.net, self.optimizer)
        if self.critic:
            self.critic.losses = facts["critic"]
            _start_moments(self.critic.net, self.critic.optimizer)
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def calls(self) -> float:
        return self.calls_before + self.accelerator.num_processes * self.meter.spent

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a step reads, by name; the tensors themselves, not copies."""
        nets = {"net": self.net, "ema": self.ema} | ({"target": self.target} if self.target_decay else {})
        found = {f"{role}/{name}": p.detach() for role, net in nets.items() for name, p in _read_by_a_step(net)}
        found |= _moments("", self.net, self.optimizer)
        if self.critic:
            found |= {f"critic/{name}": tensor.detach() for name, tensor in _read_by_a_step(self.critic.net)}
            found |= _moments("critic ", self.critic.net, self.critic.optimizer)
        return found


class _Critic:
    """The second network of a method that has one, and how it learns."""

    def __init__(
        self,
        job: Job,
        net: nn.Module,
        accelerator: Accelerator,
        computing: Callable[..., torch.autocast],
        student: nn.Module,
    ):
        self.job, self.accelerator, self.computing, self.losses = job, accelerator, computing, []
        self.training = job.method.critic_training
        self.net = without(net.to(accelerator.device).train())
        learns = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learns, self.training.lr, betas=self.training.betas, weight_decay=0.0, fused=True
        )
        self.learns, self.meter = learns, Meter()
        for part in self.net.modules():
            if isinstance(part, type(student)):  # a network of the student's own kind costs as much as it
                part.register_forward_hook(torch.compiler.disable(self._count))

    def _count(self, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.meter.spent += len(inputs[0]) * with_backward(True)

    def update(self, x0: Sample, roles: Roles, step: int, rows: list[slice]) -> float:
        """As often as the method says; the last loss, the first that is not finite. The critic's gradient is averaged over
        processes here: it is not wrapped in DDP, whose hooks would expect it in the student's step too."""
        for number in range(self.training.updates):
            self._learning(True)
            dice = draw(x0, self.job.seed, "critic", step, number, count=self.job.config.batch)
            total = sum(self._part(x0, roles, dice, part, rows, step, number) for part in rows)
            _average_over_processes(self.accelerator, [parameter.grad for parameter in self.learns])
            loss = float(self.accelerator.reduce(total, "mean"))
            if not math.isfinite(loss):
                break
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss)
        self._learning(False)
        return loss

    def _part(
        self, x0: Sample, roles: Roles, dice: Draw, part: slice, rows: list[slice], step: int, number: int
    ) -> Tensor:
        own, progress = _from(part, rows), step / self.job.config.iterations
        with self.computing("critic", step, number, part.start):
            per = self.job.method.critic_loss(_of(roles, own), x0[own], dice[part], progress)
        loss = per.float().mean() / len(rows)
        loss.backward()
        return loss.detach()

    def _learning(self, on: bool) -> None:
        for parameter in self.learns:
            parameter.requires_grad_(on)

    def mean_loss(self) -> float:
        losses, self.losses = self.losses, []
        return sum(losses) / len(losses)


def _read_by_a_step(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters and buffers, those too that its state_dict leaves out."""
    return itertools.chain(net.named_parameters(), net.named_buffers())


def _moments(prefix: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        state = optimizer.state.get(parameter, {})
        found |= {f"{prefix}{key}/{name}": state[key] for key in ("step", "exp_avg", "exp_avg_sq") if key in state}
    return found


def _start_moments(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    learns = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in (p for p in net.parameters() if p in learns):
        zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def _of(roles: Roles, rows: slice) -> Roles:
    """The roles for a part of the batch that they were given."""
    parts = {role: getattr(roles, role) and getattr(roles, role).of(rows) for role in ("student", "teacher", "target")}
    return replace(roles, condition=roles.condition and roles.condition[rows], **parts)


def accelerator() -> Accelerator:
    """What accelerate makes of the environment: device and processes. A Mistake where it can make nothing of it.

    Precision is ours: accelerate would open autocast inside the student's own forward, within what turns it off.
    """
    try:
        return Accelerator(mixed_precision="no")
    except (ValueError, RuntimeError, ImportError) as error:
        raise Mistake(
            f"accelerate cannot start here: {' '.join(str(error).split())}; look at LOCAL_RANK, RANK, WORLD_SIZE, "
            "MASTER_ADDR, MASTER_PORT and ACCELERATE_* in the environment"
        ) from None


def _precision(word: str) -> str:
    if word != "auto":
        return word
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _compile(*parts: nn.Module | None) -> None:
    """Compiles the networks in these parts, each once. Not the denoisers: those are made anew for every batch."""
    inner = [
        [m.net for m in part.modules() if isinstance(m, NetDenoiser)] or [part] for part in parts if part is not None
    ]
    # torch counts the graphs of all networks of one class together, and beyond its 8 it would go on uncompiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for net in {id(net): net for nets in inner for net in nets}.values():
        net.compile()


def _frozen(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).eval().requires_grad_(False)


def _with(denoiser: NetDenoiser, net: nn.Module) -> NetDenoiser:
    # the student's own grid restricts sampling, not training
    found = denoiser.around(net)
    found.grid = None
    return found


def _rows(config: Config, rank: int, processes: int) -> list[slice]:
    """This process's parts of the global batch."""
    parts = processes * config.accumulate
    if config.batch % parts:
        raise Mistake(
            f"batch {config.batch} does not divide into {processes} processes x accumulate {config.accumulate}"
        )
    size = config.batch // parts
    first = rank * config.accumulate
    return [slice(part * size, (part + 1) * size) for part in range(first, first + config.accumulate)]


def _from(part: slice, rows: list[slice]) -> slice:
    """A part of the global batch as a part of this process's."""
    return slice(part.start - rows[0].start, part.stop - rows[0].start)


def _sync(accelerator: Accelerator, net: nn.Module, last: bool):
    # gradients travel between processes once a step, with the last part
    return contextlib.nullcontext() if last else accelerator.no_sync(net)


def _average_over_processes(accelerator: Accelerator, gradients: list[Tensor]) -> None:
    """In place, in one collective."""
    if accelerator.num_processes == 1:
        return
    whole = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, whole.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers()):  # no weights: some count, some are averages already
        kept.copy_(buffer)


def torch_version() -> str:
    """The release of torch without its build: what a bit-for-bit resume depends on."""
    return torch.__version__.partition("+")[0]
