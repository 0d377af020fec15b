"""The command ``pgnet secret``: set, list and drop secrets, without a value in SQL text.

A value goes to the server as a parameter of a statement, and `_silence` first keeps the server from
logging parameters. Where that is not possible, nothing is sent.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pgnet.outbox import NO_DSN
from pgnet.request.errors import InvalidRequest
from pgnet.request.secret_reference import HINT_NAME, is_name
from pgnet.secret.value import MAX_LENGTH, check_value, without_line_break

if TYPE_CHECKING:
    import psycopg

# Settings that keep a server from writing down the value, for one transaction. Not every server has
# all of them.
_QUIET = {
    "log_parameter_max_length_on_error": "0",
    "log_parameter_max_length": "0",
    # A plan that was made for one value holds it, and auto_explain would show it.
    "plan_cache_mode": "force_generic_plan",
    "auto_explain.log_parameter_max_length": "0",
    "pgaudit.log_parameter": "off",
}
# Settings that have a server log statements with parameters, and the value that turns each off.
_LOGS_PARAMETERS = {
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
}


class _Failure(Exception):
    """The command cannot do what it was asked for. The text is for the user."""


def add_to(commands: Any) -> None:
    """Add ``secret`` to the subparsers of the command line."""
    parser = commands.add_parser(
        "secret",
        help="set, list and drop secrets",
        description="Secrets of a database. Setting one here keeps its value out of SQL text, of "
        "the server's log and of the shell's history. For the owner of the extension only.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    connection = argparse.ArgumentParser(add_help=False)
    connection.add_argument(
        "--dsn",
        default="",
        help="libpq connection string or URI; a password in it shows in ps "
        "(default: libpq's environment)",
    )
    setting = actions.add_parser(
        "set",
        parents=[connection],
        help="set a secret to what standard input holds",
        description="Set a secret to what standard input holds, without the one line break that "
        "may end it: pgnet secret set stripe --url-prefix https://api.stripe.com/ < file. A secret "
        "that exists keeps its grants and, without --url-prefix, its URL prefix.",
    )
    setting.add_argument("name", metavar="NAME")
    setting.add_argument(
        "--url-prefix", metavar="URL", help="requests may carry it to this URL and all below it"
    )
    setting.set_defaults(run=_run, action=_set)
    listing = actions.add_parser("list", parents=[connection], help="list the secrets")
    listing.set_defaults(run=_run, action=_list)
    dropping = actions.add_parser(
        "drop", parents=[connection], help="drop a secret, with its grants"
    )
    dropping.add_argument("name", metavar="NAME")
    dropping.set_defaults(run=_run, action=_drop)


def _run(options: argparse.Namespace) -> int:
    import psycopg

    try:
        options.action(options)
    except _Failure as failure:
        print(f"pgnet secret: {failure}", file=sys.stderr)
    except psycopg.Error as error:
        # Not the whole text: a server's CONTEXT may show the statement with its parameters.
        message = error.diag.message_primary or (str(error).strip() or "?").splitlines()[0]
        hint = f"\n{error.diag.message_hint}" if error.diag.message_hint else ""
        print(f"pgnet secret: {message}{hint}", file=sys.stderr)
    else:
        return 0
    return 1


def _connect(options: argparse.Namespace) -> psycopg.Connection[Any]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters: dict[str, Any] = conninfo_to_dict(options.dsn)
    except psycopg.ProgrammingError:
        raise _Failure(NO_DSN) from None
    parameters |= {"application_name": "pgnet secret", "client_encoding": "UTF8"}
    return psycopg.connect(**parameters)


# --- set ------------------------------------------------------------------------------------------


def _set(options: argparse.Namespace) -> None:
    if not is_name(options.name):
        raise _Failure(f"this is not a valid name of a secret. {HINT_NAME}")
    value = _value(options.name)
    with _connect(options) as connection:
        # The default of the database or role may be read-only transactions.
        connection.read_only = False
        _silence(connection)
        connection.execute(
            "select net.set_secret(%s, %s, %s)", (options.name, value, options.url_prefix)
        )
        row = connection.execute(
            "select s.url_prefix from net.secrets s where s.name = %s", (options.name,)
        ).fetchone()
    prefix = row[0] if row else None
    if prefix is None:
        print(
            f'secret "{options.name}" is set. No request can carry it, only net.configure_host '
            "can name it: for requests give --url-prefix URL."
        )
    else:
        print(f'secret "{options.name}" is set, for requests to {prefix}')


def _value(name: str) -> str:
    """Return the value that standard input holds. Raises _Failure."""
    if sys.stdin is None or sys.stdin.isatty():
        raise _Failure(
            "the value is read from a file or a pipe, not from a terminal, which would show it: "
            f"pgnet secret set {name} < file"
        )
    content = sys.stdin.buffer.read(4 * MAX_LENGTH + 1)
    try:
        value = without_line_break(content.decode())
        check_value(name, value, None)
    except UnicodeDecodeError:
        raise _Failure(f'the value of secret "{name}" is not in UTF-8') from None
    except InvalidRequest as error:
        raise _Failure(error.message) from None
    return value


def _silence(connection: psycopg.Connection[Any]) -> None:
    """Keep the server from logging parameters in this transaction.

    Raises _Failure where the server logs them and this role may not change that.
    """
    from psycopg import errors

    for name, quiet in _QUIET.items():
        if _setting(connection, name) in (None, "", quiet):
            continue
        try:
            with connection.transaction():
                connection.execute(
                    "select pg_catalog.set_config(%s, %s, true)",
                    (name, quiet),
                )
        except errors.InsufficientPrivilege:
            if name == "log_parameter_max_length" and not _logs_parameters(connection):
                continue
            raise _Failure(
                "this server would log the value, and this role may not prevent that. "
                f"Connect as a superuser, or have one run: "
                f'grant set on parameter {name} to "{connection.info.user}"'
            ) from None


def _logs_parameters(connection: psycopg.Connection[Any]) -> bool:
    return _setting(connection, "log_statement") == "all" or any(
        _setting(connection, name) != off for name, off in _LOGS_PARAMETERS.items()
    )


def _setting(connection: psycopg.Connection[Any], name: str) -> str | None:
    row = connection.execute("select pg_catalog.current_setting(%s, true)", (name,)).fetchone()
    assert row is not None
    value: str | None = row[0]
    return value


# --- list and drop --------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> None:
    with _connect(options) as connection:
        rows = connection.execute(
            "select s.name, coalesce(s.url_prefix, '-'), s.stored_in,"
            " to_char(s.changed, 'YYYY-MM-DD HH24:MI TZH:TZM')"
            " from net.secrets s order by s.name"
        ).fetchall()
    lines = [("NAME", "URL PREFIX", "STORED IN", "CHANGED"), *rows]
    widths = [max(len(str(line[i])) for line in lines) for i in range(4)]
    for line in lines:
        cells = [str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _drop(options: argparse.Namespace) -> None:
    with _connect(options) as connection:
        connection.read_only = False
        row = connection.execute("select net.drop_secret(%s)", (options.name,)).fetchone()
    if row is None or not row[0]:
        raise _Failure(f'secret "{options.name}" does not exist')
    print(f'secret "{options.name}" is dropped')
