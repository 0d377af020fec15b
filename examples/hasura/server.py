"""A handler of Hasura's event triggers, as an application has it."""

from __future__ import annotations

from examples.serve import Handler, run


class Events(Handler):
    def serve(self) -> None:
        event = self.json()
        data = event["event"]["data"]
        token = " with the token" if self.headers["x-webhook-token"] == "0123456789" else ""
        self.say(
            f"{self.path} {event['trigger']['name']}: {event['event']['op']}"
            f" of {event['table']['schema']}.{event['table']['name']}{token}:"
            f" {state(data['old'])} -> {state(data['new'])}"
        )
        self.answer(200, {"ok": True})


def state(row: dict[str, str] | None) -> str:
    return row["state"] if row else "nothing"


if __name__ == "__main__":
    run(Events)
