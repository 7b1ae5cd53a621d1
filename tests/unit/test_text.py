"""Text from outside on its way to a terminal or a log."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from fanout.cli import main
from fanout.cli.console import complain, note, plain, stderr
from fanout.errors import UsageError
from fanout.local.processes import LocalError
from fanout.text import safe
from fanout_workers.__main__ import SafeFormatter


def test_what_a_terminal_would_obey_is_replaced() -> None:
    assert (
        safe("\x1b[2J a\x07\x7f\x9b \u202egnp.exe") == "\ufffd[2J a\ufffd\ufffd\ufffd \ufffdgnp.exe"
    )
    assert safe("a\nb\tc\r\u2028d") == "a\ufffdb\ufffdc\ufffd\ufffdd"
    assert safe("a\nb\tc\rd", lines=True) == "a\nb\tc\ufffdd"
    assert safe("Grüße, 世界 🙂") == "Grüße, 世界 🙂"


def test_shown_text_is_cut_with_an_ellipsis() -> None:
    assert plain("a\nb" * 10, 5) == "a\ufffdba…"
    assert plain("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize("say", [complain, note])
def test_a_message_is_one_line_whatever_is_in_it(say: Callable[[str], None]) -> None:
    with stderr.capture() as said:
        say("the server says: a\nfanout: all is well\r\x1b[2J\x00")
    assert said.get().endswith("a\ufffdfanout: all is well\ufffd\ufffd[2J\ufffd\n")
    assert said.get().count("\n") == 1


def test_only_the_tail_of_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def fail(*args: object, **options: object) -> None:
            raise error

        return fail

    for error, lines in (
        (UsageError("a\nb"), 1),
        (LocalError("redis ended; its last log lines:\na\nb"), 3),
    ):
        monkeypatch.setattr("fanout.cli.app", failing(error))
        with stderr.capture() as said:
            assert main(["status"]) == 2
        assert said.get().count("\n") == lines


def test_a_log_line_stays_one_line() -> None:
    record = logging.LogRecord(
        "fanout",
        logging.WARNING,
        __file__,
        1,
        "endpoint %s: %s",
        ("a", "x\n2026 INFO\x1b[2J"),
        None,
    )
    assert SafeFormatter("%(message)s").format(record) == "endpoint a: x\ufffd2026 INFO\ufffd[2J"


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        found = (type(error), error, error.__traceback__)
    record = logging.LogRecord("fanout", logging.ERROR, __file__, 1, "broken", (), found)
    lines = SafeFormatter("%(message)s").format(record).splitlines()
    assert lines[:2] == ["broken", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: \ufffd[2J"
