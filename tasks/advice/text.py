"""A params.yaml in which every advised line has its reason above it."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tasks.advice.answer import Advised
from tasks.advice.rules import Rule

WIDTH = 120
PLAIN = re.compile(r"[A-Za-z_][\w ./+@-]*[\w./+@-]|[A-Za-z_]")
"""Words that need no quotes."""

RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
"""Words that some reader of YAML takes for something else."""


def written(raw: Mapping[str, Any], about: Sequence[str], advised: Iterable[Advised]) -> str:
    """raw: all of params.yaml, in its order. about: what is said at its top. advised: the lines that have a reason."""
    by_path: dict[str, list[Advised]] = {}
    for line in advised:
        by_path.setdefault(line.path, []).append(line)
    parts = ["\n".join(line for text in about for line in _comment(text, ""))]
    for section, value in raw.items():
        parts.append("\n".join(_section(section, value, by_path)))
    return "\n\n".join(parts) + "\n"


def _section(section: str, value: Any, advised: Mapping[str, list[Advised]]) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield f"{section}: {flow(value)}"
        return
    yield f"{section}:"
    for key, inner in value.items():
        path = f"{section}.{key}"
        below = any(each.startswith(f"{path}.") for each in advised)
        if below and isinstance(inner, dict):
            yield f"  {flow(key)}:"
            for name, samplings in inner.items():
                yield from _entry(name, samplings, advised.get(f"{path}.{name}", []), "    ")
        else:
            yield from _entry(key, inner, advised.get(path, []), "  ")


def _entry(key: str, value: Any, advised: list[Advised], indent: str) -> Iterator[str]:
    if advised and isinstance(value, list):
        yield f"{indent}{flow(key)}:"
        for line in advised:
            yield from _reasons(line, f"{indent}  ")
            yield f"{indent}  - {flow(dict(line.value))}"
        return
    for line in advised:
        yield from _reasons(line, indent)
    yield f"{indent}{flow(key)}: {flow(value)}"


def _reasons(line: Advised, indent: str) -> Iterator[str]:
    yield from _comment(line.rule.why + backing(line.rule), indent)
    for note in line.notes:
        yield from _comment(note, indent)


def backing(rule: Rule) -> str:
    """Which tables say so, at the end of a reason; empty where nothing is trained and nothing is claimed."""
    if rule.backed:
        return f" [{', '.join(dict.fromkeys(row.file for row in rule.backed))}]"
    return " [not measured here]" if "method" in rule.writes else ""


def _comment(text: str, indent: str) -> list[str]:
    whole = textwrap.wrap(text, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in whole]


def flow(value: Any) -> str:
    """A value in one line of YAML 1.2."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in RESERVED
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
