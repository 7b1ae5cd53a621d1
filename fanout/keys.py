"""Names of the keys that fanout keeps in Redis.

`{job}` is a hash tag. Celery's own keys (queues, `unacked`, results) keep Celery's names.
"""

PREFIX = "fanout"

#: Sorted set: job ids by creation time.
JOBS = f"{PREFIX}:jobs"


def job(job_id: str) -> str:
    """Hash: spec, state, counts, times."""
    return f"{PREFIX}:job:{{{job_id}}}"


def settled(job_id: str) -> str:
    """Bitmap: bit = ordinal settled. A million items are 125 KB."""
    return f"{job(job_id)}:settled"


def records(job_id: str) -> str:
    """Stream: records until the collector has written them."""
    return f"{job(job_id)}:records"


def worker(name: str) -> str:
    """String with a time to live: what a worker process last said of itself."""
    return f"{PREFIX}:worker:{name}"


#: Fields of an endpoint's hash: N if it was set by hand, and the lease of each worker process
#: as "part demand expiry-in-ms call".
CONCURRENCY = "n"
LEASE = "l:"


def endpoint(name: str) -> str:
    """Hash: N if it was set by hand, and the lease of each worker process."""
    return f"{PREFIX}:endpoint:{{{name}}}"
