"""pyarrow, which is optional."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from fanout.errors import UsageError


def pyarrow(error: type[UsageError]) -> ModuleType:
    """pyarrow with its Parquet part loaded.

    Raises:
        error: it is not installed.
    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as missing:
        raise error("Parquet files need pyarrow: pip install 'fanout-llm[parquet]'") from missing
