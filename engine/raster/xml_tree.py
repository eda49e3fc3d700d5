"""XML of products and virtual rasters as a plain tree; entities and document types are refused.

Python's own tree builders expand entities, so that a few hundred bytes can fill the memory. This
one is a thin layer over the parser below them, which expands nothing on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat


class XmlError(ValueError):
    """The text is not well-formed XML, or declares a document type."""


@dataclass
class Element:
    """An element: its tag without namespace, attributes, text without outer blanks, children."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find_all(self, tag: str) -> Iterator[Element]:
        """All elements of this tag below, in document order."""
        for child in self.children:
            if child.tag == tag:
                yield child
            yield from child.find_all(tag)

    def first_text(self, *tags: str) -> str | None:
        """The text of the first element below that has one of the tags and is not empty."""
        for tag in tags:
            for element in self.find_all(tag):
                if element.text:
                    return element.text
        return None


def parse_xml(text: str) -> Element:
    """Parse a document.

    Raises:
        XmlError: it is not well-formed, or it has a document type declaration.
    """
    root = Element("")
    open_elements = [root]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag.rsplit(":", 1)[-1], attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def data(characters: str) -> None:
        open_elements[-1].text += characters

    def doctype(*_declaration: object) -> None:
        raise XmlError("The XML declares a document type, which is not accepted.")

    # The text is decoded already, so that the encoding in its declaration no longer holds.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise XmlError(f"The XML is not well-formed: {error}.") from error
    return root.children[0]
