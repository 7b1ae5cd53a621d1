"""What an item's runner may raise that goes from a child process to the worker as it is."""

from __future__ import annotations

from fanout import Unavailable
from fanout_workers.attempts import Stopping
from fanout_workers.item import Released

#: By the name under which a child process says it.
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (Stopping, Released, Unavailable)
}
