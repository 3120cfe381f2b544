"""Answers of the router's own, in the shape that OpenAI's clients read."""

import json
from http import HTTPStatus

from aiohttp import web

_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "BadRequestError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}


class AnsweredError(Exception):
    """A request that is answered here, with an error.

    Parameters
    ----------
    status : int
        HTTP status.
    message : str
        What was found, what was expected and how to mend it.
    field : str or None
        The field of the request that is wrong.
    retry_after_s : int or None
        When to ask again.
    close : bool
        Whether the connection ends with the answer, since what follows on it cannot be told.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.retry_after_s = retry_after_s
        self.close = close

    def response(self) -> web.Response:
        """The answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 405:
            headers["Allow"] = "GET, POST"
        body = error_body(self.status, str(self), self.field)
        answer = web.Response(
            status=self.status,
            reason=HTTPStatus(self.status).phrase,
            body=body,
            headers=headers,
            content_type="application/json",
        )
        if self.close:
            answer.force_close()
        return answer


def error_body(status: int, message: str, field: str | None = None) -> bytes:
    """An error object, with vLLM's types and codes."""
    kind = _KINDS.get(status, "InternalServerError")
    return json.dumps({"error": {"message": message, "type": kind, "param": field, "code": status}}).encode()


def error_event(status: int, message: str) -> bytes:
    """The same as the last event of a stream that cannot go on."""
    return b"data: " + error_body(status, message) + b"\n\n"
