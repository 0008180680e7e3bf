import dataclasses
import math
import types

import pytest
import torch

from diffcore import methods
from diffcore.core import processes
from diffcore.core.adamw import AdamW
from diffcore.core.errors import UserError
from diffcore.core.rng import draw
from diffcore.core.shapes import CLASS
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Method, Roles
from diffcore.methods.denoising import Denoising
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Compute, Training, torch_version
from diffcore.training.loop import Diverged, Event, Fitted, Job, Loop, Stopped, fit, provenance
from diffcore.training.resume import Resume
from tests.conftest import ToyNet, seeded, toy_denoiser
from tests.test_methods import CASES, spied

COMPUTE = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
SHORT = Training(iterations=6, batch=8, lr=1e-2, ema=0.9, weight_decay=0.0)


def feed(batch: int = 8, seed: int = 0) -> ResidentFeed:
    pixels = torch.randint(0, 256, (40, 1, 4, 4), generator=seeded(9)).to(torch.uint8)
    return ResidentFeed(Images(pixels, None, None), batch, seed, flip=False)


def job(method: Method | None = None, config: Training = SHORT, seed: int = 0) -> Job:
    return Job(method or Denoising(), config, feed(config.batch), seed)


def run(job: Job, resume: Resume | None = None, compute: Compute = COMPUTE, **more) -> Fitted:
    teacher = None if isinstance(job.method, Denoising) else toy_denoiser(1)
    return fit(job, toy_denoiser(), teacher, compute, resume, **more)


def same(one: Fitted, other: Fitted) -> bool:
    pairs = zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and one.curve == other.curve


def stop_at(calls: int):
    """A stop flag that is up at its `calls`-th question."""
    count = iter(range(1, 1_000_000))
    return lambda: next(count) == calls


@pytest.mark.slow
@CASES
@pytest.mark.parametrize("stopped_after", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bytes(name, config, stopped_after, tmp_path):
    whole, resume = run(job(config)), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped, match=f"after {stopped_after} of 6"):
        run(job(config), resume, stop=stop_at(stopped_after))
    steps = []
    resumed = run(job(config), resume, on_event=lambda event: steps.append(event.step))
    assert steps[0] == stopped_after + 1
    assert same(whole, resumed)


def test_a_finished_run_started_again_only_reads(tmp_path):
    resume = Resume(tmp_path, "x", {"job": "f"})
    first = run(job(), resume)
    assert same(first, run(job(), resume, on_event=lambda event: pytest.fail("nothing is left to do")))


def test_when_the_state_is_saved_changes_nothing(tmp_path):
    often = dataclasses.replace(COMPUTE, save_seconds=1e-9)
    assert same(run(job()), run(job(), Resume(tmp_path, "x", {"job": "f"}), often))
    assert len(list(tmp_path.glob("x-*/step-*"))) == 2  # the newest two


def test_another_job_does_not_resume(tmp_path):
    run(job(), Resume(tmp_path, "x", {"seed": 0}))
    fresh = run(job(seed=1), Resume(tmp_path, "x", {"seed": 1}))
    assert same(fresh, run(job(seed=1)))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, damage):
    resume = Resume(tmp_path, "x", {"job": "f"})
    whole = run(job(), resume, dataclasses.replace(COMPUTE, save_seconds=1e-9))
    newest = sorted(tmp_path.glob("x-*/step-*/state.safetensors"))[-1]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 64
    newest.unlink() if damage == "remove" else newest.write_bytes(content[: 50 if damage == "truncate" else None])
    assert resume.load().step == 5
    assert same(whole, run(job(), resume))


def test_two_processes_do_not_train_one_job(tmp_path):
    resume = Resume(tmp_path, "x", {"job": "f"})
    with (
        resume.lock(),
        pytest.raises(UserError, match="another process is training this very job"),
        resume.lock(patience=0.2),
    ):
        pass


def test_states_of_old_jobs_are_pruned(tmp_path):
    for word in "abcde":
        run(job(config=dataclasses.replace(SHORT, iterations=1)), Resume(tmp_path, "x", {"job": word}))
    assert len(list(tmp_path.glob("x-*"))) == 3
    assert Resume(tmp_path, "x", {"job": "e"}).folder.exists()


@pytest.mark.parametrize("lr", [1e20])
def test_what_is_not_finite_stops_before_the_update(tmp_path, lr):
    resume = Resume(tmp_path, "x", {"job": "f"})
    often = dataclasses.replace(COMPUTE, save_seconds=1e-9)
    with pytest.raises(Diverged, match=r"step \d: the loss is .* Lower lr"):
        run(job(config=dataclasses.replace(SHORT, lr=lr)), resume, often)
    state = resume.load()
    step, tensors = state.step, state.tensors()
    assert step >= 1
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith(("net", "exp_avg/")))


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path):
    """Of a root at 0 the value is 0 and the slope is none."""

    def loss(self, roles, x0, draw, progress):
        return (0 * roles.student(x0, draw.u).v).flatten(1).sum(1).abs().sqrt()

    steep = spied(Denoising(), loss=loss)
    asked, resume = dataclasses.replace(job(), method=steep), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Diverged, match=r"step 1: the loss is 0\.0 and the gradient norm nan"):
        run(asked, resume)
    assert resume.load() is None


def test_a_resumed_critics_curve_goes_on_too(tmp_path):
    """Stopped between two points of the curve, whose losses are means over all steps between them."""
    made = methods.load("distribution_matching")(critic_updates=2)
    asked = dataclasses.replace(job(made), events=2)
    whole, resume = run(asked), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped, match="after 2 of 6"):
        run(asked, resume, stop=stop_at(2))
    assert [event.step for event in whole.curve] == [3, 6]
    assert same(whole, run(asked, resume))


def test_parts_of_a_batch_add_up_to_the_whole():
    whole = run(job(config=dataclasses.replace(SHORT, iterations=1)))
    parts = run(job(config=dataclasses.replace(SHORT, iterations=1, accumulate=4)))
    assert whole.curve[0].loss == pytest.approx(parts.curve[0].loss, rel=1e-6)
    assert whole.curve[0].grad_norm == pytest.approx(parts.curve[0].grad_norm, rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match="batch 8 does not divide into 3 parts, for 1 processes, accumulate 3 and cores 1"
    ):
        run(job(config=dataclasses.replace(SHORT, accumulate=3)))


def test_the_first_update_by_hand():
    """AdamW's first step moves every weight by lr against the sign of its gradient; the EMA follows by 1 - 2/11."""
    config = dataclasses.replace(SHORT, iterations=1, lr=1e-3, ema=0.999)
    start = toy_denoiser().net.state_dict()
    moved = run(job(config=config)).net.state_dict()
    for name, value in start.items():
        step = (moved[name] - value).abs()
        torch.testing.assert_close(step, torch.full_like(step, 1e-3 * (1 - 2 / 11)), rtol=2e-2, atol=1e-6)


def test_clipping_bounds_the_gradient_but_reports_it_whole():
    free, clipped = (run(job(config=dataclasses.replace(SHORT, clip=clip))) for clip in (None, 1e-9))
    assert clipped.curve[0].grad_norm == pytest.approx(free.curve[0].grad_norm)
    assert not same(free, clipped)


def test_the_learning_rate_by_hand():
    config = dataclasses.replace(SHORT, iterations=10, lr=2.0, warmup=2)
    assert [config.rate(step) for step in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert config.rate(6) == pytest.approx(1 + math.cos(math.pi / 2))
    assert dataclasses.replace(config, decay="none").rate(9) == 2.0


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"lr": 0.0}, {"ema": 1.0}, {"clip": 0.0}, {"accumulate": 0}, {"warmup": -1}, {"batch": 0}],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(SHORT, **wrong)


def test_the_loss_falls_and_the_argument_is_left_alone():
    student = NetDenoiser(ToyNet(), Cosine())
    before = {name: value.clone() for name, value in student.net.state_dict().items()}
    fitted = fit(job(config=dataclasses.replace(SHORT, iterations=200, lr=1e-2)), student, None, COMPUTE)
    assert fitted.curve[-1].loss < 0.8 * fitted.curve[0].loss
    assert all(torch.equal(before[name], value) for name, value in student.net.state_dict().items())


def test_every_step_throws_its_own_dice():
    seen = []

    def loss(self, roles, x0, drawn, progress):
        seen.append((drawn.u, drawn.noise, progress))
        return Denoising().loss(roles, x0, drawn, progress)

    fit(Job(spied(Denoising(), loss=loss), SHORT, feed(), 7), toy_denoiser(), None, COMPUTE)
    for step, (u, noise, progress) in enumerate(seen):
        expected = draw(torch.zeros(8, 1, 4, 4), 7, "train", step)
        assert torch.equal(u, expected.u)
        assert torch.equal(noise, expected.noise)
        assert progress == step / 6
    assert not torch.equal(seen[0][1], seen[1][1])


def test_dropout_draws_from_the_steps_own_dice(tmp_path):
    class Dropped(ToyNet):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.3)

        def forward(self, x, timestep):
            return super().forward(self.drop(x), timestep)

    def train(**more):
        return fit(job(), NetDenoiser(Dropped(), Cosine()), None, COMPUTE, **more)

    whole, resume = train(), Resume(tmp_path, "x", {"job": "f"})
    torch.rand(7)  # what others drew in between
    with pytest.raises(Stopped):
        train(resume=resume, stop=stop_at(3))
    assert same(whole, train(resume=resume))


def test_what_a_part_of_a_batch_is_told_is_its_rows_of_the_whole():
    """Label dropout and guidance weights of several processes and of one are those of the image's place in the batch."""
    config = dataclasses.replace(SHORT, batch=64, label_dropout=0.4)
    made = dataclasses.replace(job(config=config), guidance=(1.0, 4.0))
    trainer = types.SimpleNamespace(job=made, step=3)
    labels = torch.arange(64) % 5
    whole = Loop._condition(trainer, {CLASS: labels}, slice(0, 64))
    assert 10 < int((whole.class_labels < 0).sum()) < 45
    assert torch.equal(whole.class_labels[whole.class_labels >= 0], labels[whole.class_labels >= 0])
    for own in (slice(0, 16), slice(16, 48), slice(48, 64)):
        part = Loop._condition(trainer, {CLASS: labels[own]}, own)
        assert torch.equal(part.class_labels, whole.class_labels[own])
        assert torch.equal(part.guidance, whole.guidance[own])


def test_a_run_asked_to_stop_at_its_last_step_has_finished(tmp_path):
    resume = Resume(tmp_path, "x", {"job": "f"})
    assert same(run(job()), run(job(), resume, stop=stop_at(6)))


def test_the_state_is_saved_when_as_much_time_has_passed_since_it_was(tmp_path, monkeypatch):
    """Ten seconds a step, and saved every 25: after three steps, three more, and at the end."""
    clock, saved, save = [0.0], [], Resume.save
    monkeypatch.setattr("diffcore.training.loop.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Resume, "save", lambda self, step, *words: saved.append(step) or save(self, step, *words))

    def tick(event: Event) -> None:
        clock[0] += 10

    work = job(config=dataclasses.replace(SHORT, iterations=8))
    run(work, Resume(tmp_path, "x", {"job": "f"}), dataclasses.replace(COMPUTE, save_seconds=25.0), on_event=tick)
    assert saved == [3, 6, 8]


def test_a_point_of_the_curve_says_its_step_its_images_and_the_rate_that_was_used():
    config = dataclasses.replace(SHORT, warmup=4)
    curve = run(job(config=config)).curve
    assert [(e.step, e.images, e.lr) for e in curve] == [(k + 1, 8 * (k + 1), config.rate(k)) for k in range(6)]
    assert len({event.lr for event in curve}) > 3
    sparse = run(dataclasses.replace(job(config=config), events=3)).curve
    assert [event.step for event in sparse] == [2, 4, 6]
    for event, pair in zip(sparse, zip(curve[::2], curve[1::2])):
        assert event.loss == sum(each.loss for each in pair) / 2
        assert event.grad_norm == sum(each.grad_norm for each in pair) / 2


def test_each_network_has_the_optimizer_that_was_asked_for(monkeypatch):
    steps, step = {}, AdamW.step

    def note(self, lr: float, *more) -> None:
        steps[lr] = self.betas, self.weight_decay
        step(self, lr, *more)

    monkeypatch.setattr(AdamW, "step", note)
    own = methods.load("distribution_matching")(critic_lr=3e-4)
    run(job(own, dataclasses.replace(SHORT, iterations=1, weight_decay=0.5)))
    training = own.critic_training
    assert steps == {1e-2: ((0.9, 0.99), 0.5), 3e-4: (training.betas, 0.0)}
    assert training.betas != (0.9, 0.99)


def test_what_a_training_took_is_the_time_of_all_its_runs(tmp_path, monkeypatch):
    clock, used = [100.0], []
    monkeypatch.setattr("diffcore.training.loop.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("diffcore.training.loop.threads.use", used.append)

    def tick(event: Event) -> None:
        clock[0] += 10

    resume = Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        run(job(), resume, stop=stop_at(4), on_event=tick)
    clock[0] = 5000.0
    assert run(job(), resume, dataclasses.replace(COMPUTE, threads=3), on_event=tick).seconds == 60
    assert used == [1, 3]


@CASES
def test_what_a_training_costs_is_what_its_method_says_for_an_image(name, config):
    """The student's, the teacher's and the target's calls, all of them; but a critic's own, and those for features."""
    if getattr(config, "adversarial", 0) or name == "distribution_matching":  # see tests/test_loop.py
        return
    seen = 2 if getattr(config, "distance", "") == "perceptual" else 0
    fitting = dataclasses.replace(SHORT, iterations=2)
    assert run(job(config, fitting)).calls == 2 * 8 * (config.network_calls + seen)


@pytest.mark.parametrize(
    ("word", "gpu", "able", "right"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "float32"),
        ("auto", False, True, "float32"),  # as torch says of a CPU
        ("auto", False, False, "float32"),
        *(("no", gpu, gpu, "float32") for gpu in (True, False)),
        *(("bf16", gpu, gpu, "bf16") for gpu in (True, False)),
    ],
)
def test_the_precision_is_what_was_asked_for_and_of_its_own_accord_bfloat16_on_a_gpu_alone(
    word, gpu, able, right, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert dataclasses.replace(COMPUTE, precision=word).numbers == right


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("word", "bf16"), [("auto", "bf16"), ("no", "float32"), ("bf16", "bf16")])
def test_where_a_training_computes_is_told_as_it_comes_to_be(word, bf16, count, monkeypatch):
    """Not as it was asked for: `auto` is one thing here and another there."""
    compute = dataclasses.replace(COMPUTE, precision=word, threads=7, save_seconds=1.0)
    for kind, gpu, precision in (("cuda", True, bf16), ("cpu", False, "bf16" if word == "bf16" else "float32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        monkeypatch.setattr(processes, "count", lambda: count)
        assert provenance(compute) == {"device": kind, "precision": precision, "dice": kind, "processes": count}


def test_where_no_gpu_is_auto_is_full_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain, auto, half = (run(job(), compute=dataclasses.replace(COMPUTE, precision=w)) for w in ("no", "auto", "bf16"))
    assert same(plain, auto)
    assert not same(plain, half)


def test_the_release_of_torch_is_all_of_its_number_and_nothing_of_its_build(monkeypatch):
    for version, release in (("2.9.1+cpu", "2.9.1"), ("2.10.0", "2.10.0"), ("2.9.1+cu128", "2.9.1")):
        monkeypatch.setattr(torch, "__version__", version)
        assert torch_version() == release


def test_the_rate_rises_and_is_kept_where_it_does_not_fall():
    config = dataclasses.replace(SHORT, iterations=10, lr=2.0, warmup=4, decay="none")
    assert [config.rate(step) for step in range(10)] == [0.5, 1.0, 1.5, *[2.0] * 7]
    falls = dataclasses.replace(config, decay="cosine")
    assert [falls.rate(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert falls.rate(9) == pytest.approx(1 + math.cos(math.pi * 5 / 6))


def test_what_others_ask_for_is_done_though_nobody_here_does(tmp_path, monkeypatch):
    """In a training of several processes one of them may find that time has passed, or be told to stop."""
    asked, saved, save = [], [], Resume.save

    def anywhere(self, *flags: bool) -> list[bool]:
        asked.append(flags)
        return [self.step == 4, self.step == 2]

    monkeypatch.setattr(Loop, "anywhere", anywhere)
    monkeypatch.setattr(Resume, "save", lambda self, step, *words: saved.append(step) or save(self, step, *words))
    with pytest.raises(Stopped, match="after 4 of 6"):
        run(job(), Resume(tmp_path, "x", {"job": "f"}), stop=stop_at(3))
    assert saved == [2, 4]
    assert asked == [(step == 3, False) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("others", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("own", [(False, False), (True, False), (False, True)])
def test_a_flag_is_up_where_any_process_has_it_up(own, others):
    def reduce(flags: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return flags + torch.tensor(others)

    together = types.SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    found = Loop.anywhere(types.SimpleNamespace(accelerator=together), *own)
    assert found == [mine or bool(other) for mine, other in zip(own, others)]
    alone = types.SimpleNamespace(num_processes=1, reduce=lambda *_: pytest.fail("there is nobody to ask"))
    assert Loop.anywhere(types.SimpleNamespace(accelerator=alone), *own) == list(own)


@pytest.mark.parametrize("guidance", [None, (1.0, 3.0)])
def test_what_a_batch_is_told_lies_where_its_images_are_computed_with(guidance):
    """A feed may leave both on the CPU."""
    heard, cast = [], Roles(toy_denoiser(), None, toy_denoiser())
    trainer = types.SimpleNamespace(
        job=types.SimpleNamespace(
            feed=types.SimpleNamespace(batch=lambda step, own: (torch.zeros(8, 1, 4, 4), {CLASS: torch.arange(8)})),
            training=dataclasses.replace(SHORT, label_dropout=0.2),
            guidance=guidance,
            seed=0,
        ),
        parts=[slice(0, 4), slice(4, 8)],
        step=0,
        order=torch.channels_last,
        accelerator=types.SimpleNamespace(device=torch.device("meta")),
        roles=types.SimpleNamespace(with_condition=lambda condition: heard.append(condition) or cast),
    )
    trainer._condition = lambda *given: Loop._condition(trainer, *given)
    x0, told = Loop._batch(trainer)
    assert told is cast
    assert x0.device.type == heard[0].class_labels.device.type == "meta"
    assert (heard[0].guidance is None) == (guidance is None)
    assert guidance is None or heard[0].guidance.device.type == "meta"
