"""HTML of a report's tables: escaped text, entries that sort, heads that explain themselves. Knows no meanings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

MISSING = "–"


@dataclass(frozen=True)
class Head:
    """The head of a column. detail: a smaller line under it; tip: what the term means, shown on hovering."""

    text: str
    detail: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Entry:
    """An entry of a table.

    detail: smaller text behind it. sort: what the column is sorted by, None sorts last. share: of the entry that a bar
    behind it fills, 0 to 1. best: bold.
    """

    text: str = MISSING
    detail: str = ""
    sort: float | str | None = None
    share: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table; `kind` becomes its class: how it is told from others by its looks."""

    entries: Sequence[Entry]
    kind: str = ""


def table(heads: Sequence[Head], rows: Iterable[Row], *, label: str, sortable: bool = True) -> str:
    """A table that scrolls inside its own frame; the first column holds names and stays in sight."""
    kind = "sortable" if sortable else "plain"
    head = "".join(_head(each, sortable=sortable) for each in heads)
    body = "\n".join(_row(row) for row in rows)
    return (
        f'<div class="frame" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{kind}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def paragraphs(lines: Iterable[str], *, kind: str = "notes") -> str:
    """Sentences as a list."""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def folded(title: str, content: str, *, is_open: bool = False) -> str:
    """Content under a title that opens it."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>\n{content}\n</details>"


def _head(head: Head, *, sortable: bool) -> str:
    detail = f"<small>{escape(head.detail)}</small>" if head.detail else ""
    tip = f' title="{escape(head.tip)}"' if head.tip else ""
    text = f"<span>{escape(head.text)}</span>{detail}"
    return f'<th scope="col"{tip}>' + (f'<button type="button">{text}</button>' if sortable else text) + "</th>"


def _row(row: Row) -> str:
    first, *others = row.entries
    kind = f' class="{escape(row.kind)}"' if row.kind else ""
    cells = "".join(f"<td{_attributes(entry)}>{_content(entry)}</td>" for entry in others)
    return f'<tr{kind}><th scope="row"{_attributes(first)}>{_content(first)}</th>{cells}</tr>'


def _attributes(entry: Entry) -> str:
    sort = "" if entry.sort is None else f' data-sort="{escape(str(entry.sort))}"'
    share = "" if entry.share is None else f' class="bar" style="--share:{100 * entry.share:.1f}%"'
    return sort + share


def _content(entry: Entry) -> str:
    text = f"<b>{escape(entry.text)}</b>" if entry.best else f"<span>{escape(entry.text)}</span>"
    return text + (f" <small>{escape(entry.detail)}</small>" if entry.detail else "")
