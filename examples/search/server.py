"""A search index that is busy at times: it turns the first request for each document away."""

from __future__ import annotations

from examples.serve import Handler, run

asked: set[str] = set()


class Index(Handler):
    def serve(self) -> None:
        if self.path not in asked:
            asked.add(self.path)
            self.say(f"{self.command} {self.path}: busy")
            self.answer(503, "busy")
            return
        self.say(f"{self.command} {self.path} {self.content.decode()}".rstrip())
        self.answer(200, "indexed")


if __name__ == "__main__":
    run(Index)
