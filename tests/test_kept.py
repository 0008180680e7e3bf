"""What a long stage keeps of its results is found by the very same job alone."""

import pytest
import torch

from diffcore.kept import Kept

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
