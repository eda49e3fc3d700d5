"""Help of the algorithms: one Markdown file each, for the dialog, tooltips and the command line.

The subset of Markdown is what the files need: headings, paragraphs, lists, fenced code, `code`,
**bold**, *emphasis* and [links](https://…). Sections are headings of the second level.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"^[-*] `(?P<name>[A-Z0-9_]+)`:? (?P<text>.+)$")
_FENCE = "```"
_LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")
_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)"), r"<i>\1</i>"),
    (_LINK, r'<a href="\2">\1</a>'),
)


@dataclass(frozen=True)
class HelpPage:
    """The help of one algorithm.

    Args:
        text: of the whole file, as Markdown.
    """

    text: str

    @classmethod
    def read(cls, path: Path) -> HelpPage:
        """Read a page; a missing one is empty, as the algorithm works without it."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except OSError:
            return cls("")

    def entries(self) -> dict[str, str]:
        """Collect the lines that explain a parameter or an output, by its name, as plain text."""
        matches = (_ENTRY.match(line) for line in _joined_lines(self.text))
        return {match["name"]: _plain(match["text"]) for match in matches if match}

    def first_sentence(self) -> str:
        """Read the first paragraph, for one-line descriptions."""
        for block in self.text.split("\n\n"):
            if block.strip() and not block.startswith("#"):
                return _plain(" ".join(block.split()))
        return ""

    def as_html(self, titles: Mapping[str, str]) -> str:
        """Render the page for the algorithm's dialog.

        Args:
            titles: what the dialog calls the parameters and outputs, by name.
        """
        return "\n".join(_render(_joined_lines(self.text), titles))

    def as_text(self) -> str:
        """Write the page for a terminal, which shows first sentence and parameters itself."""
        sections = re.split(r"(?m)^(?=## )", self.text)[1:]
        kept = (section for section in sections if not section.startswith("## Parameters"))
        return "".join(_without_marks(section) for section in kept).strip()


def _joined_lines(text: str) -> Iterator[str]:
    """Give one line for each heading, paragraph, list item and line of code."""
    pending = ""
    in_code = False
    for line in text.splitlines():
        if line.startswith(_FENCE):
            in_code = not in_code
        starts_new = in_code or not line.strip() or line.startswith((_FENCE, "#", "- ", "* "))
        if starts_new and pending:
            yield pending
            pending = ""
        if in_code or line.startswith((_FENCE, "#")):
            yield line
        elif line.strip():
            pending = f"{pending} {line.strip()}".strip()
    if pending:
        yield pending


def _render(lines: Iterator[str], titles: Mapping[str, str]) -> Iterator[str]:
    in_list = in_code = False
    for line in lines:
        if line.startswith(_FENCE):
            in_code = not in_code
            yield "<pre>" if in_code else "</pre>"
            continue
        is_item = not in_code and line.startswith(("- ", "* "))
        if is_item != in_list:
            yield "<ul>" if is_item else "</ul>"
            in_list = is_item
        yield html.escape(line) if in_code else _render_line(_titled(line, titles), is_item)
    if in_list:
        yield "</ul>"


def _render_line(line: str, is_item: bool) -> str:
    if line.startswith("#"):
        return f"<h3>{_inline(line.lstrip('# '))}</h3>"
    return f"<li>{_inline(line[2:])}</li>" if is_item else f"<p>{_inline(line)}</p>"


def _titled(line: str, titles: Mapping[str, str]) -> str:
    """Begin the entry of a parameter with what the dialog calls it."""
    match = _ENTRY.match(line)
    if match is None or match["name"] not in titles:
        return line
    return f"- **{titles[match['name']]}**: {match['text']}"


def _without_marks(section: str) -> str:
    """A section without its marks; code, between fences, stays as it is."""
    prose, *rest = section.split(f"{_FENCE}\n")
    prose = _LINK.sub(r"\1: \2", prose.replace("## ", "", 1))
    return "".join([prose.replace("`", "").replace("*", ""), *rest])


def _plain(text: str) -> str:
    return text.replace("`", "").replace("*", "")


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
