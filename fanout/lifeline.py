"""A file that is locked as long as a process lives, so that others on its host see it die.

The kernel lets go of the lock when the process ends, however it ends, and at the same time closes
its connections; a process that is merely stopped keeps both. A file that cannot be seen, because
its process runs on another host or in another container, says nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def common_folder() -> Path:
    """Where the processes of this user on this host keep their files."""
    return Path(tempfile.gettempdir()) / f"fanout-{os.getuid()}"


class Lifeline:
    """The file of one process, and a look at those of others.

    Args:
        holder: the process's name, unique among all.
        folder: where the files are.
    """

    def __init__(self, holder: str, folder: Path) -> None:
        self._folder = folder
        self._path = self._path_of(holder)
        self._file: int | None = None
        self._dead: set[str] = set()

    def open(self) -> None:
        """Lock the file. Without one others only learn of an end when the lease runs out."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            about = self._folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                raise PermissionError(f"{self._folder} is not this user's folder")
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            log.warning("other processes cannot see whether this one lives: %s", error)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = None

    def is_dead(self, holder: str) -> bool:
        """Whether a process has certainly ended."""
        if holder in self._dead:
            return True
        try:
            file = os.open(self._path_of(holder), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            self._dead.add(holder)
            with suppress(OSError):
                self._path_of(holder).unlink()
            return True
        finally:
            os.close(file)

    def is_here(self, holder: str) -> bool:
        """Whether a process certainly lives, on this host."""
        return not self.is_dead(holder) and self._path_of(holder).exists()

    def _path_of(self, holder: str) -> Path:
        # A name may hold what no file name may.
        return self._folder / f"{hashlib.sha256(holder.encode()).hexdigest()[:32]}.alive"
