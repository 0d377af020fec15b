"""A service that works on an order for a while: it is done when it is asked for the second time."""

from __future__ import annotations

from examples.serve import Handler, run

asked: dict[str, int] = {}


class Renderer(Handler):
    def serve(self) -> None:
        if self.command == "POST":
            number = str(len(asked) + 1)
            asked[number] = 0
            self.say(f"job {number}: render {self.json()['film']}")
            self.answer(202, {"job": number, "state": "running"})
            return
        number = self.path.rpartition("/")[2]
        if number not in asked:
            self.answer(404, {"error": "no such job"})
            return
        asked[number] += 1
        if asked[number] < 2:
            self.answer(200, {"job": number, "state": "running"})
        else:
            self.say(f"job {number}: done")
            self.answer(200, {"job": number, "state": "done", "url": f"/films/{number}.mp4"})


if __name__ == "__main__":
    run(Renderer)
