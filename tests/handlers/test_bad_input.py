"""Whatever a client sends: an answer below 500, in JSON, with a sentence; and nothing is created by mistake."""

import asyncio
import gzip
import json
import time
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway
from tests.handlers.wire import Answer, counted, exchange, problem_of
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MEGABYTE = 1024 * 1024
#: Every path that takes a request of this issue, with an id that exists for nobody.
PATHS = (
    "/api/generate",
    "/api/generate/stream",
    f"/api/tasks/{uuid4()}",
    f"/api/tasks/{uuid4()}/cancel",
    "/api/generations",
    f"/api/generations/{uuid4()}",
    f"/api/generations/{uuid4()}/audio",
    f"/api/generations/{uuid4()}/regenerate",
    "/api/voices",
    "/api/health",
    "/api/ready",
    "/api/languages",
    "/api/me",
    "/api/openapi.json",
    "/metrics",
    "/api/storage/generations/a/b.mp3",
    "/api/storage/elsewhere/a",
    "/api",
    "/api/nothing",
    "/nothing.php",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def wants(voice_id: UUID, /, text: str = '"Good evening."', **members: str) -> bytes:
    """A request to speak, its members as they stand in JSON."""
    written = {"voice_id": f'"{voice_id}"', "text": text, **members}
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in written.items()) + "}").encode()


def deep(opening: bytes, closing: bytes = b"", depth: int = 100_000) -> bytes:
    return opening * depth + closing * depth


async def created(rows: Rows) -> int:
    count: int = await rows.fetchval("SELECT count(*) FROM public.tasks")
    return count


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_body_that_is_no_request_is_400_and_says_what_is_wrong(
    client: Client, voice_id: UUID, rows: Rows, simulator: Simulator
) -> None:
    table: list[tuple[bytes, str]] = [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "not valid JSON"),
        (b"}", "not valid JSON"),
        (b"{'text': 1}", "not valid JSON"),
        (b"voice_id=1&text=2", "not valid JSON"),
        (b"--x\r\nContent-Disposition: form-data\r\n", "not valid JSON"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xef\xbb\xbf{}", "`voice_id` is missing"),
        ("{}".encode("utf-16"), "must be UTF-8"),
        (b"\x1f\x8b\x08\x00", "must not be compressed"),
        (wants(voice_id) + b"{}", "not valid JSON"),
        (wants(voice_id, text='"a\x00b"'), "not valid JSON"),
        (wants(voice_id, text='"a\nb"'), "not valid JSON"),
        (wants(voice_id, text='"\\x41"'), "not valid JSON"),
        (wants(voice_id, text='"\\u12"'), "not valid JSON"),
        (wants(voice_id, text='"\\ud83d\\ude00'), "not valid JSON"),
        (wants(voice_id, text="NaN"), "not valid JSON"),
        (b"null", "must be an object"),
        (b"[]", "must be an object"),
        (b'"text"', "must be an object"),
        (b"17", "must be an object"),
        (b"[" + wants(voice_id) + b"]", "must be an object"),
        (b"{}", "`voice_id` is missing"),
        (b'{"voice_id": "' + str(voice_id).encode() + b'"}', "`text` is missing"),
        (b'{"Voice_Id": 1, "TEXT": 1}', "`voice_id` is missing"),
        (wants(voice_id, text="17"), "`text` must be a string"),
        (wants(voice_id, text="null"), "`text` must be a string"),
        (wants(voice_id, text="true"), "`text` must be a string"),
        (wants(voice_id, text='["a"]'), "`text` must be a string"),
        (wants(voice_id, text='{"a": "b"}'), "`text` must be a string"),
        (wants(voice_id, text="1e99999"), "`text`"),
        (wants(voice_id, text="9" * 5000), "`text`"),
        (wants(voice_id, language="null"), "`language` must be a string"),
        (wants(voice_id, language="[]"), "`language` must be a string"),
        (wants(voice_id, voice_id="17"), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id="null"), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id='"Ada"'), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id='""'), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id=f'"{{{voice_id}}}"'), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id=f'"urn:uuid:{voice_id}"'), "`voice_id` must be a UUID"),
        (wants(voice_id, voice_id=f'" {voice_id}"'), "`voice_id` must be a UUID"),
        (wants(voice_id, text='"a\\u0000b"'), "`text` holds a character that cannot be stored"),
        (wants(voice_id, language='"\\u0000"'), "`language` holds a character that cannot be stored"),
        (wants(voice_id, text='"\\ud800"'), "half a character"),
        (wants(voice_id, text='"a\\ud800b"'), "half a character"),
        (wants(voice_id, text='"a\\udc00\\ud800b"'), "half a character"),
        (wants(voice_id, text='"\\ud83d\\ude00\\ud83d"'), "half a character"),
        (wants(voice_id).replace(b"Good", b"\xed\xa0\x80"), "must be UTF-8"),
        (wants(voice_id).replace(b"Good", b"\xff\xfe"), "must be UTF-8"),
        (wants(voice_id).replace(b"Good", b"\xc3"), "must be UTF-8"),
        (deep(b"["), "must be an object"),
        (deep(b'{"a":'), "nested too deeply"),
        (wants(voice_id, more=deep(b"[", b"]").decode()), "nested too deeply"),
        (wants(voice_id, text=deep(b"[", b"]").decode()), "`text` must be a string"),
    ]
    for address in ("/api/generate", "/api/generate/stream"):
        for body, says in table:
            response = await client.http.post(address, content=body, headers={"Content-Type": "application/json"})
            problem_of(response, 400, "validation", says=says)
    assert await created(rows) == 0
    assert simulator.calls == []


@pytest.mark.usefixtures("unspoken")
async def test_what_is_unusual_but_well_formed_is_taken(client: Client, voice_id: UUID) -> None:
    for body in (
        wants(voice_id, more="9" * 5000),
        wants(voice_id, more="[1e308, -0, {}]"),
        wants(voice_id, more='"\\u0000"'),
        wants(voice_id, text='"\\ud83d\\ude00 \\ufffd \\uffff ok"'),
        wants(voice_id, text='"\\u0007 bell"'),
        b"\n\t " + wants(voice_id) + b"\r\n",
        wants(voice_id, voice_id=f'"{voice_id.hex}"'),
        b'{"text": "first", ' + wants(voice_id)[1:],
    ):
        response = await client.http.post("/api/generate", content=body)
        assert response.status_code == 200, (body[:200], response.text)


async def test_a_body_over_the_limit_is_413_however_it_comes(
    client: Client, gateway: Gateway, voice_id: UUID, rows: Rows
) -> None:
    """Announced, it is not read at all; unannounced, not to its end."""
    head = f"POST /api/generate HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\n"
    large = wants(voice_id, text='"' + "a" * 10 * MEGABYTE + '"')
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(large[at : at + MEGABYTE]), large[at : at + MEGABYTE])
        for at in range(0, len(large), MEGABYTE)
    )
    for answer in (
        await exchange(gateway.url, f"{head}Content-Length: {len(large)}\n", large),
        await exchange(gateway.url, f"{head}Content-Length: {len(large)}\n"),
        await exchange(gateway.url, f"{head}Content-Length: {MEGABYTE + 1}\n"),
        await exchange(gateway.url, f"{head}Content-Length: 99999999999999999999\n"),
        await exchange(gateway.url, f"{head}Transfer-Encoding: chunked\n", chunks),
        await exchange(gateway.url, f"{head}Transfer-Encoding: chunked\n", chunks + b"0\r\n\r\n"),
    ):
        if answer.status == 400 and b"not valid HTTP" in answer.body:
            continue  # the HTTP parser itself refused a length that no number holds
        problem_of(answer, 413, "too_large", says="1024 KiB")
    assert await counted(client.http, "bodies") >= 5
    assert await created(rows) == 0
    padded = wants(voice_id) + b" " * (MEGABYTE - len(wants(voice_id)))
    assert (await client.http.post("/api/generate", content=padded)).status_code == 200


async def test_who_is_not_signed_in_is_refused_before_the_body_is_read(gateway: Gateway) -> None:
    """None of the announced bytes is ever sent here."""
    for address in ("/api/generate", "/api/generate/stream"):
        for length in (1, 10 * MEGABYTE):
            head = f"POST {address} HTTP/1.1\nHost: x\nContent-Length: {length}\n"
            problem_of(await exchange(gateway.url, head), 401, "unauthorized")


async def test_a_client_that_hangs_up_in_its_body_leaves_nothing(
    client: Client, gateway: Gateway, voice_id: UUID, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    address = httpx.URL(gateway.url)
    lines = ("POST /api/generate HTTP/1.1", "Host: x", f"Authorization: Bearer {client.token}", "Content-Length: 500")

    def all_noticed() -> bool:
        return sum(record.name == "server.access" for record in caplog.records) == 3

    with caplog.at_level("INFO"):
        for _ in range(3):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write("\r\n".join([*lines, "", ""]).encode() + wants(voice_id))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        await wait_for(all_noticed)
    assert await created(rows) == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- encodings --------------------------------------------------------------------------------------------------------

CASES = Path(__file__).parent.parent / "cases"


async def test_a_byte_order_mark_in_front_of_utf_8_is_stepped_over(client: Client, voice_id: UUID) -> None:
    """The file names a voice that does not exist: with or without the mark, that is what is said."""
    answer = await client.http.post("/api/generate", content=(CASES / "body-utf8-bom.json").read_bytes())
    problem_of(answer, 404, "not_found", says="voice does not exist")
    answer = await client.http.post("/api/generate", content=b"\xef\xbb\xbf" + wants(voice_id))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1"]
)
async def test_any_other_encoding_is_called_by_its_name(client: Client, voice_id: UUID, encoding: str) -> None:
    body = json.dumps({"voice_id": str(voice_id), "text": "Grüß Gott"}, ensure_ascii=False).encode(encoding)
    for sent in (body, (CASES / "body-utf16.json").read_bytes()):
        answer = await client.http.post("/api/generate", content=sent)
        assert problem_of(answer, 400, "validation") == "The request body must be UTF-8."


async def test_a_compressed_body_is_said_to_be_compressed(client: Client, voice_id: UUID) -> None:
    body, headers = gzip.compress(wants(voice_id)), {"Content-Encoding": "gzip"}
    answer = await client.http.post("/api/generate", content=body, headers=headers)
    problem_of(answer, 400, "validation", says="must not be compressed")


@pytest.mark.parametrize(
    ("address", "required"),
    [
        ("/api/clone/upload-url", {"name": "Ada", "language": "English", "transcript": ""}),
        (
            "/api/clone/finalize",
            {"voice_id": str(uuid4()), "name": "Ada", "language": "English", "transcript": ""},
        ),
        ("/api/voices/design/preview", {"text": "Hello", "language": "English", "instruct": "A calm voice"}),
        ("/api/generate", {"voice_id": str(uuid4()), "text": "Hello"}),
    ],
)
async def test_what_is_required_is_missed_by_name(client: Client, address: str, required: dict[str, str]) -> None:
    for name in required:
        body = {member: value for member, value in required.items() if member != name}
        answer = await client.http.post(address, json=body)
        assert problem_of(answer, 400, "validation") == f"`{name}` is missing."


# --- addresses --------------------------------------------------------------------------------------------------------


def is_fine(answer: Answer, method: str, address: str) -> None:
    """Below 500, and JSON where it is a failure (of ours: what is no HTTP never reaches us)."""
    assert answer.status < 500, (method, address, answer.body)
    assert answer.headers.get("referrer-policy") == "no-referrer", (method, address, answer)
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/json", (method, address)
        if method != "HEAD":
            assert answer.json().keys() == {"detail", "category", "request_id"}


async def test_every_method_at_every_address_has_an_answer(client: Client, gateway: Gateway) -> None:
    bodies = (None, b"", b"{", b'{"voice_id": {}}', b"\xff" * 1000)
    for path in PATHS:
        for method in METHODS:
            for body in bodies:
                head = f"{method} {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\n"
                if body is not None:
                    head += f"Content-Type: application/json\nContent-Length: {len(body)}\n"
                answer = await exchange(gateway.url, head, body or b"")
                is_fine(answer, method, path)
                if answer.status == 405:
                    assert answer.headers["allow"]


async def test_what_is_not_there_is_404_and_what_is_not_done_there_is_405(client: Client) -> None:
    for path in (
        "/api",
        "/api/nothing",
        "/api/tasks",
        "/api/tasks/1/2/3",
        "/api/voices/x/y",
        "/index.php",
        "//api/health",
    ):
        problem_of(await client.http.get(path), 404, "not_found", says="nothing at this address")
    for method, path in (("GET", "/api/generate"), ("POST", "/api/voices"), ("PUT", f"/api/tasks/{uuid4()}")):
        response = await client.http.request(method, path)
        problem_of(response, 405, "validation", says="method")
        assert response.headers["allow"]
    for path, methods in (
        ("/api/generate/stream", {"GET", "HEAD", "POST"}),
        ("/api/voices/design", {"POST"}),
        ("/api/voices/design/preview", {"POST"}),
        ("/api/tasks/no-uuid", {"GET", "HEAD", "DELETE"}),
        ("/api/voices/no-uuid", {"PATCH", "DELETE"}),
        ("/api/tasks/no-uuid/cancel", {"POST"}),
        ("/api/keys", {"GET", "HEAD", "POST"}),
        ("/api/health", {"GET", "HEAD"}),
    ):
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - methods:
            response = await client.http.request(method, path)
            problem_of(response, 405, "validation", says="method")
            assert {word.strip() for word in response.headers["allow"].split(",")} == methods, (method, path)
    response = await client.http.patch("/api/profile", json={"display_name": "Ada"})
    problem_of(response, 404, "not_found")


async def test_addresses_that_no_library_would_send(client: Client, gateway: Gateway) -> None:
    for path in (
        "/api/tasks/%ff",
        "/api/tasks/%00",
        "/api/tasks/%0a%0dX-Evil:%20yes",
        "/api/tasks/%zz",
        "/api/tasks/%",
        "/api/tasks/%E2%82",
        "/api/tasks/%ED%A0%80",
        "/api/tasks/..%2f..%2fetc%2fpasswd",
        "/api/tasks/../voices",
        "/api/generations/%00/audio",
        "/api/generations/" + "a" * 30_000,
        "/api/voices?search=%ff&page=%00",
        "/api/voices?search=%00",
        "/api/voices?search=%ED%A0%80",
        "/api/voices?search=%zz",
        "/api/voices?" + "a=1&" * 10_000,
        "/api/voices?search=" + "%25" * 15_000,
        "/api/voices?search[]=1&page[x]=2",
        "/api/voices?&&==&=;",
        "/api/generations?search=" + "%5C" * 1000,
        "/api/generate/stream",
        "/api/generate/stream?task_id=",
        "/api/generate/stream?task_id=x",
        "/api/generate/stream?task_id=%00",
        f"/api/generate/stream?task_id={uuid4()}&ticket=%00%ff",
        f"/api/generate/stream?task_id={uuid4()}&ticket={'A' * 119}",
        f"/api/generate/stream?task_id={uuid4()}&as=video",
        f"/api/generate/stream?task_id={uuid4()}&offset=-1",
        f"/api/generate/stream?task_id={uuid4()}&offset={'9' * 100}",
        "/api/storage/generations/%00?expires=1&signature=%00",
        "/api/storage/generations/../../etc/passwd",
        "/api/storage/generations/%2e%2e/%2e%2e/etc/passwd?expires=9999999999&signature=x&filename=%0d%0a",
        "/api/storage/generations/a?expires=" + "9" * 1000,
        "/api/voices/",
        "/api/generate/",
        "/metrics?%",
    ):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            head = f"{method} {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\n"
            is_fine(await exchange(gateway.url, head), method, path)


async def test_headers_that_no_library_would_send(client: Client, gateway: Gateway, voice_id: UUID) -> None:
    token = client.token
    for headers in (
        b"Host: [\n",
        b"Host:\n",
        b"Host: \xff\n",
        b"Host: a b\n",
        b"Host: x\nHost: y\n",
        b"",
        b"Host: x\nX-Request-Id: \xff\xfe\n",
        b"Host: x\nX-Request-Id: " + b"a" * 5000 + b"\n",
        b"Host: x\nX-Forwarded-For: \xff, 1.2.3.4\nX-Forwarded-Proto: gopher\n",
        b"Host: x\nForwarded: for=x\n",
        b"Host: x\nOrigin: \xff\n",
        b"Host: x\nAccept: \xff;q=nan, */*;q=x\n",
        b"Host: x\nRange: bytes=-\nIf-Range: \xff\n",
        b"Host: x\nLast-Event-ID: \xff\n",
        b"Host: x\nIdempotency-Key: \xff\xfe\n",
        b"Host: x\nCookie: " + b"a=b; " * 1000 + b"\n",
        b"Host: x\nContent-Type: multipart/form-data; boundary=\n",
        b"Host: x\nContent-Type: \xff\n",
        b"Host: x\nContent-Encoding: gzip\n",
        b"Host: x\nContent-Length: 0\nContent-Length: 0\n",
        b"Host: x\nExpect: 100-continue\n",
        b"Host: x\nConnection: upgrade\nUpgrade: websocket\nSec-WebSocket-Key: x\n",
    ):
        for line in (
            "GET /api/voices",
            "POST /api/generate",
            f"GET /api/generate/stream?task_id={uuid4()}",
            "GET /metrics",
        ):
            head = f"{line} HTTP/1.1\nAuthorization: Bearer {token}\n".encode() + headers
            answer = await exchange(gateway.url, head)
            assert answer.status < 500, (line, headers, answer.body)


async def test_a_trailing_slash_is_no_other_address(client: Client) -> None:
    """The page in use never sends one. Whoever does is told, or led to the right place; nobody sees a page of HTML."""
    for path in ("/api/voices/", "/api/health/", "/api/generations/"):
        response = await client.http.get(path)
        assert response.status_code in (307, 404)
        assert b"<" not in response.content


# --- keys and clocks --------------------------------------------------------------------------------------------------


async def test_an_idempotency_key_that_is_none_is_400_before_the_body_is_read(
    client: Client, gateway: Gateway, rows: Rows
) -> None:
    for address in ("/api/generate", "/api/generate/stream"):
        for key in ("", "   ", "\t", "k" * 256, "k" * 10_000):
            head = f"POST {address} HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\nContent-Length: 1\n"
            answer = await exchange(gateway.url, f"{head}Idempotency-Key: {key}\n", b"{")
            problem_of(answer, 400, "validation", says="Idempotency-Key")
    assert await created(rows) == 0


async def test_a_long_address_costs_no_time(client: Client, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """The log looks for secrets in what it writes, which must not be as long as a client likes."""
    with caplog.at_level("INFO", "server.access"):
        response = await client.http.get("/" + "x-amz-" * 9_000)
    problem_of(response, 404, "not_found")
    (record,) = [record for record in caplog.records if record.name == "server.access"]
    assert len(record.getMessage()) < 300


async def test_hundreds_of_wrong_requests_at_once_are_all_answered(client: Client, gateway: Gateway) -> None:
    started = time.monotonic()
    heads = [
        f"POST /api/generate HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\nContent-Length: 1\n"
        for _ in range(300)
    ]
    answers = await asyncio.gather(*(exchange(gateway.url, head, b"{") for head in heads))
    assert {answer.status for answer in answers} == {400}
    assert time.monotonic() - started < 10.0


async def test_text_goes_through_unchanged(client: Client, voice_id: UUID) -> None:
    """What looks like SQL, HTML or a format is text like any other."""
    for text in (
        "'; DROP TABLE generations; --",
        "<script>alert(1)</script>",
        "%s %(x)s {0} ${HOME} $1 \\u0041 \\",
        "line one\r\nline two\ttab",
        "\u202eright to left\u202c and \u0301combined",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 three",
    ):
        answer: dict[str, Any] = await client.generate(voice_id, text)
        entries = (await client.http.get("/api/generations")).json()["generations"]
        stored = {entry["id"]: entry["text"] for entry in entries}
        assert stored[answer["generation_id"]] == json.loads(json.dumps(text))
