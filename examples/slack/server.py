"""A chat service with an incoming webhook: whoever knows the URL may post."""

from __future__ import annotations

from examples.serve import Handler, run


class Chat(Handler):
    def serve(self) -> None:
        if self.path != "/services/T000/B000/0123456789abcdef":
            self.answer(404, "no_service")
            return
        self.say(f"a message: {self.json()['text']}")
        self.answer(200, "ok")


if __name__ == "__main__":
    run(Chat)
