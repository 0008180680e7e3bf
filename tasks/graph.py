"""What dvc.yaml says of a stage: the graph is the one place that knows which code a result depends on."""

from pathlib import Path

from diffcore import disk
from tasks import params

GRAPH = Path("dvc.yaml")


def code_digest(stage: str, method: str) -> str:
    """Digest of the source files that the stage depends on; another one never resumes this one's state."""
    body = params.load_yaml(GRAPH)["stages"][stage]
    named = [dep.replace("${item.method}", method) for dep in body.get("do", body)["deps"]]
    return disk.digest({name: disk.sha256(Path(name)) for name in named if name.endswith(".py")})
