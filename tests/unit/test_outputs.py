"""Writing records durably, continuing an output, and reading records back."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanout.cli.writing import write as write_batch
from fanout.errors import UsageError
from fanout.outputs import (
    OutputClosed,
    OutputError,
    OutputFailed,
    check_output,
    open_output,
    read_records,
)
from fanout.outputs.jsonl import StdoutWriter
from fanout.outputs.parquet import journal_of
from fanout.store import Records
from fanout.wire import ErrorInfo, Evidence, Record, Timing, Usage

FORMATS = ["out.jsonl", "out.ndjson", "out.parquet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(name: str, **changes: Any) -> dict[str, Any]:
    whole = Record(
        id=name,
        ordinal=7,
        status="ok",
        data={"title": "Zürich 🏠", "n": [1, None, 2.5]},
        attempts=2,
        retried={"overload": 1},
        tier="heavy",
        endpoint="spark",
        model="m",
        finish_reason="stop",
        usage=Usage(prompt=10, completion=5),
        timing=Timing(queued_s=0.5, total_s=2.0),
        evidence=(Evidence(path="title", start=0, end=6),),
        input_sha256="ab",
        schema_sha256="cd",
    )
    return whole.model_copy(update=changes).model_dump(mode="json")


FAILED = record(
    "bad",
    status="invalid",
    data=None,
    error=ErrorInfo(kind="input", message="no text", raw="{"),
    evidence=(),
    endpoint=None,
)


def write(path: str, *records: dict[str, Any], **options: bool) -> None:
    with open_output(path, **options) as output:
        output.write(records)


def ids(path: str) -> list[str]:
    return [found["id"] for found in read_records(path)]


@pytest.mark.parametrize("path", FORMATS)
def test_records_come_back_as_they_were(path: str) -> None:
    written = [record("a"), FAILED, record("b", data="text"), record("c", data=[])]
    with open_output(path) as output:
        output.write(written[:1])
        output.flush()
        output.write([])
        output.write(written[1:])
    assert list(read_records(path)) == written
    assert os.listdir() == [path]


@pytest.mark.parametrize("path", FORMATS)
def test_an_output_without_records(path: str) -> None:
    write(path)
    assert ids(path) == []


@pytest.mark.parametrize("path", FORMATS)
def test_an_output_that_exists_is_refused_continued_or_replaced(path: str) -> None:
    write(path, record("a"), append=True)
    with pytest.raises(OutputError, match="exists already"):
        open_output(path)
    assert ids(path) == ["a"]
    write(path, record("b"), append=True)
    assert ids(path) == ["a", "b"]
    write(path, record("c"), overwrite=True)
    assert ids(path) == ["c"]
    with pytest.raises(OutputError, match="not both"):
        open_output(path, append=True, overwrite=True)


@pytest.mark.parametrize("path", FORMATS)
def test_what_was_written_before_an_exception_can_be_continued(path: str) -> None:
    def interrupted() -> None:
        with open_output(path) as output:
            output.write([record("a")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ids(path) == ["a"]
    with pytest.raises(OutputError, match="exists already"):
        open_output(path)
    write(path, record("b"), append=True)
    assert ids(path) == ["a", "b"]
    assert os.listdir() == [path]


@pytest.mark.parametrize("path", FORMATS)
def test_records_can_be_read_while_they_are_written(path: str) -> None:
    with open_output(path) as output:
        output.write([record("a")])
        output.flush()
        assert ids(path) == ["a"]


@pytest.mark.parametrize("path", FORMATS)
def test_two_writers_of_one_output(path: str) -> None:
    with open_output(path) as output:
        output.write([record("a")])
        for options in ({"append": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="is being written by another process"):
                open_output(path, **options)
    assert ids(path) == ["a"]


@pytest.mark.parametrize("path", FORMATS)
def test_closing_twice_is_harmless(path: str) -> None:
    output = open_output(path)
    output.write([record("a")])
    output.close()
    output.close()
    output.release()
    assert ids(path) == ["a"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing/out.jsonl", "the folder missing for missing/out.jsonl does not exist"),
        ("missing/out.parquet", "the folder missing for .* does not exist"),
        ("folder.jsonl", "cannot be written|exists already"),
        ("folder.parquet", "exists already"),
        ("file/out.jsonl", "cannot be written: Not a directory"),
        ("out.csv", "is no record format"),
        ("out", "is no record format"),
        ("n" * 300 + ".jsonl", "cannot be written: File name too long"),
    ],
)
def test_outputs_that_cannot_be_opened(here: Path, path: str, told: str) -> None:
    (here / "folder.jsonl").mkdir()
    (here / "folder.parquet").mkdir()
    (here / "file").touch()
    with pytest.raises(OutputError, match=told) as caught:
        open_output(path)
    assert isinstance(caught.value, UsageError)
    if path.startswith("folder"):
        with pytest.raises(OutputError):
            open_output(path, overwrite=True)


def test_parquet_without_pyarrow_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OutputError, match=r"pip install 'fanout-llm\[parquet\]'"):
        open_output("out.parquet")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b'{"id": "b", "st', ["a"]),
        (b'{"id": "b"}', ["a", "b"]),
        (b"{" + b"x" * 200_000, ["a"]),
        (b'{"a":' * 5000, ["a"]),
        (b'{"id": "b", "data": "' + b"x" * 200_000 + b'"}', ["a", "b"]),
        (b"", ["a"]),
    ],
)
def test_a_last_line_that_a_crash_cut_is_dropped(here: Path, tail: bytes, kept: list[str]) -> None:
    path = here / "out.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + tail)
    assert ids("out.jsonl") == kept
    write("out.jsonl", record("z"), append=True)
    assert ids("out.jsonl") == [*kept, "z"]
    assert len(path.read_bytes().splitlines()) == len(kept) + 1


def test_a_file_that_holds_one_torn_line_only(here: Path) -> None:
    (here / "out.jsonl").write_bytes(b'{"id"')
    write("out.jsonl", record("a"), append=True)
    assert ids("out.jsonl") == ["a"]


def test_a_file_of_something_else_is_not_continued(here: Path) -> None:
    (here / "out.jsonl").write_bytes(b"my diary")
    with pytest.raises(OutputError, match="does not hold JSON lines"):
        open_output("out.jsonl", append=True)
    assert (here / "out.jsonl").read_bytes() == b"my diary"


@pytest.mark.parametrize("path", FORMATS)
def test_values_beyond_what_orjson_takes(path: str) -> None:
    data = {"big": 10**30, "half": "\ud800"}
    write(path, record("a") | {"data": data})
    (found,) = read_records(path)
    assert found["data"]["half"] == "\ud800"
    assert float(found["data"]["big"]) == 1e30


def test_a_full_disk_leaves_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    room = 10**6

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with open_output("out.jsonl") as output:
        output.write([record("a")])
        whole = os.path.getsize("out.jsonl")
        room = whole + 10
        with pytest.raises(OutputError, match=r"out\.jsonl cannot be written: No space left"):
            output.write([record("b")])
        assert os.path.getsize("out.jsonl") == whole
        room = 10**6
        output.write([record("b")])
    assert ids("out.jsonl") == ["a", "b"]
    assert len(Path("out.jsonl").read_bytes().splitlines()) == 2


def test_a_short_write_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    write("out.jsonl", record("a"), record("b"))
    assert ids("out.jsonl") == ["a", "b"]


def test_flush_reaches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with open_output("out.jsonl") as output:
        output.write([record("a")])
        monkeypatch.setattr(os, "fsync", synced.append)
        output.flush()
        assert len(synced) == 1


@pytest.mark.parametrize("path", FORMATS)
def test_no_sync_is_believed_after_one_that_failed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    output = open_output(path)
    output.write([record("a")])
    output.flush()
    output.write([record("b")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OutputFailed, match="cannot be made durable: Input/output error"):
            output.flush()
    # The kernel would say yes now, without having written anything.
    for use in (output.flush, lambda: output.write([record("c")]), output.close):
        with pytest.raises(OutputFailed, match="Input/output error"):
            use()
    assert ids(path) == ["a"]
    write(path, record("b"), append=True)
    assert ids(path) == ["a", "b"]


@pytest.mark.parametrize("path", FORMATS)
def test_lines_are_written_as_they_are(path: str) -> None:
    lines = [b'{"id":"a","status":"ok","data":{"n":1.0e2}}', b'{"status":"failed","id":"b"}']
    with open_output(path) as output:
        output.write_lines(lines)
        output.write_lines([])
        output.flush()
        assert Path(journal_of(path) if path.endswith("t") else path).read_bytes().split(b"\n") == [
            *lines,
            b"",
        ]
    assert ids(path) == ["a", "b"]


def test_a_record_is_written_on_as_it_was_read() -> None:
    # Another order of keys, and one that this version does not know.
    line = b'{"status":"ok","id":"a","data":1.0e2,"new":{"b":1}}'
    with open_output("out.jsonl") as output:
        write_batch(output, Records.of([line]))
        write_batch(output, [Record(id="b", status="failed")])
    first, second = Path("out.jsonl").read_bytes().splitlines()
    assert first == line
    assert Record.model_validate_json(second) == Record(id="b", status="failed")


def test_an_output_on_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write("out.jsonl", record("a"))
    assert ids("out.jsonl") == ["a"]


@pytest.mark.parametrize("path", FORMATS)
def test_an_output_on_a_file_system_that_syncs_no_folders(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", files_only)
    write(path, record("a"))
    assert ids(path) == ["a"]


def test_the_columns_of_parquet_are_those_of_the_record() -> None:
    write("a.parquet", record("a"), FAILED)
    write("empty.parquet")
    schema = pq.read_schema("a.parquet")
    assert schema.names == list(Record.model_fields)
    assert schema.equals(pq.read_schema("empty.parquet"))
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types["data"] == types["evidence"] == types["retried"] == types["id"] == "string"
    assert types["attempts"] == "int64"
    assert types["ordinal"] == "int64"
    assert types["error"] == "struct<kind: string, message: string, raw: string>"
    assert [str(field.type) for field in schema.field("usage").type] == ["int64"] * 4
    assert set(Timing.model_fields) == {field.name for field in schema.field("timing").type}
    row = pq.read_table("a.parquet").to_pylist()[0]
    assert json.loads(row["data"])["n"] == [1, None, 2.5]


def test_parquet_is_written_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanout.outputs.parquet._GROUP_ROWS", 10)
    write("a.parquet", *(record(str(n)) for n in range(25)))
    assert pq.ParquetFile("a.parquet").metadata.num_row_groups == 3
    monkeypatch.setattr("fanout.outputs.parquet._GROUP_BYTES", 1)
    write("a.parquet", record("z"), append=True)
    assert pq.ParquetFile("a.parquet").metadata.num_row_groups == 26
    assert ids("a.parquet") == [*map(str, range(25)), "z"]


def test_an_old_table_stays_until_the_new_one_is_whole() -> None:
    write("a.parquet", record("old"))
    with open_output("a.parquet", overwrite=True) as output:
        output.write([record("new")])
        output.flush()
        assert pq.read_table("a.parquet")["id"].to_pylist() == ["old"]
    assert ids("a.parquet") == ["new"]


def test_a_table_that_cannot_be_made_keeps_its_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    output = open_output("a.parquet")
    output.write([record("a")])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"its records are in a\.parquet\.partial\.jsonl"):
            output.close()
    assert ids("a.parquet") == ["a"]
    write("a.parquet", append=True)
    assert pq.read_table("a.parquet")["id"].to_pylist() == ["a"]
    assert os.listdir() == ["a.parquet"]


def test_a_crash_between_the_table_and_the_removal_of_its_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(path: str) -> None:
        raise OSError(errno.EIO, "gone")

    output = open_output("a.parquet")
    output.write([record("a")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", crash)
        with pytest.raises(OutputError):
            output.close()
    assert os.path.exists(journal_of("a.parquet"))
    assert ids("a.parquet") == ["a"]
    write("a.parquet", record("b"), append=True)
    assert ids("a.parquet") == ["a", "b"]
    assert os.listdir() == ["a.parquet"]


def test_a_table_of_something_else_is_neither_continued_nor_read() -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["mine"]}), "mine.parquet")
    for use in (lambda: open_output("mine.parquet", append=True), lambda: ids("mine.parquet")):
        with pytest.raises(OutputError, match="is not a table of records"):
            use()
    assert os.listdir() == ["mine.parquet"]


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("missing.jsonl", None, "missing.jsonl does not exist"),
        ("missing.parquet", None, "missing.parquet does not exist"),
        ("a.csv", b"", "is no record format"),
        ("-", None, "cannot be read back"),
        ("a.jsonl", b'{"id": "a"}\n{\n{"id": "b"}\n', r"a\.jsonl:2 is not a record"),
        ("a.jsonl", b"[]\n", r"a\.jsonl:1 is not a record"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_files_that_hold_no_records(
    here: Path, path: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (here / path).write_bytes(content)
    with pytest.raises(OutputError, match=told):
        list(read_records(path))


def test_standard_output_gets_each_batch() -> None:
    class Recorded(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Recorded()
    with StdoutWriter(stream) as output:
        output.write([record("a"), record("b")])
        assert stream.flushed == 1
        output.flush()
    assert [json.loads(line)["id"] for line in stream.getvalue().splitlines()] == ["a", "b"]
    assert not stream.closed


def test_a_reader_that_goes_away_is_told_and_the_process_ends_quietly() -> None:
    program = (
        "import sys\n"
        "from fanout.outputs import OutputClosed, open_output\n"
        "output = open_output('-')\n"
        "try:\n"
        "    while True:\n"
        "        output.write([{'id': 'x' * 1000}])\n"
        "except OutputClosed as error:\n"
        "    print(error, file=sys.stderr)\n"
        "    print('this goes nowhere')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "x" * 1000
        process.stdout.close()
        assert process.stderr.read() == b"the reader of standard output went away\n"
    assert process.returncode == 0
    assert issubclass(OutputClosed, OutputError)


def test_an_output_that_is_removed_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    writer = open_output(str(path))
    writer.write([{"id": "a"}])
    path.unlink()
    with pytest.raises(OutputError, match="removed while it was being written"):
        writer.flush()
    writer.release()


def test_a_link_to_nothing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "gone" / "out.jsonl")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"a symbolic link to .*gone/out.jsonl, which does"):
            check_output(str(link), overwrite=overwrite)


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        check_output(str(tmp_path / "out.jsonl"))
