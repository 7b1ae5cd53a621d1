"""fanout keeps a self-hosted LLM server exactly full, and loses nothing on the way."""

from fanout import sync
from fanout.chat import ChatRequest, Message, Reply
from fanout.client import Fanout, Job, connect
from fanout.errors import (
    ConfigError,
    FanoutError,
    JobError,
    PluginError,
    Stalled,
    Unavailable,
    UnknownTask,
    UsageError,
)
from fanout.failures import Failure, Kind
from fanout.params import SchemaParam, Temperature
from fanout.schemas import InvalidReply, OutputSchema, SchemaError, load_schema
from fanout.settings import Endpoint, Settings, load_settings
from fanout.stall import Stall, StallWatch
from fanout.task import Invalid, Result, Task
from fanout.wire import ErrorInfo, Evidence, Item, JobSpec, Record, Timing, Usage

__version__ = "0.1.0"

__all__ = [
    "ChatRequest",
    "ConfigError",
    "Endpoint",
    "ErrorInfo",
    "Evidence",
    "Failure",
    "Fanout",
    "FanoutError",
    "Invalid",
    "InvalidReply",
    "Item",
    "Job",
    "JobError",
    "JobSpec",
    "Kind",
    "Message",
    "OutputSchema",
    "PluginError",
    "Record",
    "Reply",
    "Result",
    "SchemaError",
    "SchemaParam",
    "Settings",
    "Stall",
    "StallWatch",
    "Stalled",
    "Task",
    "Temperature",
    "Timing",
    "Unavailable",
    "UnknownTask",
    "Usage",
    "UsageError",
    "__version__",
    "connect",
    "load_schema",
    "load_settings",
    "sync",
]
