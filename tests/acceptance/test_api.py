"""The Python API, a plain Celery client, and task kinds of one's own, against a running stack."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path

import pytest
from celery import Celery
from kit import alive_in, fanout, hostile, started, until
from pydantic import BaseModel
from stacks import Stack

import fanout as fo

SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}


class Thing(BaseModel):
    word: str


@pytest.fixture
def redis(stack: Stack) -> str:
    written = tomllib.loads((stack.folder / ".fanout" / "stack.toml").read_text())
    url = written["redis"]
    assert isinstance(url, str)
    return url


@pytest.fixture
def settings(stack: Stack, redis: str) -> fo.Settings:
    endpoint = {"fake": {"url": f"http://127.0.0.1:{stack.model_port}", "concurrency": 4}}
    return fo.load_settings(redis=redis, endpoint=endpoint)


@pytest.mark.anyio
async def test_submit_and_collect(settings: fo.Settings) -> None:
    docs = [{"id": f"d{n}", "text": f"document {n}"} for n in range(50)]
    async with fo.connect(settings=settings) as client:
        job = await client.submit("extract", docs, schema=Thing)
        records = [record async for record in job.records()]
        info = await job.info()
    assert sorted(record.id for record in records) == sorted(doc["id"] for doc in docs)
    assert {Thing.model_validate(record.data).word for record in records} == {"something"}
    assert info.done
    assert info.counts.ok == 50


def test_the_same_without_an_event_loop(settings: fo.Settings) -> None:
    with fo.sync.connect(settings=settings) as client:
        job = client.submit("extract", ["one", "two", "three"], schema=SCHEMA)
        assert sorted(record.id for record in job.records()) == ["0", "1", "2"]


@pytest.mark.anyio
async def test_a_cancelled_job_ends_and_adds_up(settings: fo.Settings) -> None:
    async with fo.connect(settings=settings) as client:
        job = await client.submit("extract", [f"document {n}" for n in range(400)], schema=Thing)
        await job.submitted()
        await job.cancel()
        async with asyncio.timeout(60):
            info = await job.wait()
    assert info.counts.submitted == 400
    assert info.counts.ok + info.counts.cancelled == 400


@pytest.mark.anyio
async def test_wrong_parameters_are_refused_before_anything_is_submitted(
    settings: fo.Settings,
) -> None:
    async with fo.connect(settings=settings) as client:
        with pytest.raises(fo.UsageError, match="max_tokens"):
            await client.submit("extract", [], schema=Thing, max_tokens=0)
        with pytest.raises(fo.UnknownTask, match="nonsense"):
            await client.submit("nonsense", [])


def test_a_plain_celery_client_gets_its_record(redis: str) -> None:
    app = Celery(broker=redis, backend=redis)
    sent = app.send_task(
        "fanout.extract",
        kwargs={"payload": {"text": "a document"}, "params": {"schema": SCHEMA}},
        queue="fanout.default",
    )
    record = sent.get(timeout=30)
    assert record["id"] == sent.id
    assert record["status"] == "ok"
    assert record["data"] == {"word": "something"}
    assert record["timing"]["total_s"] > 0
    refused = app.send_task(
        "fanout.extract", kwargs={"payload": {"words": 1}, "params": {}}, queue="fanout.default"
    ).get(timeout=30)
    assert refused["status"] == "failed"
    assert refused["error"]["kind"] == "input"
    app.close()


PLUGIN = """
from pydantic import BaseModel
from fanout import ChatRequest, Message, Task

class Shout(Task):
    name = "shout"

    class Payload(BaseModel):
        text: str

    def requests(self, payload):
        yield ChatRequest(messages=(Message(role="user", content=payload.text),), max_tokens=10)

    def validate(self, reply, payload):
        return reply.content.upper()
"""


def test_a_task_kind_of_ones_own(stack: Stack, redis: str, tmp_path: Path) -> None:
    here = hostile(tmp_path)
    (here / "my_kinds.py").write_text(PLUGIN)
    env = {
        "FANOUT_REDIS": redis,
        "FANOUT_ENDPOINT__FAKE__URL": f"http://127.0.0.1:{stack.model_port}",
        "FANOUT_ENDPOINT__FAKE__TIER": "shouting",
    }
    log = here / "worker.log"
    app = Celery(broker=redis, backend=redis)
    with started("worker", "--task", "my_kinds:Shout", cwd=here, env=env, log=log) as process:
        until(lambda: "ready" in log.read_text(), "the worker", process=process, log=log)
        record = app.send_task(
            "fanout.shout", kwargs={"payload": {"text": "hello"}}, queue="fanout.shouting"
        ).get(timeout=30)
    app.close()
    assert record["data"] == "AN ANSWER", record
    until(lambda: not alive_in(here), "no process is left")


def test_a_broken_plug_in_stops_the_worker_with_its_name(redis: str, tmp_path: Path) -> None:
    (tmp_path / "broken_kinds.py").write_text("import nothing_of_that_name\n")
    env = {"FANOUT_REDIS": redis, "FANOUT_ENDPOINT__FAKE__URL": "http://127.0.0.1:1"}
    done = fanout("worker", "--task", "broken_kinds:Kind", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "broken_kinds:Kind" in done.stderr
    assert "nothing_of_that_name" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_a_job_by_json(settings: fo.Settings, stack: Stack) -> None:
    with fo.sync.connect(settings=settings) as client:
        job = client.submit("extract", ["one"], schema=SCHEMA)
        assert len(list(job.records())) == 1
    shown = json.loads(fanout("status", job.id, "--json", cwd=stack.folder).stdout)
    assert shown["id"] == job.id
    assert shown["spec"]["kind"] == "extract"
