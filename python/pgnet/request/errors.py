"""The one exception of this folder, and how a message shows text that a caller gave."""

from __future__ import annotations

INVALID_PARAMETER_VALUE = "22023"
NOT_NULL_VIOLATION = "23502"


class InvalidRequest(ValueError):
    """A request that cannot be sent as it was asked for.

    message, hint: for the user. Neither holds what may be a secret: no header's value, no user name
    or password, no query, and nothing of the path of a URL that has a host.
    sqlstate: the SQLSTATE that the SQL function raises.
    """

    def __init__(
        self, message: str, hint: str | None = None, sqlstate: str = INVALID_PARAMETER_VALUE
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sqlstate = sqlstate


_NAMES = {" ": "a space", "\\": "a backslash", "\0": "a NUL character", '"': "a double quote"}


def described(character: str) -> str:
    """A character in words, for a message."""
    if character in _NAMES:
        return _NAMES[character]
    if "!" <= character <= "~":
        return f'"{character}"'
    return f"the character U+{ord(character):04X}"


def printable(text: str) -> str:
    """The beginning of a text, with a question mark for each character that cannot be shown."""
    # The question marks and dots are ASCII, which every database encoding has.
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return "".join([c if c.isprintable() else "?" for c in shown])
