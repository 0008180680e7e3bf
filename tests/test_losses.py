"""Every method's loss from its definition, on every schedule a network can be trained on and with each option changed.

Written with alpha, sigma and what is believed of x_0 and eps alone: no angle, no velocity that is composed of others.
"""

import contextlib
import dataclasses
import math

import pytest
import torch
from torch import nn

from diffcore import methods
from diffcore.core.rng import Draw
from diffcore.denoisers.exact import GaussianDenoiser, GaussianFlowMap
from diffcore.methods import Roles, continuous
from diffcore.noise.schedule import Cosine, Discrete, Linear, Schedule
from tests.conftest import DDPM_BETAS, make_schedule, randn

SCHEDULES = {
    "cosine": Cosine(),
    "linear": Linear(),
    "linear, short": Linear(beta_max=4.0),
    "discrete": Discrete(DDPM_BETAS),
    "discrete, few": Discrete((0.02, 0.3, 0.1, 0.4, 0.2, 0.5)),
}
"""Those that preserve the variance."""

PROGRESS = 0.3
SHAPE = (2, 2, 3)
COUNT = 9
ICT, ECT = {"schedule": "ict"}, {"schedule": "ect", "weight": "one"}
CRITICAL = {"steps": 6, "phases": 2, "adversarial": 0.3}

CHANGES: dict[str, list[tuple[dict, dict]]] = {
    "denoising": [
        *(({}, {"weight": word}) for word in ("truncated_snr", "snr", "min_snr")),
        ({"weight": "min_snr"}, {"gamma": 0.7}),
    ],
    "guided": [({}, {"weight": "one"})],
    "progressive": [
        *(({"steps": 4}, change) for change in ({"steps": 5}, {"factor": 3}, {"clip": True})),
        *(({"steps": 4, "weight": "one"}, {"weight": word}) for word in ("truncated_snr", "snr")),
    ],
    "consistency": [
        *(
            ({"steps": 8, "target_ema": 0.0}, change)
            for change in (
                {"steps": 5},
                {"target_ema": 0.9},
                {"distance": "squared"},
                {"distance": "perceptual"},
                {"huber": 0.3},
                {"hop": "heun"},
                {"hop": "substeps"},
                {"steps_end": 32},
            )
        ),
        ({"steps": 8, "target_ema": 0.0, "distance": "perceptual"}, {"floor": 0.7}),
        ({"steps": 8, "target_ema": 0.0, "hop": "substeps"}, {"substeps": 3}),
        ({"steps": 8, "target_ema": 0.0, "steps_end": 32}, {"anneal": 0.9}),
    ],
    "consistency_training": [
        *((base, change) for base in (ICT, ECT) for change in ({"mean": 0.4}, {"std": 0.7}, {"huber": 0.2})),
        *((ICT, change) for change in ({"first": 6}, {"last": 21}, {"weight": "one"}, {"schedule": "ect"})),
        *((ECT, change) for change in ({"q": 1.5}, {"k": 3.0}, {"b": 2.0}, {"stages": 3}, {"weight": "gap"})),
    ],
    "continuous": [
        *(({"data": data}, {"mean": 0.3}) for data in ("distillation", "training")),
        *(({}, change) for change in ({"data": "training"}, {"std": 0.6}, {"warmup": 0.8}, {"norm": 0.6})),
        ({}, {"weight": "inverse_tan"}),
    ],
    "phased": [
        *(
            ({"steps": 12, "phases": 3}, change)
            for change in (
                {"steps": 6},
                {"phases": 4},
                {"target_ema": 0.9},
                {"distance": "squared"},
                {"huber": 0.3},
                {"weight": "endpoint"},
                {"adversarial": 0.3},
            )
        ),
        *((CRITICAL, change) for change in ({"phases": 3}, {"adversarial": 0.6}, {"critic_lr": 0.1})),
    ],
    "flow_map": [
        *(
            ({"steps": 8, "target_ema": 0.0, "distance": "squared"}, change)
            for change in (
                {"steps": 5},
                {"first": 0.5},
                {"velocity": 0.4},
                {"target_ema": 0.9},
                {"distance": "pseudo_huber"},
            )
        ),
        ({"steps": 8, "distance": "pseudo_huber"}, {"huber": 0.3}),
    ],
    "distribution_matching": [
        *(({}, change) for change in ({"steps": 3}, {"critic_updates": 2}, {"critic_lr": 0.1}, {"adversarial": 0.3})),
        ({"steps": 3, "adversarial": 0.3}, {"adversarial": 0.6}),
    ],
}
"""Of each method: what its line says, and what it says instead of one of the options."""


class Believer(GaussianFlowMap):
    """Exact beliefs about Gaussian images that are not square, and two maps of features that know the time and who sees."""

    def __init__(self, seed: int, schedule: Schedule):
        super().__init__(0.5 * randn(*SHAPE, seed=seed), 0.1 + randn(*SHAPE, seed=seed + 1) ** 2, schedule)

    def features(self, x_t, t):
        own = x_t * (1 + self.mean) + wide(t)
        return [torch.stack([own[:, 0], x_t[:, 1]], 1), (x_t**2 - own)[..., :1]]


class Judge(nn.Module):
    """A critic that looks at every pixel of every map, at each in another way; with a denoiser, where one is asked for."""

    def __init__(self, denoiser: GaussianDenoiser):
        super().__init__()
        self.denoiser, self.heads = denoiser, self.forward

    def forward(self, maps):
        return [0.6 * torch.cos(torch.arange(part[0].numel()).reshape(part.shape[1:])).to(part) * part for part in maps]


def cast(schedule: Schedule) -> Roles:
    student, teacher, target, fake = (Believer(seed, schedule) for seed in (10, 20, 30, 40))
    return Roles(student, teacher, target, Judge(fake))


def toss() -> tuple[torch.Tensor, Draw]:
    u = (torch.tensor([4, 0, 7, 2, 8, 5, 1, 3, 6]).double() + 0.37) / COUNT
    return randn(COUNT, *SHAPE, seed=1), Draw(u, randn(COUNT, *SHAPE, seed=2), ("losses",))


# ------------------------------------------------------------------------------------------- by hand


def wide(t):
    return t[:, None, None, None]


def level(schedule: Schedule, t):
    return wide(schedule.alpha(t)), wide(schedule.sigma(t))


def noised(schedule: Schedule, x0, eps, t):
    alpha, sigma = level(schedule, t)
    return alpha * x0 + sigma * eps


def landed(who: Believer, z, t, s):
    """A DDIM step; none where s is t."""
    belief, (alpha, sigma) = who(z, t), level(who.schedule, s)
    return torch.where(wide(s == t), z, alpha * belief.x0 + sigma * belief.eps)


def leading(schedule: Schedule, z, t, s, z_s):
    """The v at z of which x_0 = alpha z - sigma v and eps = sigma z + alpha v land on z_s."""
    (a, b), (a_s, b_s) = level(schedule, t), level(schedule, s)
    return (z_s - (a_s * a + b_s * b) * z) / (b_s * a - a_s * b)


def mean_square(x):
    return x.square().flatten(1).mean(1)


def huber(error, c: float):
    c = c * math.sqrt(error[0].numel())
    return (error.square().flatten(1).sum(1) + c * c).sqrt() - c


def weighted(word: str, schedule: Schedule, t, gamma: float = 5.0):
    signal, noise = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
    known = {"truncated_snr": torch.maximum(signal, noise), "snr": signal, "min_snr": signal.minimum(gamma * noise)}
    return known.get(word, torch.ones_like(signal))


def by_denoising(c, who: Roles, x0, drawn: Draw):
    schedule, t = who.student.schedule, drawn.u
    alpha, sigma = level(schedule, t)
    error = who.student(noised(schedule, x0, drawn.noise, t), t).v - (alpha * drawn.noise - sigma * x0)
    return weighted(c.weight, schedule, t, c.gamma) * mean_square(error)


def by_guided(c, who: Roles, x0, drawn: Draw):
    schedule, t = who.student.schedule, drawn.u
    z = noised(schedule, x0, drawn.noise, t)
    return weighted(c.weight, schedule, t) * mean_square(who.student(z, t).v - who.teacher(z, t).v)


def by_progressive(c, who: Roles, x0, drawn: Draw):
    schedule, i = who.student.schedule, (drawn.u * c.steps).floor() + 1
    t, s = i / c.steps, (i - 1) / c.steps
    z = at = noised(schedule, x0, drawn.noise, t)
    for j in range(c.factor):
        here, there = ((c.factor * i - j - more) / (c.factor * c.steps) for more in (0, 1))
        alpha, sigma = level(schedule, here)
        x = who.teacher(at, here).x0
        x = x.clamp(-1, 1) if c.clip else x
        at = noised(schedule, x, (at - alpha * x) / sigma, there)
    error = who.student(z, t).v - leading(schedule, z, t, s, at)
    return weighted(c.weight, schedule, t) * mean_square(error)


def by_consistency(c, who: Roles, x0, drawn: Draw):
    schedule, teacher = who.student.schedule, who.teacher
    n = c.steps if c.steps_end is None else round(c.steps * (c.steps_end / c.steps) ** min(1, PROGRESS / c.anneal))
    k = (drawn.u * n).floor() + 1
    t, s, zero = k / n, (k - 1) / n, torch.zeros(COUNT).double()
    z = noised(schedule, x0, drawn.noise, t)
    parts = c.substeps if c.hop == "substeps" else 1
    at = z
    for j in range(parts):
        at = landed(teacher, at, (parts * k - j) / (parts * n), (parts * k - j - 1) / (parts * n))
    if c.hop == "heun":
        (a, b), (a_s, b_s) = level(schedule, t), level(schedule, s)
        d, first = torch.atan2(b, a) - torch.atan2(b_s, a_s), teacher(z, t).v
        at = torch.where(wide(s > 0), z - d / 2 * (first + teacher(z - d * first, s).v), at)
    aim = landed(who.target, at, s, zero)
    error = who.student(z, t).v - leading(schedule, z, t, zero, aim)
    if c.distance != "perceptual":
        return mean_square(error) if c.distance == "squared" else huber(error, c.huber)
    small, noise = torch.full((COUNT,), 0.05).double(), drawn.fork("features").noise
    seen = [teacher.features(noised(schedule, x, noise, small), small) for x in (who.student(z, t).x0, aim)]
    apart = [2 - 2 * torch.cosine_similarity(*pair, dim=1).flatten(1).mean(1) for pair in zip(*seen)]
    return (apart[0] + apart[1]) / 2 + c.floor * mean_square(error)


def by_consistency_training(c, who: Roles, x0, drawn: Draw):
    schedule, normal = who.student.schedule, torch.distributions.Normal(c.mean, c.std)
    end = torch.ones(1).double()
    most = float(schedule.sigma(end) / schedule.alpha(end))
    if c.schedule == "ict":
        doublings = math.ceil(math.log2(c.last / c.first)) + 1
        n = min(c.last, c.first * 2 ** int(PROGRESS * doublings))
        least, largest = 0.002 ** (1 / 7), min(80.0, most) ** (1 / 7)
        ladder = [(least + i / n * (largest - least)) ** 7 for i in range(n + 1)]
        share = normal.cdf(torch.tensor(ladder).double().log()).diff().cumsum(0)
        i = [int((share / share[-1] <= u).sum()) for u in drawn.u]
        t = torch.tensor([ladder[j + 1] for j in i]).double()
        r = torch.tensor([ladder[j] if j else 0.0 for j in i]).double()
    else:
        t = normal.icdf(drawn.u).exp().clamp(max=most)
        near = 1 + c.k / (1 + (c.b * t).exp())
        r = t * (1 - near / c.q ** (int(PROGRESS * c.stages) + 1)).clamp(min=0)

    def believed(role, sigma):
        """Of the same image and noise at this sigma, which is the image itself at 0."""
        z = wide((1 + sigma**2) ** -0.5) * (x0 + wide(sigma) * drawn.noise)
        return torch.where(wide(sigma > 0), role(z, schedule.time(-sigma.clamp(min=1e-9).log())).x0, x0)

    error = believed(who.student, t) - believed(who.target, r)
    error = error if c.weight == "gap" else error / wide(t / (1 + t**2).sqrt())
    found = huber(error, c.huber if c.huber is not None else 0.00054 if c.schedule == "ict" else 0.0)
    return found / (t - r) if c.weight == "gap" else found


def by_continuous(c, who: Roles, x0, drawn: Draw):
    """Its value is the mean square of the tangent; which is held by hand in tests/test_continuous.py."""
    schedule, end = who.student.schedule, torch.ones(1).double()
    most = schedule.sigma(end).log() - schedule.alpha(end).log()
    log_tan = torch.minimum(torch.distributions.Normal(c.mean, c.std).icdf(drawn.u), most)
    t = schedule.time(-log_tan)
    alpha, sigma = level(schedule, t)
    z = alpha * x0 + sigma * drawn.noise
    arc = who.teacher(z, t).v if c.data == "distillation" else alpha * drawn.noise - sigma * x0
    g = continuous.tangent(who, z, log_tan, arc, min(1.0, PROGRESS / c.warmup))
    g = g / wide(mean_square(g).sqrt() + c.norm)
    return mean_square(g) * (1 if c.weight == "one" else (-log_tan).exp())


def phase(c, who: Roles, x0, drawn: Draw):
    """t, s, z there, and where teacher and target, and the student, land at s."""
    schedule, k = who.student.schedule, (drawn.u * c.steps).floor() + 1
    t, u = k / c.steps, (k - 1) / c.steps
    s = torch.tensor([int((j - 1) // (c.steps / c.phases)) / c.phases for j in k.tolist()]).double()
    z = noised(schedule, x0, drawn.noise, t)
    goal = landed(who.target, landed(who.teacher, z, t, u), u, s)
    return t, s, z, goal, landed(who.student, z, t, s)


def judged(c, who: Roles, image, s, drawn: Draw):
    """What the critic says of it, noised on from s by what the process adds."""
    schedule, other = who.student.schedule, drawn.fork("adversary")
    t = s + other.u / c.phases
    (a, b), (a_s, b_s) = level(schedule, t), level(schedule, s)
    noisy = a / a_s * image + (b**2 - (a / a_s * b_s) ** 2).sqrt() * other.noise
    return who.critic(who.teacher.features(noisy, t))


def hinged(logits, sign: int):
    return sum((1 - sign * part).clamp(min=0).flatten(1).mean(1) for part in logits) / len(logits)


def by_phased(c, who: Roles, x0, drawn: Draw):
    schedule = who.student.schedule
    t, s, z, goal, mine = phase(c, who, x0, drawn)
    error = mine - goal if c.weight == "endpoint" else who.student(z, t).v - leading(schedule, z, t, s, goal)
    found = mean_square(error) if c.distance == "squared" else huber(error, c.huber)
    return found + (c.adversarial and c.adversarial * hinged(judged(c, who, mine, s, drawn), 1))


def by_phaseds_critic(c, who: Roles, x0, drawn: Draw):
    _, s, _, goal, mine = phase(c, who, x0, drawn)
    return hinged(judged(c, who, goal, s, drawn), 1) + hinged(judged(c, who, mine, s, drawn), -1)


def by_flow_map(c, who: Roles, x0, drawn: Draw):
    """Sample by sample; a hop of the length of a step of 1/N is the shortest."""
    schedule, found = who.student.schedule, []
    for i, u in enumerate(drawn.u.tolist()):
        part, one, eps = (4096 * u) % 1, x0[i : i + 1], drawn.noise[i : i + 1]
        share = (part - c.velocity) / (1 - c.velocity)
        length = 1 / c.steps if share < 0 else min(1.0, 2 ** (1 - share * (1 + math.log2(c.steps))))
        s = (1 - length) * u
        t, m, s = (torch.tensor([time]).double() for time in (s + length, s + length - c.first * length, s))
        z = noised(schedule, one, eps, t)
        if share < 0:
            error = who.student.toward(t)(z, t).v - who.teacher(z, t).v
        else:
            goal = landed(who.target.toward(s), landed(who.target.toward(m), z, t, m), m, s)
            error = who.student.toward(s)(z, t).v - leading(schedule, z, t, s, goal)
        found.append(mean_square(error) if c.distance == "squared" else huber(error, c.huber))
    return torch.cat(found)


def generated(c, who: Roles, drawn: Draw):
    """The student's sample; its noise to one of the levels compared, and the time of it."""
    schedule, k, z = who.student.schedule, (drawn.u * c.steps).floor(), drawn.noise
    x = who.student(z, torch.ones(COUNT).double()).x0
    for j in range(1, c.steps):
        t = torch.full((COUNT,), 1 - j / c.steps).double()
        z = torch.where(wide(k >= j), noised(schedule, x, drawn.fork(f"step {j - 1}").noise, t), z)
        x = torch.where(wide(k >= j), who.student(z, t).x0, x)
    other = drawn.fork("level")
    return x, other.noise, 0.02 + 0.96 * other.u


def by_distribution_matching(c, who: Roles, x0, drawn: Draw):
    sample, eps, t = generated(c, who, drawn)
    noisy = noised(who.student.schedule, sample, eps, t)
    real, fake = who.teacher(noisy, t).x0, who.critic.denoiser(noisy, t).x0
    found = 0.5 * mean_square((fake - real) / wide((sample - real).abs().flatten(1).mean(1)))
    return found + (c.adversarial and c.adversarial * hinged(who.critic.heads(who.teacher.features(noisy, t)), 1))


def by_distribution_matchings_critic(c, who: Roles, x0, drawn: Draw):
    schedule, (sample, eps, t) = who.student.schedule, generated(c, who, drawn)
    (alpha, sigma), noisy = level(schedule, t), noised(schedule, sample, eps, t)
    found = mean_square(who.critic.denoiser(noisy, t).v - (alpha * eps - sigma * sample))
    if not c.adversarial:
        return found
    real = noised(schedule, x0, eps, t)
    told = [who.critic.heads(who.teacher.features(image, t)) for image in (real, noisy)]
    return found + hinged(told[0], 1) + hinged(told[1], -1)


BY_HAND = {
    "denoising": by_denoising,
    "guided": by_guided,
    "progressive": by_progressive,
    "consistency": by_consistency,
    "consistency_training": by_consistency_training,
    "continuous": by_continuous,
    "phased": by_phased,
    "flow_map": by_flow_map,
    "distribution_matching": by_distribution_matching,
}
CRITICS_BY_HAND = {"phased": by_phaseds_critic, "distribution_matching": by_distribution_matchings_critic}

# ------------------------------------------------------------------------------------------- the laws

LINES = sorted(
    {
        (name, methods.load(name)(**line))
        for name, pairs in CHANGES.items()
        for base, change in pairs
        for line in (base, base | change)
    },
    key=str,
)


def test_no_method_and_no_option_is_left_out():
    changed = {name: {option for _, change in pairs for option in change} for name, pairs in CHANGES.items()}
    options = {name: {f.name for f in dataclasses.fields(methods.load(name))} for name in methods.names()}
    assert changed == options
    assert set(BY_HAND) == set(methods.names())
    assert set(CRITICS_BY_HAND) == {
        name for name in methods.names() if issubclass(methods.load(name), methods.WithCritic)
    }


@pytest.mark.parametrize(("name", "config"), LINES, ids=str)
def test_a_loss_is_its_definition_on_every_schedule(name, config):
    x0, drawn = toss()
    for word, schedule in SCHEDULES.items():
        who = cast(schedule)
        found, right = config.loss(who, x0, drawn, PROGRESS), BY_HAND[name](config, who, x0, drawn)
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9, msg=lambda text, word=word: f"{word}: {text}")
        if name in CRITICS_BY_HAND and (name != "phased" or config.adversarial):
            found, right = (
                config.critic_loss(who, x0, drawn, PROGRESS),
                CRITICS_BY_HAND[name](config, who, x0, drawn),
            )
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"), [line for line in LINES if line[0] != "consistency_training"], ids=str
)  # which asks the schedule for a number
def test_a_loss_is_computed_where_its_images_lie(name, config, monkeypatch):
    """No part of it is left on the CPU: on the device of no memory that would be an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    method, (x0, drawn), who = methods.load(name), toss(), cast(SCHEDULES["discrete"])
    for role in (who.student, who.teacher, who.target, who.critic.denoiser):
        role.mean, role.variance = role.mean.to("meta"), role.variance.to("meta")
    x0, drawn = x0.to("meta"), dataclasses.replace(drawn, u=drawn.u.to("meta"), noise=drawn.noise.to("meta"))
    losses = [method.loss]
    if name == "distribution_matching" or getattr(config, "adversarial", 0):
        losses.append(method.critic_loss)
    for loss in losses:
        found = loss(config, who, x0, drawn, PROGRESS)
        assert (found.shape, found.device.type) == ((COUNT,), "meta")


@pytest.mark.parametrize(
    ("name", "base", "change"), [(name, *pair) for name, pairs in CHANGES.items() for pair in pairs], ids=str
)
def test_every_option_changes_what_is_learned(name, base, change):
    method, (x0, drawn), who = methods.load(name), toss(), cast(make_schedule("linear"))

    def learned(line: dict) -> tuple:
        config = method(**line)
        decay = config.target_decay
        critic = config.critic_training if isinstance(config, methods.WithCritic) else None
        return config.loss(who, x0, drawn, PROGRESS).tolist(), decay, critic

    one, other = learned(base), learned(base | change)
    of_the_trainer = change.keys() <= {"target_ema", "critic_updates", "critic_lr"}
    assert (one[0] == other[0]) == of_the_trainer
    assert (one[1:] != other[1:]) == of_the_trainer
