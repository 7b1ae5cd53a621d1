"""Child processes end when they are told to, and when the parent ends in whatever way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanout.local.processes import LocalError, Process, Stack

DEADLINE_S = 30.0
PATIENT = "import signal, time; print('up', flush=True); time.sleep(600)"
POLITE = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); {PATIENT}"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {PATIENT}"
DEAF = f"import signal; signal.signal(3, signal.SIG_IGN); {STUBBORN}"
# Starts a process of its own that ignores SIGTERM, and writes both pids.
FAMILY = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print("pids", os.getpid(), child.pid, flush=True)
child.wait()
"""
PARENT = f"""
import os, sys, time
from pathlib import Path
from fanout.local.processes import Process, Stack

log = Path(sys.argv[1])
with Stack(grace_s=0.2) as stack:
    child = Process("family", [sys.executable, "-c", {FAMILY!r}], log=log)
    stack.start(child, ready=lambda: "pids" in child.tail())
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(600)
    print("up", flush=True)
    time.sleep(600)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] in ("", "Z")


def python(name: str, code: str, folder: Path) -> Process:
    return Process(name, [sys.executable, "-c", code], log=folder / f"{name}.log")


def pids(log: str) -> list[int]:
    return [int(word) for word in log.split("pids", 1)[1].split()[:2]]


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack() as stack:
        yield stack


def start(stack: Stack, process: Process) -> Process:
    return stack.start(process, ready=lambda: "up" in process.tail(), deadline_s=DEADLINE_S)


def test_stop_lets_the_child_end_by_itself(stack: Stack, tmp_path: Path) -> None:
    process = start(stack, python("polite", POLITE, tmp_path))
    assert process.alive
    assert process.stop(grace_s=DEADLINE_S) == 7
    assert not process.alive
    assert process.stop() == 7


def test_stop_kills_a_child_that_ignores_it(stack: Stack, tmp_path: Path) -> None:
    process = start(stack, python("deaf", DEAF, tmp_path))
    assert process.stop(grace_s=0.1) == 128 + signal.SIGKILL


def test_stop_hurries_a_child_before_it_kills_it(stack: Stack, tmp_path: Path) -> None:
    process = start(stack, python("stubborn", STUBBORN, tmp_path))
    assert process.stop(grace_s=0.1) == 128 + signal.SIGQUIT


def test_stop_takes_the_childs_children_along(stack: Stack, tmp_path: Path) -> None:
    process = python("family", FAMILY, tmp_path)
    stack.start(process, ready=lambda: "pids" in process.tail())
    family = pids(process.tail())
    assert family[0] == process.pid
    process.stop()
    until(lambda: all(gone(pid) for pid in family))


def test_a_stopped_process_can_be_started_again(stack: Stack, tmp_path: Path) -> None:
    process = start(stack, python("polite", POLITE, tmp_path))
    process.stop()
    process.start()
    until(lambda: process.tail() == "up")  # the lines of the first run do not count
    with pytest.raises(LocalError, match="polite is running already"):
        process.start()


def test_exit_status_and_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['WORD']); sys.exit(3)"
    process = Process(
        "leaver", [sys.executable, "-c", code], log=tmp_path / "log", env={"WORD": "hello"}
    )
    process.start()
    until(lambda: not process.alive)
    assert process.stop() == 3
    assert process.tail() == "hello"


def test_command_that_does_not_exist(tmp_path: Path) -> None:
    process = Process("ghost", [tmp_path / "ghost"], log=tmp_path / "log")
    with pytest.raises(LocalError, match="ghost cannot be started: No such file"):
        process.start()
    assert not process.alive


def test_stack_stops_in_reverse_order(tmp_path: Path) -> None:
    log = tmp_path / "order"
    code = "import signal, sys; signal.signal(15, lambda *_: (print(sys.argv[1]), sys.exit(0)))"
    with Stack() as stack:
        for name in ("first", "second", "third"):
            argv = [sys.executable, "-c", f"{code}; {PATIENT}", name]
            start(stack, Process(name, argv, log=log))
        assert [process.name for process in stack.processes] == ["first", "second", "third"]
    assert log.read_text().split() == ["up", "up", "up", "third", "second", "first"]


def test_stack_reports_a_process_that_ends_before_it_is_ready(stack: Stack, tmp_path: Path) -> None:
    broken = python("broken", "print('no such option'); raise SystemExit(4)", tmp_path)
    with pytest.raises(LocalError, match=r"(?s)broken ended with status 4.*no such option"):
        stack.start(broken, ready=lambda: False, deadline_s=DEADLINE_S)


def test_an_error_in_the_block_stops_everything(tmp_path: Path) -> None:
    process = python("polite", POLITE, tmp_path)

    def fail() -> None:
        with Stack() as stack:
            start(stack, process)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert process.returncode == 7


def test_stack_reports_a_process_that_is_never_ready(stack: Stack, tmp_path: Path) -> None:
    process = python("slow", PATIENT, tmp_path)
    with pytest.raises(LocalError, match=r"(?s)slow was not ready within 0\.5 s"):
        stack.start(process, ready=lambda: False, deadline_s=0.5)


def test_stack_knows_what_ended_unasked(stack: Stack, tmp_path: Path) -> None:
    stays = start(stack, python("stays", PATIENT, tmp_path))
    leaves = start(stack, python("leaves", PATIENT, tmp_path))
    assert leaves.pid is not None
    os.kill(leaves.pid, signal.SIGKILL)
    until(lambda: stack.ended() == (leaves,))
    assert leaves.returncode == 128 + signal.SIGKILL
    assert stays.alive


@pytest.mark.parametrize("mode", ["plain", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_outlives_the_parent(number: signal.Signals, mode: str, tmp_path: Path) -> None:
    log = tmp_path / "family.log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its forked copy is killed with the group below
    )
    try:
        assert parent.stdout is not None
        with parent.stdout as output:
            assert output.readline() == b"up\n"
        family = pids(log.read_text())
        assert not any(gone(pid) for pid in family)
        parent.send_signal(number)
        status = parent.wait(DEADLINE_S)
        if number in (signal.SIGTERM, signal.SIGHUP):
            assert status == 128 + number
        until(lambda: all(gone(pid) for pid in family))
    finally:
        if not gone(parent.pid) or mode == "fork":
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to a killed guard")
def test_the_child_does_not_outlive_a_killed_guard(stack: Stack, tmp_path: Path) -> None:
    process = start(stack, python("patient", PATIENT, tmp_path))
    pid = process.pid
    assert pid is not None
    os.kill(os.getsid(pid), signal.SIGKILL)  # the guard leads the child's session
    until(lambda: gone(pid))
    until(lambda: not process.alive)
