"""Standard streams that are closed or full: no traceback, right exit codes, nothing misplaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FANOUT = f"{sys.executable} -P -m fanout"
AWAY = "status --redis redis://127.0.0.1:1"


def ran(line: str, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=60, **how
    )


@pytest.mark.parametrize("where", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_complaint_needs_no_stream(where: str) -> None:
    done = ran(f"{FANOUT} {AWAY} {where}")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("where", "words"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left")]
)
def test_a_standard_output_that_takes_nothing_is_said(where: str, words: str) -> None:
    done = ran(f"{FANOUT} sim --help {where}")
    assert done.returncode == 3
    assert done.stderr.startswith("fanout: standard output cannot be written:")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_no_message_lands_in_a_file_that_is_opened_later(tmp_path: Path) -> None:
    code = (
        "import fanout.cli.console as c; f = open('out.txt', 'w'); c.note('progress'); "
        "print('data', file=f); f.close()"
    )
    done = ran(
        f'{sys.executable} -P -c "{code}" >&- 2>&-',
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0
    assert (tmp_path / "out.txt").read_text() == "data\n"


@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_records_that_are_not_taken_are_a_failed_output(where: str) -> None:
    code = (
        "import fanout.cli.console; from fanout.outputs import OutputFailed, open_output\n"
        "out = open_output('-')\n"
        "try: out.write([{'a': 1}])\n"
        "except OutputFailed: raise SystemExit(3)"
    )
    done = ran(f'{sys.executable} -P -c "{code}" {where}')
    assert (done.returncode, done.stderr) == (3, "")
