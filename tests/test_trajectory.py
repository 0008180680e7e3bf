import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.noise.schedule import EDM, VE
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory, karras, nodes, quadratic, uniform, uniform_logsnr


@pytest.mark.parametrize("make", [uniform, quadratic])
@pytest.mark.parametrize("steps", [1, 2, 7, 1024])
def test_from_noise_to_data_in_the_steps_asked_for(make, steps):
    times = make(steps).times
    assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    assert make(steps).steps == len(make(steps).pairs) == steps


def test_even_by_hand():
    assert uniform(4).times == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_halving_keeps_every_second_time_exactly():
    trajectory = uniform(1024)
    while trajectory.steps > 1:
        assert trajectory.halved() == uniform(trajectory.steps // 2)
        trajectory = trajectory.halved()


def test_nodes_are_looked_at_from_the_top():
    assert nodes([1, 4, 10], 10).times == (1.0, 0.4, 0.1, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: uniform(0),
        lambda: quadratic(0),
        lambda: uniform(3).halved(),
        lambda: nodes([], 10),
        lambda: nodes([0, 10], 10),
        lambda: nodes([3, 3], 10),
        lambda: nodes([3, 11], 10),
        lambda: Trajectory((0.5, 1.0)),
        lambda: Trajectory((1.0, 0.5, 0.5, 0.0)),
        lambda: Trajectory((1.0, 0.3, 0.5, 0.0)),
        lambda: Trajectory(()),
        lambda: Trajectory((1.0,)),
        lambda: Trajectory((1.1, 0.0)),
        lambda: Trajectory((1.0, -0.1)),
    ],
)
def test_what_is_no_trajectory_is_a_mistake(wrong):
    with pytest.raises(UserError):
        wrong()


@pytest.mark.parametrize("make", [karras, uniform_logsnr])
def test_the_ends_are_edm_s_or_what_the_schedule_has(make, schedule):
    """sigma/alpha at the first time is the lesser of 80 and that of t = 1; at the last positive one the greater of 0.002 and
    that of t = 0.001."""
    t = torch.tensor([1.0, 0.001], dtype=torch.float64)
    most, least = (schedule.sigma(t) / schedule.alpha(t)).tolist()
    times = torch.tensor(make(9, schedule).times[:-1], dtype=torch.float64)
    ratios = schedule.sigma(times) / schedule.alpha(times)
    assert float(ratios[0]) == pytest.approx(min(most, 80.0), rel=1e-5)
    assert float(ratios[-1]) == pytest.approx(max(least, 0.002), rel=1e-5)
    assert (ratios.diff() < 0).all()


EQUAL = {
    "uniform": lambda t, ratio: t,
    "quadratic": lambda t, ratio: t.sqrt(),
    "uniform_logsnr": lambda t, ratio: ratio.log(),
    "karras": lambda t, ratio: ratio ** (1 / 7),
}
"""In what the steps of each word are equal; of those that know the schedule all but the last one."""

ALIKE = {"uniform", "karras"}


@pytest.mark.parametrize("word", TRAJECTORIES)
def test_each_words_steps_are_equal_in_what_it_says_and_in_nothing_another_says(word, schedule):
    times = torch.tensor(TRAJECTORIES[word](6, schedule).times, dtype=torch.float64)
    assert (len(times), float(times[-1])) == (7, 0)
    uneven = {}
    for name, measure in EQUAL.items():
        t = times if name in ("uniform", "quadratic") and word in ("uniform", "quadratic") else times[:-1]
        steps = measure(t, schedule.sigma(t) / schedule.alpha(t)).diff()
        uneven[name] = float((steps / steps.mean() - 1).abs().max())
    assert uneven.pop(word) < 1e-6
    if schedule == EDM() and word in ALIKE:  # whose levels at even times are Karras's
        (other,) = ALIKE - {word}
        assert uneven.pop(other) < 1e-6
    if schedule != VE():  # whose log sigma is t
        assert min(uneven.values()) > 1e-3


def test_how_many_levels_karras_steps_are_equal_in_is_rho(schedule):
    t = torch.tensor(karras(5, schedule, rho=3.0).times[:-1], dtype=torch.float64)
    steps = ((schedule.sigma(t) / schedule.alpha(t)) ** (1 / 3)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=1e-6, atol=0)
