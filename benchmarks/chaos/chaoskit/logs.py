"""Tracebacks in the logs, those that a fault explains left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaoskit.faults import Fault

_TRACEBACK = "Traceback (most recent call last):"
#: Last lines of tracebacks that belong to a lost broker: Celery logs each loss with one.
_BROKER = re.compile(
    r"^(redis\.exceptions\.)?(ConnectionError|TimeoutError|BusyLoadingError|OutOfMemoryError)"
    r"|^redis\.exceptions\.(ReadOnlyError|MasterDownError|ResponseError: NOREPLICAS)"
    r"|^redis\.exceptions\.ResponseError: (Command # \d+ .* caused error: )?MISCONF "
    r"|^billiard\.exceptions\.RestartFreqExceeded"  # Celery's pause between attempts to connect
    r"|^(kombu|amqp)\.exceptions\.(OperationalError|ConnectionError)"
    r"|^(ConnectionResetError|ConnectionRefusedError|BrokenPipeError|OSError: \[Errno)"
)
#: Of messages that Celery or a worker cannot read, or whose task nobody knows.
_ROTTEN = re.compile(
    r"^(kombu\.exceptions\.(ContentDisallowed|DecodeError)|KeyError: 'no\.such\.task')"
    r"|^TypeError: .* positional argument|the message holds no item"
)


def unexpected(folder: Path, faults: Sequence[Fault]) -> list[str]:
    """Tracebacks that no fault of the plan explains: log, count and last line."""
    lost = any(fault.loses_broker for fault in faults)
    rotten = any(fault.name == "rotten-tasks" for fault in faults)
    found: Counter[tuple[str, str]] = Counter()
    for log in sorted(folder.glob("*.log")):
        for last in tracebacks(log.read_text(errors="replace")):
            explained = (lost and _BROKER.search(last)) or (rotten and _ROTTEN.search(last))
            if not explained:
                found[log.name, last[:200]] += 1
    return [f"{log}: {count} x {last}" for (log, last), count in found.items()]


def tracebacks(text: str) -> Iterator[str]:
    """The last line of each traceback: what was raised. Of a chain, the last."""
    lines = iter(text.splitlines())
    for line in lines:
        if _TRACEBACK not in line:
            continue
        raised = "(cut)"
        for following in lines:
            if following and not following.startswith((" ", "\t")):
                raised = following
                break
        yield raised
