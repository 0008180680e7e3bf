"""The keys and words of older params.yaml files that have other names now."""

import re
from typing import Any

KEYS: dict[str, str] = {
    r"evaluate\.anytime": "any_time_students",
    r"(teachers|distill)\.[^.]+(\.network)?\.head": "parameterization",
}
"""New keys, by patterns of the whole paths of the old ones."""

WORDS: dict[str, dict[str, str]] = {
    "sampler": {"renoise": "multistep_consistency"},
    "trajectory": {"even": "uniform", "logsnr": "uniform_logsnr", "searched": "least_cost"},
    "parameterization": {"both": "x0_eps"},
}
"""By the key that they stand under: old words, and new ones."""

DEEPEST = 8
"""Levels of params.yaml that can hold one of them."""


def renewed(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same content in today's names, and a fault for each old one, `PATH: is NEW now`."""
    faults: list[str] = []
    return _renewed(raw, (), faults), faults


def _renewed(value: Any, path: tuple[Any, ...], faults: list[str]) -> Any:
    if len(path) > DEEPEST:
        return value
    if isinstance(value, dict):
        keys = {key: _key((*path, key), faults) for key in value}
        return {keys[key]: _renewed(inner, (*path, keys[key]), faults) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renewed(inner, (*path, place), faults) for place, inner in enumerate(value)]
    return _word(value, path, faults)


def _key(path: tuple[Any, ...], faults: list[str]) -> Any:
    where = ".".join(map(str, path))
    for pattern, new in KEYS.items():
        if re.fullmatch(pattern, where):
            faults.append(f"{where}: is {new} now")
            return new
    return path[-1]


def _word(value: Any, path: tuple[Any, ...], faults: list[str]) -> Any:
    key = next(
        (part for part in reversed(path) if isinstance(part, str)), ""
    )  # of a list, the key that it stands under
    if path[:1] and not str(path[0]).startswith("x-") and isinstance(value, str) and value in WORDS.get(key, {}):
        faults.append(f"{'.'.join(map(str, path))}: {value} is {WORDS[key][value]} now")
        return WORDS[key][value]
    return value
