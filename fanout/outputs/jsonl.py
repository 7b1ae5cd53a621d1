"""Records as JSON lines, in a file or on standard output."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from fanout.outputs.writer import OutputError, OutputFailed, RecordWriter, from_line

_BLOCK = 1 << 16


class OutputClosed(OutputFailed):
    """The reader of standard output went away, as `head` does."""


class JsonlWriter(RecordWriter):
    """Appends to a file that only this process writes.

    Args:
        path: the file; must not exist unless `append` or `overwrite`.
        append: continue an existing file. A last line that a crash cut short is dropped: it was
            never flushed.
        overwrite: empty an existing file.

    Raises:
        OutputError: the file cannot be created or opened, is there, or is being written.
    """

    def __init__(self, path: str, *, append: bool = False, overwrite: bool = False) -> None:
        self.path = path
        #: Why nothing more is taken.
        self._broken = ""
        self._fd = _open(path, exclusive=not (append or overwrite))
        try:
            self._lock()
            if overwrite:
                os.ftruncate(self._fd, 0)
            self._end = self._flushed = _mend_tail(self._fd, path)
            sync_folder(path)
        except OSError as error:
            self.release()
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        except OutputError:
            self.release()
            raise

    def write_lines(self, lines: Sequence[bytes]) -> None:
        self._check()
        data = memoryview(b"\n".join([*lines, b""]))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self._end + done)
        except OSError as error:
            self._cut(self._end)
            raise OutputFailed(f"{self.path} cannot be written: {error.strerror}") from error
        self._end += done

    def flush(self) -> None:
        self._check()
        try:
            os.fsync(self._fd)
            kept = os.fstat(self._fd).st_nlink
        except OSError as error:
            # The kernel has dropped what it could not write and would say yes the next time. In the
            # file it would look written, too, until the machine restarts.
            self._cut(self._flushed)
            self._broken = f"{self.path} cannot be made durable: {error.strerror}"
            raise OutputFailed(self._broken) from error
        if not kept:  # written to nowhere: whoever asks must not think that it is safe
            self._broken = f"{self.path} has been removed while it was being written"
            raise OutputFailed(self._broken)
        self._flushed = self._end

    def close(self) -> None:
        if self._fd >= 0:
            try:
                self.flush()
            finally:
                self.release()

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # what was flushed is safe, and nothing else counts
                os.close(fd)

    def _check(self) -> None:
        if self._broken:
            raise OutputFailed(self._broken)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken() from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
            # Some network file systems have no locks; the output is then as safe as without one.
        if not os.fstat(self._fd).st_nlink:
            # Its owner removed it between our opening and locking it.
            raise self._taken()

    def _taken(self) -> OutputError:
        return OutputError(f"{self.path} is being written by another process")

    def _cut(self, end: int) -> None:
        """Remove what does not count: half a batch, which a full disk leaves behind."""
        with suppress(OSError):  # else the next append drops the line that was cut short
            os.ftruncate(self._fd, end)
        self._end = end


class StdoutWriter(RecordWriter):
    """Writes to standard output, and flushes each batch.

    When the reader goes away (`| head`), `write` raises `OutputClosed` and standard output is
    pointed at the null device, so that the interpreter's own flush at exit stays quiet. What was
    not read is not lost: its records were never reported as written.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream or sys.stdout.buffer

    def write_lines(self, lines: Sequence[bytes]) -> None:
        data = b"\n".join([*lines, b""])
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError as error:
            _silence(self._stream)
            raise OutputClosed("the reader of standard output went away") from error
        except OSError as error:
            _silence(self._stream)  # what is buffered would fail again at the interpreter's end
            raise OutputFailed(f"standard output cannot be written: {error.strerror}") from error

    def flush(self) -> None:
        """Nothing is left to do: each batch is flushed as it is written."""

    def close(self) -> None:
        """Standard output is not ours to close."""

    def release(self) -> None:
        """As `close`."""


def _silence(stream: BinaryIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)


def _open(path: str, *, exclusive: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if exclusive else 0), 0o666)
    except FileExistsError:
        raise OutputError(f"{path} exists already: continue it, or overwrite it") from None
    except FileNotFoundError:
        folder = os.path.dirname(path) or os.curdir
        raise OutputError(f"the folder {folder} for {path} does not exist") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _mend_tail(fd: int, path: str) -> int:
    """Make the file end after a whole line; its length then."""
    end = os.fstat(fd).st_size
    start, tail = _last_line(fd, end)
    if not tail:
        return end
    if not tail.startswith(b"{"):
        raise OutputError(f"{path} does not hold JSON lines, so it is not continued")
    try:
        from_line(tail)
    except ValueError:
        os.ftruncate(fd, start)
        return start
    os.pwrite(fd, b"\n", end)  # a whole record of which only the line's end is missing
    return end + 1


def _last_line(fd: int, end: int) -> tuple[int, bytes]:
    """Where the text after the last line's end starts, and that text."""
    tail = b""
    while end:
        start = max(end - _BLOCK, 0)
        block = os.pread(fd, end - start, start)
        cut = block.rfind(b"\n") + 1
        tail = block[cut:] + tail
        if cut:
            return start + cut, tail
        end = start
    return 0, tail


def sync_folder(path: str) -> None:
    """Make the file's name as durable as its contents, where the file system can."""
    try:
        fd = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY)
    except PermissionError:
        return  # a folder may be written and not be read
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems sync no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(fd)
