"""What the demo extracts from each passage.

Small and bounded on purpose: the embedded model has 135 million parameters, and the longest reply
that the schema allows has to end within the demo's token budget.
"""

from typing import Literal

from pydantic import BaseModel, Field, field_validator


class Character(BaseModel):
    """A person whom the passage names."""

    name: str = Field(min_length=2, max_length=24, description="as the passage writes it")
    sex: Literal["woman", "man"]


class Passage(BaseModel):
    """Who is named in a passage of a novel, and its mood."""

    characters: list[Character] = Field(
        min_length=1, max_length=4, description="each person once, in order"
    )
    mood: Literal["happy", "sad", "angry", "calm"] = Field(description="of the whole passage")

    @field_validator("characters")
    @classmethod
    def _each_once(cls, characters: list[Character]) -> list[Character]:
        # Very small models fall into repeating the last item; no grammar can forbid that.
        return list({character.name: character for character in characters}.values())
