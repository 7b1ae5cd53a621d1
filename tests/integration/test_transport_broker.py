"""The broker's client, shared by the threads of a worker."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import redis
from servers import binaries, running_server

from fanout_workers.transport.broker import Broker, Keys


def test_closing_leaves_the_command_of_another_thread_alone() -> None:
    with running_server(next(iter(binaries()))) as url, ThreadPoolExecutor(1) as pool:
        client = redis.Redis(connection_pool=redis.ConnectionPool.from_url(url))
        broker = Broker(client, Keys("", "unacked", "unacked_index", "\x06\x16", (0,)))
        with redis.Redis.from_url(url) as other:
            waiting = pool.submit(client.blpop, ["list"], 20)
            deadline = time.monotonic() + 20
            while other.info("clients")["blocked_clients"] != 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            broker.close()
            other.rpush("list", "value")
            assert waiting.result(20) == (b"list", b"value")
            broker.close()
            assert not [c for c in other.client_list() if c["cmd"] == "blpop"]
