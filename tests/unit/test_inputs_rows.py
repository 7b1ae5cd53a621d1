"""Rows of JSON lines, tables and standard input: what is read, and what each broken row says."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from fanout.errors import UsageError
from fanout.inputs import BadRow, Document, InputError, count_hint, read_inputs
from fanout.inputs.lines import read_lines

Read = Callable[..., list[Document | BadRow]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Write one file, and read it."""
    monkeypatch.chdir(tmp_path)

    def read_one(name: str, content: bytes | str, **options: Any) -> list[Document | BadRow]:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return list(read_inputs([name], **options))

    return read_one


def texts(rows: list[Document | BadRow]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def bad(rows: list[Document | BadRow]) -> list[tuple[int | None, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


def test_json_lines(read: Read) -> None:
    content = '\ufeff{"id": "a", "text": "one", "n": 1}\r\n\n"bare"\n  {"text": "three"}'
    assert read("docs.jsonl", content) == [
        Document("a", "one", {"n": 1}, "docs.jsonl:1"),
        Document("docs.jsonl:3", "bare", {}, "docs.jsonl:3"),
        Document("docs.jsonl:4", "three", {}, "docs.jsonl:4"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "broken JSON at character"),
        (b'{"text": "a"} x', "broken JSON at character 15"),
        (b'{"text": NaN}', "broken JSON"),
        (b'{"text": "\\ud800"}', "broken JSON"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 11"),
        (b"[" * 5000 + b"]" * 5000, "broken JSON"),
        (b"[1]", "the row is an array, not an object"),
        (b"3", "the row is a number"),
        (b'""', "the text is blank"),
        (b'{"text": " "}', "field 'text' is blank"),
        (b'{"text": null}', "field 'text' is null"),
        (b'{"text": "a\\u0000"}', "NUL"),
        (b'{"a": 1}', "there is no field 'text'"),
        (b'{"id": "first", "text": "again"}', "the id 'first' was used before"),
        (b'{"text": "' + b"x" * 1000 + b'"}', "larger than 500 bytes"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_broken_row_says_why_and_reading_goes_on(
    read: Read, line: bytes, reason: str, end: bytes
) -> None:
    # A row of 10,000 brackets is to be broken, not too large.
    limit = 500 if b"xxx" in line else 20_000
    rows = read(
        "docs.jsonl",
        end.join([b'{"id": "first", "text": "a"}', line, b'{"text": "c"}']),
        max_bytes=limit,
    )
    assert texts(rows) == ["a", "c"]
    (row,) = [row for row in rows if isinstance(row, BadRow)]
    assert reason in row.reason
    assert (row.id, row.source, row.line) == ("docs.jsonl:2", "docs.jsonl:2", 2)
    assert row.raw
    assert line.decode(errors="replace").startswith(row.raw.rstrip()[:400])
    assert len(row.raw) <= 2000


def test_ids_of_bad_rows_are_unique_too(read: Read) -> None:
    rows = read(
        "docs.jsonl",
        '{"id": "docs.jsonl:2", "text": "a"}\n{\n{"id": "docs.jsonl:2#2", "text": "c"}\n'
        '{"id": "docs.jsonl:5", "text": "d"}\n{"text": "e"}\n{"id": 1, "text": "f"}\n'
        '{"id": "1", "text": "g"}\n',
    )
    ids = [row.id for row in rows]
    assert len(set(ids)) == len(ids) == 7
    # The third takes an id that we had to make for the second.
    assert bad(rows) == [
        (2, rows[1].reason),  # type: ignore[union-attr]
        (3, "the id 'docs.jsonl:2#2' was used before"),
        (7, "the id '1' was used before"),
    ]
    assert isinstance(rows[4], Document)
    assert rows[4].id == "docs.jsonl:5#2"


def test_a_line_at_the_limit_is_read_and_one_byte_more_is_not(read: Read) -> None:
    row = json.dumps({"text": "x"}).encode()
    for end in (b"", b"\n", b"\r\n"):
        assert texts(read("a.jsonl", row + end, max_bytes=len(row))) == ["x"]
        assert bad(read("a.jsonl", row + end, max_bytes=len(row) - 1)) == [
            (1, f"larger than {len(row) - 1} bytes")
        ]
    content = row + b"\n" + b'"y"\n'
    assert texts(read("a.jsonl", content, max_bytes=len(row) - 1)) == ["y"]


def test_a_huge_line_is_never_held() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            self.largest = max(self.largest, len(line))
            return line

    stream = Counting(b"x" * 1_000_000 + b"\nshort\n")
    lines = list(read_lines(stream, 1000))
    assert [(line.number, line.too_long) for line in lines] == [(1, True), (2, False)]
    assert stream.largest <= 1 << 16
    assert len(lines[0].data) <= 2000


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.ndjson.gz", "d.NDJSON"])
def test_packed_lines(read: Read, name: str) -> None:
    assert texts(read(name, '{"text": "a"}\n')) == ["a"]


def test_a_packed_file_that_is_cut_short(read: Read, tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "{n} {n * 2654435761 % 2**32}"}}\n' for n in range(5000))
    whole = gzip.compress(lines.encode())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "z.txt").write_text("still read")
    rows = list(read_inputs([str(path), str(tmp_path / "z.txt")]))
    assert isinstance(rows[0], Document)
    ((line, reason),) = bad(rows)
    assert line == len(rows) - 1
    assert reason.startswith("nothing from here on can be read")
    assert texts(rows)[-1] == "still read"


def test_csv(read: Read) -> None:
    rows = read("d.csv", 'id,text,n\r\na,"one, ""1""\nand more",1\r\n\r\nb,two,\n')
    assert rows == [
        Document("a", 'one, "1"\nand more', {"n": "1"}, "d.csv:2"),
        Document("b", "two", {"n": ""}, "d.csv:5"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "id,review\n1,a"),
        ("d.csv", "id;review\n1;a\n"),
        ("d.csv", "id\treview\n1\ta\n"),
        ("d.tsv", "id\treview\n1\ta\n"),
        ("d.csv.gz", "id,review\n1,a\n"),
        ("d.csv", '\ufeff"id","review"\n1,a\n'),
        ("d.csv", "\n\nid,review\n1,a\n"),
    ],
)
def test_tables_of_several_kinds(read: Read, name: str, content: str) -> None:
    (row,) = read(name, content)
    assert isinstance(row, Document)
    assert (row.id, row.text, row.meta) == ("1", "a", {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"2,b,c", "3 fields where the header has 2"),
        (b"2", "1 fields where the header has 2"),
        (b"2,\xff", "invalid UTF-8 at byte 3"),
        (b'2,"b" c', "broken CSV, perhaps a stray quote"),
        (b'2,"b', "broken CSV, perhaps a stray quote"),
        (b'2,"b\n\xff"', "invalid UTF-8"),
        (b"2,", "field 'text' is blank"),
        (b"2,\0", "NUL"),
        (b"1,b", "the id '1' was used before"),
        (b"2," + b"b" * 600, "larger than 500 bytes"),
        (b'2,"' + b"b\n" * 600 + b'"', "larger than 500 bytes (lines 3 to 603)"),
        (b'2,"' + b"b" * 600 + b'\n""c\n"', "larger than 500 bytes (lines 3 to 5)"),
    ],
)
def test_a_broken_csv_row_costs_itself_only(read: Read, line: bytes, reason: str) -> None:
    content = b"id,text\n1,a\n" + line + b'\n3,"c"\n4,d\n'
    rows = read("d.csv", content, max_bytes=500)
    assert texts(rows) == ["a", "c", "d"]
    ((number, told),) = bad(rows)
    assert number == 3
    assert reason in told


def test_an_unclosed_quote_at_the_end(read: Read) -> None:
    rows = read("d.csv", 'id,text\n1,"a\n2,b\n3,c\n')
    assert texts(rows) == ["b", "c"]
    assert [line for line, _ in bad(rows)] == [2]


def test_a_csv_cell_over_the_csv_modules_own_limit(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = csv.field_size_limit(1000)
    try:
        assert len(texts(read("d.csv", "text\n" + "x" * 5000 + "\n"))[0]) == 5000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.csv", b"", "does not begin with a header row"),
        ("d.csv", b"\n \n", "does not begin with a header row"),
        ("d.csv", b"a,b\n1,2\n", "has no column 'text' or 'content'"),
        ("d.csv", b"text,text\n1,2\n", "two columns named 'text'"),
        ("d.csv", b"\xe9,text\n", "header row of d.csv cannot be read"),
        ("d.csv", b'"a" b,text\n', "header row of d.csv cannot be read"),
        ("d.csv", "text\na\n".encode("utf-16"), "UTF-16"),
        ("d.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("d.parquet", b"PAR1 not really", "cannot be read as Parquet"),
    ],
)
def test_files_that_could_give_bad_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        read_inputs([name])
    assert isinstance(caught.value, UsageError)


def test_a_file_that_is_not_packed_at_all(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(b'{"text": "a"}')
    with pytest.raises(InputError, match="cannot be read"):
        read_inputs([str(tmp_path / "d.jsonl.gz")])


def test_a_named_column_that_a_table_lacks(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,text\n1,a\n")
    with pytest.raises(InputError, match="has no column 'body', only 'id', 'text'"):
        read_inputs([str(tmp_path / "d.csv")], text_field="body")
    with pytest.raises(InputError, match="has no column 'key'"):
        read_inputs([str(tmp_path / "d.csv")], id_field="key")


def test_a_header_without_names_gets_some(read: Read) -> None:
    (row,) = read("d.csv", ",text\n0,a\n")
    assert isinstance(row, Document)
    assert row.meta == {"column_1": "0"}


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    columns: dict[str, list[Any]] = {
        "id": [1, 2, 2, 4],
        "review": ["a", None, "c", "d" * 100],
        "day": [date(2024, 5, 1)] * 4,
        "image": [b"\x00\xff"] * 4,
    }
    write_parquet(tmp_path / "d.parquet", columns)
    rows = list(read_inputs(["d.parquet"], max_bytes=50))
    assert rows[0] == Document("1", "a", {"day": "2024-05-01"}, "d.parquet:1")
    assert isinstance(rows[2], Document)  # the second row never was a document, so 2 is free
    assert bad(rows) == [
        (2, "field 'review' is null, not a string"),
        (4, "larger than 50 bytes"),
    ]
    assert isinstance(rows[1], BadRow)
    assert json.loads(rows[1].raw)["id"] == 2
    assert count_hint(["d.parquet"]) == 4


def test_parquet_over_many_batches(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d.parquet", {"text": [str(n) for n in range(1000)]})
    rows = list(read_inputs([str(tmp_path / "d.parquet")]))
    assert texts(rows) == [str(n) for n in range(1000)]
    assert rows[-1].id == "d.parquet:1000"


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "d.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'fanout-llm\[parquet\]'"):
        read_inputs([str(tmp_path / "d.parquet")])


@pytest.mark.parametrize(
    ("content", "stdin_format", "expected"),
    [
        (b'{"id": "a", "text": "x"}\n"y"\n', "auto", [("a", "x"), ("stdin:2", "y")]),
        (b'\n \n  {"text": "x"}\n', "auto", [("stdin:3", "x")]),
        (
            b'"quoted" words\n\n[1] two\r\n',
            "auto",
            [("stdin:1", '"quoted" words'), ("stdin:3", "[1] two")],
        ),
        (b'"bare"\n', "jsonl", [("stdin:1", "bare")]),
        (b'{"text": "x"}\n', "text", [("stdin:1", '{"text": "x"}')]),
        (b"", "auto", []),
        (b"\n\n", "auto", []),
        (b"one\n\xff\ntwo", "auto", [("stdin:1", "one"), ("stdin:3", "two")]),
    ],
)
def test_standard_input(content: bytes, stdin_format: Any, expected: list[tuple[str, str]]) -> None:
    rows = list(read_inputs(["-", "-"], stdin=io.BytesIO(content), stdin_format=stdin_format))
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == expected
    assert len(rows) - len(expected) == (b"\xff" in content)


def test_standard_input_is_read_as_it_comes() -> None:
    class Live(io.BytesIO):
        """Fails when it is read on before the rows that it had were taken."""

        taken = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert self.taken >= self.given
            line = super().readline(size)
            self.given += bool(line)
            return line

        given = 0

    live = Live(b"".join(b'{"text": "%d"}\n' % n for n in range(5)))
    for row in read_inputs(["-"], stdin=live):
        assert isinstance(row, Document)
        live.taken += 1
    assert live.taken == 5


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n')
    rows = read_inputs([str(path)])
    path.unlink()
    (row,) = rows
    assert isinstance(row, BadRow)
    assert "nothing from here on can be read" in row.reason


def test_a_row_nested_too_deep_to_travel(tmp_path: Path) -> None:
    deep = '{"text": "a", "meta": ' + "[" * 300 + "]" * 300 + "}"
    path = tmp_path / "docs.jsonl"
    path.write_text(f'{deep}\n{{"text": "b"}}\n')
    bad, good = read_inputs([str(path)])
    assert isinstance(bad, BadRow)
    assert bad.reason == "the row is nested over 100 levels deep"
    assert isinstance(good, Document)


def test_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a text")
    (document,) = read_inputs([str(tmp_path)])
    assert document.id == "caf\\udce9.txt"
    assert document.source.encode().endswith(b"caf\\udce9.txt")
