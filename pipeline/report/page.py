"""Renders sections of text, tables and pictures as one self-contained HTML file."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

from .figures import class_colours

__all__ = ["Picture", "Section", "Table", "Widget", "facts_table", "legend", "render_page"]

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c22; background: #fff; max-width: 1180px; margin: 2em auto;
  padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: .2em } h2 { font-size: 1.2em; margin: 2em 0 .3em; border-bottom: 1px solid #ddd }
p.lead { font-size: 1.1em } figure { margin: 1em 0 } figure img { max-width: 100%; display: block }
figcaption, .note { color: #555; font-size: .9em } table { border-collapse: collapse; margin: .8em 0; font-size: .93em }
th, td { padding: .25em .8em; border-bottom: 1px solid #e4e4e8; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere }
table.facts td { text-align: left; overflow-wrap: anywhere } .legend span { margin-right: 1.1em; white-space: nowrap }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.08em }
</style></head><body>
<h1>$title</h1>
<p class="lead">$lead</p>
$body
</body></html>
""")


@dataclass(frozen=True)
class Picture:
    """A PNG and its caption."""

    png: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; ``facts`` tables have two left-aligned columns and no header."""

    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Widget:
    """HTML with its script, embedded as it is."""

    html: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a paragraph, and tables, pictures and widgets; ``legend`` is HTML from :func:`legend`."""

    heading: str
    text: str = ""
    legend: str = ""
    parts: Sequence[Picture | Table | Widget] = field(default_factory=tuple)


def legend(classes: Sequence[str]) -> str:
    """Returns HTML that names the colour of every class."""
    colours = (255 * class_colours(classes)).round().astype(int)
    spans = [
        f'<span><i style="background:rgb({r},{g},{b})"></i>{html.escape(name)}</span>'
        for name, (r, g, b) in zip(classes, colours, strict=True)
    ]
    return f'<p class="legend">{"".join(spans)}</p>'


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns the HTML file; all text is escaped, and all pictures are embedded."""
    body = "\n".join(_section(section) for section in sections)
    return PAGE.substitute(title=html.escape(title), lead=html.escape(lead), body=body)


def facts_table(facts: Mapping[str, object]) -> Table:
    """Returns a two-column table of names and values."""
    return Table(rows=[(name, _format(value)) for name, value in facts.items()])


def _format(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return "none" if value is None or value == "" else str(value)


def _section(section: Section) -> str:
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    parts = "\n".join(_part(part) for part in section.parts)
    return f"<h2>{html.escape(section.heading)}</h2>\n{text}{section.legend}\n{parts}"


def _part(part: Picture | Table | Widget) -> str:
    if isinstance(part, Widget):
        return part.html
    return _picture(part) if isinstance(part, Picture) else _table(part)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    kind = "" if table.header else ' class="facts"'
    return f"<table{kind}>{f'<tr>{head}</tr>' if head else ''}{rows}</table>"
