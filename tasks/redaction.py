"""Addresses as they may be told: an address may hold a password, and nothing that is printed, logged or kept may.

Whatever leaves this project for a person, a log or a database passes through `redact`.
"""

import base64
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

SHOWN = "***"
SHORTEST = 4  # characters of a password that is looked for by itself: a shorter one is part of many words

# what stands before the host; an address is rarely encoded as it should be, so a password may hold @ and /
USERINFO = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*@|[^\s/?#@:\['\"]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s'\"]*@)")
PARAMETER = re.compile(
    r"([?&;](?:[\w.-]*(?:passw(?:or)?d|pwd|secret|token|signature|credential|(?:api|access)[_-]?key)[\w.-]*|pass|key|sig)=)"
    r"[^&;#\s'\"]+",
    re.IGNORECASE,
)
# an address by itself, of which nothing else is known than that: a password in it may even hold blanks
WHOLE = re.compile(r"[\w+.-]+://([^/?#@:]*:(?!\d{1,5}(?:[/?#]|$)).*|[^/?#]*)@", re.DOTALL)
HEADER = re.compile(r"(authorization\W{1,4}(?:basic|bearer)\s+)[^\s'\"]+", re.IGNORECASE)
NAMED = re.compile(r"(?:MLFLOW|PREFECT|DVC)_\w*(?:PASSWORD|TOKEN|SECRET|API_KEY|AUTH_STRING)")
"""Environment variables that hold a password by themselves."""


def redact(text: str) -> str:
    """`text` without what is secret: the part of an address before its host, query parameters that are keys, and the
    passwords that this process finds in its environment, wherever they stand."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", SHOWN, text)
    return HEADER.sub(rf"\1{SHOWN}", PARAMETER.sub(rf"\1{SHOWN}", USERINFO.sub("", text)))


def parted(address: str) -> tuple[str, str, str]:
    """An http address without its userinfo, the user's name and the password, both decoded; ValueError if it is none."""
    try:
        parts = urlsplit(address)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # whose text may be a part of a password
        wrong = True
    if wrong:
        raise ValueError(
            "it must be http://HOST or http://HOST:PORT, a password before it encoded (/ is %2F, @ is %40)"
        )
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    return parts._replace(netloc=host).geturl(), unquote(user), unquote(password)


def _secrets() -> set[str]:
    secrets = {value for name, value in os.environ.items() if NAMED.fullmatch(name)}
    secrets |= {part for value in os.environ.values() for part in _held(value)}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    secrets |= set(_forms(user, password)) if password else set()
    secrets |= set(_forms(*os.environ.get("PREFECT_API_AUTH_STRING", "").split(":", 1)))
    return {value for value in secrets if len(value) >= SHORTEST}


def _held(address: str) -> Iterator[str]:
    """What is secret in an address: as it stands, decoded, and as a header of HTTP would carry it."""
    if match := WHOLE.match(address):
        user, _, password = match[1].partition(":")
        yield from _forms(user, password)
        yield from _forms(unquote(user), unquote(password))


def _forms(user: str, password: str = "") -> Iterator[str]:
    yield password or user  # a name alone is a key
    if password:
        yield base64.b64encode(f"{user}:{password}".encode(errors="replace")).decode()
