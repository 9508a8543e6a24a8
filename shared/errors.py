"""One tree of errors, each with its HTTP status, OpenAI type and code.

    TokenbusError                 500 internal_error
    ├── InvalidRequest            400 invalid_value
    │   ├── UnsupportedParameter  400 unsupported_parameter
    │   ├── UnsupportedModel      400 unsupported_model      (an embedding model asked to chat)
    │   ├── PreviousNotFound      400 previous_response_not_found
    │   ├── Cancelled             400 cancelled              (a response, by somebody else)
    │   └── ContextLengthExceeded 400 context_length_exceeded
    ├── InvalidApiKey             401 invalid_api_key
    ├── NotFound                  404 not_found
    │   └── ModelNotFound         404 model_not_found
    ├── MethodNotAllowed          405 method_not_allowed
    ├── BodyTooLarge              413 body_too_large
    ├── UnsupportedMediaType      415 unsupported_media_type
    ├── HeadTooLarge              431 headers_too_large
    ├── QueueFull                 429 queue_full
    ├── UpstreamBusy              429 upstream_busy          (of the server that a worker passes requests on to)
    ├── EngineFailed              500 engine_error           (retryable)
    ├── EngineUnable              500 engine_unable          (to go on with this reply)
    ├── UpstreamFailed            502 upstream_error         (it refuses this worker, or cannot be understood)
    ├── UpstreamDown              502 upstream_unavailable   (retryable: nobody answers there)
    ├── WorkerLost                500 worker_lost            (its workers died; given up)
    ├── Unreadable                500 unreadable             (stored by another release, or damaged)
    ├── StreamLost                500 stream_lost            (of a stored response, which is there)
    ├── NoWorkers                 503 model_unavailable
    │   └── ModelLoading          503 model_loading          (on demand, and not there yet)
    ├── BusUnavailable            503 bus_unavailable
    ├── TooManyConnections        503 too_many_connections
    ├── ShuttingDown              503 shutting_down
    └── DeadlineExceeded          504 deadline_exceeded

`code`, message and `param` cross Redis (in `Failed`), and `from_code` makes the same error of it on the other side.
A process that cannot start raises `StartupError`: one line on stderr, exit code 2.
"""

from typing import Any, ClassVar


class StartupError(Exception):
    """What was asked for on the command line cannot be done; its text is the one line the user sees."""


LONGEST_MESSAGE = 1000  # characters: some tell the client what it sent, and that may be megabytes
LONGEST_PARAM = 200


class TokenbusError(Exception):
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False  # may the gateway give the job to another worker?
    is_crash: ClassVar[bool] = True  # if so: may the job be to blame?
    _by_code: ClassVar[dict[str, Any]] = {}  # code -> class

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        self.message = shortened(message, LONGEST_MESSAGE)
        super().__init__(self.message)
        self.param = None if param is None else shortened(param, LONGEST_PARAM)
        self.retry_after = retry_after  # seconds, for the Retry-After header

    def __init_subclass__(cls) -> None:
        TokenbusError._by_code[cls.code] = cls

    @staticmethod
    def from_code(code: str, message: str, param: str | None = None) -> "TokenbusError":
        """The error that crossed Redis as `code`; an unknown code is an internal error."""
        error: TokenbusError = TokenbusError._by_code.get(code, TokenbusError)(message, param=param)
        return error

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def one_line(error: BaseException) -> str:
    """What it says, or what it is if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


class InvalidRequest(TokenbusError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class UnsupportedModel(InvalidRequest):
    code = "unsupported_model"


class PreviousNotFound(InvalidRequest):
    code = "previous_response_not_found"


class Cancelled(InvalidRequest):
    code = "cancelled"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class InvalidApiKey(TokenbusError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(TokenbusError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(TokenbusError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class HeadTooLarge(TokenbusError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class BodyTooLarge(TokenbusError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class UnsupportedMediaType(TokenbusError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class QueueFull(TokenbusError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class EngineFailed(TokenbusError):
    code = "engine_error"
    retryable = True


class EngineUnable(TokenbusError):
    code = "engine_unable"


class UpstreamBusy(TokenbusError):
    status = 429
    type = "rate_limit_error"
    code = "upstream_busy"


class UpstreamFailed(TokenbusError):
    status = 502
    code = "upstream_error"


class UpstreamDown(UpstreamFailed):
    code = "upstream_unavailable"
    retryable = True
    is_crash = False


class WorkerLost(TokenbusError):
    code = "worker_lost"


class Unreadable(TokenbusError):
    code = "unreadable"


class StreamLost(TokenbusError):
    code = "stream_lost"


class NoWorkers(TokenbusError):
    status = 503
    code = "model_unavailable"


class ModelLoading(NoWorkers):
    code = "model_loading"

    def __init__(self, message: str, *, loading: dict[str, Any] | None = None, **told: Any) -> None:
        """`loading`: state, progress, eta_seconds."""
        super().__init__(message, **told)
        self.loading = loading

    def body(self) -> dict[str, Any]:
        body = super().body()
        if self.loading is not None:
            body["error"]["loading"] = self.loading
        return body


class BusUnavailable(TokenbusError):
    status = 503
    code = "bus_unavailable"


class TooManyConnections(TokenbusError):
    status = 503
    code = "too_many_connections"


class ShuttingDown(TokenbusError):
    status = 503
    code = "shutting_down"


class DeadlineExceeded(TokenbusError):
    status = 504
    code = "deadline_exceeded"
