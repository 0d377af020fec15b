"""A partner's server that is out of order, until somebody repairs it by PUT /repaired."""

from __future__ import annotations

from examples.serve import Handler, run

repaired = False


class Partner(Handler):
    def serve(self) -> None:
        global repaired
        if self.path == "/repaired":
            repaired = True
            self.answer(200, "it works again")
        elif not repaired:
            self.answer(500, "out of order")
        elif self.json()["order"] == 2:
            self.answer(422, "this order is not known")
        else:
            self.say(f"order {self.json()['order']}")
            self.answer(200, "thank you")


if __name__ == "__main__":
    run(Partner)
