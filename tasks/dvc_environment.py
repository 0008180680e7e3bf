"""What DVC finds in its environment, so that what it keeps for itself lies with the project and is nobody else's to write.

By default DVC keeps a cache that it unpickles in a folder that all users of a machine may write to, which lets any of them
run code here. `.dvc/config` names a folder of the project instead, for `dvc` in the project's root; a whole path in the
environment serves from everywhere.
"""

import configparser
import getpass
import os
from pathlib import Path

from diffcore.core.errors import UserError

SITE_CACHE = Path(".dvc-site-cache")


def of(folder: Path) -> dict[str, str]:
    """The variables for DVC at work in `folder`; makes the folder of its site cache. A user's own settings stay."""
    # DVC would make the folder "repo" writable for everybody; it leaves one that is there as it is
    (folder / SITE_CACHE / "repo").mkdir(parents=True, exist_ok=True)
    place = os.environ.get("DVC_SITE_CACHE_DIR") or str((folder / SITE_CACHE).resolve())
    return {"DVC_SITE_CACHE_DIR": place, **nameless(folder)}


def check(folder: Path) -> None:
    """A UserError if DVC's configuration in `folder` is gone, empty or cut: without it DVC asks for git, or phones home."""
    path, parser = folder / ".dvc" / "config", configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(path.read_text())
    except (OSError, ValueError, configparser.Error):
        parser.clear()
    if not parser.has_option("core", "analytics"):
        raise UserError(f"{path} is missing or damaged; restore it (git checkout {path}), or make this workspace again")


def nameless(folder: Path) -> dict[str, str]:
    """A name and a home for a user whom the system does not know, as in a container: DVC and MLflow would end without."""
    variables = {}
    try:
        getpass.getuser()
    except (KeyError, OSError):
        variables["LOGNAME"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except (KeyError, RuntimeError):
        variables["HOME"] = str((folder / ".services").resolve())
    return variables
