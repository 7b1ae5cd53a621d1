"""The URL of Redis in the form that redis-py, kombu, Celery and Flower all read."""

from __future__ import annotations

import re
from pathlib import Path
from ssl import CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from fanout.secrets import secret_in

#: What `ssl_cert_reqs` of a URL means: redis-py's words, then Celery's.
_CERT_REQS = {
    "none": CERT_NONE,
    "optional": CERT_OPTIONAL,
    "required": CERT_REQUIRED,
    "CERT_NONE": CERT_NONE,
    "CERT_OPTIONAL": CERT_OPTIONAL,
    "CERT_REQUIRED": CERT_REQUIRED,
}


def complete(url: str, password_file: Path | None = None) -> str:
    """The URL with what its readers need beside what a person writes.

    Args:
        url: a URL as it was configured; `valkey://` becomes `redis://`.
        password_file: holds the password, where the URL has none.

    Raises:
        ConfigError: the file cannot be read.
    """
    parts = urlsplit(re.sub(r"^valkey(s?)://", r"redis\1://", url))
    if password_file is not None and parts.password is None:
        user, _, host = parts.netloc.rpartition("@")
        secret = quote(secret_in(password_file, "redis_password_file"), safe="")
        parts = parts._replace(netloc=f"{user.removesuffix(':')}:{secret}@{host}")
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in dict(parse_qsl(parts.query)):
        # redis-py's default; Celery's result backend refuses a URL that does not say it.
        parts = parts._replace(
            query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))
        )
    return urlunsplit(parts)


def without_password(url: str) -> str:
    """The URL for messages: without user, password and options."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def tls_of(url: str) -> dict[str, Any] | None:
    """The TLS options of a `complete` URL as Celery's `broker_use_ssl`; None without TLS."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return None
    options = {key: value for key, value in parse_qsl(parts.query) if key.startswith("ssl_")}
    return {**options, "ssl_cert_reqs": _CERT_REQS.get(options["ssl_cert_reqs"], CERT_REQUIRED)}
