"""The parts of fanout started together on one machine, in the order in which they need each other:
Redis, the model, a worker for each tier, Flower.

What is configured is used as it is; what is not is started here, and left in a `stack.toml` so
that other commands in the same folder find it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from fanout import keys
from fanout.errors import FanoutError
from fanout.local.keeper import Keeper
from fanout.local.model import ModelServer
from fanout.local.probes import free_port, http_ok, port_is_free
from fanout.local.processes import LocalError, Process, Stack
from fanout.local.valkey import ValkeyServer
from fanout.settings import Settings, load_settings

LOCAL_ENDPOINT = "local"

#: Told one line as each part begins to start.
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start.

    Attributes:
        home: folder for data, logs and `stack.toml`.
        flower: whether to start Flower, on `flower_port` or, if that is 0 or taken, a free one.
        workers: worker processes for each tier.
        tasks: more task kinds for the workers, as `module:Kind`.
        durable: whether an embedded Valkey keeps its data in `home`.
        env: what the children's environment has beside this process's own.
        cwd: the children's current folder; None = this process's.
    """

    home: Path
    flower: bool = True
    flower_port: int = 0
    workers: int = 1
    tasks: Sequence[str] = ()
    durable: bool = True
    env: dict[str, str] | None = None
    cwd: Path | None = None

    @property
    def logs(self) -> Path:
        """Folder of the children's log files."""
        return self.home / "logs"

    @property
    def stack_file(self) -> Path:
        """Where the other commands find what was started."""
        return self.home / "stack.toml"


class Services:
    """The parts that run, for as long as `running` lasts."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        stack: Stack,
        model: ModelServer | None,
        valkey: ValkeyServer | None = None,
    ) -> None:
        self.plan = plan
        self.settings = settings
        #: The embedded model, where no endpoint was configured.
        self.model = model
        self._stack = stack
        self._valkey = valkey

    @property
    def flower_url(self) -> str | None:
        """Flower's address, if it was started."""
        return self.settings.flower if self.plan.flower else None

    def keeper(self, say: Say) -> Keeper:
        """Starts children again that end although nobody stopped them."""
        # In memory only, the jobs would be gone; and nobody would know.
        lost = self._valkey is not None and not self.plan.durable
        once = (self._valkey.process,) if self._valkey is not None and lost else ()
        return Keeper(self._stack, say, once)


@contextmanager
def running(plan: Plan, settings: Settings, say: Say) -> Iterator[Services]:
    """Start what `plan` says and `settings` lack; stop all of it at the end, whatever happens.

    Args:
        plan: what to start, and where.
        settings: what is configured already.
        say: told the name of each part as it begins to start.

    Raises:
        LocalError: a part cannot be started; its last log lines are in the message.
    """
    plan.logs.mkdir(parents=True, exist_ok=True)
    plan.home.chmod(0o700)
    valkey: ValkeyServer | None = None
    with _alone(plan.home), Stack() as stack:
        try:
            settings, model, valkey = _start_servers(plan, settings, stack, say)
            _start_flower(plan, settings, stack, say)
            for tier in settings.tiers():
                for number in range(1, plan.workers + 1):
                    say(f"worker {tier}-{number}")
                    _start_worker(plan, settings, stack, tier, number)
            yield Services(plan, settings, stack, model, valkey)
        finally:
            plan.stack_file.unlink(missing_ok=True)
            if valkey is not None:
                valkey.release()


def forget_stale(home: Path) -> None:
    """Remove what a stack that was killed has left; to be called before settings are loaded.

    Raises:
        LocalError: the stack still runs.
    """
    if home.is_dir():
        with _alone(home):
            (home / "stack.toml").unlink(missing_ok=True)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold `home` for this process: two stacks would overwrite each other's `stack.toml`."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalError(f"fanout already runs in {home.absolute().parent}") from error
        yield


def _start_servers(
    plan: Plan, settings: Settings, stack: Stack, say: Say
) -> tuple[Settings, ModelServer | None, ValkeyServer | None]:
    model: ModelServer | None = None
    valkey: ValkeyServer | None = None
    started: dict[str, object] = {}
    if "redis" not in settings.model_fields_set:
        say("Valkey")
        valkey = ValkeyServer(plan.home / "valkey" if plan.durable else None)
        valkey.start_in(stack, again=True)
        started["redis"] = valkey.url
    if not settings.endpoint:
        say("the local model")
        model = ModelServer(log=plan.logs / "model.log")
        model.start_in(stack)
        started["endpoint"] = {
            LOCAL_ENDPOINT: {
                "url": model.url,
                "model": model.alias,
                "concurrency": model.slots,
                # Sixteen sequences share a few CPU cores.
                "min_tokens_per_s": 1.0,
            }
        }
    if plan.flower:
        port = plan.flower_port if port_is_free(plan.flower_port) else free_port()
        started["flower"] = f"http://127.0.0.1:{port}"
    _write_private(plan.stack_file, _toml(started))
    merged = {name: getattr(settings, name) for name in settings.model_fields_set}
    return load_settings(**{**merged, **started}), model, valkey


def _start_flower(plan: Plan, settings: Settings, stack: Stack, say: Say) -> None:
    if not plan.flower or settings.flower is None:
        return
    say("Flower")
    port = int(settings.flower.rpartition(":")[2])
    stack.start(
        _child(plan, "flower", ["fanout.flower", "--port", str(port)]),
        ready=lambda: http_ok(port, "/healthcheck"),
        deadline_s=60.0,
    )


def _start_worker(plan: Plan, settings: Settings, stack: Stack, tier: str, number: int) -> None:
    name = f"{tier}-{number}-{os.getpid()}@{platform.node()}"
    arguments = ["fanout_workers", "--tier", tier, "--name", name]
    for task in plan.tasks:
        arguments += ["--task", task]
    client = redis.Redis.from_url(settings.redis_url)
    try:
        stack.start(
            _child(plan, f"worker-{tier}-{number}", arguments),
            # It shows itself in Redis once its loop runs and its endpoints have been asked.
            ready=lambda: bool(client.exists(keys.worker(name))),
            deadline_s=60.0,
        )
    except redis.RedisError as error:
        raise FanoutError(f"Redis at {settings.redis_name}: {error}") from error
    finally:
        client.close()


def _child(plan: Plan, name: str, arguments: Sequence[str]) -> Process:
    return Process(
        name,
        # -P: a folder named fanout in the current directory must not be imported.
        [sys.executable, "-P", "-m", *arguments],
        log=plan.logs / f"{name}.log",
        env=plan.env,
        cwd=plan.cwd,
    )


def _toml(values: dict[str, object], path: str = "") -> str:
    """Nested string and number tables as TOML; JSON's scalars are TOML's."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(v)}" for key, v in values.items() if key not in tables]
    if path and lines:
        lines.insert(0, f"[{path}]")
    for key, table in tables.items():
        lines.append(_toml(table, f"{path}.{key}" if path else key))
    return "\n".join(lines) + "\n"


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
