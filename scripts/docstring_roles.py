"""Docstrings as the documentation site shows them: an extension of griffe, which mkdocstrings loads.

The docstrings of the package name other parts by roles, :class:`~gnewton.partition.Partition`, and end the
line before an example in two colons, as is usual in Python. Markdown knows neither.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)(?:[\w.]*?\.)?(\w+(?:\.\w+)?)`")
_PAGE = re.compile(r"\bdocs/([\w/]+)\.md\b")


def as_markdown(text: str) -> str:
    """The text of a docstring with code in place of roles, and links to pages of the site."""
    text = _ROLE.sub(lambda match: f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`", text)
    text = _PAGE.sub(lambda match: f"[{match[1]}](../{match[1]}.md)", text)
    return re.sub(r"^(\s*)Example::$", r"\1**Example**", text, flags=re.M)


class DocstringRoles(griffe.Extension):  # type: ignore[misc]
    """Rewrites every docstring when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
