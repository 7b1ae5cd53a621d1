"""Flower as it is started, on a real Valkey, fed with real events."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from celery import Celery
from celery.events import EventDispatcher

from fanout import Settings
from fanout.flower import BASIC_AUTH, flower_argv, flower_env
from fanout.flower.fields import COLUMNS, NAMES
from fanout.local.probes import HOST, free_port, http_ok
from fanout.local.processes import Process, Stack
from fanout.local.valkey import ValkeyServer

AUTH = "me:pass,word"
EVIL = "<script>alert(1)</script>"
_PATIENCE_S = 60.0

FIGURES = {
    "job": "job-1",
    "status": "ok",
    "failure": None,
    "tier": "heavy",
    "endpoint": "spark",
    "model": "gpt-oss",
    "tokens_in": 900,
    "tokens_out": 120,
    "tokens_reasoning": 40,
    "tokens_cached": 512,
    "tokens_per_s": 4.0,
    "ttft_s": 1.5,
    "queued_s": 3.5,
    "permit_s": 0.25,
    "total_s": 30.0,
    "attempts": 1,
}


@dataclass(frozen=True)
class Running:
    """A Flower at `port` and the ids of the tasks that it was told of, by item."""

    port: int
    tasks: dict[str, str]

    def ask(self, path: str, form: dict[str, Any] | None = None) -> str:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        headers = {"Authorization": "Basic " + base64.b64encode(AUTH.encode()).decode()}
        try:
            if form is None:
                connection.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                connection.request("POST", path, urlencode(form), headers)
            response = connection.getresponse()
            assert response.status == 200, (response.status, path)
            return response.read().decode()
        finally:
            connection.close()

    def rows(self, sort_by: str = "received", search: str = "") -> list[dict[str, Any]]:
        """The rows of the page of tasks, asked for as the page itself does."""
        form = {
            "draw": 1,
            "start": 0,
            "length": 100,
            "search[value]": search,
            "order[0][column]": COLUMNS.index(sort_by),
            "order[0][dir]": "desc",
            f"columns[{COLUMNS.index(sort_by)}][data]": sort_by,
        }
        rows: list[dict[str, Any]] = json.loads(self.ask("/tasks/datatable", form))["data"]
        return rows


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def send(url: str) -> dict[str, str]:
    """Tell Flower of five tasks as a worker would; their ids by item."""
    app = Celery("test", broker=url, set_as_current=False)
    ids: dict[str, str] = {}
    with app.connection_for_write() as connection:
        events = EventDispatcher(connection, hostname="w1@spark", app=app)

        def begin(item: str) -> str:
            identity = ids[item] = str(uuid.uuid4())
            kwargs = repr({"id": item, "job": "job-1"})
            events.send(
                "task-received", uuid=identity, name="fanout.extract", args="()", kwargs=kwargs
            )
            return identity

        def end(item: str, type_: str, **fields: Any) -> None:
            identity = begin(item)
            events.send("task-started", uuid=identity, item=item, job="job-1")
            events.send(type_, uuid=identity, runtime=30.0, **{**FIGURES, "item": item, **fields})

        begin("waiting")
        end("small", "task-succeeded", result="ok", tokens_in=9)
        end("large", "task-succeeded", result="ok", tokens_in=10_000)
        end(EVIL, "task-succeeded", result="ok", model=f"{EVIL}-model")
        end(
            "broken",
            "task-failed",
            exception="truncated: the reply was cut",
            status="invalid",
            failure="truncated",
        )
        events.close()
    app.close()
    return ids


def env_of(url: str) -> dict[str, str]:
    # A relative PYTHONPATH would point into the hostile folder.
    paths = [
        str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p
    ]
    return {
        **flower_env(Settings(redis=url)),
        BASIC_AUTH: AUTH,
        "PYTHONPATH": os.pathsep.join(paths),
    }


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("flower")
    hostile = home / "cwd"
    for name in ("tasks.py", "celeryconfig.py", "flowerconfig.py", "fanout/__init__.py"):
        (hostile / name).parent.mkdir(parents=True, exist_ok=True)
        (hostile / name).write_text("raise SystemExit('imported from the current folder')\n")
    with Stack() as stack:
        valkey = ValkeyServer()
        valkey.start_in(stack)
        port = free_port()
        process = Process(
            "flower",
            flower_argv(port),
            log=home / "flower.log",
            env=env_of(valkey.url),
            cwd=hostile,
        )
        stack.start(process, ready=lambda: http_ok(port, "/healthcheck"), deadline_s=_PATIENCE_S)
        client = Celery("probe", broker=valkey.url, set_as_current=False)
        with client.connection_for_write() as connection:
            listening = connection.default_channel.client
            eventually(
                lambda: bool(listening.pubsub_numpat() or listening.pubsub_channels()),
                "Flower never listened for events",
            )
        client.close()
        running = Running(port, send(valkey.url))
        eventually(
            lambda: [r["state"] for r in running.rows(search="broken")] == ["FAILURE"],
            "Flower never showed the events",
        )
        yield running


def test_the_table_has_the_columns_and_the_figures(flower: Running) -> None:
    page = flower.ask("/tasks")
    for column in COLUMNS:
        assert f'data-column="{column}"' in page
    rows = {row["item"]: row for row in flower.rows()}
    assert set(rows) == {"waiting", "small", "large", EVIL, "broken"}
    assert {name: rows["large"][name] for name in NAMES} == {
        **FIGURES,
        "item": "large",
        "tokens_in": 10_000,
    }
    broken = rows["broken"]
    assert (broken["state"], broken["status"], broken["failure"]) == (
        "FAILURE",
        "invalid",
        "truncated",
    )
    assert rows["large"]["state"] == "SUCCESS"


def test_a_task_that_waits_has_its_items_name_and_no_figures(flower: Running) -> None:
    (waiting,) = flower.rows(search="waiting")
    assert (waiting["item"], waiting["job"], waiting["state"]) == ("waiting", "job-1", "RECEIVED")
    assert waiting["tokens_in"] is None


def test_numbers_are_sorted_as_numbers(flower: Running) -> None:
    order = [row["item"] for row in flower.rows(sort_by="tokens_in")]
    assert order[0] == "large"
    assert order[-2:] == ["small", "waiting"]


def test_the_text_columns_are_searched(flower: Running) -> None:
    assert [row["item"] for row in flower.rows(search="truncated")] == ["broken"]
    assert [row["item"] for row in flower.rows(search="state:FAILURE")] == ["broken"]


def test_the_page_of_a_task_shows_the_item_beside_celerys_own(flower: Running) -> None:
    page = flower.ask(f"/task/{flower.tasks['large']}")
    card = page[page.index('id="fanout-item"') :]
    for text in ("large", "10,000", "30.00 s", "250 ms", "spark", "gpt-oss"):
        assert f"<dd>{text}</dd>" in card
    assert "Keyword arguments" in page
    assert "Tokens in" not in page[: page.index('id="fanout-item"')]
    broken = flower.ask(f"/task/{flower.tasks['broken']}")
    assert "truncated: the reply was cut" in broken


def test_a_document_named_like_a_script_is_text(flower: Running) -> None:
    page = flower.ask(f"/task/{flower.tasks[EVIL]}")
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    # The table's rows come as JSON and are written into cells as text.
    assert EVIL not in flower.ask("/tasks")


def test_the_api_tells_the_figures(flower: Running) -> None:
    info = json.loads(flower.ask(f"/api/task/info/{flower.tasks['small']}"))
    assert {name: info[name] for name in NAMES} == {**FIGURES, "item": "small", "tokens_in": 9}


def test_prometheus_reads_histograms_with_long_buckets(flower: Running) -> None:
    metrics = flower.ask("/metrics").splitlines()
    where = '{kind="extract",tier="heavy"}'
    assert 'fanout_items_total{kind="extract",status="ok",tier="heavy"} 3.0' in metrics
    assert 'fanout_items_total{kind="extract",status="invalid",tier="heavy"} 1.0' in metrics
    for name in ("seconds", "queued_seconds", "permit_seconds", "ttft_seconds"):
        assert f"fanout_item_{name}_count{where} 4.0" in metrics
    assert f"fanout_item_tokens_per_second_sum{where} 16.0" in metrics
    assert any(
        line.startswith("flower_task_runtime_seconds_bucket") and 'le="1800.0"' in line
        for line in metrics
    )


@pytest.mark.parametrize(
    ("header", "status"),
    [("", 401), ("Basic " + base64.b64encode(b"me:wrong").decode(), 401)],
)
def test_a_password_is_asked_for(flower: Running, header: str, status: int) -> None:
    for path in ("/tasks", f"/task/{flower.tasks['large']}", "/api/tasks"):
        connection = http.client.HTTPConnection(HOST, flower.port, timeout=10)
        connection.request("GET", path, headers={"Authorization": header} if header else {})
        assert connection.getresponse().status == status, path
        connection.close()


def test_an_open_address_is_refused_without_a_password(tmp_path: Path) -> None:
    environment = {**os.environ, "FANOUT_REDIS": "redis://127.0.0.1:1/0"}
    environment.pop(BASIC_AUTH, None)
    run = subprocess.run(
        flower_argv(free_port(), "0.0.0.0"),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
    )
    assert run.returncode == 2
    assert BASIC_AUTH in run.stderr
    assert "Traceback" not in run.stderr
