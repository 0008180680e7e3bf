"""What a long stage keeps of its results is found by the very same job alone."""

import pytest
import torch

from diffcore.core import disk
from diffcore.core.kept import Kept

ABOUT = {"images": 3, "code": "abc"}
VALUE, TENSORS = {"pairs": 14, "mean": 0.1}, {"sums": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def kept(tmp_path) -> tuple[Kept, list[str]]:
    said = []
    made = Kept(tmp_path / "sums", said.append)
    made.save(ABOUT, VALUE, TENSORS)
    return made, said


def test_what_is_kept_comes_back(kept):
    value, tensors = kept[0].load(dict(reversed(ABOUT.items())))
    assert value == VALUE
    assert torch.equal(tensors["sums"], TENSORS["sums"])


def test_another_job_and_another_torch_find_nothing(kept, monkeypatch):
    assert kept[0].load({**ABOUT, "code": "abd"}) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        assert kept[0].load(ABOUT) is None
    assert kept[0].load(ABOUT) is not None
    assert kept[1] == []


@pytest.mark.parametrize("name", ["*.json", "*.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_is_damaged_is_told_and_not_used(kept, name, damage):
    (path,) = kept[0].folder.glob(name)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert kept[0].load(ABOUT) is None
    assert len(kept[1]) == (0 if damage == "gone" and name == "*.json" else 1)


def test_all_are_removed_at_the_end(kept):
    kept[0].clear()
    assert not kept[0].folder.exists()
    kept[0].clear()


def test_a_result_needs_no_tensors_and_any_that_are_views_of_others_come_back(tmp_path):
    kept = Kept(tmp_path / "sums")
    kept.save(ABOUT, VALUE)
    assert kept.load(ABOUT) == (VALUE, {})
    turned = torch.arange(6.0).reshape(2, 3).t()
    kept.save(ABOUT, VALUE, {"sums": turned})
    assert torch.equal(kept.load(ABOUT)[1]["sums"], turned)


def test_a_kill_between_the_two_files_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    """The tensors come first: numbers that are there vouch for tensors that are there."""
    said, sealed = [], disk.write_sealed
    kept = Kept(tmp_path / "sums", said.append)

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "write_sealed", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save(ABOUT, VALUE, TENSORS)
    assert (kept.load(ABOUT), said) == (None, [])
    monkeypatch.setattr(disk, "write_sealed", sealed)
    kept.save(ABOUT, VALUE, TENSORS)
    monkeypatch.setattr(disk, "write_sealed", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save(ABOUT, VALUE, {"sums": torch.zeros(2)})
    assert kept.load(ABOUT) is None
    assert len(said) == 1


def test_what_another_version_kept_is_told_and_not_used(kept, monkeypatch):
    monkeypatch.setattr("diffcore.core.kept.SCHEMA", 9)
    assert kept[0].load(ABOUT) is None
    assert len(kept[1]) == 1
    assert kept[1][0].endswith("it is worked out again")
