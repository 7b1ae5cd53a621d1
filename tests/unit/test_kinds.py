"""Parameters that every task kind refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fanout_tasks.agent import AgentParams
from fanout_tasks.extract import ExtractParams

SCHEMA = {"type": "object"}


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -0.1])
def test_a_temperature_is_a_number_from_0_up(temperature: float) -> None:
    makes: list[Any] = [AgentParams, ExtractParams]
    for params in makes:
        assert params(schema=SCHEMA, temperature=0.7).temperature == 0.7
        with pytest.raises(ValidationError, match="temperature"):
            params(schema=SCHEMA, temperature=temperature)
