"""What pgnet uses of pycurl, for type checkers only: pycurl has no types of its own.

Written from libcurl's documentation, and from what pycurl does. An option is of the type of its
value, so that a value of another type is an error: LongOption, TextOption and their like exist in
this file only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, final, overload

# ---- the types of options (curl_easy_setopt), and of information (curl_easy_getinfo)

class LongOption(int): ...
class TextOption(int): ...
class BodyOption(int): ...
class ListOption(int): ...
class WriteOption(int): ...
class OpenSocketOption(int): ...
class SockoptOption(int): ...
class DebugOption(int): ...
class ProgressOption(int): ...
class MultiLongOption(int): ...
class MultiSocketOption(int): ...
class MultiTimerOption(int): ...
class LongInfo(int): ...
class FloatInfo(int): ...
class TextInfo(int): ...

class SocketAddress(NamedTuple):
    """What CURLOPT_OPENSOCKETFUNCTION is asked to connect to."""

    family: int
    socktype: int
    protocol: int
    addr: tuple[Any, ...]

class HasFileno(Protocol):
    def fileno(self) -> int: ...

class error(Exception):
    """args: libcurl's code, and its words."""

@final
class Curl:
    """An easy handle."""

    @overload
    def setopt(self, option: LongOption, value: int, /) -> None: ...
    @overload
    def setopt(self, option: TextOption, value: str | bytes, /) -> None: ...
    @overload
    def setopt(self, option: BodyOption, value: bytes, /) -> None: ...
    @overload
    def setopt(self, option: ListOption, value: Sequence[str] | Sequence[bytes], /) -> None: ...
    # It has taken all of the bytes where it returns None or their number; else libcurl aborts.
    @overload
    def setopt(self, option: WriteOption, value: Callable[[bytes], int | None], /) -> None: ...
    # pycurl takes a duplicate of the descriptor of what is returned; or it is SOCKET_BAD.
    @overload
    def setopt(
        self,
        option: OpenSocketOption,
        value: Callable[[int, SocketAddress], HasFileno | int],
        /,
    ) -> None: ...
    @overload
    def setopt(self, option: SockoptOption, value: Callable[[int, int], int], /) -> None: ...
    @overload
    def setopt(self, option: DebugOption, value: Callable[[int, bytes], None], /) -> None: ...
    @overload
    def setopt(
        self, option: ProgressOption, value: Callable[[int, int, int, int], int | None], /
    ) -> None: ...
    def unsetopt(self, option: TextOption, /) -> None: ...
    @overload
    def getinfo(self, info: LongInfo, /) -> int: ...
    @overload
    def getinfo(self, info: FloatInfo, /) -> float: ...
    @overload
    def getinfo(self, info: TextInfo, /) -> str: ...
    def perform(self) -> None: ...
    def close(self) -> None: ...

@final
class CurlMulti:
    """A multi handle."""

    @overload
    def setopt(self, option: MultiLongOption, value: int, /) -> None: ...
    # What is waited for (POLL_…), the socket, the handle, and what was assigned to the socket.
    @overload
    def setopt(
        self, option: MultiSocketOption, value: Callable[[int, int, CurlMulti, object], None], /
    ) -> None: ...
    # Milliseconds; -1 is never.
    @overload
    def setopt(self, option: MultiTimerOption, value: Callable[[int], None], /) -> None: ...
    def add_handle(self, curl: Curl, /) -> None: ...
    def remove_handle(self, curl: Curl, /) -> None: ...
    # libcurl's code, and how many transfers are running.
    def socket_action(self, fd: int, mask: int, /) -> tuple[int, int]: ...
    # How many messages are left; transfers that ended well; others, with their code and its words.
    def info_read(self) -> tuple[int, list[Curl], list[tuple[Curl, int, str]]]: ...
    def close(self) -> None: ...

# The third is libcurl's version as a number: 0x075801 is 7.88.1.
def version_info() -> tuple[Any, str, int, str, int, str, int, str, Any, Any, Any, Any]: ...

# ---- options of easy handles

APPCONNECT_TIME: FloatInfo
CAINFO: TextOption
CAPATH: TextOption
CONNECTTIMEOUT_MS: LongOption
CONNECT_TIME: FloatInfo
CONNECT_TO: ListOption
CUSTOMREQUEST: TextOption
DEBUGFUNCTION: DebugOption
FOLLOWLOCATION: LongOption
FORBID_REUSE: LongOption
FRESH_CONNECT: LongOption
HEADERFUNCTION: WriteOption
HEADEROPT: LongOption
HTTP09_ALLOWED: LongOption
HTTPGET: LongOption
HTTPHEADER: ListOption
HTTP_CONTENT_DECODING: LongOption
HTTP_VERSION: LongOption
NETRC: LongOption
NOBODY: LongOption
NOPROGRESS: LongOption
NOPROXY: TextOption
NOSIGNAL: LongOption
OPENSOCKETFUNCTION: OpenSocketOption
PATH_AS_IS: LongOption
PIPEWAIT: LongOption
POST: LongOption
POSTFIELDS: BodyOption
PROTOCOLS: LongOption
PROXY: TextOption
PROXYAUTH: LongOption
PROXYHEADER: ListOption
PROXYPASSWORD: TextOption
PROXYUSERNAME: TextOption
PROXY_CAINFO: TextOption
PROXY_CAPATH: TextOption
PROXY_SSLCERT: TextOption
PROXY_SSLKEY: TextOption
PROXY_SSL_VERIFYHOST: LongOption
PROXY_SSL_VERIFYPEER: LongOption
REDIR_PROTOCOLS: LongOption
RESOLVE: ListOption
SOCKOPTFUNCTION: SockoptOption
SSLCERT: TextOption
SSLKEY: TextOption
SSLVERSION: LongOption
SSL_VERIFYHOST: LongOption
SSL_VERIFYPEER: LongOption
TCP_NODELAY: LongOption
TIMEOUT_MS: LongOption
URL: TextOption
VERBOSE: LongOption
WRITEFUNCTION: WriteOption
XFERINFOFUNCTION: ProgressOption

# ---- values of these

CURL_HTTP_VERSION_1_1: int
CURL_HTTP_VERSION_2TLS: int
HEADER_SEPARATE: int
HTTPAUTH_BASIC: int
INFOTYPE_HEADER_OUT: int
NETRC_IGNORED: int
PROTO_HTTP: int
PROTO_HTTPS: int
SOCKET_BAD: int
SSLVERSION_TLSv1_2: int

# ---- information of easy handles

HTTP_CONNECTCODE: LongInfo
LOCAL_PORT: LongInfo
PRETRANSFER_TIME: FloatInfo
SIZE_UPLOAD: FloatInfo
PRIMARY_IP: TextInfo
PRIMARY_PORT: LongInfo
REQUEST_SIZE: LongInfo
STARTTRANSFER_TIME: FloatInfo

# ---- multi handles

CSELECT_ERR: int
CSELECT_IN: int
CSELECT_OUT: int
M_MAXCONNECTS: MultiLongOption
M_SOCKETFUNCTION: MultiSocketOption
M_TIMERFUNCTION: MultiTimerOption
POLL_IN: int
POLL_OUT: int
POLL_REMOVE: int
SOCKET_TIMEOUT: int
