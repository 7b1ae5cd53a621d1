"""Settings from `fanout.toml` and FANOUT_*, built once and passed down.

Sources, first wins: arguments, the environment (`FANOUT_REDIS`, `FANOUT_ENDPOINT__SPARK__URL`),
the file named by `FANOUT_CONFIG` or `./fanout.toml`, and what a running `fanout up` left in
`./.fanout/stack.toml`.
"""

from __future__ import annotations

import os
import re
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fanout.errors import ConfigError, FanoutError
from fanout.redis_url import complete, without_password
from fanout.secrets import secret_in
from fanout.timeouts import DEFAULT_MIN_TOKENS_PER_S

CONFIG_FILE = Path("fanout.toml")
STACK_FILE = Path(".fanout/stack.toml")

Effort = Literal["none", "minimal", "low", "medium", "high"]


def _is_name(value: str) -> str:
    # Names become part of Redis keys, queue names and metric labels.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError(f"{value!r} is not a name: use letters, digits, '_', '-' and '.'")
    return value


Name = Annotated[str, AfterValidator(_is_name)]


#: The largest N of an endpoint: what a worker's prefetch count can hold.
LARGEST_N = 65_535


def _is_concurrency(value: Any) -> Any:
    # In one place: a union would answer with the complaints of each of its members.
    if value == "auto":
        return value
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or number < 1:
        raise ValueError(f'{value!r} is neither a number from 1 up nor "auto"')
    if number > LARGEST_N:
        raise ValueError(f"{number} requests in flight are more than {LARGEST_N}")
    return number


Concurrency = Annotated[int | Literal["auto"], BeforeValidator(_is_concurrency)]


class Endpoint(BaseModel):
    """One model server.

    Attributes:
        name: its name in logs, records and metrics; the key of its table in fanout.toml.
        url: base URL of its OpenAI-compatible API; `/v1` is added where it is missing.
        model: model to ask for; empty = the only one that the server serves.
        tier: the group of endpoints that share a queue.
        concurrency: N, requests in flight at this server; "auto" = the workers find and hold it.
        start_concurrency: N that "auto" begins with.
        max_concurrency: N that "auto" does not exceed.
        api_key: sent as a bearer token; `api_key_file` names a file that holds it.
        reasoning_effort: sent with each request unless the task sets its own.
        timeout_s: seconds to wait for one reply; derived from the work when not set.
        min_tokens_per_s: slowest tokens/s of one sequence at N, for the derived timeout.
        stream: read replies token by token: measures the time to the first token.
        extra: keys added to each request's body as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = "default"
    url: str
    model: str | None = None
    tier: Name = "default"
    concurrency: Concurrency = 64
    start_concurrency: PositiveInt = 16
    max_concurrency: PositiveInt = Field(default=1024, le=LARGEST_N)
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    reasoning_effort: Effort | None = None
    timeout_s: PositiveFloat | None = None
    min_tokens_per_s: PositiveFloat = DEFAULT_MIN_TOKENS_PER_S
    stream: bool = False
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("api_key")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().isprintable():
            raise ValueError("the key holds a character that no HTTP header may hold")
        return value

    @field_validator("url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{value!r} is not an http:// or https:// URL")
        path = parts.path.rstrip("/")
        if not path.endswith("/v1"):
            path += "/v1"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @model_validator(mode="after")
    def _bounds(self) -> Endpoint:
        if self.start_concurrency > self.max_concurrency:
            raise ValueError(
                f"start_concurrency = {self.start_concurrency} is above "
                f"max_concurrency = {self.max_concurrency}"
            )
        return self

    @property
    def first_n(self) -> int:
        """N as long as nobody has said otherwise in Redis."""
        return self.start_concurrency if self.concurrency == "auto" else self.concurrency

    @property
    def largest_n(self) -> int:
        """The largest N that the configuration can lead to."""
        return self.max_concurrency if self.concurrency == "auto" else self.concurrency

    @property
    def root(self) -> str:
        """The server's URL without `/v1`, where `/health` and `/metrics` are."""
        return self.url.removesuffix("/v1")

    def key(self) -> str | None:
        """The bearer token, read from its file where one is named.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.api_key_file is None:
            return self.api_key.get_secret_value() if self.api_key else None
        try:
            return secret_in(self.api_key_file, "api_key_file")
        except ConfigError as error:
            raise ConfigError(f"endpoint {self.name}: {error}") from error


class _TomlFile(PydanticBaseSettingsSource):
    """A TOML file as a settings source; says which file is broken, and where."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path, required: bool) -> None:
        super().__init__(settings_cls)
        self._path = path
        self._required = required

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once, in __call__

    def __call__(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._path.read_text())
        except FileNotFoundError as error:
            if not self._required:
                return {}
            raise ConfigError(f"there is no configuration file {self._path}") from error
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path} is not valid TOML: {error}") from error


class Settings(BaseSettings):
    """Everything configurable.

    Attributes:
        redis: URL of the broker, job store and result backend (redis://, rediss://, valkey://).
            TLS takes `?ssl_ca_certs=FILE`, and `ssl_certfile` and `ssl_keyfile` of a client.
        redis_password_file: holds the password of Redis, where the URL has none.
        endpoint: the model servers, by name.
        window: items submitted and not yet written by the client, at most; None = 4 x N of the
            tier, at least 1,024.
        auto_poll_s: seconds between two looks of the controller of "auto"; shorter only where time
            goes faster, at the simulator.
        redeliver_after_s: seconds of silence after which a worker's items are handed out again; no
            limit for how long a request may take.
        wait_for_redis_s: seconds for which a client under way waits for a Redis that is away.
        stall_after_s: seconds without a record that are nothing special, whatever the work.
        keep_jobs_s: seconds for which Redis keeps a job that was cancelled, or that is done and all
            of whose records have been written.
        stuck_after_s: seconds without a sign of life, or without a delivery while items wait and
            there is room, after which a worker ends itself, to be started again.
        flower: address of a running Flower, as `fanout up` leaves it.
    """

    model_config = SettingsConfigDict(
        env_prefix="FANOUT_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    redis: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    redis_password_file: Path | None = None
    endpoint: dict[str, Endpoint] = Field(default_factory=dict)
    window: PositiveInt | None = None
    auto_poll_s: PositiveFloat = 5.0
    redeliver_after_s: Annotated[float, Field(ge=3)] = 100.0
    stuck_after_s: Annotated[float, Field(ge=3)] = 60.0
    wait_for_redis_s: PositiveFloat = 3600.0
    stall_after_s: PositiveFloat = 30.0
    keep_jobs_s: PositiveFloat = 7 * 86_400.0
    flower: str | None = None

    @field_validator("redis")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        schemes = ("redis", "rediss", "valkey", "valkeys", "unix")
        database = parts.path.strip("/")
        try:
            usable = parts.scheme == "unix" or (bool(parts.hostname) and parts.port != 0)
        except ValueError:  # a port that is no number
            usable = False
        if parts.scheme not in schemes or not usable:
            raise ValueError("this is not a redis:// URL (rediss://, valkey://, unix:// do too)")
        if parts.scheme != "unix" and database and not database.isdecimal():
            raise ValueError(f"the database {database!r} is not a number")
        return value

    @model_validator(mode="before")
    @classmethod
    def _name_endpoints(cls, values: Any) -> Any:
        tables = values.get("endpoint") if isinstance(values, dict) else None
        if not isinstance(tables, dict):
            return values
        named = {
            name: {**table, "name": name} if isinstance(table, dict) else table
            for name, table in tables.items()
        }
        return {**values, "endpoint": named}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get("FANOUT_CONFIG")
        return (
            init_settings,
            env_settings,
            _TomlFile(settings_cls, Path(named) if named else CONFIG_FILE, bool(named)),
            _TomlFile(settings_cls, STACK_FILE, required=False),
        )

    @cached_property
    def redis_url(self) -> str:
        """The Redis URL with its password, as redis-py, kombu and Celery read it.

        Raises:
            ConfigError: the file of the password cannot be read.
        """
        return complete(self.redis.get_secret_value(), self.redis_password_file)

    @property
    def redis_name(self) -> str:
        """The Redis URL without its password, for messages."""
        return without_password(self.redis_url)

    def tiers(self) -> tuple[str, ...]:
        """Names of the configured tiers, in the order of their first endpoint."""
        return tuple(dict.fromkeys(endpoint.tier for endpoint in self.endpoint.values()))

    def endpoints_of(self, tier: str) -> tuple[Endpoint, ...]:
        """The endpoints that serve `tier`.

        Raises:
            ConfigError: none does.
        """
        found = tuple(e for e in self.endpoint.values() if e.tier == tier)
        if found:
            return found
        if not self.endpoint:
            raise ConfigError(
                "no endpoint is configured: add one to fanout.toml, set "
                "FANOUT_ENDPOINT__NAME__URL, or start a local model with `fanout up`"
            )
        raise ConfigError(f"no endpoint serves tier {tier!r}; tiers: {', '.join(self.tiers())}")

    def tier_or_default(self, tier: str | None) -> str:
        """`tier`, or the only one that is configured.

        Raises:
            ConfigError: no endpoint serves it, or there are several to choose from.
        """
        tiers = self.tiers()
        if tier is None and len(tiers) > 1:
            raise ConfigError(f"several tiers are configured, name one: {', '.join(tiers)}")
        chosen = tier or (tiers[0] if tiers else "default")
        self.endpoints_of(chosen)
        return chosen


def load_settings(**overrides: Any) -> Settings:
    """Build the settings from their sources; `overrides` that are None are ignored.

    Raises:
        ConfigError: a source cannot be read or holds something invalid; names the key.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except FanoutError:
        raise
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(
            f"configuration: {place}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except ValueError as error:  # a FANOUT_* variable that is not JSON where JSON is needed
        raise ConfigError(f"configuration: {error}") from error
