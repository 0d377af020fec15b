"""A receiver that believes no message without a signature, and does nothing twice.

It needs the package standardwebhooks of PyPI.
"""

from __future__ import annotations

from examples.serve import Handler, run
from standardwebhooks import Webhook, WebhookVerificationError

# The key of the sender. While the sender changes keys, a message is signed with both.
OLD = Webhook("whsec_YSBrZXkgZm9yIHRoZSBvcmRlcnMsIG9sZA==")
NEW = Webhook("whsec_YSBrZXkgZm9yIHRoZSBvcmRlcnMsIG5ldw==")
done: set[str] = set()


class Receiver(Handler):
    def serve(self) -> None:
        verifier = NEW if self.path == "/new-key" else OLD
        try:
            message = verifier.verify(self.content, dict(self.headers.items()))
        except WebhookVerificationError:
            self.say("a message without a good signature")
            self.answer(401, "no good signature")
            return
        number = self.headers["webhook-id"]
        if number not in done:
            done.add(number)
            row = message["record"] or message["old_record"]
            self.say(f"{message['type']} {row['id']}: {row['item']} is {row['state']}")
        self.answer(200, "thank you")


if __name__ == "__main__":
    run(Receiver)
