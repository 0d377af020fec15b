"""The directory of secrets that a worker holds itself (pgnet worker --secrets-dir)."""

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
# Of a file's mode: its group and everybody may write.
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# Links that lead to the next one: as many as the kernel follows.
_MOST_LINKS = 40


class UnsafeFile(Exception):
    """What is wrong with who may write a file, and the command that mends it."""


class Directory:
    """Secrets that a worker holds itself: a file each, whose name is the secret's.

    Whoever can write one has requests carry what it likes. So nobody but the owner of the
    directory, and root, may: not the files, nor any directory or link on the way to them. What is
    mounted read-only nobody writes, and in a directory with the sticky bit, as containers mount
    secrets in, one can add a file, but not in the name of another user.
    """

    def __init__(self, path: str) -> None:
        """Path of the directory.

        Raises OSError where it is none that can be read, UnsafeFile where others may write it, or
        one of its files.
        """
        self._path = path
        names = os.listdir(path)
        self._refuse_foreign(path)
        for name in filter(is_name, names):
            with contextlib.suppress(FileNotFoundError):  # a link to nowhere
                self._refuse_foreign(os.path.join(path, name))

    def read(self, name: str) -> str | None:
        """Return a value, without the one line break that may end its file; None without a file.

        The file is read each time: what is put in its place counts at once.

        Raises InvalidRequest for a file that cannot be read or is no text.
        """
        if not is_name(name):
            raise InvalidRequest("this is no name of a secret", HINT_NAME)
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
            said = os.strerror(error.errno or errno.EIO)
            raise InvalidRequest(f'the file of secret "{name}" cannot be read: {said}') from None
        try:
            value = content.decode()
        except UnicodeDecodeError:
            # Its own words show the bytes at fault.
            raise InvalidRequest(f'the file of secret "{name}" is not in UTF-8') from None
        return without_line_break(value)

    def _refuse_foreign(self, path: str) -> None:
        """Walk to a file or directory, as the kernel does. Raises OSError, UnsafeFile."""
        owner = os.stat(self._path).st_uid
        trusted = {0, owner, os.geteuid()}
        walk = os.path.join(os.getcwd(), path).split("/")[::-1]
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
            # Whoever may not write the directory cannot have put a link into it.
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
        # Links are followed: it is with them that mounted secrets are rotated.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "")
            if status.st_size > 4 * MAX_LENGTH:
                raise OSError(errno.EFBIG, "")
            return file.read(4 * MAX_LENGTH)
