"""A service that gives a vector for each text, for several texts at once."""

from __future__ import annotations

from examples.serve import Handler, run

MOST = 4


class Embeddings(Handler):
    def serve(self) -> None:
        if self.headers["Authorization"] != "Bearer sk-embed-0123456789":
            self.answer(401, {"error": "no such key"})
            return
        texts = self.json()["input"]
        if len(texts) > MOST:
            self.answer(413, {"error": f"more than {MOST} texts"})
            return
        self.say(f"{len(texts)} texts")
        data = [{"index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
        # The order of the answers is not that of the questions.
        self.answer(200, {"model": "small", "data": data[::-1]})


def vector(text: str) -> list[float]:
    """Not what a model would say, but as good for an example."""
    return [float(len(text)), float(len(text.split())), float(sum(c in "aeiou" for c in text))]


if __name__ == "__main__":
    run(Embeddings)
