"""Settings: where they come from, which goes first, and how a mistake is told."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from pydantic import ValidationError

from fanout import ConfigError, Endpoint, Settings, load_settings
from fanout.redis_url import tls_of

TOML = """
redis = "valkey://:sesame@10.0.0.1:7000/2"
window = 100

[endpoint.spark]
url = "http://10.0.0.2:8000"
model = "Qwen3"
tier = "heavy"
concurrency = 256
api_key = "opensesame"
reasoning_effort = "low"
extra = { seed = 1 }

[endpoint.tiny]
url = "https://10.0.0.3/openai/v1/"
tier = "light"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no FANOUT_* in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FANOUT_")]:
        monkeypatch.delenv(name)
    return tmp_path


def test_defaults() -> None:
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.endpoint == {}
    assert settings.window is None


def test_everything_from_the_file(folder: Path) -> None:
    (folder / "fanout.toml").write_text(TOML)
    settings = load_settings()
    spark = settings.endpoint["spark"]
    assert (spark.name, spark.url, spark.model) == ("spark", "http://10.0.0.2:8000/v1", "Qwen3")
    assert (spark.tier, spark.concurrency, spark.extra) == ("heavy", 256, {"seed": 1})
    assert (spark.key(), spark.reasoning_effort) == ("opensesame", "low")
    assert spark.root == "http://10.0.0.2:8000"
    assert settings.window == 100
    assert settings.redis_url == "redis://:sesame@10.0.0.1:7000/2"
    assert settings.redis_name == "redis://10.0.0.1:7000/2"
    assert settings.tiers() == ("heavy", "light")
    assert settings.endpoints_of("light") == (settings.endpoint["tiny"],)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANOUT_REDIS", "redis://elsewhere:1/0")
    monkeypatch.setenv("FANOUT_WINDOW", "7")
    monkeypatch.setenv("FANOUT_ENDPOINT__SPARK__URL", "http://spark:8000")
    monkeypatch.setenv("FANOUT_ENDPOINT__SPARK__CONCURRENCY", "9")
    monkeypatch.setenv("FANOUT_ENDPOINT__SPARK__EXTRA", '{"seed": 3}')
    settings = load_settings()
    spark = settings.endpoint["spark"]
    assert (settings.redis_url, settings.window) == ("redis://elsewhere:1/0", 7)
    assert (spark.name, spark.concurrency, spark.extra) == ("spark", 9, {"seed": 3})


def test_the_first_source_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".fanout").mkdir()
    (folder / ".fanout/stack.toml").write_text(
        'redis = "redis://stack/0"\nflower = "http://127.0.0.1:5"\nwindow = 1\n'
        '[endpoint.local]\nurl = "http://127.0.0.1:9"\n'
    )
    assert load_settings().redis_url == "redis://stack/0"
    (folder / "fanout.toml").write_text(TOML)
    settings = load_settings()
    assert (settings.redis_name, settings.window) == ("redis://10.0.0.1:7000/2", 100)
    assert settings.flower == "http://127.0.0.1:5"
    assert set(settings.endpoint) == {"spark", "tiny", "local"}
    monkeypatch.setenv("FANOUT_REDIS", "redis://environment/0")
    monkeypatch.setenv("FANOUT_ENDPOINT__SPARK__CONCURRENCY", "9")
    settings = load_settings()
    assert settings.redis_url == "redis://environment/0"
    assert (settings.endpoint["spark"].concurrency, settings.endpoint["spark"].model) == (
        9,
        "Qwen3",
    )
    assert load_settings(redis="redis://argument/0").redis_url == "redis://argument/0"
    assert load_settings(redis=None).redis_url == "redis://environment/0"


def test_the_file_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "fanout.toml").write_text("window = 1")
    (folder / "other.toml").write_text("window = 2")
    monkeypatch.setenv("FANOUT_CONFIG", str(folder / "other.toml"))
    assert load_settings().window == 2
    monkeypatch.setenv("FANOUT_CONFIG", "missing.toml")
    with pytest.raises(ConfigError, match=r"there is no configuration file missing\.toml"):
        load_settings()


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("window = ", "fanout.toml is not valid TOML: "),
        ("windw = 5", "configuration: windw: "),
        ("window = 0", "configuration: window: "),
        ('[endpoint.a]\nurl = "http://a"\ncolour = 1', "endpoint.a.colour: "),
        ("[endpoint.a]\nmodel = 'x'", "endpoint.a.url: "),
        ('[endpoint.a]\nurl = "a:8000"', "endpoint.a.url: 'a:8000' is not an http:// or https://"),
        ('[endpoint.a]\nurl = "http://a"\nconcurrency = 0', "endpoint.a.concurrency: "),
        ('[endpoint.a]\nurl = "http://a"\nconcurrency = 65536', "are more than 65535"),
        ('[endpoint.a]\nurl = "http://a"\nmax_concurrency = 65536', "max_concurrency: "),
        ('[endpoint.a]\nurl = "http://a"\ntier = "a b"', "'a b' is not a name"),
        ('[endpoint."a/b"]\nurl = "http://a"', "'a/b' is not a name"),
        ('[endpoint.a]\nurl = "http://a"\nreasoning_effort = "max"', "reasoning_effort: "),
        ("endpoint = 5", "configuration: endpoint: "),
        ("[endpoint]\na = 5", "configuration: endpoint.a: "),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(folder: Path, toml: str, words: str) -> None:
    (folder / "fanout.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "fanout.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"fanout\.toml is not valid TOML"):
        load_settings()
    (folder / "fanout.toml").unlink()
    (folder / "fanout.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read fanout\.toml: Is a directory"):
        load_settings()


def test_an_environment_variable_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANOUT_ENDPOINT", "{")
    with pytest.raises(ConfigError, match="endpoint"):
        load_settings()


def test_secrets_are_not_shown(folder: Path) -> None:
    (folder / "fanout.toml").write_text(TOML)
    settings = load_settings()
    assert "sesame" in settings.redis_url
    for shown in (repr(settings), str(settings), settings.model_dump_json(), settings.redis_name):
        assert "sesame" not in shown


def test_a_key_from_a_file(folder: Path) -> None:
    (folder / "key").write_text("sesame\n")
    assert Endpoint(url="http://a", api_key_file=folder / "key").key() == "sesame"
    with pytest.raises(ConfigError, match="endpoint spark: cannot read api_key_file"):
        Endpoint(name="spark", url="http://a", api_key_file=folder / "missing").key()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://a", "http://a/v1"),
        ("http://a/", "http://a/v1"),
        ("http://a/v1", "http://a/v1"),
        ("http://a/v1/", "http://a/v1"),
        ("https://a:8443/proxy", "https://a:8443/proxy/v1"),
        ("http://a/v1?x=1#y", "http://a/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_urls_are_brought_into_one_form(given: str, url: str) -> None:
    assert Endpoint(url=given).url == url


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("redis://a/1", "redis://a/1"),
        ("rediss://a/1", "rediss://a/1?ssl_cert_reqs=required"),
        ("valkey://a/1", "redis://a/1"),
        ("valkeys://a/1", "rediss://a/1?ssl_cert_reqs=required"),
        ("rediss://a?ssl_ca_certs=ca", "rediss://a?ssl_ca_certs=ca&ssl_cert_reqs=required"),
        ("rediss://a/1?ssl_cert_reqs=none", "rediss://a/1?ssl_cert_reqs=none"),
    ],
)
def test_urls_of_redis_are_brought_into_one_form(given: str, used: str) -> None:
    assert load_settings(redis=given).redis_url == used


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("redis://a/1", "redis://:open%2Fsesame@a/1"),
        ("redis://me@a/1", "redis://me:open%2Fsesame@a/1"),
        ("redis://me:other@a/1", "redis://me:other@a/1"),
    ],
)
def test_a_password_of_redis_from_a_file(folder: Path, given: str, used: str) -> None:
    (folder / "password").write_text("open/sesame\n")
    settings = load_settings(redis=given, redis_password_file=folder / "password")
    assert settings.redis_url == used
    assert settings.redis_name == "redis://a/1"
    assert "sesame" not in repr(settings)
    missing = load_settings(redis=given, redis_password_file=folder / "missing")
    if "other" not in given:
        with pytest.raises(ConfigError, match="cannot read redis_password_file"):
            assert missing.redis_url


def test_tls_in_the_words_of_celery() -> None:
    assert tls_of(load_settings(redis="redis://a?ssl_ca_certs=ca").redis_url) is None
    settings = load_settings(redis="rediss://a/1?ssl_ca_certs=%2Fa%20b%2Fca&db=2")
    assert tls_of(settings.redis_url) == {
        "ssl_ca_certs": "/a b/ca",
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }
    unchecked = load_settings(redis="rediss://a?ssl_cert_reqs=none")
    assert tls_of(unchecked.redis_url) == {"ssl_cert_reqs": ssl.CERT_NONE}


def test_the_tier() -> None:
    nothing = Settings()
    with pytest.raises(ConfigError, match="no endpoint is configured"):
        nothing.tier_or_default(None)
    one = Settings(endpoint={"a": Endpoint(url="http://a", tier="heavy")})
    assert one.tier_or_default(None) == "heavy"
    assert one.tier_or_default("heavy") == "heavy"
    with pytest.raises(ConfigError, match="no endpoint serves tier 'light'; tiers: heavy"):
        one.tier_or_default("light")
    two = Settings(
        endpoint={
            "a": Endpoint(url="http://a", tier="heavy"),
            "b": Endpoint(url="http://b", tier="light"),
        }
    )
    assert two.tier_or_default("light") == "light"
    with pytest.raises(ConfigError, match="several tiers are configured, name one: heavy, light"):
        two.tier_or_default(None)


@pytest.mark.parametrize("url", ["http://x", "redis://h:port/0", "redis://", "", "redis://h/abc"])
def test_a_redis_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="configuration: redis: "):
        load_settings(redis=url)


@pytest.mark.parametrize(
    "url", ["redis://h", "valkey://h:1/2", "rediss://u:p@h/0", "unix:///tmp/redis.sock"]
)
def test_a_redis_url(url: str) -> None:
    assert load_settings(redis=url).redis.get_secret_value() == url


def test_a_key_that_no_header_may_hold() -> None:
    with pytest.raises(ConfigError, match="no HTTP header") as caught:
        load_settings(endpoint={"x": {"url": "http://x", "api_key": "se\ncret"}})
    assert "cret" not in str(caught.value)


def test_concurrency_may_be_left_to_the_workers() -> None:
    fixed = Endpoint(url="http://a", concurrency=192)
    assert (fixed.first_n, fixed.largest_n) == (192, 192)
    found = Endpoint(url="http://a", concurrency="auto", start_concurrency=8, max_concurrency=500)
    assert (found.first_n, found.largest_n) == (8, 500)
    assert Endpoint.model_validate({"url": "http://a", "concurrency": "12"}).concurrency == 12


@pytest.mark.parametrize("value", [0, -1, "automatic", 1.5, True, None])
def test_concurrency_is_a_number_or_auto(value: object) -> None:
    with pytest.raises(ValidationError, match='neither a number from 1 up nor "auto"'):
        Endpoint.model_validate({"url": "http://a", "concurrency": value})


def test_a_start_above_the_most_is_refused() -> None:
    with pytest.raises(ValidationError, match="start_concurrency = 16 is above"):
        Endpoint(url="http://a", concurrency="auto", max_concurrency=8)
