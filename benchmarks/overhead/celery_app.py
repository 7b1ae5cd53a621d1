"""Stock Celery: a synchronous task, results in Redis, late acknowledgement, no events.

OVERHEAD_REDIS, OVERHEAD_URL and OVERHEAD_HTTP (urllib3 or requests) say what it works with; as a
script:

    python celery_app.py enqueue COUNT     prints the seconds it took
    python celery_app.py results           prints how many results there are
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from celery import Celery
from workload import body_of, documents

REDIS = os.environ["OVERHEAD_REDIS"]
CONCURRENCY = 256

app = Celery("bench", broker=REDIS, backend=REDIS)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    redis_max_connections=1024,
    broker_pool_limit=CONCURRENCY,
)


def _urllib3() -> Any:
    import urllib3

    pool = urllib3.PoolManager(maxsize=CONCURRENCY, block=False)

    def post(url: str, body: bytes) -> bytes:
        return pool.request(
            "POST", url, body=body, headers={"content-type": "application/json"}
        ).data

    return post


def _requests() -> Any:
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=CONCURRENCY))

    def post(url: str, body: bytes) -> bytes:
        return session.post(url, data=body, headers={"content-type": "application/json"}).content

    return post


_post: Any = None


@app.task(name="ask")
def ask(text: str) -> Any:
    global _post
    if _post is None:
        _post = _requests() if os.environ.get("OVERHEAD_HTTP") == "requests" else _urllib3()
    url = f"{os.environ['OVERHEAD_URL']}/chat/completions"
    body = json.loads(_post(url, json.dumps(body_of(text)).encode()))
    return json.loads(body["choices"][0]["message"]["content"])


def enqueue(count: int) -> None:
    began = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        for text in documents(count):
            ask.apply_async((text,), producer=producer)
    print(time.monotonic() - began)


def results() -> None:
    client = app.backend.client
    print(sum(1 for _ in client.scan_iter("celery-task-meta-*", count=5000)))


if __name__ == "__main__":
    if sys.argv[1] == "enqueue":
        enqueue(int(sys.argv[2]))
    else:
        results()
