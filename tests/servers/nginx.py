"""A throwaway nginx with the echo module, on a free port: the tests' well-behaved server.

| path | answer |
|---|---|
| / | 200, `pgnet` |
| /echo | the request line, the headers and the body as they came |
| /method, /uri, /args, /headers, /body | that part of the request alone |
| /asked | path and query of the request; its body is not waited for |
| /json | `{"ok": true}` as application/json |
| /empty | 200 with an empty body |
| /slow?s=SECONDS | 200 after so many seconds |
| /status/NNN | that status |
| /redirect | 302 to / |
| /cookies | two Set-Cookie headers |
| /files/NAME | what a test put there with `file()` |
| /sent | some of what was sent: method and headers |
| /connection | protocol and number of the connection |
| /long-headers | two headers of 1000 bytes each |
| /through/PATH | what PATH is answered, by another server behind this one |

With a certificate the same is there over TLS too, with HTTP/2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from servers.cluster import free_port
from servers.waiting import wait_until

ECHO_MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")

STATUSES = (200, 201, 202, 204, 301, 304, 400, 401, 403, 404, 405, 409, 410, 418, 422, 425, 429)
SERVER_ERRORS = (500, 501, 502, 503, 504)

CONFIGURATION = """
load_module {echo_module};
daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
worker_processes 1;
worker_rlimit_nofile 8192;
{user}
events {{ worker_connections 4096; }}
http {{
    log_format record escape=json '{{'
        '"method": "$request_method", "uri": "$request_uri", "status": $status, '
        '"host": "$http_host", "user_agent": "$http_user_agent", "content_type": "$content_type", '
        '"content_length": "$content_length", "connection": $connection, "time": $msec}}';
    access_log {access_log};
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    keepalive_requests {requests};
    keepalive_timeout 300s;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {tls}
        location = / {{ return 200 pgnet; }}
        location = /echo {{
            echo_duplicate 1 $echo_client_request_headers;
            echo_read_request_body;
            echo_request_body;
        }}
        location = /method {{ echo -n $echo_request_method; }}
        location = /uri {{ echo -n $request_uri; }}
        location = /asked {{ return 200 $request_uri; }}
        location = /args {{ echo -n $query_string; }}
        location = /headers {{ echo_duplicate 1 $echo_client_request_headers; }}
        location = /body {{ echo_read_request_body; echo_request_body; }}
        location = /json {{ default_type application/json; return 200 '{{"ok": true}}'; }}
        location = /empty {{ return 200 ""; }}
        location = /slow {{ echo_sleep $arg_s; echo -n slow; }}
        location = /redirect {{ return 302 /; }}
        location = /cookies {{
            add_header Set-Cookie a=1; add_header Set-Cookie b=2; return 200 cookies;
        }}
        location = /sent {{
            set $fields "$http_x_text|$http_accept|$http_user_agent";
            set $unasked "$http_accept_encoding|$http_content_type";
            return 200 "$request_method|$http_host|$fields|$unasked";
        }}
        location = /connection {{ return 200 "$server_protocol $connection"; }}
        location = /long-headers {{
            add_header X-Long {long}; add_header X-Longer {long}; return 200 long;
        }}
        location /files/ {{ alias {directory}/files/; }}
        location /through/ {{ proxy_pass http://127.0.0.1:{port}/; }}
{statuses}
    }}
}}
"""


TLS = """
        listen 127.0.0.1:{port} ssl http2 backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        http2_max_concurrent_streams {streams};
"""


@dataclass(frozen=True)
class Seen:
    """A request as nginx logged it, when it had answered."""

    method: str
    uri: str
    status: int
    host: str
    user_agent: str
    content_type: str
    content_length: str
    connection: int
    time: float


class Nginx:
    """A running nginx, as a context manager.

    record: false keeps no record, for measurements.
    certificate: a file with a server's certificate and key; `tls_url` is then there too.
    streams: how many requests one connection of HTTP/2 may have at a time.
    requests: after how many a connection is ended.
    """

    def __init__(
        self,
        record: bool = True,
        *,
        certificate: Path | None = None,
        streams: int = 128,
        requests: int = 1_000_000,
    ) -> None:
        self.record = record
        self.certificate = certificate
        self.streams = streams
        self.most_requests = requests
        self.port = self.tls_port = 0
        self.directory = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    def __enter__(self) -> Nginx:
        if not ECHO_MODULE.exists():
            raise RuntimeError("nginx's echo module is not installed here: make deps")
        self.directory = Path(tempfile.mkdtemp(prefix="pgnet-nginx-", dir="/tmp"))
        self.directory.chmod(0o755)
        (self.directory / "files").mkdir()
        # another process may take the free port first
        for _ in range(3):
            self._start()
            if wait_until(lambda: self._up(), lambda up: up is not None, "nginx answers", 20):
                return self
        problem = (self.directory / "error.log").read_text()
        self.close()
        raise RuntimeError(f"nginx did not start:\n{problem}")

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self.port = free_port()
        tls = ""
        if self.certificate is not None:
            self.tls_port = free_port()
            tls = TLS.format(port=self.tls_port, certificate=self.certificate, streams=self.streams)
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                echo_module=ECHO_MODULE,
                directory=self.directory,
                user="user nobody nogroup;" if os.geteuid() == 0 else "",
                access_log=f"{self.directory}/access.log record" if self.record else "off",
                port=self.port,
                tls=tls,
                long="x" * 1000,
                requests=self.most_requests,
                statuses="\n".join(
                    f"        location = /status/{status} {{ return {status}; }}"
                    for status in (*STATUSES, *SERVER_ERRORS)
                ),
            )
        )
        self.process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=TERM",
                shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx",
                *("-e", str(self.directory / "error.log"), "-c", str(configuration)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _up(self) -> bool | None:
        """Whether nginx accepts connections: False when it has ended, None while it is starting."""
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except ConnectionRefusedError:
            return None
        return True

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        shutil.rmtree(self.directory, ignore_errors=True)

    def file(self, name: str, content: bytes) -> str:
        """Serve `content`, and return its URL."""
        path = self.directory / "files" / name
        path.write_bytes(content)
        path.chmod(0o644)
        return f"{self.url}/files/{name}"

    def requests(self) -> list[Seen]:
        """Return what has been answered so far, in order of the answers.

        nginx writes its record after the answer has gone out: wait for a request to appear in it.
        """
        path = self.directory / "access.log"
        if not path.exists():
            return []
        return [Seen(**json.loads(line)) for line in path.read_text().splitlines()]

    def forget(self) -> None:
        """Start the record anew."""
        os.truncate(self.directory / "access.log", 0)
