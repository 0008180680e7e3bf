"""The training loop: batches in, weights out, on whatever device accelerate gives.

A step is a pure function of (seed, step) and the weights. So a run that is killed at any instant and started again ends
with the same bytes on a CPU, and the global batch does not depend on the number of processes.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffcore.core import processes, threads
from diffcore.core.adamw import AdamW
from diffcore.core.errors import UserError
from diffcore.core.rng import dice, draw, generator
from diffcore.core.shapes import PerSample, Sample
from diffcore.core.transfer import to_device
from diffcore.data.feed import Feed, Inputs
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.meter import Meter, Metered, with_backward
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Method, Roles
from diffcore.nets.dropout import Masked, Masks, masked, without
from diffcore.nets.order import fastest
from diffcore.training import sharding
from diffcore.training.config import Compute, Training
from diffcore.training.curve import Curve, Event
from diffcore.training.learner import Learner, accelerator, follow, not_finite
from diffcore.training.resume import Resume
from diffcore.training.watch import Watcher


@dataclass(frozen=True)
class Job:
    """One training: which method, for how long, on what, with which random numbers.

    guidance: range of the weights that samples are given; None for no guidance. watcher: who looks at it, None for nobody.
    """

    method: Method
    training: Training
    feed: Feed
    seed: int
    events: int = 100
    guidance: tuple[float, float] | None = None
    watcher: Watcher | None = None


@dataclass(frozen=True)
class Fitted:
    """The averaged network, the curve, whose last point is at the last update, and what it took over all the processes that
    worked at it in turn.

    calls: forward calls of networks, times samples; a backward pass counts as two.
    """

    net: nn.Module
    curve: list[Event]
    seconds: float
    calls: float


class Diverged(UserError):
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
    loop, iterations = Loop(job, student, teacher, compute), job.training.iterations
    loop.restore(resume)
    if loop.step:
        on_resume(loop.step)
    saved = time.monotonic()
    while not loop.is_done:
        event = loop.update()
        if event:
            on_event(event)
        loop.look()
        stopping, due = loop.anywhere(stop(), time.monotonic() - saved > compute.save_seconds)
        done = loop.is_done
        if done or (resume and (stopping or due)):
            loop.check()
        if resume and (stopping or due or done):
            loop.save(resume)
            saved = time.monotonic()
        if stopping and not done:
            raise Stopped(f"stopped after {loop.step} of {iterations} steps")
    return Fitted(loop.result(), loop.curve.events, loop.seconds(), loop.calls())


class Loop:
    """One training, update by update, and what changes from one to the next.

    student, critic: who learns; the critic is None for a method without one. step: updates made; kept: of them, in the last
    saved state. late: whether losses are read only where the curve has a point and before anything is kept, because to read
    one is to wait for a GPU. What is not finite changes no weight either way. loss: the method's, compiled whole where that
    is asked for and can be; captured: as a CUDA graph.
    """

    def __init__(self, job: Job, student: NetDenoiser, teacher: Denoiser | None, compute: Compute):
        self.job, self.accelerator = job, accelerator()
        self.half = compute.numbers == "bf16"
        self.masks, self.meter = Masks(), Meter()
        self.like, self.sharded = student.net, compute.strategy == "fsdp" and processes.count() > 1
        net, self.order = self._placed(student.net).train().requires_grad_(True), self._order(student.net)
        averages = self._averages(net)
        masked(net, self.masks)
        if teacher is not None:
            teacher = self._placed(teacher).eval().requires_grad_(False)
        critic = job.method.critic(Roles(_with(student, net), teacher, _with(student, net)), job.seed)
        if self.sharded:  # copies cannot be made any more then
            _shard(net, *averages.values(), teacher)
        self.student = self._student(net, averages)
        target = self.student.averages.get("target", self.student.net)
        roles = Roles(_with(student, self.student.prepared), teacher, _with(student, target))
        self.compiled = compute.compile
        self.critic = self._critic(critic, type(student.net))
        self.loss, self.captured = job.method.loss, False
        if self.compiled and job.method.one_graph and self.accelerator.num_processes == 1:
            self.captured = self.is_on_gpu and _can_be_captured(net, job.training)
            self.loss = _compiled(job.method.loss, self.captured)
        elif self.compiled:
            _compile(self.student.net, target, teacher, self.critic and self.critic.net)
        self.roles = replace(
            roles,
            student=Metered(roles.student, self.meter, learns=True),
            teacher=roles.teacher and Metered(roles.teacher, self.meter),
            target=Metered(roles.target, self.meter),
            critic=self.critic and self.critic.net,
        )
        here = self.accelerator
        self.parts = job.training.parts(here.process_index, here.num_processes, here.device)
        self.step = self.kept = 0
        self.curve, self.late = Curve(), self.is_on_gpu
        self.started = time.monotonic()
        self.before = self.calls_before = 0.0

    @property
    def is_on_gpu(self) -> bool:
        return self.accelerator.device.type != "cpu"

    def _placed(self, net: nn.Module) -> nn.Module:
        return copy.deepcopy(net).to(self.accelerator.device, memory_format=self._order(net))

    def _order(self, net: nn.Module) -> torch.memory_format:
        if self.sharded:
            return torch.contiguous_format  # FSDP2 takes no other
        return fastest(net, self.job.feed.shape, self.accelerator.device)

    def _averages(self, net: nn.Module) -> dict[str, nn.Module]:
        """What follows its weights: the result, and the method's target where that is one."""
        averages = {"ema": _frozen(net)}
        if self.job.method.target_decay:
            averages["target"] = masked(_frozen(net), self.masks)
        if self.job.watcher and self.job.watcher.keeps_best:
            averages["best"] = _frozen(net)
        return averages

    def _student(self, net: nn.Module, averages: dict[str, nn.Module]) -> Learner:
        """Learns all weights."""
        training = self.job.training
        optimizer = AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=training.weight_decay)
        return Learner(net, optimizer, self.accelerator, averages, wrapped=True)

    def _critic(self, net: nn.Module | None, kind: type[nn.Module]) -> Learner | None:
        """kind: of the student's network; one of the same costs as much."""
        if net is None:
            return None
        training, net = self.job.method.critic_training, without(net.to(self.accelerator.device).train())
        learns = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = AdamW(learns, betas=training.betas, weight_decay=0.0)
        for part in net.modules():
            if isinstance(part, kind):
                # to exclude it from compilation is to load the compiler
                part.register_forward_hook(torch.compiler.disable(self._count) if self.compiled else self._count)
        return Learner(net, optimizer, self.accelerator)

    def _count(self, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.meter.add(len(inputs[0]) * with_backward(True))

    @property
    def ema(self) -> nn.Module:
        """The averaged network, which is the result."""
        return self.student.averages["ema"]

    def result(self) -> nn.Module:
        """The averaged network on the CPU: that of the last update, or of the best look where its watcher keeps that."""
        net = self.student.averages.get("best", self.ema)
        return sharding.gathered(net, self.like) if self.sharded else net.cpu()

    @property
    def is_done(self) -> bool:
        """Whether no update is left, or its watcher wants no more."""
        return self.step == self.job.training.iterations or bool(self.job.watcher and self.job.watcher.is_over)

    def look(self) -> None:
        """Lets the watcher look at the averaged network where that is due; the best one is kept."""
        watcher = self.job.watcher
        if not watcher or not watcher.is_due(self.step):
            return
        self.check()
        if watcher.look(self.step, self._whole(self.ema), self.seconds()) and watcher.keeps_best:
            follow(self.student.averages["best"], self.ema, 0.0)
        if watcher.is_over and (not self.curve.events or self.curve.events[-1].step < self.step):
            self._event()  # the curve ends where the training does

    def _whole(self, net: nn.Module) -> nn.Module:
        """An average that can be called in any process alone."""
        if not self.sharded:
            return net
        return sharding.gathered(net, self.like).eval().requires_grad_(False).to(self.accelerator.device)

    def update(self) -> Event | None:
        """One update of the student, and before it those of its critic; an Event where the curve has a point."""
        training = self.job.training
        loss, norm = self._gradient()
        decay = self.job.method.target_decay
        target = {"target": decay} if decay else {}
        skip = self._note(loss, norm)
        self.student.step(training.rate(self.step), skip, ema=training.ema_decay(self.step + 1), **target)
        self.step += 1
        if self.step % max(1, training.iterations // self.job.events) and self.step < training.iterations:
            return None
        return self._event()

    def _note(self, *numbers: Tensor) -> Tensor:
        """Notes a loss and a norm, or a critic's loss, of the update that comes; 1 if one of them is not finite, else 0."""
        self.curve.add(self.step + 1, *numbers)
        if not self.late:
            self.read()
        return 1 - torch.stack([number.isfinite() for number in numbers]).all().float()

    def read(self) -> None:
        """Waits for all losses; raises Diverged for the first update with one that is not finite."""
        reading = self.curve.read()
        if reading is None:
            return
        loss, *norm = reading.numbers
        if norm:
            raise self._diverged(
                reading.step, f"the loss is {loss} and the gradient norm {norm[0]}; nothing was updated with it"
            )
        raise self._diverged(
            reading.step, f"the critic's loss is {loss}; nothing was updated with it", "Lower critic_lr"
        )

    def _diverged(self, step: int, fault: str, remedy: str = REMEDY) -> Diverged:
        whence = f"goes back to step {self.kept} and comes" if self.kept else "begins anew and comes"
        return Diverged(f"step {step}: {fault}. {remedy}; with nothing changed the same command {whence} here again")

    def check(self) -> None:
        """Raises Diverged where anything that a step reads is not finite: an update may overflow though its loss did not."""
        self.read()
        name = not_finite(self._tensors())
        if processes.total(float(name is not None)):
            name = name or "what another process has"
            raise self._diverged(self.step, f"{name} is not finite after the update, and such a state is not kept")

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """Leaves the gradient of the global batch in the student's parameters; its loss and norm."""
        x0, roles = self._batch()
        if self.critic:
            self._teach_critic(x0, roles)
        loss = self._gradient_of(self.student, self.loss, x0, roles, "train", self.step)
        return loss, self.student.clip(self.job.training.clip)

    def _teach_critic(self, x0: Sample, roles: Roles) -> None:
        """As often as the method says."""
        method = self.job.method
        with self.critic.learning():
            for number in range(method.critic_training.updates):
                loss = self._gradient_of(self.critic, method.critic_loss, x0, roles, "critic", self.step, number)
                self.critic.step(method.critic_training.lr, self._note(loss))

    def _gradient_of(
        self, learner: Learner, loss: Callable[..., PerSample], x0: Sample, roles: Roles, *key: int | str
    ) -> Tensor:
        """The mean loss, whose gradient is in the learner's parameters then. key: what this pass's numbers are drawn by."""
        drawn = draw(x0, self.job.seed, *key, count=self.job.training.batch)
        progress = self.step / self.job.training.iterations

        def loss_of(part: slice) -> PerSample:
            own = local(part, self.parts)
            self.meter.settle()
            if self.captured:
                torch.compiler.cudagraph_mark_step_begin()  # the numbers of the update before may be written over
            with self.computing(*key, rows=part):
                return loss(_of(roles, own), x0[own], drawn[part], progress)

        return learner.gradient(self.parts, loss_of)

    def computing(self, *key: int | str, rows: slice) -> torch.autocast:
        """Where a loss is computed: in the precision asked for, with dropout's masks of this key for these rows."""
        self.masks.throw(self.job.seed, *key, rows=rows, count=self.job.training.batch)
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, self.half)

    def _batch(self) -> tuple[Sample, Roles]:
        """This process's images, and the roles that know what is known of them and their guidance weights."""
        own = slice(self.parts[0].start, self.parts[-1].stop)
        x0, inputs = self.job.feed.batch(self.step, own)
        x0 = to_device(x0, self.accelerator.device).to(memory_format=self.order)
        return x0, self.roles.with_condition(self._condition(inputs, own).to(x0.device))

    def _condition(self, inputs: Inputs, own: slice) -> Condition:
        """What is known of this process's images: of some of them, by chance, nothing."""
        training, key = self.job.training, (self.job.seed, "condition", self.step)
        condition = Condition(inputs)
        if inputs and training.label_dropout:
            dropped = torch.rand(training.batch, generator=generator(*key, "labels")) < training.label_dropout
            condition = condition.without(to_device(dropped[own], next(iter(inputs.values())).device))
        if self.job.guidance is None:
            return condition
        low, high = self.job.guidance
        share = torch.rand(training.batch, generator=generator(*key, "guidance"), dtype=torch.float64)[own]
        return replace(condition, guidance=low + (high - low) * share)

    def _event(self) -> Event:
        self.read()
        training = self.job.training
        return self.curve.point(self.step, self.step * training.batch, training.rate(self.step - 1))

    def anywhere(self, *flags: bool) -> list[bool]:
        """Whether each flag is up in any process, so that all act together."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        up = torch.tensor(flags, dtype=torch.float32)  # on the CPU, where to ask the others is not to wait for a GPU
        return [bool(flag) for flag in self.accelerator.reduce(up, "sum")]

    def save(self, resume: Resume) -> None:
        """Writes the state, once for all processes, or each of them its parts."""
        self.read()
        facts = {**self.curve.facts(), "calls": self.calls(), "seconds": self.seconds(), "processes": processes.count()}
        facts |= {"watch": self.job.watcher.facts()} if self.job.watcher else {}
        resume.save(self.step, self._tensors(), facts, sharding.save if self.sharded else None)
        self.kept = self.step
        processes.wait()

    def restore(self, resume: Resume | None) -> None:
        """Goes on from the newest state of this job, if there is one; the main process reads it for all."""
        state = resume.load() if resume else None
        if state is None:
            return
        self.step, facts = state.step, state.facts
        self.kept = self.step
        self.curve.restore(facts)
        self.before, self.calls_before = facts["seconds"], facts["calls"]
        if self.job.watcher:
            self.job.watcher.restore(facts["watch"])
        tensors = self._tensors()
        if self.sharded or state.is_sharded:
            sharding.load(tensors, state.folder)
        else:
            state.copy_into(tensors)
            processes.spread(list(tensors.values()))
        if facts["processes"] != processes.count():
            resume.log(
                f"{resume.name}: its state was saved by {_processes(facts['processes'])}, {_processes(processes.count())} "
                "now: the data and the random numbers are the same, the last bits of sums are not"
            )

    def seconds(self) -> float:
        """What the training took so far, of all its runs."""
        return self.before + time.monotonic() - self.started

    def calls(self) -> float:
        """Network calls so far, of all its runs and processes."""
        return self.calls_before + processes.total(self.meter.settle())

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a step reads, by name; the tensors themselves, not copies."""
        critic = self.critic.tensors("critic", "critic ") if self.critic else {}
        return self.student.tensors("net") | critic


def provenance(compute: Compute) -> dict[str, str | int]:
    """Where and in which numbers a training computes here: for its card, and for the key of its saved states."""
    device = compute.device
    return {
        "device": device.type,
        "precision": compute.numbers,
        "dice": dice(device).type,
        "processes": processes.count(),
    }


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def local(part: slice, parts: list[slice]) -> slice:
    """A part of the global batch as a part of what this process has of it, which is all of `parts`."""
    return slice(part.start - parts[0].start, part.stop - parts[0].start)


def _of(roles: Roles, rows: slice) -> Roles:
    """The roles for a part of the batch that they were given."""
    parts = {
        role: getattr(roles, role) and getattr(roles, role).select(rows) for role in ("student", "teacher", "target")
    }
    return replace(roles, condition=roles.condition and roles.condition[rows], **parts)


def _compiled(loss: Callable[..., PerSample], captured: bool) -> Callable[..., PerSample]:
    """A method's loss as one graph, networks and all; captured: which runs as a CUDA graph."""
    _allow_graphs()
    return torch.compile(loss, dynamic=False, mode="reduce-overhead" if captured else None)


def _can_be_captured(net: nn.Module, training: Training) -> bool:
    """Gradients of parts are added up in numbers that the next part's graph would write over, and masks are drawn anew."""
    return training.accumulate == 1 and not any(isinstance(part, Masked) for part in net.modules())


def _allow_graphs() -> None:
    # torch counts the graphs of all networks of one class together, and beyond its 8 it would go on uncompiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)


def _compile(*parts: nn.Module | None) -> None:
    """Compiles the networks in these parts, each once. Not the denoisers: those are made anew for every batch."""
    _allow_graphs()
    for net in _networks(*parts):
        net.compile()


def _shard(*parts: nn.Module | None) -> None:
    """Shares out the networks in these parts."""
    for net in _networks(*parts):
        sharding.shard(net)


def _networks(*parts: nn.Module | None) -> list[nn.Module]:
    """Those in these parts, each once: in denoisers theirs, else the part itself."""
    inner = [
        [m.net for m in part.modules() if isinstance(m, NetDenoiser)] or [part] for part in parts if part is not None
    ]
    return list({id(net): net for nets in inner for net in nets}.values())


def _frozen(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).eval().requires_grad_(False)


def _with(student: NetDenoiser, net: nn.Module) -> NetDenoiser:
    # the student's own grid restricts sampling, not training
    denoiser = student.with_network(net)
    denoiser.grid = None
    return denoiser
