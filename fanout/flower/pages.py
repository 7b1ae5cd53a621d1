"""fanout's columns on Flower's page of tasks, and an item's figures on the page of one task.

Written against Flower 2.2: its columns are a dict in `flower.views.tasks`, its table asks the
server for sorted and searched rows, and its templates are found by a Tornado loader.
"""

from __future__ import annotations

import ast
import copy
from itertools import groupby
from pathlib import Path
from typing import Any

import flower.urls
from celery.events.state import Task
from flower.events import EventsState
from flower.utils import search
from flower.views import tasks
from tornado.routing import URLSpec
from tornado.template import Loader, Template

from fanout.flower.fields import FIELDS, NAMES, number, shown

_TEMPLATES = Path(__file__).with_name("templates")
_FLOWERS = "flower/"

#: Fields of a task that are Celery's own.
_CELERYS: tuple[str, ...] = Task._fields


def install() -> None:
    """Put all of it in; to be called once, before Flower builds its application."""
    for name in NAMES:
        setattr(Task, name, None)
    Task._fields = (*_CELERYS, *NAMES)
    for field in FIELDS:
        tasks.TASK_COLUMNS[field.name] = field.label
    search._task_sort_key = _numeric(search._task_sort_key)
    search.SearchDocument.from_task = classmethod(_searchable(search.SearchDocument.from_task))
    EventsState._index_task = _naming(EventsState._index_task)
    settings = flower.urls.settings
    settings["template_loader"] = ItemLoader(settings["template_path"])
    for position, handler in enumerate(flower.urls.handlers):
        if isinstance(handler, URLSpec) and handler.handler_class is tasks.TaskView:
            flower.urls.handlers[position] = URLSpec(
                handler.regex.pattern, ItemView, handler.kwargs, handler.name
            )


class ItemLoader(Loader):
    """Finds fanout's templates first, then Flower's; `flower/NAME` is always Flower's."""

    def _create_template(self, name: str) -> Template:
        ours = _TEMPLATES / name
        path = ours if ours.is_file() else Path(self.root) / name.removeprefix(_FLOWERS)
        return Template(path.read_bytes(), name=name, loader=self)


class ItemView(tasks.TaskView):
    """The page of one task: the item's figures, then what Celery knows."""

    def format_task(self, task: Any) -> Any:
        """The task as Flower's template shows it, field by field."""
        formatted = copy.copy(super().format_task(task))
        formatted._fields = _CELERYS  # the item's are shown apart, in their own words
        return formatted

    def get_template_namespace(self) -> dict[str, Any]:
        """Names that the template may use."""
        namespace: dict[str, Any] = super().get_template_namespace()
        return {**namespace, "item_groups": item_groups}


def item_groups(task: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(label, text), ...]) of what is known of the item; the template escapes it."""
    known = [
        (field.group, field.label, shown(field, value))
        for field in FIELDS
        if (value := getattr(task, field.name, None)) is not None
    ]
    return [
        (group, [(label, text) for _, label, text in rows])
        for group, rows in groupby(known, key=lambda row: row[0])
    ]


def _numeric(sort_key: Any) -> Any:
    """Flower sorts all but three columns as text: 9 tokens after 10."""
    numeric = {field.name for field in FIELDS if field.form != "text"}

    def key(task: Any, sort_by: str, task_id: str) -> tuple[bool, Any, str]:
        if sort_by not in numeric:
            found: tuple[bool, Any, str] = sort_key(task, sort_by, task_id)
            return found
        value = number(getattr(task, sort_by, None))
        return (False, 0.0, task_id) if value is None else (True, value, task_id)

    return key


def _searchable(from_task: Any) -> Any:
    """Let a search without a field find what the text columns hold."""
    texts = [field.name for field in FIELDS if field.form == "text"]

    def build(cls: Any, task: Any) -> Any:
        document = from_task(task)
        known = [search._normalize(getattr(task, name, None)) for name in texts]
        document.all_text = "\x00".join([document.all_text, *known])
        return document

    return build


def _naming(index_task: Any) -> Any:
    """Give a task that waits in a worker its item's name: only its keyword arguments hold it."""

    def index(self: Any, task: Any, evicted: Any) -> None:
        if task.item is None:
            task.item, task.job = _named(task.kwargs)
        index_task(self, task, evicted)

    return index


def _named(kwargs: Any) -> tuple[str | None, str | None]:
    try:
        known = ast.literal_eval(kwargs) if isinstance(kwargs, str) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        known = None  # Celery cuts a long text anywhere
    if not isinstance(known, dict):
        return None, None
    item, job = known.get("id"), known.get("job")
    return (str(item) if item else None), (str(job) if job else None)
