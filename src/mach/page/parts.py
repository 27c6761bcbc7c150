"""What is a page made of, whatever it is about?"""

from __future__ import annotations

from dataclasses import dataclass, field

from mach.page.picture import Picture


@dataclass(frozen=True)
class Tile:
    """One of the numbers that answer the first question."""

    question: str
    number: str
    unit: str
    more: str


@dataclass(frozen=True)
class Cell:
    """Of a table."""

    text: str
    share: float | None = None
    """0 to 1: how much of the column's largest it is; drawn as a bar behind the text."""


@dataclass(frozen=True)
class Table:
    """Rows under a heading."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    text_columns: int = 1
    """The first so many columns are text, the others are numbers."""
    marked: int | None = None
    """A row to look at first."""
    sortable: bool = False
    folded: bool = False
    """Shown when it is asked for."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a name."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class Page:
    """All of it."""

    kind: str
    """What it is about: a run, a sweep."""
    title: str
    summary: str
    tiles: list[Tile]
    sections: list[Section]
    problems: list[str]
    """What could not be read."""
    footer: str
    colours: int
    """For how many components, or other things in an order, colours are needed."""

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]


def cells(*texts: str) -> list[Cell]:
    """A row of plain cells."""
    return [Cell(text) for text in texts]
