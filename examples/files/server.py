"""A store of objects that asks for Amazon's signature, version 4, in the query of a URL."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from urllib.parse import parse_qs, quote, unquote, urlsplit

from examples.serve import Handler, run

KEYS = {"AKIDEXAMPLE": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
objects: dict[str, tuple[str, bytes]] = {}


def signature(method: str, host: str, path: str, query: dict[str, str]) -> str:
    """The signature that a URL has to have: AWS's "Authenticating Requests: Using Query
    Parameters"."""
    access_key, scope = query["X-Amz-Credential"].split("/", 1)
    pairs = sorted((quote(name, safe="~"), quote(query[name], safe="~")) for name in query)
    asked = "\n".join(
        (method, quote(path, safe="/~"), "&".join(f"{name}={value}" for name, value in pairs),
         f"host:{host}", "", "host", "UNSIGNED-PAYLOAD")
    )  # fmt: skip
    digest = hashlib.sha256(asked.encode()).hexdigest()
    signed = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{digest}"
    key = ("AWS4" + KEYS.get(access_key, "")).encode()
    for part in (*scope.split("/"), signed):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


class Store(Handler):
    def fault(self, path: str, query: dict[str, str]) -> str | None:
        given = query.pop("X-Amz-Signature", "")
        if not given or given != signature(self.command, self.headers["Host"], path, query):
            return "SignatureDoesNotMatch"
        begun = datetime.datetime.strptime(query["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        age = datetime.datetime.now(datetime.UTC) - begun
        if age.total_seconds() > int(query["X-Amz-Expires"]):
            return "AccessDenied: Request has expired"
        return None

    def serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        fault = self.fault(path, query)
        if fault:
            self.say(f"{self.command} {path}: {fault}")
            self.answer(403, fault)
        elif self.command == "PUT":
            objects[path] = (self.headers["Content-Type"], self.content)
            self.say(f"PUT {path}: {len(self.content)} bytes of {self.headers['Content-Type']}")
            self.answer(200, "")
        elif path in objects:
            self.say(f"{self.command} {path}")
            self.answer(200, objects[path][1])
        else:
            self.answer(404, "NoSuchKey")


if __name__ == "__main__":
    run(Store)
