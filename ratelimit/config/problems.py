"""The lines of a ConfigError: ``source: field: problem``, without values that may be secret."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ratelimit.notation import printable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MAX_LINE = 500  # characters per line
ENV_PREFIX = "RATELIMIT_"
ENV_DELIMITER = "__"


def explained(path: Path | None, detail: ErrorDetails) -> str:
    """Return the line for one error of the models."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    message = _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    return problem_line(path, loc, re.sub("^Input should be", "must be", message))


_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must have 1 to 64 of the characters A-Z a-z 0-9 _ . : -",
}


def problem_line(path: Path | None, loc: tuple[int | str, ...], message: str) -> str:
    """Return ``source: field: message``; the source is the file or variable to correct."""
    if (found := variable_of(loc)) is not None:
        variable, inside = found
        if inside and not str(inside[0]).isdigit():  # the variable holds a table, as JSON
            message = f"{_dotted(inside)}: {message}"
        return shortened(f"environment: {variable}: {message}")
    return shortened(f"{path or 'defaults'}: {_dotted(loc)}: {message}")


def shortened(line: str) -> str:
    """Escape a line, and shorten it in the middle if it is too long."""
    shown = printable(line)
    return shown if len(shown) <= _MAX_LINE else f"{shown[:300]} ... {shown[-190:]}"


def variable_of(loc: tuple[int | str, ...]) -> tuple[str, tuple[int | str, ...]] | None:
    """Return the environment variable that set a field, a part of it, or its table, or None.

    The second value is the path from what the variable set to the field.
    """
    names = {name.upper(): name for name in os.environ}
    for size in range(len(loc), 0, -1):
        wanted = ENV_PREFIX + ENV_DELIMITER.join(str(part) for part in loc[:size]).upper()
        for name, shown in names.items():
            if name == wanted or (size == len(loc) and name.startswith(wanted + ENV_DELIMITER)):
                return shown, loc[size:]
    return None


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Return ``limits.default.rate``; names are quoted where TOML requires it."""
    parts = (str(part) for part in loc)
    return ".".join(p if re.fullmatch("[A-Za-z0-9_-]+", p) else ascii(p) for p in parts)
