"""Which field of a row is the text, and which the id."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from fanout.depth import MAX_DEPTH, too_deep
from fanout.inputs.document import InputError, RowError

#: Looked for in this order where no text field is named.
TEXT_FIELDS = ("text", "content", "document", "body", "description")

_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "an object",
    str: "a string",
}


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that a person named; None means that the row is asked.

    Without a name the text is the first of `TEXT_FIELDS` that the row has, else its only string
    beside the id. Without a name the id is `id`, if that is a string or an integer.
    """

    text: str | None = None
    id: str | None = None

    def of_table(self, columns: Sequence[str], strings: Sequence[str], source: str) -> Fields:
        """Settle the fields once for a file with fixed columns.

        A null in one row must not make another column the text, so a table is not asked row by
        row; and a missing column is told before the first document.

        Raises:
            InputError: there is no such column.
        """
        for name in (self.text, self.id):
            if name is not None and name not in columns:
                raise InputError(f"{source} has no column {name!r}, only {_listed(columns)}")
        id_field = self.id or ("id" if "id" in columns else None)
        text = self.text or _known(columns)
        if text is None:
            text = _only([name for name in strings if name != id_field])
        if text is None:
            raise InputError(
                f"{source} has no column {_either(TEXT_FIELDS)}, only {_listed(columns)}: "
                "name the text's with --text-field"
            )
        return Fields(text, self.id)

    def split(self, row: object) -> tuple[str, str | None, dict[str, object]]:
        """Text, id (None: it has none of its own) and the other fields of a row.

        Raises:
            RowError: the row is no document.
        """
        if isinstance(row, str):
            return _checked(row, "the text"), None, {}
        if not isinstance(row, dict):
            raise RowError(f"the row is {_type(row)}, not an object")
        id_field, own_id = self._id(row)
        text_field = self._text(row, id_field)
        text = row[text_field]
        if not isinstance(text, str):
            raise RowError(f"field {text_field!r} is {_type(text)}, not a string")
        text = _checked(text, f"field {text_field!r}")
        meta = {key: row[key] for key in row if key not in (text_field, id_field)}
        if too_deep(meta):
            raise RowError(f"the row is nested over {MAX_DEPTH} levels deep")
        return text, own_id, meta

    def _text(self, row: dict[str, object], id_field: str | None) -> str:
        if self.text is not None:
            if self.text not in row:
                raise RowError(f"there is no field {self.text!r}, only {_listed(list(row))}")
            return self.text
        found = _known(row)
        if found is None:
            found = _only([key for key in row if isinstance(row[key], str) and key != id_field])
        if found is None:
            raise RowError(
                f"there is no field {_either(TEXT_FIELDS)} and not exactly one string, "
                f"only {_listed(list(row))}"
            )
        return found

    def _id(self, row: dict[str, object]) -> tuple[str | None, str | None]:
        name = self.id or "id"
        if self.id is not None and name not in row:
            raise RowError(f"there is no field {name!r} for the id")
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return name, str(value)
        if isinstance(value, str) and value.strip():
            return name, value
        if self.id is not None:
            what = "blank" if isinstance(value, str) else _type(value)
            raise RowError(f"field {name!r}, the id, is {what}, not a string or an integer")
        return None, None


def _known(names: Container[str]) -> str | None:
    for name in TEXT_FIELDS:
        if name in names:
            return name
    return None


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _checked(text: str, what: str) -> str:
    if not text or text.isspace():
        raise RowError(f"{what} is blank")
    if "\0" in text:
        # Text does not hold it, and much that a record passes through later cannot store it.
        raise RowError(f"{what} contains a NUL character: it may be binary data")
    return text


def check_text(text: str) -> str:
    """The text of a whole file, if it can be a document.

    Raises:
        RowError: it is blank or holds a NUL.
    """
    return _checked(text, "the file")


def _type(value: object) -> str:
    return _JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no fields"
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
