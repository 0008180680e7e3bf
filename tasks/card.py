"""`distill card`: a checkpoint's birth certificate, after every one of its files was checked."""

import json
from dataclasses import asdict
from typing import Any

from diffcore.checkpoints import verify
from diffcore.checkpoints.card import Card
from tasks import named
from tasks.progress import log

SHORT = 12
"""Characters of a digest that are printed."""


def show(word: str, as_json: bool = False) -> None:
    """Prints the card of the checkpoint that `word` names; a UserError where a file of it is not as the card says."""
    each = named.find(word)
    card = verify(each.folder)
    if as_json:
        log(json.dumps(card.to_json(), indent=1, allow_nan=False))
        return
    rows = _rows(card)
    width = max(map(len, rows))
    if each.registered:
        log(f"{each.word} is {each.registered}")
    log(f"{each.folder}: whole, all of its {len(card.files)} files are as the card says")
    log("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))


def _rows(card: Card) -> dict[str, Any]:
    fields = asdict(card)
    rows: dict[str, Any] = {key: fields[key] for key in ("name", "method", "weights", "parameterization", "solver")}
    if card.reading:
        rows["reading"] = json.dumps(card.reading)
    rows["schedule"] = schedule(card)
    rows["times"] = f"{len(card.grid) - 1} steps of its own: {_times(card.grid)}" if card.grid else "any"
    rows["image"] = " x ".join(map(str, card.image))
    rows["classes"] = ", ".join(map(str, card.classes)) if card.classes else "none"
    rows["guidance"] = json.dumps(card.guidance) if card.guidance else "none"
    if card.inputs:
        rows["told"] = ", ".join(card.inputs)
        rows["encoder"] = card.encoder[:SHORT] if card.encoder else "not known"
    for key in ("digest", "parent", "teacher", "data", "code"):
        value = fields[key]
        rows[key] = value[:SHORT] if value else "none"
    rows["cost"] = ", ".join(f"{value:g} {key.replace('_', ' ')}" for key, value in card.cost.items())
    rows["computed"] = ", ".join(f"{key} {value}" for key, value in (card.compute or {}).items()) or "elsewhere"
    rows["torch"], rows["seed"] = card.torch, card.seed
    if card.watch:
        rows["watch"] = json.dumps(card.watch)
    rows["parameters"] = json.dumps(card.parameters)
    return rows


def schedule(card: Card) -> str:
    """That of its card as JSON, of a list of betas how many and how large they are."""

    def short(value: Any) -> Any:
        is_long = isinstance(value, list) and len(value) > 6
        return f"{len(value)} from {value[0]:.6g} to {value[-1]:.6g}" if is_long else value

    return json.dumps({key: short(value) for key, value in card.schedule.items()})


def _times(grid: list[float]) -> str:
    texts = [f"{time:.4g}" for time in grid]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "...", *texts[-2:]])
