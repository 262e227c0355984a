"""Where in a text a call opens, and what of a text's end may be the start of that.

Filler is what belongs to the form around calls: white space, and the semicolon between calls without markers.
"""

from __future__ import annotations

import re

from specproxy.tools.formats import ToolFormat

_SPACE = re.compile(r"\s*")
_SPACE_OR_SEMICOLON = re.compile(r"\s*;?\s*")


def find_opening(form: ToolFormat, text: str, *, quiet: bool, again: bool) -> tuple[int, int] | None:
    """Where the first opening begins and ends; an object by itself has no marker, so it ends where it begins. What
    templates put between a tagged call and what precedes it belongs to the opening.

    ``quiet``: nothing but filler precedes ``text``, since the answer's start or, with ``again``, since a call.
    """
    if form.layout == "bare" and quiet:
        filler = _filler(form, again).match(text)
        end = 0 if filler is None else filler.end()
        if text[end : end + 1] == "{":
            return end, end
    start = text.find(form.opening)
    if start < 0:
        return None
    lead = form.between if form.layout == "tagged" else ""
    return len(text[:start].removesuffix(lead)), start + len(form.opening)


def surely_text(form: ToolFormat, text: str) -> str:
    """``text``, which holds no opening, but for its end where that may be the start of one."""
    lead = form.between if form.layout == "tagged" else ""
    return min(without_start_of(form.opening, text), without_start_of(lead + form.opening, text), key=len)


def is_filler(form: ToolFormat, text: str, *, again: bool) -> bool:
    """Whether ``text`` is of the form and says nothing; ``again``: a call has been made before it."""
    return _filler(form, again).fullmatch(text) is not None


def without_start_of(marker: str, text: str) -> str:
    """``text`` but for its end, where that may be the start of ``marker``."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return text[:-size]
    return text


def _filler(form: ToolFormat, again: bool) -> re.Pattern[str]:
    return _SPACE_OR_SEMICOLON if form.layout == "bare" and again else _SPACE
