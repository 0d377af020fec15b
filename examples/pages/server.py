"""A catalogue that is read page by page: each answer names the next page."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from examples.serve import Handler, run

PRODUCTS = [{"sku": f"T{n:02}", "name": f"Tea {n}"} for n in range(1, 26)]
SIZE = 10


class Catalogue(Handler):
    def serve(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/products":
            self.answer(404, {"error": "there is no such catalogue"})
            return
        page = int(parse_qs(url.query).get("page", ["1"])[0])
        items = PRODUCTS[(page - 1) * SIZE : page * SIZE]
        following = f"/products?page={page + 1}" if page * SIZE < len(PRODUCTS) else None
        self.say(f"page {page}: {len(items)} products")
        self.answer(200, {"items": items, "next": following})


if __name__ == "__main__":
    run(Catalogue)
