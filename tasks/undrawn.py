"""The stage `draw` where no teacher draws the data: it says so, without the seconds that importing torch takes."""

from pathlib import Path

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import drawn
from tasks import paths, strict_yaml
from tasks.progress import log

DRAWN = "teacher:"
"""How data.source begins where a teacher draws."""


def write() -> bool:
    """Writes that nothing is drawn, in the same bytes each time; False where a teacher shall draw, and where params.yaml does
    not say."""
    source = _source(Path())
    if source is None or source.startswith(DRAWN):
        return False
    with disk.folder(paths.DRAWN) as folder:
        drawn.write_none(folder)
    log("draw: nothing to draw: data.source reads images that are there")
    return True


def is_settled(workspace: Path) -> bool:
    """Whether the stage would write what it has written already, whatever else it depends on."""
    source = _source(workspace)
    return source is not None and not source.startswith(DRAWN) and drawn.is_none(workspace / paths.DRAWN)


def _source(workspace: Path) -> str | None:
    try:
        data = strict_yaml.load_yaml(workspace / paths.PARAMS).get("data")
    except UserError:  # which the reader of it tells
        return None
    source = data.get("source") if isinstance(data, dict) else None
    return source if isinstance(source, str) else None
