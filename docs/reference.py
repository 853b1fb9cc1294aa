"""MkDocs hook: fills the reference pages of settings and commands from the code."""

import json
import types
from html import escape
from typing import Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from xd3d.pipeline.cli import app
from xd3d.pipeline.config import Config


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replaces the markers of a page with generated text."""
    if page.file.src_uri == "reference/settings.md":
        return markdown.replace("<!-- settings -->", "\n".join(settings_tables(Config)))
    if page.file.src_uri == "reference/commands.md":
        return markdown.replace("<!-- commands -->", command_pages())
    return markdown


def command_pages() -> str:
    """Returns the options of every command in Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="xd3d")
    for name, each in command.commands.items():  # typer cuts what a command does after 45 characters
        text = text.replace(
            f"* `{name}`: {each.get_short_help_str()}", f"* `{name}`: {each.get_short_help_str(limit=300)}"
        )
    return text.replace("# `xd3d`", "## `xd3d`", 1)


def settings_tables(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Returns one table per group of settings: key, type, default and description."""
    rows: list[str] = []
    groups: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups += settings_tables(field.annotation, f"{prefix}{name}.")
        else:
            cells = [
                f"`{prefix}{name}`",
                _type(field.annotation),
                f"`{_default(field)}`",
                escape(field.description or ""),
            ]
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    head = [
        f"\n### {prefix.rstrip('.') or 'Top level'}\n",
        "| setting | type | default | description |",
        "|---|---|---|---|",
    ]
    return [*(head if rows else []), *(row.replace("\n", " ") for row in rows), *groups]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value.model_dump(mode="json") if isinstance(value, BaseModel) else value, default=str)


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _type(part) for part in get_args(annotation))
    if origin is not None and not isinstance(annotation, type):
        arguments = ", ".join(_type(part) for part in get_args(annotation) if part is not ...)
        return f"{getattr(origin, '__name__', origin)} of {arguments}"
    return getattr(annotation, "__name__", str(annotation))
