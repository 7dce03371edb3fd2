"""Settings as one types them in a terminal, checked against the names and values there are."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["chosen", "parse_settings", "section_titles"]


def chosen(names: Iterable[str], among: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The entries called `names`; raises ValueError that offers the nearest names for another."""
    names = list(names)
    for name in names:
        if name not in among:
            near = difflib.get_close_matches(str(name), among, n=3, cutoff=0.6)
            offer = " or ".join(near) if near else ", ".join(among)
            wanted = offer if near or len(among) == 1 else f"one of {offer}"
            raise ValueError(f"{what}: got {name!r}; expected {wanted}")
    return {name: among[name] for name in names}


def _number(text: str, kind: type) -> float:
    value = kind(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def _value(text: str, default: Any) -> Any:
    """A value of the default's kind; raises ValueError for what is none."""
    if isinstance(default, str):
        return text
    if not isinstance(default, tuple):
        return _number(text, type(default))
    least, dash, most = text.partition("-")
    pair = _number(least, type(default[0])), _number(most if dash else least, type(default[0]))
    if pair[0] > pair[1]:
        raise ValueError(text)
    return pair


def parse_settings(texts: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Thresholds as one types them: `works=5-30`, `caption_words=8`, `ignored_symbols=d e`.

    Raises ValueError for a name that is not among the defaults, for a value of another kind, for a
    negative one, and for a range that ends before it begins.
    """
    found = {}
    for text in texts:
        name, _, value = (piece.strip() for piece in text.partition("="))
        default = chosen([name], defaults, "threshold")[name]
        try:
            found[name] = _value(value, default)
        except ValueError:
            wanted = "-".join(map(str, default)) if isinstance(default, tuple) else default
            raise ValueError(f"{name}: got {value!r}; expected a value such as {wanted}") from None
    return found


def section_titles(
    texts: Iterable[str], titles: Mapping[str, str], headings: Iterable[str]
) -> dict[str, str]:
    """Titles as one types them: `method=Our gadget` calls a section of that title the method.

    Raises ValueError for another part than those of `titles`, and for a title that is in none of
    the `headings`.
    """
    found, headings = {}, list(headings)
    for text in texts:
        part, _, title = (piece.strip() for piece in text.partition("="))
        chosen([part], titles, "section")
        if not title:
            raise ValueError(f"section: got {text!r}; expected PART=TITLE")
        if not any(title.lower() in heading.lower() for heading in headings):
            raise ValueError(f"section: no heading says {title!r}; expected words of a heading")
        found[part] = f"{found.get(part, titles[part])}|{re.escape(title)}"
    return found
