"""What is measured of a digit in words is what closed forms say, halves each class, and bears a little noise."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from diffcore.data import attributes
from diffcore.data.attributes import DIGITS, INK, MEDIAN_TONES, MEDIAN_WEIGHTS, PAPER, TONES, WEIGHTS
from diffcore.data.config import Config
from diffcore.data.read import load_resident
from diffcore.data.write import write


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[np.ndarray, list[int]]:
    """uint8 [1797, 8, 8, 1] and the digit of each."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    write(Config("digits"), folder)
    images = load_resident(folder)
    return images.pixels.permute(0, 2, 3, 1).numpy(), images.labels.tolist()


def patch(side: int, rows: int, level: int) -> np.ndarray:
    """An image with `rows` rows of this level, the rest paper."""
    pixels = np.zeros((1, side, side, 1), np.uint8)
    pixels[:, :rows] = level
    return pixels


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize(("rows", "level", "ink"), [(1, 255, 1), (2, 77, 1), (4, 51, 25 / 51), (3, 26, 0), (0, 0, 0)])
def test_weight_is_the_share_of_ink_and_tone_its_mean_level_at_any_size(side, rows, level, ink):
    weight, tone = attributes.measured(patch(side, rows, level))
    assert weight == pytest.approx(ink * rows / side, abs=1e-12)
    assert tone == pytest.approx(level if ink else 0, abs=1e-12)


def test_ink_of_two_levels_is_weighed_by_what_is_ink_of_it():
    pixels = np.array([[255, 0], [51, 51]], np.uint8).reshape(1, 2, 2, 1)
    weight, tone = attributes.measured(pixels)
    assert weight == pytest.approx((1 + 2 * 25 / 51) / 4)
    assert tone == pytest.approx((255 * 51 + 2 * 51 * 25) / (51 + 50))


def test_noise_on_the_paper_is_no_ink():
    noise = np.random.default_rng(0).integers(0, PAPER + 1, (5, 8, 8, 1), dtype=np.uint8)
    assert not attributes.measured(noise)[0].any()
    assert INK > PAPER


def middle(values: np.ndarray) -> float:
    """Between the two values about the median."""
    median = np.median(values)
    return (values[values <= median].max() + values[values > median].min()) / 2


def test_the_tables_are_the_medians_of_each_class(digits):
    pixels, labels = digits
    weights, tones = attributes.measured(pixels)
    for digit in range(10):
        mine = np.array(labels) == digit
        assert MEDIAN_WEIGHTS[digit] == pytest.approx(middle(weights[mine]), abs=1e-5)
        assert MEDIAN_TONES[digit] == pytest.approx(middle(tones[mine]), abs=1e-3)


def test_half_of_each_class_has_each_word_and_every_combination_is_there(digits):
    pixels, labels = digits
    counts = Counter(map(attributes.attributes, attributes.captions(pixels, labels)))
    assert set(counts) == set(product(WEIGHTS, TONES, DIGITS))
    assert min(counts.values()) >= 28
    for digit, size in zip(DIGITS, np.bincount(labels)):
        of = {words: count for words, count in counts.items() if words[2] == digit}
        assert sum(of.values()) == size
        for place, word in ((0, "bold"), (1, "dark")):
            assert abs(sum(count for words, count in of.items() if words[place] == word) - size / 2) <= 3


def test_a_little_noise_changes_few_words_and_no_digit(digits):
    """Of +-8 grey levels on every pixel 3.2 % of the images change their weight, and 3.8 % their tone (ten draws)."""
    pixels, labels = digits
    noise = np.random.default_rng(0).integers(-8, 9, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    before, after = (
        np.array([attributes.attributes(text) for text in attributes.captions(each, labels)])
        for each in (pixels, noisy)
    )
    weight, tone, digit = (before == after).mean(0)
    assert weight > 0.96
    assert tone > 0.95
    assert digit == 1


def test_the_two_measures_say_little_of_each_other(digits):
    words = np.array([attributes.attributes(text) for text in attributes.captions(*digits)])
    bold, dark = words[:, 0] == "bold", words[:, 1] == "dark"
    assert abs(np.corrcoef(bold, dark)[0, 1]) < 0.16


def test_a_caption_says_its_attributes_and_another_text_none():
    for words in product(WEIGHTS, TONES, DIGITS):
        assert attributes.attributes("a {} {} {}".format(*words)) == words
    for text in ("", "a bold dark", "a bold dark ten", "a dark bold seven", "A bold dark seven", "a bold  dark seven"):
        assert attributes.attributes(text) is None


@pytest.mark.parametrize("labels", [[0], [0, 10], [0, -1], [0, 1, 2]])
def test_labels_that_are_no_digits_or_not_as_many_are_refused(labels):
    with pytest.raises(ValueError, match=r"2 images of digits need as many labels, each 0 \.\. 9"):
        attributes.captions(np.zeros((2, 8, 8, 1), np.uint8), labels)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3)])
def test_pixels_of_another_kind_are_refused(shape):
    with pytest.raises(ValueError, match="digits are uint8"):
        attributes.captions(np.zeros(shape, np.uint8), [0, 1])
    with pytest.raises(ValueError, match="digits are uint8"):
        attributes.captions(np.zeros((2, 8, 8, 1), np.float32), [0, 1])
