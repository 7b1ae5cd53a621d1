"""An output with its job file beside it, and what tells whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fanout import Endpoint, Record, Settings, UsageError
from fanout.cli.target import Target, finished
from fanout.client import Ledger
from fanout.client.audit import Audit
from fanout.client.jobfile import JobFile
from fanout.client.source import Source
from fanout.outputs import OutputError, read_records
from fanout.outputs.dropping import drop_records
from fanout.outputs.parquet import journal_of
from fanout.store import Checkpoint
from fanout.wire import JobSpec, Status, sha256_of

SETTINGS = Settings(endpoint={"spark": Endpoint(url="http://spark", model="m")})
SPEC = JobSpec(kind="extract", tier="default", params={"schema": {"a": 1}, "prompt": "Do."})
FORMATS = ["out.jsonl", "out.parquet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job_file(job: str = "j", inputs: tuple[str, ...] = ()) -> JobFile:
    return JobFile.new(job, SPEC, SETTINGS, inputs, {"text_field": "body"})


def record(ordinal: int, status: Status = "ok") -> Record:
    payload = {"text": f"text {ordinal}"}
    return Record(id=str(ordinal), ordinal=ordinal, status=status, input_sha256=sha256_of(payload))


def begun(path: str, *ordinals: int, **options: Any) -> Target:
    """A target that has written some records and whose process is gone."""
    target = Target(path, **options)
    target.begin(job_file())
    write(target, *(record(n) for n in ordinals))
    target.release()
    return target


def write(target: Target, *records: Record, upto: int = 100) -> None:
    assert target.ledger is not None
    target.write(records, Checkpoint(upto, f"digest of {upto}"))
    for each in records:
        target.ledger.add(each.ordinal, each.status)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_known_when_it_is_opened_again(name: str) -> None:
    begun(name, 3, 1, 7)
    target = Target(name)
    assert target.ledger is not None
    assert [n in target.ledger for n in (0, 1, 3, 7)] == [False, True, True, True]
    assert target.ledger.counts == {"ok": 3}
    write(target, record(0, "failed"))
    target.complete(Checkpoint(100, "end"), cancelled=False)
    assert sorted(r["ordinal"] for r in read_records(name)) == [0, 1, 3, 7]
    file = JobFile.load(name)
    assert file is not None
    assert (file.state, file.counts) == ("complete", {"ok": 3, "failed": 1})
    assert (file.documents, file.digest) == (100, "end")


def test_the_checkpoint_is_written_before_the_records_that_it_covers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target("out.jsonl")
    target.begin(job_file())
    saved: list[tuple[int, int]] = []
    save = JobFile.save

    def watched(file: JobFile, output: str) -> None:
        saved.append((file.documents, len(Path(output).read_bytes().splitlines())))
        save(file, output)

    monkeypatch.setattr(JobFile, "save", watched)
    write(target, record(0), record(9), upto=20)
    write(target, record(19), upto=40)
    write(target, record(20), upto=40)
    assert saved == [(20, 0), (40, 3)]
    target.release()


@pytest.mark.parametrize("name", FORMATS)
def test_two_at_once_are_refused(name: str) -> None:
    begun(name, 1)
    first = Target(name)
    with pytest.raises(OutputError, match="another process"):
        Target(name)
    first.release()
    Target(name).release()


def test_a_torn_last_line_is_no_record() -> None:
    begun("out.jsonl", 1, 2)
    with open("out.jsonl", "ab") as output:
        output.write(b'{"id": "3", "ordi')
    target = Target("out.jsonl")
    assert target.ledger is not None
    assert target.ledger.counts.total() == 2
    target.release()
    assert Path("out.jsonl").read_bytes().endswith(b"}\n")


def test_an_output_that_is_not_ours_is_left_alone() -> None:
    Path("out.jsonl").write_text("precious\n")
    with pytest.raises(UsageError, match="--overwrite"):
        Target("out.jsonl")
    assert Path("out.jsonl").read_text() == "precious\n"
    Path("empty.jsonl").touch()
    Target("empty.jsonl").release()
    Path("out.jsonl.job").write_text("{}")
    with pytest.raises(UsageError, match="no job file"):
        Target("out.jsonl")


def test_overwriting_forgets_the_job_first() -> None:
    begun("out.jsonl", 1)
    target = Target("out.jsonl", overwrite=True)
    assert target.replaced is not None
    assert target.replaced.job == "j"
    assert target.file is None
    assert not Path("out.jsonl.job").exists()
    assert Path("out.jsonl").read_bytes() == b""
    target.release()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("complete", [True, False])
def test_records_are_taken_out_to_be_done_again(name: str, complete: bool) -> None:
    target = Target(name)
    target.begin(job_file())
    write(target, record(0), record(1, "failed"), record(2, "invalid"), record(3, "skipped"))
    if complete:
        target.complete(Checkpoint(4, "end"), cancelled=False)
    target.release()
    again = Target(name, drop=("failed", "invalid"))
    assert again.ledger is not None
    assert again.ledger.counts == {"ok": 1, "skipped": 1}
    file = JobFile.load(name)
    assert file is not None
    assert file.state == "open"
    write(again, record(1), record(2))
    again.complete(Checkpoint(4, "end"), cancelled=False)
    assert sorted(r["ordinal"] for r in read_records(name)) == [0, 1, 2, 3]


def test_nothing_is_dropped_from_what_cannot_be_read() -> None:
    Path("out.jsonl").write_text('{"id": "1", "status": "ok"}\nno record\n')
    with pytest.raises(OutputError, match="cannot be rewritten"):
        drop_records("out.jsonl", lambda record: True)
    assert Path("out.jsonl").read_text() == '{"id": "1", "status": "ok"}\nno record\n'


def test_a_document_is_put_in_the_place_of_its_records() -> None:
    begun("found.json", 1, 2, records=journal_of("found.json"))
    assert not Path("found.json").exists()
    target = Target("found.json", records=journal_of("found.json"))
    write(target, record(0))
    target.complete(Checkpoint(3, "end"), cancelled=False)
    assert sorted(r.ordinal or 0 for r in target.all_records()) == [0, 1, 2]
    assert finished("found.json", []) is None
    target.put(lambda: Path("found.json").write_text("{}") and None)
    assert finished("found.json", []) == ("found.json is complete: job j, 3 records (3 ok)", True)
    assert sorted(path.name for path in Path().iterdir()) == ["found.json", "found.json.job"]


def test_a_complete_output_is_told_from_one_whose_input_has_grown() -> None:
    Path("docs.jsonl").write_text('{"text": "a"}\n')
    target = Target("out.jsonl")
    target.begin(job_file(inputs=("docs.jsonl",)))
    write(target, record(0, "invalid"))
    assert finished("out.jsonl", ["docs.jsonl"]) is None
    target.complete(Checkpoint(1, "end"), cancelled=False)
    said = finished("out.jsonl", ["docs.jsonl"])
    assert said == ("out.jsonl is complete: job j, 1 records (1 invalid)", False)
    Path("docs.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert finished("out.jsonl", ["docs.jsonl"]) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"kind": "review"}, ["the task kind (extract, now review)"]),
        ({"tier": "light"}, ["the tier (default, now light)"]),
        ({"params": {"schema": {"a": 2}, "prompt": "Do."}}, ["the schema"]),
        ({"params": {"schema": {"a": 1}, "max_tokens": 5}}, ["max_tokens", "the prompt"]),
    ],
)
def test_what_has_changed_is_named(changes: dict[str, Any], says: list[str]) -> None:
    now = SPEC.model_copy(update=changes)
    assert job_file().changes(now, {"spark": "m"}) == says
    assert job_file().changes(SPEC, {"spark": "n"}) == ["the model (m, now n)"]
    assert job_file().changes(SPEC, {"other": "m"}) == []


def test_the_job_file_holds_no_password() -> None:
    settings = Settings(
        redis="redis://:hunter2@127.0.0.1:1/0",  # type: ignore[arg-type]
        endpoint={"spark": Endpoint(url="http://spark", api_key="s3cret")},  # type: ignore[arg-type]
    )
    JobFile.new("j", SPEC, settings, (), {}).save("out.jsonl")
    written = Path("out.jsonl.job").read_text()
    assert json.loads(written)["redis"] == "redis://127.0.0.1:1/0"
    assert "hunter2" not in written
    assert "s3cret" not in written
    assert [path.name for path in Path().iterdir()] == ["out.jsonl.job"]


def test_records_in_another_output_are_remembered() -> None:
    collected = Ledger()
    for ordinal in range(0, 1000, 3):
        collected.add(ordinal, "ok")
    target = Target("out.jsonl")
    target.continue_elsewhere(job_file(), collected)
    write(target, record(1))
    target.release()
    again = Target("out.jsonl")
    assert again.ledger is not None
    assert again.ledger.counts == {"ok": 335}
    assert [n in again.ledger for n in range(5)] == [True, True, False, True, False]
    again.release()


def test_no_id_gets_a_second_record_from_a_changed_input() -> None:
    begun("out.jsonl", 0, 1)
    target = Target("out.jsonl")
    same = [{"id": "0", "text": "x"}, {"id": "9", "text": "y"}, {"id": "5", "text": "z"}]
    assert list(target.distinct(same)) == same
    with pytest.raises(UsageError, match="document 3 has now"):
        list(target.distinct([*same[:2], {"id": "1", "text": "moved"}]))
    target.release()


class TestAudit:
    pytestmark = pytest.mark.anyio

    def audited(self, *records: Record, counts: dict[str, int] | None = None) -> Audit:
        lines = [each.to_json() + b"\n" for each in records]
        Path("out.jsonl").write_bytes(b"".join(lines))
        audit = Audit("out.jsonl")
        audit.look()
        audit.agree("Redis", {"ok": 3} if counts is None else counts, 3)
        return audit

    def troubles(self, audit: Audit) -> dict[str, int]:
        assert audit.holds is not bool(audit.troubles)
        return {name: trouble.count for name, trouble in audit.troubles.items()}

    async def digest(self, *texts: str) -> Checkpoint:
        piece = await Source(list(texts), "", "").piece(99)
        assert piece is not None
        return piece.upto

    async def test_a_whole_output_holds(self) -> None:
        audit = self.audited(record(2), record(0), record(1))
        texts = ["text 0", "text 1", "text 2"]
        await audit.compare(texts, await self.digest(*texts))
        assert self.troubles(audit) == {}
        assert audit.compared == 3

    def test_what_is_missing_twice_or_beyond_is_found(self) -> None:
        assert self.troubles(self.audited(record(0), record(2))) == {
            "missing": 1,
            "other counts": 1,
        }
        twice = self.audited(record(0), record(1), record(2), record(1))
        assert self.troubles(twice) == {"id twice": 1, "twice": 1, "other counts": 1}
        beyond = self.audited(record(0), record(1), record(2), record(3), counts={"ok": 4})
        assert self.troubles(beyond) == {"never submitted": 1}
        other = self.audited(record(0), record(1), record(2, "failed"))
        assert self.troubles(other) == {"other counts": 2}
        assert other.troubles["other counts"].first[0] == "2 ok, 3 in Redis"

    def test_a_torn_line_and_a_broken_one_are_found(self) -> None:
        self.audited(record(0), record(1))
        with open("out.jsonl", "ab") as output:
            output.write(b'{"id": ')
        audit = Audit("out.jsonl")
        audit.look()
        assert self.troubles(audit) == {"torn last line": 1}
        with open("out.jsonl", "ab") as output:
            output.write(b"\n")
        audit = Audit("out.jsonl")
        audit.look()
        assert self.troubles(audit) == {"unreadable": 1}

    async def test_another_input_is_found(self) -> None:
        right = await self.digest("text 0", "text 1", "text 2")
        for texts, found in (
            (["text 0", "text x", "text 2"], {"another document": 1, "another input": 1}),
            (["text 0", "text 1"], {"input shorter": 1}),
        ):
            audit = self.audited(record(0), record(1), record(2))
            await audit.compare(texts, right)
            assert self.troubles(audit) == found

    async def test_documents_after_what_was_submitted_are_counted(self) -> None:
        audit = self.audited(record(0), record(1), record(2))
        right = await self.digest("text 0", "text 1", "text 2")
        await audit.compare(["text 0", "text 1", "text 2", "more", "still more"], right)
        assert (self.troubles(audit), audit.unsubmitted) == ({}, 2)

    def test_what_has_not_ended_or_is_not_written_is_told(self) -> None:
        audit = self.audited(record(0), record(1), record(2))
        audit.waits(0)
        audit.kept([record(2), record(0)])  # a Redis that lost its last seconds: they are written
        assert audit.holds
        audit.waits(2)
        audit.kept([record(2), record(3), record(4)])
        assert self.troubles(audit) == {"not ended": 2, "not written": 2}
