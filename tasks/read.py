"""`distill read`: what a pickled file of somebody else's holds, and its network as files that nothing is executed for."""

from pathlib import Path

from diffcore.checkpoints import pickled
from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks.progress import log

FEW = 3
"""Names that one line has room for."""


def read(path: Path, target: Path | None, part: str | None) -> None:
    """Lists the file and the network in it; writes that to `target`, a new folder, if there is to be one. part: the key of
    the network, where there are several."""
    if target is not None:
        disk.check_free(target, "folder")
    file = pickled.read(path)
    network = _network(file, part, needed=target is not None or part is not None)
    log(f"{path}: {file.size} bytes, read without running anything of it")
    if isinstance(network, str) or network.part:
        log(_table(pickled.entries(file)))
    if file.refused:
        log(
            "left as names, not imported and not called: " + _few([f"{name} ({n})" for name, n in file.refused.items()])
        )
    if isinstance(network, str):
        log(network)
        return
    _say(network)
    if target is None:
        log(_table(pickled.rows(network)))
        return
    pickled.save(file, network, target)
    log(f"{target}: {pickled.WEIGHTS} and {pickled.CONFIG}")


def _network(file: pickled.Pickled, part: str | None, needed: bool) -> pickled.Network | str:
    """Where none is needed, why none can be taken: the file is listed all the same."""
    try:
        return pickled.network(file, part)
    except UserError as error:
        if needed:
            raise
        return str(error)


def _say(network: pickled.Network) -> None:
    others = f" (of {_few([network.part, *network.others])})" if network.others else ""
    log(
        f"the network {network.part or 'of the file'}{others} is {network.cls or 'a state dict'}: {len(network.tensors)} "
        f"tensors, {network.numbers} numbers, {network.bytes} bytes"
    )
    for note in network.notes:
        log(note)
    if names := network.not_finite():
        log(f"NaN or infinite values in {len(names)} tensors: {_few(names)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
