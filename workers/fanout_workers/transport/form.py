"""The form that kombu gives a message, as far as it must not be missing.

Anybody who reaches the database can write into a queue. What kombu and Celery take for granted is
looked at before they do.
"""

from __future__ import annotations

from typing import Any


def problem_of(message: Any) -> str | None:
    """What keeps the decoded JSON from being a message of kombu's; None if nothing does."""
    if not isinstance(message, dict):
        return f"it is a {type(message).__name__}"
    properties = message.get("properties")
    if not isinstance(properties, dict):
        return "it has no properties"
    tag = properties.get("delivery_tag")
    if not (isinstance(tag, str) and tag):
        return "it has no delivery tag"
    info = properties.get("delivery_info")
    parts = (
        ("headers", message.get("headers"), dict),
        ("delivery_info", info, dict),
        ("body", message.get("body"), str),
        ("content-type", message.get("content-type"), str),
        ("content-encoding", message.get("content-encoding"), str),
        ("body_encoding", properties.get("body_encoding"), str),
    )
    for name, value, wanted in parts:
        if value is not None and not isinstance(value, wanted):
            return f"its {name} is a {type(value).__name__}"
    for name in ("exchange", "routing_key"):
        if not isinstance((info or {}).get(name, ""), str):
            return f"its {name} is no text"
    return None
