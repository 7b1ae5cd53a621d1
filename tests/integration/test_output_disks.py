"""Outputs on disks that are full, read-only or gone, as the kernel tells it."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from fanout.outputs import OutputError, OutputFailed, RecordWriter, open_output, read_records

DISK_KB = 256
FORMATS = ["out.jsonl", "out.parquet"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 256 KB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def no_file_over(limit: int) -> Iterator[None]:
    """A quota, as any user can give it to himself: writing stops in the middle of a batch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines(first: int, count: int = 40) -> list[bytes]:
    """Records of about 1 KB that do not compress."""
    return [
        orjson.dumps({"id": str(n), "status": "ok", "data": bytes(range(256)).hex() * 2})
        for n in range(first, first + count)
    ]


def fill(writer: RecordWriter) -> int:
    """Write batches until one is refused; how many records were made durable."""
    for first in range(0, 100_000, 40):
        try:
            writer.write_lines(lines(first))
            writer.flush()
        except OutputFailed:
            return first
    raise AssertionError("the disk is never full")


def ids(path: Path) -> list[str]:
    return [record["id"] for record in read_records(str(path))]


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_keeps_whole_batches_and_goes_on_when_there_is_room(
    disk: Path, name: str
) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(DISK_KB // 2 * 1024))
    writer = open_output(str(disk / name))
    kept = fill(writer)
    assert kept > 0
    assert ids(disk / name) == [str(n) for n in range(kept)]
    with pytest.raises(OutputFailed, match="No space left on device"):
        writer.write_lines(lines(kept))
    ballast.unlink()
    # The same writer goes on; so does another one.
    writer.write_lines(lines(kept))
    writer.release()
    with open_output(str(disk / name), append=True) as again:
        again.write_lines(lines(kept + 40))
    assert ids(disk / name) == [str(n) for n in range(kept + 80)]


def test_a_table_that_does_not_fit_leaves_its_journal_alone(disk: Path) -> None:
    path = disk / "out.parquet"
    writer = open_output(str(path))
    kept = fill(writer)  # the journal fills the disk, and the table needs room beside it
    with pytest.raises(OutputFailed, match=r"its records are in .*out\.parquet\.partial\.jsonl"):
        writer.close()
    assert [found.name for found in disk.iterdir()] == ["out.parquet.partial.jsonl"]
    assert ids(path) == [str(n) for n in range(kept)]
    subprocess.run(["mount", "-o", f"remount,size={4 * DISK_KB}k", str(disk)], check=True)
    open_output(str(path), append=True).close()
    assert [found.name for found in disk.iterdir()] == ["out.parquet"]
    assert ids(path) == [str(n) for n in range(kept)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_becomes_read_only(disk: Path, name: str) -> None:
    # As a kernel does it with a file system that has errors: open files stay open.
    writer = open_output(str(disk / name))
    writer.write_lines(lines(0))
    writer.flush()
    writer.release()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for options in ({"append": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="Read-only file system"):
            open_output(str(disk / name), **options)
    assert len(ids(disk / name)) == 40


def test_a_quota_cuts_no_record(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_output(str(path)) as writer:
        writer.write_lines(lines(0))
        whole = path.stat().st_size
        with no_file_over(whole + 1000):
            with pytest.raises(OutputFailed, match="File too large"):
                writer.write_lines(lines(40))
            assert path.stat().st_size == whole
        writer.write_lines(lines(40))
    assert ids(path) == [str(n) for n in range(80)]
