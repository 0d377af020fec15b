"""A payment service: it knows its customers by a key, and a charge by its idempotency key."""

from __future__ import annotations

from urllib.parse import parse_qs

from examples.serve import Handler, run

charges: dict[str, dict[str, object]] = {}


class Payments(Handler):
    def serve(self) -> None:
        if self.headers["Authorization"] != "Bearer sk_test_0123456789":
            self.answer(401, {"error": "no such key"})
            return
        form = {name: values[0] for name, values in parse_qs(self.content.decode()).items()}
        key = self.headers["Idempotency-Key"]
        if int(form["amount"]) > 10000:
            self.say(f"{key}: {form['amount']} is too much")
            self.answer(402, {"error": {"message": "the card was declined"}})
        elif key in charges:
            self.say(f"{key} again: the charge is there")
            self.answer(200, charges[key])
        else:
            charges[key] = {"id": f"ch_{len(charges) + 1}", "amount": int(form["amount"])}
            self.say(f"{key}: {form['amount']} {form['currency']} for {form['metadata[order]']}")
            # The charge is made, and its answer is lost.
            self.answer(503, {"error": {"message": "try again"}})


if __name__ == "__main__":
    run(Payments)
