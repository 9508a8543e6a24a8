"""The OpenAPI document, made of the application's routes.

OpenAPI 3.1, where the schema of a `text/event-stream` is that of one event, as in OpenAI's own description.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from gateway.anthropic.errors import speaks_anthropic
from gateway.description import errors
from gateway.description.answers import ANSWERS, ANYWHERE, Answers, Parameter
from gateway.front import OPEN_PATHS
from gateway.responses.errors import is_responses

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]

ABOUT = """\
Many local models behind one address. A field, or a parameter of a query, that is not described is refused with 400, as
is one that is not honoured and not `null`. In queries `api-version`, `beta` and `client_version` change nothing, nor
does any parameter of health and metrics. Integers are written without a fraction: `2`, not `2.0`. `HEAD` is `GET`
without the body. Another method than those of a path is answered with 405, and `Allow` says which there are; another
path with 404. Rules between fields that no schema can say are told by the 400.
"""
REQUEST_ID: Parameter = {
    "name": "x-request-id",
    "in": "header",
    "description": "Up to 128 visible characters of ASCII; it comes back with the answer. Any other is replaced.",
    "schema": {"type": "string"},
}
HEADERS: Schema = {
    "x-request-id": {"description": "of this request", "required": True, "schema": {"type": "string"}},
    "request-id": {"description": "the same", "required": True, "schema": {"type": "string"}},
    "retry-after": {"description": "s until a retry may get in", "schema": {"type": "integer", "minimum": 1}},
    "retry-after-ms": {"description": "the same in ms", "schema": {"type": "integer", "minimum": 1}},
    "www-authenticate": {"description": "the scheme", "required": True, "schema": {"const": "Bearer"}},
}
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(app: FastAPI, *, keyed: bool) -> Schema:
    """`keyed`: a key is asked for. Raises KeyError for a route that ANSWERS does not know."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    operations = [_Operation(route, method, keyed=keyed) for route in routes for method in sorted(route.methods or ())]
    bodies = _Bodies(operations)
    paths: Schema = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.described(bodies)
    refusals = sorted({refusal for operation in operations for refusal in operation.refusals()})
    components: Schema = {
        "schemas": bodies.definitions | {name: errors.schema_of(status, anthropic=a) for name, status, a in refusals},
        "responses": {name: _refusal(name, status, anthropic=a) for name, status, a in refusals},
        "headers": HEADERS,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": app.version, "description": ABOUT},
        "paths": paths,
        "components": components | ({"securitySchemes": KEYS} if keyed else {}),
    }


def _headers(*names: str, anthropic: bool) -> Schema:
    own = ("x-request-id", "request-id") if anthropic else ("x-request-id",)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*own, *names)}


def _in_query(field: FieldInfo) -> Schema:
    """A parameter that is not given is None, which no query can say."""
    schema = TypeAdapter(Annotated[field.annotation, field]).json_schema()  # type: ignore[arg-type]
    if schema.get("default", ...) is None:
        *said, _ = schema.pop("anyOf")
        del schema["default"]
        schema |= said[0]
    return schema


def _refusal(name: str, status: int, *, anthropic: bool) -> Schema:
    return {
        "description": errors.description_of(status),
        "headers": _headers(*errors.HEADERS.get(status, ()), anthropic=anthropic),
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }


class _Operation:
    def __init__(self, route: APIRoute, method: str, *, keyed: bool) -> None:
        self.path, self.method = route.path_format, method
        self.answers: Answers = ANSWERS[method, self.path]
        self._route = route
        self._keyed = keyed and self.path not in OPEN_PATHS
        self._anthropic = speaks_anthropic(self.path)
        self._is_response = is_responses(self.path)

    def parts(self) -> Iterator[tuple[str, Mode, Any]]:
        """The types of what is sent and answered: their names, and which way they go."""
        request: type[BaseModel] | None = getattr(self._route.app, "schema", None)
        if request is not None:
            yield "request", "validation", request
        if self.answers.body is not None:
            yield "answer", "serialization", self.answers.body
        if self.answers.events is not None:
            yield "event", "serialization", self.answers.events

    def refusals(self) -> Iterator[tuple[str, int, bool]]:
        """Name, status, and whether it is one of Anthropic's."""
        for status in sorted({*ANYWHERE, *self.answers.errors, *((401,) if self._keyed else ())}):
            yield errors.name_of(status, anthropic=self._anthropic), status, self._anthropic

    def described(self, bodies: "_Bodies") -> Schema:
        described: Schema = {
            "operationId": self._route.unique_id,
            "tags": [self.answers.tag],
            "summary": self._route.summary or self._route.description,
            "parameters": [*self._parameters(), REQUEST_ID, *self.answers.parameters],
            "responses": {"200": self._answer(bodies.of(self))},
        }
        for name, status, _ in self.refusals():
            described["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
        if (request := bodies.of(self).get("request")) is not None:
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
        if self._keyed:
            described["security"] = [{name: []} for name in KEYS]
        return described

    def _parameters(self) -> Iterator[Parameter]:
        """Of its path and its query."""
        for name in self._route.param_convertors:
            yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for field in self._route.dependant.query_params:
            yield {"name": field.alias, "in": "query", "schema": _in_query(field.field_info)}

    def _answer(self, schemas: Schema) -> Schema:
        content = {"text/plain": {"schema": {"type": "string"}}}
        if "answer" in schemas:
            content = {"application/json": {"schema": schemas["answer"]}}
        if "event" in schemas:
            content["text/event-stream"] = {"schema": self._event(schemas["event"])}
        return {"description": "The answer.", "headers": _headers(anthropic=self._anthropic), "content": content}

    def _event(self, said: Schema) -> Schema:
        says = said if self._is_response else {"anyOf": [said, errors.event_schema(anthropic=self._anthropic)]}
        data: Schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": says}
        if self.answers.last is not None:
            data = {"if": {"const": self.answers.last}, "else": data}
        properties = {"data": data}
        if self._anthropic or self._is_response:
            properties["event"] = {"type": "string", "description": "the `type` of its data"}
        return {"type": "object", "required": list(properties), "properties": properties}


class _Bodies:
    """The schemas of what is sent and answered, and `definitions` that they share."""

    def __init__(self, operations: Iterable[_Operation]) -> None:
        adapters = [
            ((operation.method, operation.path, part), mode, TypeAdapter(of))
            for operation in operations
            for part, mode, of in operation.parts()
        ]
        self._schemas, shared = TypeAdapter.json_schemas(
            adapters, ref_template="#/components/schemas/{model}", schema_generator=_Untitled
        )
        self.definitions: Schema = shared["$defs"]

    def of(self, operation: _Operation) -> Schema:
        """By the names of its parts."""
        key = operation.method, operation.path
        return {part: self._schemas[(*key, part), mode] for part, mode, _ in operation.parts()}


class _Untitled(GenerateJsonSchema):
    """A title that repeats the name of its field tells nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
