"""What runs in one schedule, and what faults can do to it."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import shutil
import signal
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from chaoskit import plug_in
from chaoskit.immutable import set_immutable
from chaoskit.plan import Plan
from chaoskit.ports import Ports
from chaoskit.processes import Child, Supervised
from chaoskit.proxy import Proxy
from chaoskit.servers import FANOUT, Redis, Sim

SCHEMA = {"title": "Word", "type": "object", "properties": {"word": {"type": "string"}}}
QUEUE = "fanout.default"
#: Exit codes with which the command has done its work: all ok, some not.
_DONE = (0, 1)
_REFUSED = 2
_WORKER_READY_S = 90.0
_WARM_STOP_S = 30.0
#: Starts of a command in all, before it counts as one that does not come to an end.
_STARTS = 25


@dataclass(slots=True)
class Job:
    """A command that collects, its input and its output."""

    process: Supervised
    ids: list[str]
    output: Path
    cancelled: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def written(self) -> int:
        """Lines of the output."""
        try:
            return self.output.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


@dataclass(slots=True)
class Allowance:
    """How often the servers may be asked a second time, by what has happened."""

    total: int = 0
    reasons: list[str] = field(default_factory=list)


class Rig:
    """Redis, endpoints, workers and commands of one schedule, in a folder of its own.

    Args:
        plan: what to run.
        folder: an empty one.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.queue = QUEUE
        self.allowance = Allowance()
        self.began = time.monotonic()
        self.jobs: list[Job] = []
        self.workers: list[Supervised] = []
        self.children: list[Child] = []
        self.commands: list[Child] = []
        self.ports = Ports()
        self._proxies: dict[str, list[Proxy]] = {"redis": [], "endpoint": []}
        self._tasks: set[asyncio.Task[None]] = set()
        self._locked: set[Path] = set()
        self._restarting = asyncio.Lock()
        self._plug_in = any(event.fault.plug_in for event in plan.events)
        self.redis = Redis(self.ports.choose(), folder, plan.fleet.appendfsync)
        self.servers = [Sim(server, self.ports.choose(), folder) for server in plan.fleet.servers]
        self.children += [self.redis, *(server.process for server in self.servers)]

    @property
    def client(self) -> Supervised:
        """The command of the first job."""
        return self.jobs[0].process

    @property
    def output(self) -> Path:
        """Its output."""
        return self.jobs[0].output

    def say(self, what: str) -> None:
        """Write a line into the schedule's own log."""
        with (self.folder / "events.log").open("a") as log:
            log.write(f"{time.monotonic() - self.began:8.3f} {what}\n")

    # Its life.

    async def start(self) -> None:
        """Start all but the job."""
        wires = {event.fault.wire for event in self.plan.events}
        redis_port = self.redis.port
        if "redis" in wires:
            redis_port = await self._proxy("redis", self.redis.port)
        lines = [f'redis = "redis://127.0.0.1:{redis_port}/0"']
        lines += [f"redeliver_after_s = {self.plan.fleet.redeliver_after_s}"]
        for server in self.servers:
            port = server.port
            if "endpoint" in wires:
                port = await self._proxy("endpoint", server.port)
            lines += [
                f"[endpoint.{server.server.name}]",
                f'url = "http://127.0.0.1:{port}"',
                f"concurrency = {server.server.n}",
            ]
        (self.folder / "fanout.toml").write_text("\n".join(lines) + "\n")
        (self.folder / "schema.json").write_text(json.dumps(SCHEMA))
        if self._plug_in:
            shutil.copy(plug_in.__file__, self.folder / "chaos_kind.py")
            self.set_clock(0.0)
        await asyncio.gather(self.redis.begin(), *(server.start() for server in self.servers))
        for _ in range(self.plan.fleet.workers):
            self.add_worker()
        await self._workers_shown(1)
        self.say("workers are there")

    async def stop(self) -> list[str]:
        """End all in order; what did not end when told to."""
        late: list[str] = []
        for process in (*self.workers, *(job.process for job in self.jobs)):
            process.release()
        stopping = [(w, w.stop(signal.SIGTERM, _WARM_STOP_S)) for w in self.workers if w.alive]
        done = await asyncio.gather(*(stop for _, stop in stopping))
        late += [w.name for (w, _), ended in zip(stopping, done, strict=True) if not ended]
        for job in self.jobs:
            await job.process.stop(signal.SIGKILL, 5.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for child in [*self.commands, *reversed(self.children)]:
            if child.alive and not await child.stop(signal.SIGTERM, 10.0):
                late.append(child.name)
        for proxies in self._proxies.values():
            for proxy in proxies:
                await proxy.stop()
        return late

    @property
    def pids(self) -> list[int]:
        """Of all processes that were ever started."""
        jobs = [job.process for job in self.jobs]
        return [pid for child in (*self.children, *self.commands, *self.workers, *jobs)
                for pid in child.pids]  # fmt: skip

    # What faults do.

    def worker(self, which: int) -> Supervised:
        """One of the first workers."""
        return self.workers[which % self.plan.fleet.workers]

    def add_worker(self) -> None:
        """Start one more, under supervision."""
        command = [FANOUT, "worker", "--loglevel", "info"]
        if self._plug_in:
            command += ["--task", "chaos_kind:Extract"]
        worker = Supervised(f"worker-{len(self.workers)}", command, self.folder, lambda code: True)
        self.workers.append(worker)
        self._spawn(worker.run())

    def start_job(self) -> Job:
        """Start the command of the plan's own job."""
        texts = self._texts(self.plan.fleet.items)
        if any(event.fault.name == "poison" for event in self.plan.events):
            texts[len(texts) // 2] = "CHAOS-POISON"
        return self._extract("docs", texts)

    def start_second(self, items: int, *, cancelled: bool = False) -> Job:
        """Start another command with another job."""
        return self._extract(f"more-{len(self.jobs)}", self._texts(items), cancelled=cancelled)

    async def cancel(self, job: Job) -> None:
        """`fanout cancel` of that command's job, as soon as it is known."""
        found: str | None = None
        while found is None and job.process.alive:
            found = await self._job_of(job)
            await asyncio.sleep(0.1)
        if found is not None:
            # Redis may be away at this moment: a person would try again, too.
            while job.process.alive and await self.command("cancel", found) != 0:
                await asyncio.sleep(0.5)

    async def change_n(self, which: int, n: int) -> None:
        """`fanout endpoint set`."""
        server = self.servers[which]
        if n > server.turns[-1][1]:
            server.turn(n)
        while await self.command("endpoint", "set", server.server.name, "-j", str(n)) != 0:
            await asyncio.sleep(0.5)
        if n < server.turns[-1][1]:
            server.turn(n)

    async def command(self, *arguments: str) -> int | None:
        """Run one command to its end; its exit code."""
        child = Child(f"command-{len(self.commands)}", [FANOUT, *arguments], self.folder)
        self.commands.append(child)
        child.start()
        await child.ended()
        return child.code

    def proxies(self, place: str) -> Sequence[Proxy]:
        """Between the workers and `redis`, or the `endpoint`s."""
        return self._proxies[place]

    def set_clock(self, by_s: float) -> None:
        """Let the workers' clocks jump."""
        with (self.folder / "clock").open("r+b" if by_s else "wb") as file:
            file.write(struct.pack("d", by_s))

    async def lock_output(self, for_s: float) -> None:
        """Let nobody write the output for a while."""
        if not self.output.exists():
            return
        if not set_immutable(self.output, True):
            self.say("this file system cannot make a file immutable")
            return
        self._locked.add(self.output)
        try:
            await asyncio.sleep(for_s)
        finally:
            set_immutable(self.output, False)
            self._locked.discard(self.output)

    async def restart_redis(
        self,
        number: signal.Signals,
        back_s: float,
        *,
        empty: bool = False,
        torn_bytes: int = 0,
    ) -> None:
        """End Redis and start it again: with its data, without, or without the last of them."""
        if self._restarting.locked() or not self.redis.alive:
            return  # another fault has ended it, and will start it
        async with self._restarting:
            await self.redis.stop(number, 10.0)
            await asyncio.sleep(back_s)
            if empty:
                self.redis.forget()
            if torn_bytes:
                self.redis.tear(torn_bytes)
            await self.redis.begin()

    async def fill_redis_disk(self, for_s: float) -> None:
        """Let the file of Redis not grow for a while; started again where it ends by that."""
        self.redis.limit_files(self.redis.file_bytes)
        if not await self.redis.ended(for_s):
            self.redis.limit_files(resource.RLIM_INFINITY)
            return
        async with self._restarting:  # or by another fault, which starts it again
            if not self.redis.alive:
                self.say(f"Redis has ended with {self.redis.code}")
                await asyncio.sleep(for_s)
                await self.redis.begin()

    async def ask_redis(self, *command: str | bytes, again: bool = False) -> Any:
        """A command to Redis itself; None where it does not answer, unless asked `again`."""
        while True:
            try:
                return await asyncio.to_thread(self._ask_redis, command)
            except (redis.RedisError, OSError):
                if not again:
                    return None
                await asyncio.sleep(0.2)

    def allow(self, reason: str, count: int) -> None:
        """The servers may be asked so many times a second time."""
        self.allowance.total += count
        self.allowance.reasons.append(f"{reason}: {count}")

    # Inside.

    def _ask_redis(self, command: Sequence[str | bytes]) -> Any:
        client = redis.Redis(port=self.redis.port, socket_timeout=10.0)
        try:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            client.close()

    def _extract(self, name: str, texts: Sequence[str], *, cancelled: bool = False) -> Job:
        ids = [f"{name}-{number}" for number in range(len(texts))]
        rows = (json.dumps({"id": i, "text": text}) for i, text in zip(ids, texts, strict=True))
        (self.folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        output = self.folder / f"{name}.out.jsonl"
        command = [FANOUT, "extract", f"{name}.jsonl", "--schema", "schema.json", "-o", output.name]
        if self.plan.fleet.window is not None:
            command += ["--window", str(self.plan.fleet.window)]
        process = Supervised(
            f"client-{name}", command, self.folder, lambda code: self._goes_on(code, output)
        )
        job = Job(process, ids, output, cancelled)
        self.jobs.append(job)
        job.task = self._spawn(process.run())
        return job

    def _goes_on(self, code: int, output: Path) -> bool:
        """Whether the same command is given again."""
        if max(len(job.process.codes) for job in self.jobs) >= _STARTS:
            return False
        if code == _REFUSED and (not output.exists() or output in self._locked):
            return True  # at its start: Redis, workers, endpoints or the output were away
        return code not in _DONE

    def _texts(self, count: int) -> list[str]:
        dice = random.Random(f"texts {self.plan.seed} {count}")
        shortest, longest = self.plan.fleet.text_chars
        return [f"{n} " + "x" * dice.randint(shortest, longest) for n in range(count)]

    async def _job_of(self, job: Job) -> str | None:
        # Jobs in the order of their creation are commands in the order of their start.
        found = await self.ask_redis("ZRANGE", "fanout:jobs", "0", "-1")
        place = self.jobs.index(job)
        return found[place].decode() if found and len(found) > place else None

    async def _workers_shown(self, count: int) -> None:
        deadline = time.monotonic() + _WORKER_READY_S
        while len(await self.ask_redis("KEYS", "fanout:worker:*") or ()) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no worker in {_WORKER_READY_S:g} s")
            await asyncio.sleep(0.1)

    async def _proxy(self, place: str, target: int) -> int:
        proxy = Proxy(self.ports.choose(), target)
        await proxy.start()
        self._proxies[place].append(proxy)
        return proxy.port

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        with suppress(ValueError):
            task.add_done_callback(self._tasks.discard)
        return task
