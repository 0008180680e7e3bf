"""What a line of `distill` says reaches the training."""

import dataclasses

import pytest

from diffcore import quality
from tasks import paths, train
from tests.test_dropout import dropouts
from tests.test_evaluate import make


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_line_s_own_dropout_is_its_student_s_and_not_its_teacher_s(p, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "RESAMPLES", 10)
    found = make(tmp_path, monkeypatch, 0, False)
    jobs = {}
    monkeypatch.setattr(train, "_train", lambda name, job, *_: jobs.update({name: job}))
    changed = dataclasses.replace(found.distill["cd"], dropout=p)
    train.distill(dataclasses.replace(found, distill={**found.distill, "cd": changed}), "cd")
    job = jobs["cd"]
    assert job.student.net.config_json()["dropout"] == p
    assert dropouts(job.student.net) - {0.0} == ({p} if p else set())
    assert dropouts(job.teacher.net) <= {0.0}
    assert (job.method, job.config, job.fit) == (changed.method, changed.config, changed.fit)


@pytest.fixture
def keyed(tmp_path, monkeypatch):
    """(parameters, the key of a saved state of `cd`'s training with given ones)."""
    monkeypatch.setattr(quality, "RESAMPLES", 10)
    found, keys = make(tmp_path, monkeypatch, 0, False), []
    monkeypatch.setattr(train, "Resume", lambda root, name, key, say: keys.append(key) or 1 / 0)

    def key(changed=found) -> str:
        with pytest.raises(ZeroDivisionError):
            train.distill(changed, "cd")
        return keys[-1]

    return found, key


def test_a_saved_state_is_keyed_by_all_that_its_training_depends_on(keyed, monkeypatch):
    found, key = keyed
    line = {**found.raw["distill"]["cd"], "lr": 0.5}
    others = [
        dataclasses.replace(found, seed=found.seed + 1),
        dataclasses.replace(found, data=dataclasses.replace(found.data, flip=not found.data.flip)),
        dataclasses.replace(found, raw={**found.raw, "distill": {**found.raw["distill"], "cd": line}}),
    ]
    keys = [key(), *map(key, others)]
    for place, name in ((train.graph, "code_digest"), (train.fit, "torch_version")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: "another")
            keys.append(key())
    (paths.CHECKPOINTS / "teacher").rename("aside")
    (paths.CHECKPOINTS / "v").rename(paths.CHECKPOINTS / "teacher")
    keys.append(key())
    assert len(set(keys)) == len(keys) == 7
    (paths.CHECKPOINTS / "teacher").rename(paths.CHECKPOINTS / "v")
    (paths.RESUME.parent / "aside").rename(paths.CHECKPOINTS / "teacher")
    assert key() == keys[0]
