"""Names of the keys that fanout keeps in Redis.

`{job}` is a hash tag. Celery's own keys (queues, `unacked`, results) keep Celery's names.
"""

PREFIX = "fanout"

#: Sorted set: job ids by creation time.
JOBS = f"{PREFIX}:jobs"

#: Sorted set: names of the workers by the time of their last report.
WORKERS = f"{PREFIX}:workers"


def job(job_id: str) -> str:
    """Hash: spec, state, counts, times."""
    return f"{PREFIX}:job:{{{job_id}}}"


def settled(job_id: str) -> str:
    """Bitmap: bit = ordinal settled. A million items are 125 KB."""
    return f"{job(job_id)}:settled"


def records(job_id: str) -> str:
    """Stream: records until the collector has written them."""
    return f"{job(job_id)}:records"


def dropped(job_id: str) -> str:
    """Set: ordinals that workers gave back because the job is paused."""
    return f"{job(job_id)}:dropped"


def collector(job_id: str) -> str:
    """String with a time to live: who writes the job's records."""
    return f"{job(job_id)}:collector"


def worker(name: str) -> str:
    """String with a time to live: what a worker process last said of itself."""
    return f"{PREFIX}:worker:{name}"


#: What the names of workers' child processes begin with: see fanout_workers.quarantine.
QUARANTINE = "quarantine-"

#: Stream: what was in a queue and is no message, with queue, reason, bytes, message; bounded.
DEAD_LETTERS = f"{PREFIX}.dead"

#: Fields of an endpoint's hash. N is `n` if it was set by hand, else `auto` if the controller has
#: set it, else the configuration's.
CONCURRENCY = "n"
AUTO = "auto"
#: Of each worker process: "part demand expiry call low spare grace", times in ms.
LEASE = "l:"
#: Of each one whose lease ran out and whose requests may still be at the server: "part since till".
GHOST = "g:"
#: While there are ghosts: who looks at what runs at the server ("holder till"), what was seen
#: ("load after before"), and how much of it can be theirs ("left after"); times in ms.
AUDITOR = "a"
SAMPLE = "s"
VERDICT = "v"
#: After Redis has lost data: until when no part may grow, a time in ms.
RECOVERY = "r"


def leader(name: str) -> str:
    """String with a time to live: the worker process that controls the endpoint's N."""
    return f"{endpoint(name)}:leader"


def seen(name: str) -> str:
    """Hash: what each worker process has sent to the endpoint and got back, as JSON."""
    return f"{endpoint(name)}:seen"


def decisions(name: str) -> str:
    """Stream: the controller's last decisions."""
    return f"{endpoint(name)}:decisions"


def memory(name: str) -> str:
    """Hash: what the controller has found, by kind of work, as JSON."""
    return f"{endpoint(name)}:memory"


def endpoint(name: str) -> str:
    """Hash: N if it was set at run time, and the lease of each worker process."""
    return f"{PREFIX}:endpoint:{{{name}}}"
