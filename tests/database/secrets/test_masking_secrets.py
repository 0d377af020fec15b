"""A server repeats a secret, in any form: it is masked, and no redirect takes it along."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import psycopg
import pytest

from servers.canary import CANARY, found_in, leaks, look
from servers.secret_scene import Repeats, Scene, nowhere

# ---- what comes back

VALUES = [
    f"sk_{CANARY}",
    f'a "{CANARY}" & <b>/\\\'+%ü',
    base64.b64encode(f"u:{CANARY}".encode()).decode(),
]


WAYS = [name.removeprefix("way_") for name in vars(Repeats) if name.startswith("way_")]


REPEATING = [way for way in WAYS if way not in ("ok", "location", "to", "later", "never")]


@pytest.mark.parametrize("value", VALUES, ids=["key", "nasty", "basic"])
@pytest.mark.parametrize("way", REPEATING)
def test_repeated(scene: Scene, way: str, value: str) -> None:
    name = scene.secret(value)
    row = scene.ask(
        f"{scene.home.url}/v1/{way}", {"Authorization": {"secret": name}, "X-Plain": "plain"}
    )
    assert len(scene.home.received) == 1
    if way in ("garbage", "short"):
        assert row["error_msg"]
    else:
        assert row["status_code"] in (200, 418, 500)
    if way in ("plain", "json", "utf16", "html", "failing", "percent"):
        assert "***" in row["content"]
        assert "plain" in row["content"]
    if way in ("binary", "utf16_binary"):
        assert b"***" in row["content_bytes"]
    if way == "fields":
        assert "***" in row["headers"]["X-Told"]
        assert "***" in row["content_type"]


@pytest.mark.parametrize("form", ["path", "query", "nasty"])
@pytest.mark.parametrize("way", REPEATING)
def test_a_url_repeated(scene: Scene, way: str, form: str) -> None:
    behind = {
        "path": f"/T0/{CANARY}",
        "query": f"/x?token={CANARY}",
        "nasty": f"/T0%20x/{CANARY}%22?a=%26{CANARY}%3D&b=%C3%BC+%25",
    }[form]
    name = scene.secret(f"{scene.home.url}/v1/{way}{behind}")
    scene.ask(scene.database.value("select net.secret_url(%s)", name), {"X-Plain": "plain"})
    assert len(scene.home.received) == 1


def test_a_request_that_failed_is_kept_without_it(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    headers = {"A": {"secret": name}}
    row = scene.ask(f"{scene.home.url}/v1/failing", headers)
    assert row["state"] == "failed"
    assert scene.database.row(
        "select headers, status_code from pgnet.failed where id = %s", row["id"]
    ) == (headers, 500)


def test_in_an_error_of_a_trigger(scene: Scene) -> None:
    """A trigger whose error quotes the whole row quotes no secret."""
    scene.database.execute(
        "create function public.complain() returns trigger language plpgsql as $$"
        " begin raise exception 'refused: %', new"
        " using detail = new::text, hint = new.content; end $$"
    )
    scene.database.execute(
        "create trigger complain before insert on net._http_response"
        " for each row when (new.status_code = 500) execute function public.complain()"
    )
    try:
        name = scene.secret(f"sk_{CANARY}")
        row = scene.ask(f"{scene.home.url}/v1/failing", {"A": {"secret": name}})
        assert row["error_msg"].startswith("The response could not be recorded: refused: (")
        assert "***" in row["error_msg"]
    finally:
        scene.database.execute("drop function public.complain() cascade")


def test_while_it_is_in_flight(scene: Scene) -> None:
    """pg_stat_activity, and what else shows the moment."""
    name = scene.secret(f"sk_{CANARY}")
    hook = scene.secret(f"{scene.home.url}/v1/later/{CANARY}")
    url = scene.database.value("select net.secret_url(%s)", hook)
    done = threading.Event()
    found: list[str] = []

    def sample() -> None:
        with psycopg.connect(scene.database.dsn(), autocommit=True) as connection:
            while not done.is_set():
                rows = connection.execute("select a::text from pg_stat_activity a").fetchall()
                found.extend(found_in(str(rows)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        ids = [
            request_id
            for _ in range(20)
            for request_id in (
                scene.begin(f"{scene.home.url}/v1/later", {"A": {"secret": name}}),
                scene.begin(url),
            )
        ]
        scene.database.wait_for(
            "select count(*) from net.requests where state = 'in_flight'",
            predicate=lambda count: count >= 20,
        )
        nowhere(scene.database)
        # what the process itself shows to others
        environment = Path(f"/proc/{scene.worker.pid}/environ").read_bytes()
        arguments = Path(f"/proc/{scene.worker.pid}/cmdline").read_bytes()
        assert not found_in(environment + arguments)
        scene.home.release.set()
        assert {scene.wait(request_id)["status_code"] for request_id in ids} == {200}
    finally:
        scene.home.release.set()
        done.set()
        sampler.join()
    assert found == []


# ---- where it does not go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin(scene: Scene, status: int) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/json"
    row = scene.ask(f"{scene.home.url}/v1/to/{status}", {"Authorization": {"secret": name}})
    assert row["status_code"] == 200
    assert "authorization" not in scene.foreign.take().lower()


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_within_the_origin(scene: Scene, status: int) -> None:
    """Within the prefix a header is kept, beyond it is not, and it does not come back."""
    name = scene.secret(f"sk_{CANARY}")
    headers = {"Authorization": {"secret": name, "prefix": "Bearer "}, "X-Plain": "plain"}
    scene.home.to = f"{scene.home.url}/v1/json"
    row = scene.ask(f"{scene.home.url}/v1/to/{status}", headers)
    assert row["final_url"] == scene.home.to
    assert f"Authorization: Bearer sk_{CANARY}\n" in scene.home.received[1]
    for to in ("/v10/x", "/", "/v1/../v2/x", "/v1/%2e%2e/v2", "/v1/..%2fv2", "/x//v1/x", "/V1/x"):
        scene.home.received.clear()
        scene.home.to = to
        row = scene.ask(f"{scene.home.url}/v1/to/{status}", headers)
        assert row["status_code"] == 200, to
        assert not found_in(scene.home.received[1]), to
        assert "X-Plain: plain" in scene.home.received[1]


def test_a_redirect_out_and_back(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/to/302"
    scene.foreign.to = f"{scene.home.url}/v1/json"
    scene.ask(f"{scene.home.url}/v1/to/302", {"A": {"secret": name}})
    assert len(scene.foreign.received) == 1
    assert len(scene.home.received) == 2
    assert not found_in(scene.home.received[1])


@pytest.mark.parametrize("to", ["foreign", "outside"])
def test_a_redirect_that_repeats_it(scene: Scene, to: str) -> None:
    """A server may send what it was told to another one, by way of the client."""
    if to == "foreign":
        scene.home.to = f"{scene.foreign.url}/v1/x"
    else:
        scene.home.to = f"{scene.home.url}/v2/x"
    name = scene.secret(f"sk_{CANARY}")
    hook = scene.secret(f"{scene.home.url}/v1/location/x?token={CANARY}")
    for url, headers in (
        (f"{scene.home.url}/v1/location", {"A": {"secret": name}}),
        (scene.database.value("select net.secret_url(%s)", hook), None),
    ):
        scene.home.received.clear()
        row = scene.ask(url, headers)
        assert (row["status_code"], row["headers"]["Location"]) == (302, "***")
        assert "redirect" in row["error_msg"]
        assert not found_in(str(row))
        assert len(scene.home.received) == 1
        assert scene.foreign.received == []


@pytest.mark.parametrize(
    "form",
    [
        f"sk_{CANARY}".replace("y", "%79"),
        f"sk_{CANARY}".replace("C", "%2543"),
        f"sk_{CANARY}".replace("C", "%5Cu0043"),
        f"sk_{CANARY}".replace("C", "%26%2367%3B"),
        f"SK_{CANARY.lower()}",
        "%0A".join(f"sk_{CANARY}"),
        base64.b64encode(f"sk_{CANARY}".encode()).decode().replace("=", "").swapcase(),
        "%20".join(f"sk_{CANARY}".encode().hex()),
    ],
)
def test_a_redirect_that_repeats_it_in_another_form(scene: Scene, form: str) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/json?x={form}"
    row = scene.ask(f"{scene.home.url}/v1/to/302", {"A": {"secret": name}})
    assert "repeats a secret" in row["error_msg"]
    assert scene.foreign.received == []
    assert form not in str(row)


def test_a_redirect_that_repeats_it_within_the_prefix(scene: Scene) -> None:
    """A redirect within the prefix may repeat the secret."""
    scene.home.to = f"{scene.home.url}/v1/x"
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/location", {"A": {"secret": name}})
    assert row["status_code"] == 200
    assert found_in(scene.home.received[1])
    assert "***" in row["final_url"]


def test_a_secret_url_that_redirects(scene: Scene) -> None:
    scene.home.to = f"{scene.foreign.url}/v1/json"
    name = scene.secret(f"{scene.home.url}/v1/to/302/{CANARY}")
    row = scene.ask(scene.database.value("select net.secret_url(%s)", name))
    assert row["status_code"] == 200
    assert row["final_url"] == f"{scene.foreign.url}/"
    assert not found_in(scene.foreign.take())


def test_the_search_finds(tmp_path: Path) -> None:
    """The search at the end of the run finds the canary in all its forms."""
    (tmp_path / "data/log").mkdir(parents=True)
    told = {
        "log": f"parameters: $1 = '{CANARY}'",
        "worker-1.log": base64.b64encode(f"user:{CANARY}!".encode()).decode(),
        "data/log/postgresql.csv": CANARY.encode().hex(),
        "data/log/other": CANARY.encode("utf-16-le").decode(),
    }
    for name, content in told.items():
        (tmp_path / name).write_text(f"before\n{content}\nbehind")
    (tmp_path / "quiet").write_text(CANARY[:-1])
    before = list(leaks)
    try:
        look(tmp_path)
        found = {leak.partition(": ")[0] for leak in leaks[len(before) :]}
        assert found == {str(tmp_path / name) for name in told}
    finally:
        leaks[:] = before
