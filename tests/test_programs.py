"""Feature networks of the user's own as judges: programs of torch.export and TorchScript."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics import judges
from diffcore.metrics.judge import Court
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.preprocessing import bicubic
from tests.conftest import seeded

pytestmark = pytest.mark.usefixtures("without_shape_checks")

MEAN, STD = [0.5, 0.25, 0.125], [0.5, 2.0, 4.0]


class Means(nn.Module):
    """Features: the mean of each channel, and of its square."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [x.mean((2, 3)), x.square().mean((2, 3)) + torch.ones(x.shape[0], x.shape[1], device=x.device)], 1
        )


class Beside(nn.Module):
    """What is not an image's own: the mean of the batch is taken off."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) - x.mean()


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).long()


def exported(network: nn.Module, path: Path, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch else None
    torch.export.save(torch.export.export(network.eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=shapes), path)
    return path


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    return {".pt2": exported(Means(), folder / "means.pt2"), ".pt": scripted(Means(), folder / "means.pt")}


def of(path: Path, **more) -> JudgeFile:
    return JudgeFile(str(path), **({"size": 16, "mean": MEAN, "std": STD, "trusted": True} | more))


def pixels(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, 10, 12), dtype=torch.uint8, generator=seeded(seed))


@pytest.mark.parametrize("kind", [".pt2", ".pt"])
@pytest.mark.parametrize("channels", [1, 3])
def test_its_features_are_those_of_images_prepared_as_the_file_says(kind, channels, files):
    judge = judges.load("mine", of(files[kind])).to(torch.device("cpu"))
    images = pixels(40, channels)
    x = bicubic(images.expand(-1, 3, -1, -1).float(), 16) / 255
    want = Means()((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    torch.testing.assert_close(judge.features(to_float(images)).float(), want, rtol=1e-5, atol=1e-5)
    assert str(judge) == (
        f"mine {judge.sha256[:12]} (bicubic with antialias to 16x16, (x / 255 - 0.5 0.25 0.125) / 0.5 2 4)"
    )
    court = Court.of(judge, Images(pixels(60, channels, 1), None, None))
    assert list(court.measure(to_float(images))) == ["fd_mine", "kid_mine"]


def test_other_numbers_are_another_preprocessing_in_words(files):
    usual = str(judges.load("mine", of(files[".pt"])))
    for change in ({"size": 8}, {"mean": [0.5, 0.25, 0.25]}, {"std": [1.0, 2.0, 4.0]}):
        assert str(judges.load("mine", of(files[".pt"], **change))) != usual


def test_a_program_of_grey_images_refuses_others(files):
    judge = judges.load("mine", of(files[".pt"], mean=[0.5], std=[0.5]))
    assert judge.features(to_float(pixels(2, 1))).shape == (2, 2)
    with pytest.raises(UserError, match="images of 3 channels are not of 1; take the judge out"):
        judge.features(to_float(pixels(2, 3)))


def test_what_makes_no_features_of_each_image_is_refused_in_one_line(tmp_path):
    made = {
        "beside.pt": (scripted, Beside(), "the features of an image differ with the images beside it"),
        "dropout.pt2": (exported, Dropped(), "the features of an image differ"),
        "square.pt": (scripted, Square(), r"makes \[3, 1, 16, 16\] of 3 images; it must make features \[3, d\]"),
        "whole.pt": (scripted, Whole(), "makes features that are no finite floats"),
        "fails.pt": (
            scripted,
            nn.Conv2d(5, 2, 3),
            r"fails on images \[3, 3, 16, 16\] .*; export it for batches of any",
        ),
    }
    for name, (write, network, words) in made.items():
        with pytest.raises(UserError, match=words) as refused:
            judges.load("mine", of(write(network, tmp_path / name)))
        assert "\n" not in str(refused.value)
        assert name in str(refused.value)
    fixed = exported(Means(), tmp_path / "fixed.pt2", batch=False)
    with pytest.raises(
        UserError, match=r"fixed\.pt2 fails on images \[3, 3, 16, 16\] .*; export it for batches of any"
    ):
        judges.load("mine", of(fixed))


class Dropped(Means):
    """Random numbers that eval leaves on."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


@pytest.mark.parametrize(("kind", "words"), [(".pt2", "torch.export"), (".pt", "TorchScript")])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_refused_in_one_line(kind, words, damage, files, tmp_path, capfd):
    content = files[kind].read_bytes()
    path = tmp_path / f"damaged{kind}"
    path.write_bytes({"cut": content[:-200], "empty": b"", "text": b"no program"}[damage])
    with pytest.raises(UserError, match=f"cannot be read as a file of {words} .*; export it again") as refused:
        judges.load("mine", of(path))
    assert "\n" not in str(refused.value)
