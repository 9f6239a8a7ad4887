"""What every handler does with a request: whose it is, what its body, path and query say, and how to answer.

The app keeps what this module needs in its state: ``app.state.settings``, ``authenticator`` and ``parts``.
"""

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple, TypeVar, cast
from uuid import UUID

import msgspec
import msgspec.inspect
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from server.admission.bodies import Pace
from server.admission.limits import ANSWERED
from server.auth.keyring import is_key
from server.auth.tokens import Authenticator
from server.errors import Forbidden, Invalid, TooLarge, TooSlow, Unauthorized
from server.handlers.edge import SERVED_IN_A_CROWD
from server.parts import Parts
from server.settings import Settings

_log = logging.getLogger(__name__)
T = TypeVar("T")

BODY_SECONDS: Final = 30.0
JSON_LIMIT_BYTES: Final = 1024 * 1024
LARGEST_PAGE: Final = 1_000_000  # keeps the offset of the last page far inside PostgreSQL's bigint

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL stores neither NUL nor half a character
# Only to say what is wrong with a body that the decoder refused.
_PAIR = re.compile(rb"\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
# One word, or a name that only a private network knows; what a proxy says that does not pass the browser's Host.
_INTERNAL_HOST = re.compile(
    r"(?!localhost\b)([A-Za-z0-9-]*[A-Za-z_][A-Za-z0-9_-]*|[A-Za-z0-9._-]+\.(local|internal|lan|svc|cluster|intranet)"
    r"|[A-Za-z0-9.-]*_[A-Za-z0-9._-]*)(:[0-9]{1,5})?"
)
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


def parts_of(request: Request) -> Parts:
    """The process's parts."""
    return cast(Parts, request.app.state.parts)


# --- who is asking ----------------------------------------------------------------------------------------------------


async def bearer(request: Request) -> UUID:
    """The user whose bearer token the request carries: a sign-in token, or a key. Await it before the body is read.

    Raises:
        Unauthorized: Without a token, or with one that is not good.
        KeysUnavailable, DatabaseUnavailable: If nobody can say.
        TooMany: The request's address has tried too many keys that do not exist, or its user has too many under way.
    """
    token = bearer_token(request)
    if not token:
        raise Unauthorized
    if is_key(token):
        holder = await parts_of(request).keyring.holder(token, request.client.host if request.client else "")
        user_id, request.state.key_id = holder.user_id, holder.key_id
    else:
        authenticator: Authenticator = request.app.state.authenticator
        user_id = await authenticator.user_id(token)
    note_user(request, user_id)
    return user_id


def note_user(request: Request, user_id: UUID) -> None:
    """Say whose request it is: for the access log, and so that one person's requests leave room for those of others.

    Raises:
        TooMany: This user has as many under way as one may have. A cancel, which saves money, is never one too many.
    """
    request.state.user_id = user_id
    if not SERVED_IN_A_CROWD.fullmatch(request.scope["path"]) and ANSWERED not in request.scope["state"]:
        request.scope["state"][ANSWERED] = parts_of(request).requests.begin(user_id)


def key_id_of(request: Request) -> UUID | None:
    """The key that `bearer` found the request to carry; None where it was a sign-in token."""
    key_id: UUID | None = getattr(request.state, "key_id", None)
    return key_id


async def bearer_in_person(request: Request) -> UUID:
    """The user, who must have signed in: a key that leaks must not be able to make others that outlive it.

    Raises:
        Forbidden: The request carries a key.
    """
    user_id = await bearer(request)
    if key_id_of(request) is not None:
        raise Forbidden("A key can neither make keys nor delete them. Please sign in for that.")
    return user_id


def bearer_token(request: Request) -> str:
    """The bearer token as it was sent; empty where there is none."""
    scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def bearer_or_nobody(request: Request) -> UUID | None:
    """The user, or None where the request does not carry a good token."""
    try:
        return await bearer(request)
    except Unauthorized:
        return None


# --- what the request says --------------------------------------------------------------------------------------------


async def read_json(request: Request, of_type: type[T], *, limit_bytes: int = JSON_LIMIT_BYTES) -> T:
    """The body as the contract's type. Members that the type does not know are ignored, and so is the content type.

    Raises:
        Invalid: With a sentence that names the member, if the body is anything else.
        TooLarge: Before more than ``limit_bytes`` of it are read.
    """
    body = _utf_8(await _limited(request, limit_bytes).body(), request.headers.get("content-encoding", ""))
    if not body.strip():
        raise Invalid("The request body is empty; it must be JSON.")
    try:
        value = _decoder(cast(Any, of_type)).decode(body)
    except msgspec.ValidationError as exc:
        raise Invalid(_sentence(str(exc), of_type)) from exc
    except UnicodeDecodeError as exc:
        raise Invalid("The request body must be UTF-8.") from exc
    except RecursionError as exc:
        raise Invalid("The request body is nested too deeply.") from exc
    except msgspec.DecodeError as exc:
        if _HALF.search(_PAIR.sub(b"", body)):
            raise Invalid("The request body holds half a character (a lone surrogate).") from exc
        raise Invalid("The request body is not valid JSON.") from exc
    if rb"\u0000" in body:  # the only way in which JSON can write NUL
        _require_clean_strings(value)
    return cast(T, value)


_GZIP = b"\x1f\x8b"
_UTF_8_MARK, _UTF_16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def _utf_8(body: bytes, content_encoding: str) -> bytes:
    """The body without the byte order mark that some tools put in front.

    Raises:
        Invalid: It is in UTF-16 or UTF-32 (no JSON has a NUL among its first four bytes), or compressed.
    """
    if content_encoding.strip().lower() not in ("", "identity") or body.startswith(_GZIP):
        raise Invalid("The request body must not be compressed.")
    if body.startswith(_UTF_16_MARKS) or b"\0" in body[:4]:
        raise Invalid("The request body must be UTF-8.")
    return body.removeprefix(_UTF_8_MARK)


@asynccontextmanager
async def read_form(request: Request, *, limit_bytes: int, fields: int = 20) -> AsyncIterator[FormData]:
    """The body as a multipart or URL-encoded form; its files are gone when the block is left.

    Raises:
        Invalid: If it is no form, or a broken one.
        TooLarge: Before more than ``limit_bytes`` of it are read.
    """
    limited = _limited(request, limit_bytes)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Invalid("The request body must be a form.")
    try:
        form = await limited.form(max_files=fields, max_fields=fields, max_part_size=JSON_LIMIT_BYTES)
    except (HTTPException, ValueError) as exc:
        raise Invalid("The request body is not a valid form.") from exc
    try:
        yield form
    finally:
        await form.close()


def convert(values: Mapping[str, Any], of_type: type[T]) -> T:
    """Members that did not come as JSON (a form's fields) as the contract's type, checked like `read_json` does.

    Raises:
        Invalid: With a sentence that names the member.
    """
    try:
        value = msgspec.convert(values, of_type)
    except msgspec.ValidationError as exc:
        raise Invalid(_sentence(str(exc), of_type)) from exc
    _require_clean_strings(value)
    return value


def path_uuid(request: Request, name: str = "id") -> UUID:
    """The id in the request's path.

    Raises:
        Invalid: If it is no UUID.
    """
    text = str(request.path_params[name])
    if not _UUID.fullmatch(text):
        raise Invalid(f"The {name.replace('_', ' ')} in this address is not a valid UUID.")
    return _noted(request, name, UUID(text))


def _noted(request: Request, name: str, value: UUID) -> UUID:
    """A task's id stands in the access log, where its user's complaint leads to."""
    if name == "task_id":
        request.state.task_id = value
    return value


def query_uuid(request: Request, name: str) -> UUID | None:
    """A UUID from the query; None where it is not there.

    Raises:
        Invalid: If it is no UUID.
    """
    text = query_text(request, name)
    if text is None:
        return None
    if not _UUID.fullmatch(text):
        raise Invalid(f"`{name}` must be a UUID.")
    return _noted(request, name, UUID(text))


def query_text(request: Request, name: str) -> str | None:
    """A text from the query without blanks around it; None where there is none.

    Raises:
        Invalid: If it holds NUL.
    """
    text = request.query_params.get(name, "").strip()
    if _UNSTORABLE.search(text):
        raise Invalid(f"`{name}` holds a character that cannot be stored.")
    return text or None


def query_choice(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    """One of a few words from the query; None where there is none, or where it is ``all``.

    Raises:
        Invalid: If it is another word.
    """
    word = query_text(request, name)
    if word is None or word == "all":
        return None
    if word not in choices:
        raise Invalid(f"`{name}` must be one of: all, {', '.join(choices)}.")
    return word


def idempotency_key(request: Request) -> str | None:
    """The client's name for this request, by which a repeated one is recognised.

    Raises:
        Invalid: If it is empty or longer than 255 characters.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key.strip()) <= 255:
        raise Invalid("The Idempotency-Key must have 1 to 255 characters.")
    return key.strip() if key else None


class PageQuery(NamedTuple):
    """Which part of a list is asked for; ``page`` counts from 1."""

    page: int
    per_page: int

    @property
    def offset(self) -> int:
        """How many rows stand before this page."""
        return (self.page - 1) * self.per_page


def page_query(request: Request, *, default_per_page: int, max_per_page: int = 100) -> PageQuery:
    """``page`` and ``per_page`` of the query.

    Raises:
        Invalid: If one of them is no whole number, or out of bounds.
    """
    return PageQuery(
        page=_query_number(request, "page", default=1, highest=LARGEST_PAGE),
        per_page=_query_number(request, "per_page", default=default_per_page, highest=max_per_page),
    )


def _query_number(request: Request, name: str, *, default: int, highest: int) -> int:
    text = query_text(request, name)
    if text is None:
        return default
    # int() alone would take signs, underscores and the digits of every script.
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= highest:
        raise Invalid(f"`{name}` must be a whole number from 1 to {highest}.")
    return int(text)


# --- how to answer ----------------------------------------------------------------------------------------------------


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that nobody keeps: what it says may have changed a second later."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def redirect(location: str, status: int = 302) -> Response:
    """A redirect to a signed link or a path of ours; no cache may keep it, since links expire."""
    return Response(status_code=status, headers={"Location": location, "Cache-Control": "no-store"})


def outward(request: Request, path: str) -> str:
    """A path of ours (from its first slash on) as it is handed out, relative to the host: below what
    ``PUBLIC_BASE_URL`` puts in front of every path. The one rule for each address in an answer."""
    settings: Settings = request.app.state.settings
    return settings.public_path + path


def absolute_url(request: Request, path: str) -> str:
    """``path`` (from its first slash on, with its query) as browsers reach it.

    Where PUBLIC_BASE_URL does not say, the request does: its Host header, and the scheme that a trusted proxy named.
    """
    settings: Settings = request.app.state.settings
    if settings.public_base_url:
        return settings.public_base_url + path
    host = request.headers.get("host", "")
    if _INTERNAL_HOST.fullmatch(host):
        _warn_of_internal_host(host)
    if not _HOST.fullmatch(host):
        address, port = request.scope.get("server") or ("localhost", None)
        host = (f"[{address}]" if ":" in address else address) + (f":{port}" if port else "")
    return f"{request.scope['scheme']}://{host}{path}"


@lru_cache(maxsize=8)
def _warn_of_internal_host(host: str) -> None:
    """Once for each name."""
    _log.warning(
        "links name the host %s, which browsers hardly know: set PUBLIC_BASE_URL, or let the proxy pass Host", host
    )


# --- inside -----------------------------------------------------------------------------------------------------------


@cache
def _decoder(of_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(of_type)


def _limited(request: Request, limit_bytes: int) -> Request:
    """The same request, whose body cannot be longer than that.

    Raises:
        TooLarge: At once where Content-Length tells, else from the read that goes beyond.
        TooSlow: From the read that nothing comes of.
    """
    too_large = TooLarge(f"The request is larger than {limit_bytes // 1024} KiB.")
    announced = request.headers.get("content-length", "")
    if re.fullmatch(r"[0-9]+", announced) and (len(announced) > 18 or int(announced) > limit_bytes):
        raise too_large
    return Request(request.scope, _counting(request.receive, limit_bytes, too_large))


def _counting(receive: Receive, limit_bytes: int, too_large: TooLarge) -> Receive:
    pace = Pace(BODY_SECONDS)

    async def counted() -> Message:
        try:
            async with pace.in_time():
                message = await receive()
        except TimeoutError:
            raise TooSlow from None
        pace.received += len(message.get("body", b""))
        if pace.received > limit_bytes:
            raise too_large
        return message

    return counted


def _require_clean_strings(value: Any) -> None:
    """Refuse NUL and lone surrogates in any string inside, however deep."""
    rest = [("the request", msgspec.to_builtins(value))]
    while rest:
        name, item = rest.pop()
        if isinstance(item, str) and _UNSTORABLE.search(item):
            raise Invalid(f"`{name}` holds a character that cannot be stored.")
        if isinstance(item, dict):
            rest.extend((str(key), member) for key, member in item.items())
        elif isinstance(item, list):
            rest.extend((name, member) for member in item)


_KINDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "uuid": "a UUID",
    "array": "a list",
    "object": "an object",
    "datetime": "a time",
    "null": "null",
}
_LENGTH = re.compile(r"Expected `(str|array)` of length (>=|<=) ([0-9]+)")
_BOUND = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)")
_TYPE = re.compile(r"Expected `([^`]+)`")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_WORDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def _sentence(complaint: str, of_type: Any) -> str:
    """The decoder's complaint, which speaks of its own types and paths, as a sentence for a person.

    It reads ``Expected `str`, got `int` - at `$.text```; whatever it says that is not known here becomes a plain
    "is not valid", since the complaint may quote what the client sent.
    """
    what, _, path = complaint.partition(" - at `")
    member = path.rstrip("`").removeprefix("key in ").removeprefix("$").lstrip(".")
    if missing := _MISSING.match(what):
        return f"`{f'{member}.' if member else ''}{missing[1]}` is missing."
    name = f"`{member}`" if member else "The request body"
    if length := _LENGTH.match(what):
        unit = {"str": "character", "array": "entry"}[length[1]]
        plural = unit if length[3] == "1" else {"character": "characters", "entry": "entries"}[unit]
        return f"{name} must have {_WORDS[length[2]]} {length[3]} {plural}."
    if bound := _BOUND.match(what):
        return f"{name} must be {_WORDS[bound[1]]} {bound[2]}."
    if what == "Invalid UUID":
        return f"{name} must be a UUID."
    if what.startswith("Invalid enum value") and (words := _choices(of_type, member)):
        return f"{name} must be one of: {', '.join(words)}."
    if expected := _TYPE.match(what):
        kinds = [_KINDS[kind] for kind in expected[1].split(" | ") if kind in _KINDS]
        if kinds:
            return f"{name} must be {' or '.join(kinds)}."
    return f"{name} is not valid."


@cache
def _choices(of_type: Any, member: str) -> tuple[str, ...]:
    """The words that a member of the type takes; none where it takes others as well, or is further inside."""
    described = msgspec.inspect.type_info(of_type)
    fields = described.fields if isinstance(described, msgspec.inspect.StructType) else ()
    for field in fields:
        if field.encode_name == member:
            kinds = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
            literals = (kind for kind in kinds if isinstance(kind, msgspec.inspect.LiteralType))
            return tuple(str(value) for literal in literals for value in literal.values)
    return ()
