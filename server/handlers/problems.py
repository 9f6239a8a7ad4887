"""Failures as JSON: in the words of our own interface, and under ``/v1`` in those of OpenAI's."""

import re

import msgspec

from server.contract import OpenAIError, OpenAIErrorType, OpenAIProblem, Problem
from server.errors import UtterError

_MEMBER = re.compile(r"`(\w+)(?:\.\w+)*`")  # of ``voice.id`` the outer one, which is what a client has named
LONGEST_RETRY_SECONDS = 60
_CODES = {401: "invalid_api_key", 413: "request_too_large"}


def is_openai_shaped(path: str) -> bool:
    """Whether what answers at this path speaks OpenAI's words."""
    return path == "/v1" or path.startswith("/v1/")


def own_problem(problem: UtterError, request_id: str) -> bytes:
    return msgspec.json.encode(Problem(problem.detail, problem.category, request_id))


def openai_problem(problem: UtterError) -> tuple[bytes, dict[str, str]]:
    """The body, and the headers that it takes besides those of the problem.

    Client libraries repeat a request by themselves after 409, 429 and everything from 500 on. They may after what says
    when; anything else could have been paid for, or will be the same again.
    """
    unsafe = problem.status == 409 or (problem.status >= 500 and "Retry-After" not in problem.headers)
    # They wait no longer than a minute for what says when, and pound on what takes until tomorrow.
    unsafe = unsafe or int(problem.headers.get("Retry-After", "0")) > LONGEST_RETRY_SECONDS
    return msgspec.json.encode(OpenAIProblem(openai_error(problem))), {"x-should-retry": "false"} if unsafe else {}


def openai_error(problem: UtterError) -> OpenAIError:
    named = _MEMBER.match(problem.detail)  # a sentence about a member begins with it
    return OpenAIError(
        message=problem.detail,
        type=_type(problem.status),
        param=problem.param or (named[1] if named else None),
        code=problem.code or _CODES.get(problem.status, problem.category),
    )


def _type(status: int) -> OpenAIErrorType:
    if status in (401, 403):
        return "authentication_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
