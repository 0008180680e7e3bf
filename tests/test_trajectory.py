import pytest

from diffcore.mistake import Mistake
from diffcore.trajectory import Trajectory, even, nodes, quadratic


@pytest.mark.parametrize("make", [even, quadratic])
@pytest.mark.parametrize("steps", [1, 2, 7, 1024])
def test_from_noise_to_data_in_the_steps_asked_for(make, steps):
    times = make(steps).times
    assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    assert make(steps).steps == len(make(steps).pairs) == steps


def test_even_by_hand():
    assert even(4).times == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_halving_keeps_every_second_time_exactly():
    trajectory = even(1024)
    while trajectory.steps > 1:
        assert trajectory.halved() == even(trajectory.steps // 2)
        trajectory = trajectory.halved()


def test_nodes_are_looked_at_from_the_top():
    assert nodes([1, 4, 10], 10).times == (1.0, 0.4, 0.1, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: even(0),
        lambda: quadratic(0),
        lambda: even(3).halved(),
        lambda: nodes([], 10),
        lambda: nodes([0, 10], 10),
        lambda: nodes([3, 3], 10),
        lambda: nodes([3, 11], 10),
        lambda: Trajectory((0.5, 1.0)),
        lambda: Trajectory((1.0,)),
        lambda: Trajectory((1.1, 0.0)),
        lambda: Trajectory((1.0, -0.1)),
    ],
)
def test_what_is_no_trajectory_is_a_mistake(wrong):
    with pytest.raises(Mistake):
        wrong()
