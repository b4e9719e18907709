"""flask-limiter: an application whose limits are kept in the store."""

from __future__ import annotations

import os

from flask import Flask
from flask_limiter import Limiter


def main(url: str) -> None:
    app = Flask("limited")
    limiter = Limiter(
        lambda: "everybody",
        app=app,
        storage_uri=url,
        strategy="moving-window",
        headers_enabled=True,
    )

    @app.get("/")
    @limiter.limit("3/minute")
    def page() -> str:
        return "hello"

    @app.get("/free")
    @limiter.exempt
    def free() -> str:
        return "hello"

    client = app.test_client()
    answers = [client.get("/") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[1].headers["X-RateLimit-Remaining"] == "1"
    assert [client.get("/free").status_code for _ in range(5)] == [200] * 5
    limiter.reset()
    assert client.get("/").status_code == 200


def run() -> None:
    main(os.environ["STORE"])
