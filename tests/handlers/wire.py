"""Requests as bytes, for what no HTTP library would send, and what every problem must look like."""

import asyncio
import re
from typing import Any, NamedTuple, get_args

import httpx
import msgspec

from server.contract import Problem
from server.errors import Category

ANSWER_WITHIN_SECONDS = 10.0


class Answer(NamedTuple):
    """An answer as it came over the wire. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def counted(http: httpx.AsyncClient, what: str) -> float:
    """How much of something was refused since the server started, as an operator sees it."""
    exposition = (await http.get("/metrics")).text
    found = re.search(rf'^utter_refused_total{{what="{what}"}} (\S+)$', exposition, re.MULTILINE)
    assert found, f"{what} is not among what may be refused"
    return float(found[1])


async def exchange(url: str, head: str | bytes, body: bytes = b"") -> Answer:
    """Send a request (its lines end in ``\\n`` here), read one answer, and hang up.

    The server may answer, and stop listening, before the whole body was sent.
    """
    address = httpx.URL(url)
    lines = head.encode("latin-1") if isinstance(head, str) else head
    reader, writer = await asyncio.open_connection(address.host, address.port)
    sending = asyncio.create_task(_send(writer, lines.rstrip(b"\n").replace(b"\n", b"\r\n") + b"\r\n\r\n" + body))
    try:
        async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
            return await _read_answer(reader, without_body=lines.startswith(b"HEAD "))
    finally:
        sending.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), 64 * 1024):
        try:
            writer.write(data[start : start + 64 * 1024])
            await writer.drain()
        except ConnectionError:
            return


async def _read_answer(reader: asyncio.StreamReader, *, without_body: bool) -> Answer:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:]) if name}
    length = 0 if without_body else int(headers.get("content-length", "0"))
    return Answer(int(lines[0].split()[1]), headers, await reader.readexactly(length))


def problem_of(answer: Answer | httpx.Response, status: int, category: Category, *, says: str = "") -> str:
    """The sentence of an answer that must be a problem of this status and category, in the contract's shape.

    Args:
        says: What the sentence must hold.
    """
    given = answer.status if isinstance(answer, Answer) else answer.status_code
    content = answer.body if isinstance(answer, Answer) else answer.content
    assert given == status, content.decode(errors="replace")
    assert answer.headers["content-type"] == "application/json"
    shown = answer.json()
    assert shown.keys() == {"detail", "category", "request_id"}
    problem = msgspec.convert(shown, Problem)
    assert problem.category in get_args(Category)
    assert (problem.category, problem.request_id) == (category, answer.headers["x-request-id"])
    assert is_a_sentence(problem.detail), problem.detail
    assert says in problem.detail, problem.detail
    return problem.detail


def is_a_sentence(detail: str) -> bool:
    """Whether a person may be shown this: words, and nothing that comes from inside the program."""
    inside = ("Traceback", 'File "', "Error(", "Exception", "asyncpg", "msgspec", "sqlstate", "<html", "None", "\n")
    return bool(re.match(r"[A-Z`]", detail)) and not any(word in detail for word in inside)
