"""Parameter types that task kinds share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fanout.schemas import OutputSchema

#: Sampling temperature; what is no number cannot be sent as JSON.
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SchemaParam(BaseModel):
    """A schema as it travels in a job's parameters.

    Made from a pydantic model class, a JSON Schema as a dict, or an `OutputSchema`; workers do not
    have the user's module, so it is always the JSON Schema that travels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    json_schema: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _from_any(cls, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, BaseModel):
            value = OutputSchema.from_model(value)
        elif isinstance(value, dict) and "json_schema" not in value:
            value = OutputSchema.from_json_schema(value)
        if isinstance(value, OutputSchema):
            return {"name": value.name, "json_schema": value.json_schema}
        return value

    def compiled(self) -> OutputSchema:
        """The schema, ready to validate; raises `SchemaError` if it is none."""
        return OutputSchema.from_json_schema(self.json_schema, name=self.name)
