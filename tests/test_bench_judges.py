"""What bench/judges.py says of rankings, where it can be said by hand."""

import math

import pytest

from bench import judges

UP = [1.0, 2.0, 3.0, 4.0]


def test_rankings_that_agree_do_so_whatever_point_is_left_out():
    assert judges.jackknife([(UP, [10.0, 20.0, 30.0, 40.0])]) == 0
    assert judges.jackknife([(UP, UP[::-1])]) == 0


def test_the_jackknife_of_one_exchanged_pair():
    """Kendall's is 1/3 where another point is left out, 1 where one of the pair is: 3 times the variance 1/9."""
    assert judges.jackknife([(UP, [1.0, 2.0, 4.0, 3.0])]) == pytest.approx(math.sqrt(1 / 3), rel=1e-12)


def test_over_seeds_it_is_the_mean_s_that_is_left_out_of():
    """1/3, 1/3, 1, 1 and 1, 1, 1/3, 1/3: their means are all the same."""
    pairs = [(UP, [1.0, 2.0, 4.0, 3.0]), (UP, [2.0, 1.0, 3.0, 4.0])]
    assert judges.jackknife(pairs) == pytest.approx(0, abs=1e-12)


def test_pairs_that_the_networks_order_otherwise_in_every_seed_are_named(capsys):
    columns = {"own": [[1.0, 2.0, 3.0], [1.5, 2.5, 2.0]], "other": [[2.0, 1.0, 3.0], [2.0, 1.5, 3.0]]}
    judges.opposed(columns, [("a", 0), ("b", 1), ("c", 2)])
    assert capsys.readouterr().out == "of 2 pairs that each orders alike in every seed 1 are opposed: a and b\n"


def test_an_error_is_said_where_there_are_several_pairs():
    assert judges.agreement([(UP, UP), (UP, UP[::-1])]) == "Kendall 0.000 +- 1.000 (1.000 -1.000), " + (
        "Spearman 0.000 +- 1.000 (1.000 -1.000)"
    )
    assert judges.agreement([(UP, UP)]) == "Kendall 1.000 (1.000), Spearman 1.000 (1.000)"
