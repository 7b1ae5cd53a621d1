"""What a reply has to look like: loading a schema, and holding replies against it."""

from fanout.schemas.loading import load_schema
from fanout.schemas.reply import InvalidReply, parse_reply
from fanout.schemas.schema import OutputSchema, SchemaError

__all__ = ["InvalidReply", "OutputSchema", "SchemaError", "load_schema", "parse_reply"]
