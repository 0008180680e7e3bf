"""What a line of `distill` says reaches the training."""

import dataclasses

import pytest

from diffcore import quality
from tasks import train
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
