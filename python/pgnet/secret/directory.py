"""The directory of secrets that a worker holds itself (pgnet worker --secrets-dir).

A user who can write one of its files can have requests carry what that user likes. So a file counts
only where nobody but the owner of the directory, root and the worker's own user can have put it
there: `_refuse_foreign` walks the whole way to it, link by link, as the kernel does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import stat

from pgnet.request.errors import InvalidRequest
from pgnet.request.secret_reference import HINT_NAME, is_name
from pgnet.secret.value import MAX_LENGTH, without_line_break

log = logging.getLogger("pgnet.secret")
# The bits of a mode by which the group or everybody may write.
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# How many links may lead from one to the next; the kernel follows as many.
_MOST_LINKS = 40


class UnsafeFile(Exception):
    """Others may write a file or directory; the text says which, and the command that mends it."""


class Directory:
    """Secrets that a worker holds itself: one file for each, which has the secret's name.

    Nobody but the directory's owner, root and this process's user may write the files, nor any
    directory or link on the way to them. Two things are allowed: what is mounted read-only, since
    nobody can write it; and a directory with the sticky bit, as containers mount secrets in, since
    others may add files to it, but not in the name of another user.
    """

    def __init__(self, path: str) -> None:
        """path: of the directory.

        Raises OSError for what is not a directory that can be read, UnsafeFile where others may
        write it, or one of its files.
        """
        self._path = path
        names = os.listdir(path)
        self._refuse_foreign(path)
        for name in filter(is_name, names):
            with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
                self._refuse_foreign(os.path.join(path, name))

    def read(self, name: str) -> str | None:
        """Return a value, without the one line break that may end its file; None without a file.

        The file is read each time, so that a file that is put in its place counts at once.

        Raises InvalidRequest for a file that cannot be read or that is not text.
        """
        if not is_name(name):
            raise InvalidRequest("this is not a valid name of a secret", HINT_NAME)
        path = os.path.join(self._path, name)
        try:
            self._refuse_foreign(path)
            content = self._content(path)
        except FileNotFoundError:
            return None
        except UnsafeFile as fault:
            log.warning("the file of secret %s is not used: %s", name, fault)
            raise InvalidRequest(
                f'the file of secret "{name}" is not used, since others may write it: '
                "the worker's log says what to do"
            ) from None
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            raise InvalidRequest(f'the file of secret "{name}" cannot be read: {reason}') from None
        try:
            value = content.decode()
        except UnicodeDecodeError:
            # The error's own words show the bytes at fault.
            raise InvalidRequest(f'the file of secret "{name}" is not in UTF-8') from None
        return without_line_break(value)

    def _refuse_foreign(self, path: str) -> None:
        """Refuse a file or directory that others may have put there, or may write.

        Raises OSError, UnsafeFile.
        """
        owner = os.stat(self._path).st_uid
        trusted = {0, owner, os.geteuid()}
        # The parts of the path that are still to be walked, the next one last.
        walk = os.path.join(os.getcwd(), path).split("/")[::-1]
        # Where the walk is, whether others may write that directory, and how many links it met.
        place, shared, links = "/", False, 0
        while walk:
            part = walk.pop()
            if part in ("", "."):
                continue
            entry = os.path.join(place, part)
            if part == "..":
                place = os.path.dirname(place)
                continue
            status = os.lstat(entry)
            is_link, is_directory = stat.S_ISLNK(status.st_mode), stat.S_ISDIR(status.st_mode)
            # Where others may not write the directory, they cannot have put this link into it.
            if status.st_uid not in trusted and (shared or not is_link):
                raise UnsafeFile(
                    f"{entry} belongs to user {status.st_uid}, and the secrets to user {owner}: "
                    f"chown --no-dereference {owner} {shlex.quote(entry)}"
                )
            if is_link:
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(entry)
                walk += target.split("/")[::-1]
                place = "/" if target.startswith("/") else place
                continue
            writable = bool(status.st_mode & _WRITABLE_BY_OTHERS)
            shared = is_directory and writable
            if (
                writable
                and not (is_directory and status.st_mode & stat.S_ISVTX)
                and not os.statvfs(entry).f_flag & os.ST_RDONLY
            ):
                raise UnsafeFile(
                    f"others than its owner may write {entry}: chmod go-w {shlex.quote(entry)}"
                )
            place = entry

    @staticmethod
    def _content(path: str) -> bytes:
        # Links are followed, since mounted secrets are rotated by links.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "")
            if status.st_size > 4 * MAX_LENGTH:
                raise OSError(errno.EFBIG, "")
            return file.read(4 * MAX_LENGTH)
