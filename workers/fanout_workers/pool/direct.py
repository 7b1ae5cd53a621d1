"""Tasks that run without Celery's tracer, as long as nothing asks for what it does.

The tracer builds a request, calls signals, stores the result and sends callbacks: a tenth of what
an item costs. For a task whose result nobody keeps and that nobody listens to all of that comes to
nothing. What fails still goes through the tracer, which then finds that its function has raised.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from celery import signals

#: Runs a task: called with its id, its keyword arguments and its message's headers.
Direct = Callable[[str, dict[str, Any], Mapping[str, Any]], Coroutine[Any, Any, None]]

#: What a message may ask for that only the tracer does.
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
_HEADERS = ("group", "chord", "callbacks", "errbacks", "chain")


def run_directly(task: Any, run: Direct) -> None:
    """Let `run` do what `task` does; its coroutine raises what the task's would."""
    task.__direct__ = run


def direct_call(task: Any, args: Sequence[Any]) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """Starts the task without the tracer; None if the tracer is needed.

    Args:
        task: the Celery task.
        args: what Celery calls its tracer with.
    """
    run: Direct | None = getattr(task, "__direct__", None)
    if run is None or len(args) < 5 or _is_heard():
        return None
    _, task_id, request, body, content_type = args[:5]
    # With a content type the body is still to be decoded.
    if content_type or not request.get("ignore_result") or any(request.get(k) for k in _HEADERS):
        return None
    positional, keywords, embedded = body
    if positional or (embedded and any(embedded.get(k) for k in _EMBEDDED)):
        return None
    if type(keywords) is not dict:
        return None
    call = run  # for the closure: mypy forgets that it is not None
    return lambda: call(task_id, keywords, request)


def _is_heard() -> bool:
    return bool(
        signals.task_prerun.receivers
        or signals.task_postrun.receivers
        or signals.task_success.receivers
    )
