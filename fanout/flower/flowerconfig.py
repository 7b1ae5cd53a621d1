"""Flower's options for fanout, and what Flower has no option for.

Flower executes this file at its start (`--conf`); each name that is one of its options sets it.
See https://flower.readthedocs.io/en/latest/config.html.
"""

from __future__ import annotations

import os

from fanout.flower import BASIC_AUTH, metrics, pages
from fanout.flower.fields import COLUMNS

pages.install()
metrics.install()

tasks_columns = os.environ.get("FLOWER_TASKS_COLUMNS") or ",".join(COLUMNS)

# Seconds. Flower's own buckets end at 10 s; one reply of a loaded server takes minutes.
task_runtime_metric_buckets = list(metrics.SECONDS)

# Flower keeps the last tasks in memory, some 10 KB each: a window, not the record of a job.
max_tasks = int(os.environ.get("FLOWER_MAX_TASKS") or 20_000)

if os.environ.get(BASIC_AUTH):
    basic_auth = [os.environ[BASIC_AUTH]]
