"""What judges saw of the real images is kept for the next checkpoint, and never taken for another's."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcore.core.kept import Kept
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics.courts import Courts
from diffcore.metrics.judge import Court, Judge
from tests.test_judges import Flat
from tests.test_statistics import images

pytestmark = pytest.mark.usefixtures("without_shape_checks")

ABOUT = {"images": "i", "code": "c", "device": "cpu", "threads": 1}


class Counted(Flat):
    """Counts the images that it looks at."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


REAL = Images(images(90), None, None)


def court(folder: Path, judge: Judge | None = None, lines: list[str] | None = None, **changes) -> tuple[Court, int]:
    """The court, and how many images were looked at for it."""
    judge = judge or Judge("flat", Counted(), "5" * 64, "none")
    courts = Courts(Kept(folder, (lines if lines is not None else []).append), ABOUT | changes)
    found = courts.court(judge, REAL)
    return found, judge.network.seen


def test_real_images_are_looked_at_once_and_then_the_numbers_are_the_same_to_the_bit(tmp_path):
    (first, looked), (again, none) = court(tmp_path), court(tmp_path)
    assert (looked, none) == (90, 0)
    samples = to_float(images(40, 1))
    assert first.measure(samples) == again.measure(samples)
    assert (again.moments.count, str(again)) == (90, str(first))
    assert torch.equal(again.moments.covariance, first.moments.covariance)
    assert torch.equal(again.rows, first.rows)


def test_another_judge_or_other_images_code_device_or_threads_look_again(tmp_path):
    court(tmp_path)
    usual = Judge("flat", Counted(), "5" * 64, "none")
    for change in ({"name": "steep"}, {"sha256": "5" * 63 + "6"}, {"preprocessing": "halved"}):
        assert court(tmp_path, dataclasses.replace(usual, network=Counted(), **change))[1] == 90
    for change in ({"images": "j"}, {"code": "d"}, {"device": "cuda"}, {"threads": 2}):
        assert court(tmp_path, **change)[1] == 90
    assert court(tmp_path, usual)[1] == 0


def test_whether_the_real_images_are_looked_at_is_seen_beforehand(tmp_path):
    judge = Judge("flat", Counted(), "5" * 64, "none")
    courts, other = Courts(Kept(tmp_path), ABOUT), dataclasses.replace(judge, name="steep")
    assert not courts.has(judge)
    courts.court(judge, REAL)
    assert courts.has(judge)
    assert not courts.has(other)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    assert not courts.has(judge)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_what_is_damaged_is_named_and_worked_out_again(suffix, damage, tmp_path):
    first, _ = court(tmp_path)
    (path,) = tmp_path.glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "changed" else content[:-5])
    lines: list[str] = []
    again, looked = court(tmp_path, lines=lines)
    assert looked == 90
    assert torch.equal(again.moments.covariance, first.moments.covariance)
    if (suffix, damage) != (".json", "gone"):  # of which nothing is left to name
        (line,) = lines
        assert str(path) in line
        assert line.endswith("it is worked out again")
    assert court(tmp_path)[1] == 0


def test_what_was_kept_of_judges_that_are_no_longer_asked_is_forgotten(tmp_path):
    one, other = (Judge("flat", Counted(), digit * 64, "none") for digit in "56")
    courts = Courts(Kept(tmp_path), ABOUT)
    for judge in (one, other):
        courts.court(judge, REAL)
    assert len(list(tmp_path.iterdir())) == 4
    courts.keep([other])
    assert len(list(tmp_path.iterdir())) == 2
    courts.court(other, REAL)
    assert (one.network.seen, other.network.seen) == (90, 90)
    courts.keep([])
    assert list(tmp_path.iterdir()) == []
