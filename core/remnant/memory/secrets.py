"""Find credentials in text, so that no memory keeps them: known forms, and long random tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

MIN_LENGTH, MIN_ENTROPY = 24, 4.0
"""A bare token counts as random from this many characters and bits per character on."""

_FORMS: tuple[tuple[str, str], ...] = (
    ("private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    ("access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("api key", r"\b(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{16,}"),
    ("token", r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{20,})"),
    ("token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("api key", r"\bAIza[\w-]{35}"),
    ("web token", r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"),
    ("password in address", r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
    ("bearer token", r"(?i:(?<=\bbearer ))[\w.~+/-]{16,}=*"),
    (
        "password",
        r"(?i:\b(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)[\"']?\s*[=:]\s*[\"']?)((?!\[redacted)[^\s\"',;]{6,})",
    ),
)
_KNOWN = tuple((kind, re.compile(form, re.DOTALL)) for kind, form in _FORMS)
_TOKEN = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")


@dataclass(frozen=True)
class Secret:
    """A credential in a text.

    Args:
        kind: what it looks like.
        start: index of its first character.
        end: index after its last character.
    """

    kind: str
    start: int
    end: int


def find_secrets(text: str) -> list[Secret]:
    """Every credential in a text, in order, none overlapping another.

    Example: find_secrets("password: hunter22")[0].kind -> "password"
    """
    found: list[Secret] = []
    for kind, form in _KNOWN:
        for match in form.finditer(text):
            group = 1 if match.re.groups else 0
            found.append(Secret(kind, match.start(group), match.end(group)))
    for match in _TOKEN.finditer(text):
        if _random(match.group()):
            found.append(Secret("random token", match.start(), match.end()))
    kept: list[Secret] = []
    for secret in sorted(found, key=lambda secret: (secret.start, -secret.end)):
        if not kept or secret.start >= kept[-1].end:
            kept.append(secret)
    return kept


def redact(text: str) -> str:
    """The text with every credential replaced by what it was.

    Example: redact("password: hunter22") -> "password: [redacted password]"
    """
    for secret in reversed(find_secrets(text)):
        text = f"{text[: secret.start]}[redacted {secret.kind}]{text[secret.end :]}"
    return text


def redact_data(data: Any) -> Any:
    """JSON data with every text redacted, keys of mappings included."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        items = cast("Mapping[Any, Any]", data).items()
        return {redact(str(key)): _named(str(key), redact_data(value)) for key, value in items}
    if isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray)):
        return [redact_data(item) for item in cast("Sequence[Any]", data)]
    return data


def _named(key: str, value: Any) -> Any:
    """A value whose key says that it is a secret is one, whatever it looks like."""
    named = re.fullmatch(r"(?i).*(password|passwd|secret|api_?key|access_?token|authorization)", key)
    return "[redacted password]" if named and isinstance(value, str) and value else value


def _random(token: str) -> bool:
    """Whether a token is random: upper, lower and digits mixed, of high entropy; hashes and paths are not."""
    if not (re.search(r"[a-z]", token) and re.search(r"[A-Z]", token) and re.search(r"[0-9]", token)):
        return False
    if token.count("/") > 2 or token.count("_") + token.count("-") > 3:
        return False
    counts = Counter(token).values()
    return -sum(n / len(token) * math.log2(n / len(token)) for n in counts) >= MIN_ENTROPY
