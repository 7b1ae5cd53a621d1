"""What others must not get at: Redis behind TLS and a password, and documents that are hostile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
from kit import alive_in, closed_port, fanout, hostile, started, until
from model_server import MODEL
from stacks import Stack, model_server

SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}
PASSWORD = "open/sesame"
#: What docs/security.md says that the user of fanout needs.
ACL = (
    "user default off\n"
    f"user fanout on >{PASSWORD} resetkeys ~fanout* ~unacked* ~_kombu* ~celery* "
    "~*.celery.pidbox* allchannels -@all +@read +@write +@transaction +@scripting +@pubsub "
    "+@connection -@dangerous +info +time +config|get\n"
)


def sign(folder: Path) -> None:
    """A certificate authority of our own, and a certificate of it for 127.0.0.1."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for command in (
        ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=an authority"),
        (
            *("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=redis"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ),
        (
            *("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-out", "server.crt", "-copy_extensions", "copyall"),
        ),
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError as error:
        if "CERTIFICATE" in str(error):
            raise
        return False


@contextmanager
def secured_redis(folder: Path) -> Iterator[int]:
    """The port of a Redis that only takes TLS, and only users with a password."""
    sign(folder)
    (folder / "users.acl").write_text(ACL)
    port = closed_port()
    server = subprocess.Popen(
        [
            *("redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"),
            *("--tls-cert-file", "server.crt", "--tls-key-file", "server.key"),
            *("--tls-ca-cert-file", "ca.crt", "--tls-auth-clients", "no", "--save", ""),
            *("--aclfile", str(folder / "users.acl")),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        client = redis.Redis(
            "127.0.0.1", port, username="fanout", password=PASSWORD, ssl=True,
            ssl_ca_certs=str(folder / "ca.crt"),
        )  # fmt: skip
        with closing(client):
            while not _answers(client):
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs a Redis that knows TLS")
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_redis_with_tls_a_password_and_few_rights(tmp_path: Path) -> None:
    place = tmp_path / "redis"
    place.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    hostile(here)
    (here / "password").write_text(PASSWORD + "\n")
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    (here / "docs.jsonl").write_text("".join(f'{{"text": "document {n}"}}\n' for n in range(40)))
    flower, log = closed_port(), here / "up.log"
    with secured_redis(place) as port, model_server() as model:
        (here / "fanout.toml").write_text(
            f'redis = "rediss://fanout@127.0.0.1:{port}/0?ssl_ca_certs={place}/ca.crt"\n'
            f'redis_password_file = "password"\n'
            f'[endpoint.fake]\nurl = "http://127.0.0.1:{model}"\nmodel = "{MODEL}"\n'
        )
        with started("up", "--flower-port", str(flower), cwd=here, log=log) as process:
            until(lambda: "ready;" in log.read_text(), "up is ready", process=process, log=log)
            assert fanout("doctor", cwd=here).returncode == 0
            done = fanout(
                *("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl"),
                "--results",
                cwd=here,
            )
            assert done.returncode == 0, done.stderr
            with urllib.request.urlopen(f"http://127.0.0.1:{flower}/broker") as page:
                assert "fanout" in page.read().decode()
            lines = [
                Path(f"/proc/{entry}/cmdline").read_bytes()
                for entry in os.listdir("/proc")
                if entry.isdigit() and _is_in(entry, here)
            ]
            assert lines
            assert not any(PASSWORD.encode() in line for line in lines)
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        # Without the authority's certificate nobody is talked to.
        (here / "fanout.toml").write_text(f'redis = "rediss://fanout:x@127.0.0.1:{port}/0"\n')
        refused = fanout("status", cwd=here)
        assert refused.returncode == 2
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert len((here / "out.jsonl").read_text().splitlines()) == 40
    for told in (log, *(here / ".fanout").rglob("*.log"), here / ".fanout" / "stack.toml"):
        if told.exists():
            text = told.read_text()
            assert "sesame" not in text, told
            assert "Traceback" not in text, f"{told}\n{text}"
    until(lambda: not alive_in(here), "no process is left")


def _is_in(pid: str, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve().is_relative_to(folder)
    except OSError:
        return False


def test_hostile_names_and_replies_steer_no_terminal(stack: Stack) -> None:
    here = stack.folder / "tree"
    here.mkdir()
    clear, forged = "\x1b[2J\x1b]0;owned\x07", "a.py\nb.py:1: error: forged"
    (here / f"{clear}.py").write_text("EVIL = 1\n")
    (here / forged).write_text("EVIL = 2\n")
    (here / "link.py").symlink_to("/etc/hostname")
    done = fanout("review", str(here), "--include", "*", "-o", "evil.json", cwd=stack.folder)
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert "\x1b" not in stream
        assert "\x07" not in stream
    findings = json.loads((stack.folder / "evil.json").read_text())["findings"]
    # As data they are what they were; and a link out of the tree was not followed.
    assert {finding["path"] for finding in findings} == {
        str(here / f"{clear}.py"),
        str(here / forged),
    }
    assert len(done.stdout.splitlines()) == len(findings)

    rows = [{"id": "../../escape", "text": "EVIL"}, {"id": clear, "text": "EVIL"}]
    (stack.folder / "evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (stack.folder / "evil-schema.json").write_text(json.dumps(SCHEMA))
    before = set(stack.folder.parent.iterdir())
    done = fanout(
        *("extract", "evil.jsonl", "--schema", "evil-schema.json", "-o", "evil-out.jsonl"),
        cwd=stack.folder,
    )
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert set(stack.folder.parent.iterdir()) == before
    lines = (stack.folder / "evil-out.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["id"] for record in records} == {"../../escape", clear}
    assert "\x1b" not in fanout("status", cwd=stack.folder).stdout
    for log in (stack.folder / ".fanout" / "logs").glob("*.log"):
        assert "\x1b[2J" not in log.read_text(), log
