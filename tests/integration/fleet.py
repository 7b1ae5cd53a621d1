"""Real workers of fanout under a supervisor that restarts them, a job's client, a model server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from aiohttp import web

from fanout import Record, Settings, Task, connect
from fanout.errors import Unavailable
from fanout.local.probes import free_port
from tests.integration.deadly import Deadly

DEADLINE_S = 100.0
KIND = "tests.integration.deadly:Deadly"
ROOT = Path(__file__).parents[2]


class Model:
    """A model server in a thread, which repeats the prompt and counts how often it was asked."""

    def __init__(self) -> None:
        self.port = free_port()
        self.asked: Counter[str] = Counter()
        self.delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._up.wait(DEADLINE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)

    def _main(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self.port).start())
        self._up.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):  # requests that are to hang for long
            task.cancel()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.asked[text] += 1
        await asyncio.sleep(self.delay_s)
        return web.json_response(
            {
                "model": "m",
                "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "max_model_len": 4096}]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()


class Worker:
    """A worker that is started again whenever it ends, until `stop`."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._env = env
        self.log = log
        self.exits: list[int] = []
        self._stopping = False
        self._changed = threading.Lock()
        self.process = self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with self._changed:
            self.process.send_signal(number)

    def wait_ready(self) -> Worker:
        wait_for(lambda: self.output.count(" ready.") > len(self.exits), "the worker", self)
        return self

    def stop(self, patience_s: float = DEADLINE_S) -> int:
        """End it in order; the exit status."""
        with self._changed:
            self._stopping = True
            if self.process.poll() is None:
                self.process.terminate()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not end:\n{self.output[-5000:]}") from None
        finally:
            self.process.kill()
            self.process.wait()
            self._thread.join(DEADLINE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "fanout_workers", "--task", KIND],
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _supervise(self) -> None:
        while True:
            status = self.process.wait()
            with self._changed:
                self.exits.append(status)
                if self._stopping:
                    return
                self.process = self._start()


class Fleet:
    """Workers over one Redis and one model server."""

    def __init__(self, redis_url: str, folder: Path, **settings: Any) -> None:
        self.model = Model()
        self.redis = redis.Redis.from_url(redis_url)
        self.workers: list[Worker] = []
        self._folder = folder
        given = {"concurrency": 16, "redeliver_after_s": 3, **settings}
        endpoint = {
            "url": f"http://127.0.0.1:{self.model.port}",
            "model": "m",
            "concurrency": given.pop("concurrency"),
        }
        self.settings = Settings(redis=redis_url, endpoint={"e": endpoint}, **given)  # type: ignore[arg-type]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FANOUT_")}
        self._env = clean | {"FANOUT_REDIS": redis_url}
        self._env |= {f"FANOUT_ENDPOINT__E__{k.upper()}": str(v) for k, v in endpoint.items()}
        self._env |= {f"FANOUT_{k.upper()}": str(v) for k, v in given.items()}

    def worker(self) -> Worker:
        """One more, which is ready."""
        worker = Worker(self._env, self._folder / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        return worker.wait_ready()

    def run(
        self,
        texts: Sequence[str],
        during: Callable[[], None] = lambda: None,
        kind: type[Task] = Deadly,
    ) -> list[Record]:
        """The records of a job, once it has ended; `during` runs beside it."""
        return asyncio.run(self._run(texts, during, kind))

    def send(self, texts: Sequence[str]) -> None:
        """Submit a job and leave it."""

        async def submit() -> None:
            async with connect(settings=self.settings) as fo:
                await fo.submit(Deadly, texts)

        asyncio.run(submit())

    async def _run(
        self, texts: Sequence[str], during: Callable[[], None], kind: type[Task]
    ) -> list[Record]:
        async with connect(settings=self.settings) as fo:
            job = await fo.submit(kind, texts)
            beside = asyncio.create_task(asyncio.to_thread(during))
            try:
                async with asyncio.timeout(DEADLINE_S):
                    records = [record async for record in job.records()]
            except TimeoutError:
                raise AssertionError(f"the job does not end: {await self._counts(job)}") from None
            await beside
            return records

    async def _counts(self, job: Any) -> str:
        try:
            counts = (await job.info()).counts
        except Unavailable as error:
            counts = error
        logs = "\n".join(worker.output[-3000:] for worker in self.workers)
        return f"{counts}\n{logs}"

    def idle(self) -> bool:
        """Whether nothing is queued or unacknowledged."""
        return not (self.redis.llen("fanout.default") or self.redis.hlen("unacked"))

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.model.stop()
        self.redis.close()


@contextmanager
def fleet(redis_url: str, folder: Path, **settings: Any) -> Iterator[Fleet]:
    """A `Fleet` without workers; all of it ends with the block."""
    made = Fleet(redis_url, folder, **settings)
    try:
        yield made
    finally:
        made.close()


def wait_for(condition: Callable[[], object], what: str, worker: Worker | None = None) -> None:
    """Return when `condition` is true; fail with `what` after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        said = worker.output[-5000:] if worker else ""
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}\n{said}"
        time.sleep(0.02)
