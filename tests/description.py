"""The OpenAPI document, without a server; and whether an answer is as it says."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from gateway.app import Gateway, create_app
from gateway.metrics import Metrics


async def application(*api_keys: str) -> FastAPI:
    """It never gets to Redis."""
    gateway = Gateway(
        redis_url="redis://127.0.0.1:1",
        namespace="tokenbus",
        dispatch_method="pull",
        max_queue=1,
        request_timeout=1,
        stall_timeout=1,
        no_worker_timeout=1,
        default_max_tokens=None,
        response_ttl=1,
        aliases={},
        metrics=Metrics(),
        on_fatal=print,
    )
    front = create_app(gateway, api_keys=list(api_keys), allowed_origins=[], max_body_bytes=1, max_bodies_bytes=1)
    app = front._app
    assert isinstance(app, FastAPI)
    return app


def document(*api_keys: str) -> dict[str, Any]:
    return asyncio.run(application(*api_keys)).openapi()


class Description:
    """What a document says of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def resolved(self, found: Any) -> Any:
        while "$ref" in found:
            place = self.document
            for name in found["$ref"].removeprefix("#/").split("/"):
                place = place[name]
            found = place
        return found

    def check(self, method: str, path: str, response: httpx2.Response) -> None:
        """Raises AssertionError, ValidationError for what is not described."""
        answers = self.document["paths"][path][method.lower()]["responses"]
        assert str(response.status_code) in answers, response.text
        answer = self.resolved(answers[str(response.status_code)])
        for name, header in answer["headers"].items():
            self._check_header(response.headers.get(name), self.resolved(header))
        kind = response.headers["content-type"].partition(";")[0]
        described = answer["content"][kind]["schema"]
        if kind == "application/json":
            self.validate(response.json(), described)
        elif kind == "text/event-stream":
            for event in events(response.text):
                self.validate(event, described)
                self._check_content(event["data"], described["properties"]["data"])

    def validate(self, value: Any, schema: Any) -> None:
        Draft202012Validator({**schema, "components": self.document["components"]}).validate(value)

    def _check_content(self, data: str, described: Any) -> None:
        """jsonschema takes it for a remark."""
        if "if" in described:
            if data == described["if"]["const"]:
                return
            described = described["else"]
        assert described["contentMediaType"] == "application/json"
        self.validate(json.loads(data), described["contentSchema"])

    def _check_header(self, value: str | None, header: Any) -> None:
        if value is None:
            assert not header.get("required"), header
        else:
            self.validate(int(value) if header["schema"].get("type") == "integer" else value, header["schema"])


def events(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        fields = [line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")]
        if fields:
            yield dict(fields)
