"""What a request is told that is refused, in the shape that the clients of its path read: OpenAI's, or Anthropic's."""

from fastapi import Request, Response
from starlette.types import Scope, Send

from gateway.anthropic import errors as anthropic
from gateway.replies import error_response, send_error
from gateway.responses import errors as responses
from shared.errors import TokenbusError


async def refuse(scope: Scope, send: Send, error: TokenbusError) -> None:
    await send_error(send, error, _shaped(scope, error))


def refusal(request: Request, error: TokenbusError) -> Response:
    return error_response(error, _shaped(request.scope, error))


def _shaped(scope: Scope, error: TokenbusError) -> dict[str, object]:
    if anthropic.speaks_anthropic(scope["path"]):
        return anthropic.error_body(error, scope["state"]["asked"].request_id)
    return responses.error_body(error) if responses.is_responses(scope["path"]) else error.body()
