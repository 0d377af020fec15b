"""What a request that cannot be sent raises, and how a message shows a caller's text."""

from __future__ import annotations

INVALID_PARAMETER_VALUE = "22023"
NOT_NULL_VIOLATION = "23502"


class InvalidRequest(ValueError):
    """A request that cannot be sent as it was asked for.

    message, hint: for the user. They hold no header's value, no user name or password, no query,
    and of a URL's path nothing where there is a host before it: each of these may be a secret.
    sqlstate: the SQLSTATE to raise it with.
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
    if character in _NAMES:
        return _NAMES[character]
    if "!" <= character <= "~":
        return f'"{character}"'
    return f"the character U+{ord(character):04X}"


def printable(text: str) -> str:
    """The beginning of a text, with what cannot be shown replaced."""
    # ASCII besides what the caller wrote, for databases in other encodings.
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return "".join([c if c.isprintable() else "?" for c in shown])
