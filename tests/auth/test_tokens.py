"""Bearer tokens against a real key server on a socket, and the tickets that we sign ourselves."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.auth.remembered import Remembered
from server.auth.tokens import Authenticator, KeysUnavailable, RemoteKeys, Tickets, mint_bearer
from server.errors import Unauthorized

SECRET = "a secret that is long enough for everybody"
AUDIENCE = "authenticated"
USER = UUID("6f1c2d3e-0000-4000-8000-00000000abcd")


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class KeyServer:
    """A sign-in service's key address: what it answers can be changed, and how often it was asked is counted."""

    port: int = 0
    status: int = 200
    entries: list[dict[str, Any]] = field(default_factory=list)
    body: bytes | None = None
    asked: int = 0
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        self.arrived.set()
        await self.answers.wait()
        body = json.dumps({"keys": self.entries}).encode() if self.body is None else self.body
        head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """A key server with no keys yet that answers at once."""
    key_server = KeyServer()
    key_server.answers.set()
    server = await asyncio.start_server(key_server.serve, "127.0.0.1", 0)
    key_server.port = server.sockets[0].getsockname()[1]
    yield key_server
    key_server.answers.set()
    server.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        entry = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        entry = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**entry, **({} if kid is None else {"kid": kid}), **more}


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; a change to None takes the claim away."""
    every = {"sub": str(USER), "aud": AUDIENCE, "exp": int(time.time()) + 600, **changes}
    return {name: value for name, value in every.items() if value is not None}


def hs256(secret: str = SECRET, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret.encode(), algorithm="HS256", headers=headers)


def handmade(header: dict[str, Any], payload: bytes, key: bytes) -> str:
    """An HMAC-signed token with any header at all, as an attacker writes it."""
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(header).encode(), payload))
    signature = hmac.digest(key, signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def shared(audience: str = AUDIENCE) -> Authenticator:
    return Authenticator(secret=SECRET, keys=None, audience=audience)


def remote(keys: RemoteKeys, secret: str | None = None) -> Authenticator:
    return Authenticator(secret=secret, keys=keys, audience=AUDIENCE)


# --- a shared secret --------------------------------------------------------------------------------------------------


async def test_a_good_token_names_its_user() -> None:
    assert await shared().user_id(hs256()) == USER


async def test_a_token_that_we_mint_is_accepted() -> None:
    token = mint_bearer(USER, days=30, secret=SECRET, audience=AUDIENCE)
    assert await shared().user_id(token) == USER


async def test_a_short_secret_works_without_a_warning_at_every_call() -> None:
    """Tokens that others signed with it are verified, ours are good for them, and the library stays silent here."""
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        theirs = hs256(secret="short")
    assert await Authenticator(secret="short", keys=None, audience=AUDIENCE).user_id(theirs) == USER
    ours = mint_bearer(USER, days=1, secret="short", audience=AUDIENCE)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        assert jwt.decode(ours, b"short", algorithms=["HS256"], audience=AUDIENCE)["sub"] == str(USER)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "somebody else"},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
        {"sub": None},
        {"sub": ""},
        {"sub": "admin"},
        {"sub": "{6f1c2d3e-0000-4000-8000-00000000abcd}"},
        {"sub": "urn:uuid:6f1c2d3e-0000-4000-8000-00000000abcd"},
        {"sub": "6f1c2d3e-0000-4000-8000-00000000abc٣"},
        {"nbf": int(time.time()) + 600},
    ],
)
async def test_claims_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        await shared().user_id(hs256(**changes))


async def test_an_expired_token_is_told_so_and_a_little_clock_skew_is_forgiven() -> None:
    now = int(time.time())
    assert await shared().user_id(hs256(exp=now - 2, iat=now + 30)) == USER
    with pytest.raises(Unauthorized, match="expired"):
        await shared().user_id(hs256(exp=now - 60))


async def test_an_audience_may_be_one_of_several() -> None:
    assert await shared().user_id(hs256(aud=["other", AUDIENCE])) == USER


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "..", "é.é.é", "\0", "a" * 50_000, "e30.e30."])
async def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        await shared().user_id(token)


@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "RS256", [], {}, None, 7])
async def test_a_header_cannot_choose_what_was_not_configured(algorithm: object) -> None:
    payload = json.dumps(claims()).encode()
    with pytest.raises(Unauthorized):
        await shared().user_id(handmade({"alg": algorithm, "typ": "JWT"}, payload, SECRET.encode()))


async def test_a_foreign_signature_is_refused() -> None:
    with pytest.raises(Unauthorized):
        await shared().user_id(hs256(secret=SECRET + "!"))


async def test_an_endless_expiry_is_refused_rather_than_failing() -> None:
    payload = json.dumps(claims()).encode().replace(b'"exp": ', b'"exp": 1e999, "was": ')
    with pytest.raises(Unauthorized):
        await shared().user_id(handmade({"alg": "HS256"}, payload, SECRET.encode()))


async def test_the_secret_before_is_accepted_too_and_signs_nothing_new() -> None:
    authenticator = Authenticator(
        secret=SECRET, previous_secret="the one before, and long enough too", keys=None, audience=AUDIENCE
    )
    for _ in range(2):
        assert await authenticator.user_id(hs256()) == USER
        assert await authenticator.user_id(hs256(secret="the one before, and long enough too")) == USER
    with pytest.raises(Unauthorized, match="expired"):
        await authenticator.user_id(hs256(secret="the one before, and long enough too", exp=int(time.time()) - 60))
    with pytest.raises(Unauthorized):
        await authenticator.user_id(hs256(secret="a third one, which is long enough as well"))
    with pytest.raises(Unauthorized):
        await shared().user_id(hs256(secret="the one before, and long enough too"))


async def test_a_verified_token_is_remembered_for_ten_minutes_and_not_beyond_its_expiry() -> None:
    """Told by what a change of the audience does: what is remembered is not looked at again."""
    clock = Clock(time.time())
    authenticator = Authenticator(secret=SECRET, keys=None, audience=AUDIENCE, clock=clock)
    long, short = hs256(exp=int(time.time()) + 86_400), hs256(exp=int(time.time()) + 300)
    for token in (long, short):
        await authenticator.user_id(token)
    authenticator._audience = "somebody else"
    for token in (long, short):
        assert await authenticator.user_id(token) == USER
    with pytest.raises(Unauthorized):
        await authenticator.user_id(hs256(exp=int(time.time()) + 86_401))
    clock.now += 301
    assert await authenticator.user_id(long) == USER
    with pytest.raises(Unauthorized):
        await authenticator.user_id(short)
    clock.now += 300
    with pytest.raises(Unauthorized):
        await authenticator.user_id(long)


async def test_no_more_than_ten_thousand_tokens_are_remembered_and_none_of_them_as_it_is() -> None:
    remembered: Remembered[bytes, int] = Remembered(10_000)
    for number in range(10_001):
        remembered.put(number.to_bytes(4), number, until=10.0)
    assert len(remembered) == 10_000
    assert remembered.get((0).to_bytes(4), 0.0) is None
    assert remembered.get((1).to_bytes(4), 0.0) == 1
    authenticator = shared()
    token = hs256()
    await authenticator.user_id(token)
    ((name, _),) = authenticator._verified.items()
    assert name == hashlib.sha256(token.encode()).digest()


# --- a key set --------------------------------------------------------------------------------------------------------


async def test_both_kinds_of_keys_are_fetched_once_and_used_often(
    key_server: KeyServer, http: httpx.AsyncClient, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    key_server.entries = [jwk(rsa_key, "r"), jwk(ec_key, "e", use="sig", alg="ES256")]
    authenticator = remote(RemoteKeys(key_server.url, http), secret=SECRET)
    for _ in range(3):
        assert await authenticator.user_id(jwt.encode(claims(), rsa_key, "RS256", {"kid": "r"})) == USER
        assert await authenticator.user_id(jwt.encode(claims(), ec_key, "ES256", {"kid": "e"})) == USER
        assert await authenticator.user_id(jwt.encode(claims(), ec_key, "ES256")) == USER
    assert await authenticator.user_id(hs256(headers={"kid": "e"})) == USER
    assert key_server.asked == 1


async def test_a_public_key_is_no_shared_secret(
    key_server: KeyServer, http: httpx.AsyncClient, rsa_key: rsa.RSAPrivateKey
) -> None:
    """The classic confusion: an HS256 token signed with the public key, or with a symmetric key in the key set."""
    symmetric = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    key_server.entries = [jwk(rsa_key, "r"), {"kty": "oct", "k": symmetric, "kid": "o"}]
    public = rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload = json.dumps(claims()).encode()
    keys = RemoteKeys(key_server.url, http)
    for authenticator in (remote(keys), remote(keys, secret=SECRET)):
        for key, key_id in ((public, "r"), (b"k" * 32, "o")):
            for algorithm in ("HS256", "RS256"):
                with pytest.raises(Unauthorized):
                    await authenticator.user_id(handmade({"alg": algorithm, "kid": key_id}, payload, key))


async def test_keys_that_must_not_be_used_are_passed_over(
    key_server: KeyServer, http: httpx.AsyncClient, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    key_server.entries = [
        jwk(rsa_key, "encrypts", use="enc"),
        jwk(rsa_key, "wraps", key_ops=["wrapKey"]),
        jwk(rsa_key, "other algorithm", alg="PS256"),
        jwk(weak, "weak"),
        jwk(ec_key, "broken", x="!"),
        jwk(ec_key, "good"),
    ]
    authenticator = remote(RemoteKeys(key_server.url, http))
    assert await authenticator.user_id(jwt.encode(claims(), ec_key, "ES256", {"kid": "good"})) == USER
    for kid in ("encrypts", "wraps", "other algorithm"):
        with pytest.raises(Unauthorized):
            await authenticator.user_id(jwt.encode(claims(), rsa_key, "RS256", {"kid": kid}))
    with pytest.raises(Unauthorized), pytest.warns(jwt.InsecureKeyLengthWarning):
        await authenticator.user_id(jwt.encode(claims(), weak, "RS256", {"kid": "weak"}))


async def test_a_new_key_is_found_at_its_first_token_and_a_retired_one_goes_with_time(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    clock = Clock()
    new_key = ec.generate_private_key(ec.SECP256R1())
    old, new = (jwt.encode(claims(), key, "ES256", {"kid": kid}) for key, kid in ((ec_key, "old"), (new_key, "new")))
    key_server.entries = [jwk(ec_key, "old")]
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, fresh_seconds=600, refresh_seconds=10))
    assert await authenticator.user_id(old) == USER

    clock.now += 11
    key_server.entries = [jwk(ec_key, "old"), jwk(new_key, "new")]
    assert await authenticator.user_id(new) == USER
    assert key_server.asked == 2

    key_server.entries = [jwk(new_key, "new")]
    assert await authenticator.user_id(old) == USER
    clock.now += 601
    with pytest.raises(Unauthorized):
        await authenticator.user_id(old)
    assert key_server.asked == 3


async def test_what_a_key_set_proved_is_forgotten_with_it(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    """A token is asked about again as soon as the keys are others, and when they are due to be fetched again."""
    clock = Clock()
    new_key = ec.generate_private_key(ec.SECP256R1())
    old, new = (jwt.encode(claims(), key, "ES256", {"kid": kid}) for key, kid in ((ec_key, "old"), (new_key, "new")))
    key_server.entries = [jwk(ec_key, "old")]
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, fresh_seconds=600, refresh_seconds=10))
    for _ in range(2):
        assert await authenticator.user_id(old) == USER
    clock.now += 11
    key_server.entries = [jwk(new_key, "new")]
    assert await authenticator.user_id(new) == USER
    with pytest.raises(Unauthorized):
        await authenticator.user_id(old)


async def test_invented_key_names_do_not_flood_the_key_server(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    clock = Clock()
    key_server.entries = [jwk(ec_key, "real")]
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, refresh_seconds=10))
    invented = [jwt.encode(claims(), ec_key, "ES256", {"kid": f"invented {n}"}) for n in range(20)]
    outcomes = await asyncio.gather(*(authenticator.user_id(token) for token in invented), return_exceptions=True)
    assert all(isinstance(outcome, Unauthorized) for outcome in outcomes)
    assert key_server.asked == 1
    clock.now += 11
    with pytest.raises(Unauthorized):
        await authenticator.user_id(invented[0])
    assert key_server.asked == 2


async def test_known_keys_stay_good_while_the_key_server_is_down(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    """An unknown key is then a matter of not knowing (503), not of a bad token (401): nobody is signed out by it."""
    clock = Clock()
    key_server.entries = [jwk(ec_key, "k")]
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, fresh_seconds=600, refresh_seconds=10))
    known, unknown = (jwt.encode(claims(), ec_key, "ES256", {"kid": kid}) for kid in ("k", "rotated"))
    assert await authenticator.user_id(known) == USER
    key_server.status = 500
    clock.now += 3600
    for _ in range(5):
        assert await authenticator.user_id(known) == USER
    assert key_server.asked == 2
    with pytest.raises(KeysUnavailable):
        await authenticator.user_id(unknown)


async def test_a_slow_refresh_holds_up_only_one_request(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    clock = Clock()
    key_server.entries = [jwk(ec_key, "k")]
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, fresh_seconds=600))
    token = jwt.encode(claims(), ec_key, "ES256", {"kid": "k"})
    assert await authenticator.user_id(token) == USER
    clock.now += 601
    key_server.answers.clear()
    key_server.arrived.clear()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first = group.create_task(authenticator.user_id(token))
        await key_server.arrived.wait()
        assert await authenticator.user_id(token) == USER
        assert not first.done()
        key_server.answers.set()
    assert first.result() == USER
    assert key_server.asked == 2


async def test_without_any_key_the_answer_is_to_try_again(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    clock = Clock()
    authenticator = remote(RemoteKeys(key_server.url, http, clock=clock, retry_seconds=1))
    token = jwt.encode(claims(), ec_key, "ES256", {"kid": "k"})
    for status, body in ((500, None), (200, b"<html>"), (200, b"[]"), (200, b'{"keys": [1]}'), (302, None)):
        key_server.status, key_server.body = status, body
        with pytest.raises(KeysUnavailable) as caught:
            await authenticator.user_id(token)
        assert caught.value.status == 503
        assert "Retry-After" in caught.value.headers
        clock.now += 2
    key_server.status, key_server.body, key_server.entries = 200, None, [jwk(ec_key, "k")]
    assert await authenticator.user_id(token) == USER


async def test_those_who_wait_for_a_silent_key_server_fail_together(
    key_server: KeyServer, http: httpx.AsyncClient, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    key_server.answers.clear()
    authenticator = remote(RemoteKeys(key_server.url, http, timeout_seconds=0.2))
    token = jwt.encode(claims(), ec_key, "ES256", {"kid": "k"})
    began = time.monotonic()
    outcomes = await asyncio.gather(*(authenticator.user_id(token) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, KeysUnavailable) for outcome in outcomes)
    assert time.monotonic() - began < 2
    assert key_server.asked == 1


# --- tickets ----------------------------------------------------------------------------------------------------------


def test_a_ticket_says_whose_task_it_opens_and_needs_no_escaping() -> None:
    tickets, task_id, generation_id = Tickets(SECRET), uuid4(), uuid4()
    ticket = tickets.mint(user_id=USER, task_id=task_id, generation_id=generation_id)
    assert ticket.replace("-", "").replace("_", "").isalnum()
    opened = Tickets(SECRET).verify(ticket, task_id)
    assert (opened.user_id, opened.task_id, opened.generation_id) == (USER, task_id, generation_id)


def test_a_ticket_lasts_for_an_hour() -> None:
    clock, task_id = Clock(), uuid4()
    tickets = Tickets(SECRET, clock=clock)
    ticket = tickets.mint(user_id=USER, task_id=task_id, generation_id=uuid4())
    clock.now += 3599
    tickets.verify(ticket, task_id)
    clock.now += 1
    with pytest.raises(Unauthorized, match="expired"):
        tickets.verify(ticket, task_id)


def test_a_ticket_of_the_secret_before_is_good() -> None:
    task_id = uuid4()
    ticket = Tickets(SECRET).mint(user_id=USER, task_id=task_id, generation_id=uuid4())
    exchanged = Tickets("a new secret", previous_secret=SECRET)
    assert exchanged.verify(ticket, task_id).user_id == USER
    fresh = exchanged.mint(user_id=USER, task_id=task_id, generation_id=uuid4())
    with pytest.raises(Unauthorized):
        Tickets(SECRET).verify(fresh, task_id)


def test_a_ticket_opens_no_other_task_and_none_of_another_server() -> None:
    task_id = uuid4()
    ticket = Tickets(SECRET).mint(user_id=USER, task_id=task_id, generation_id=uuid4())
    with pytest.raises(Unauthorized):
        Tickets(SECRET).verify(ticket, uuid4())
    with pytest.raises(Unauthorized):
        Tickets(SECRET + "!").verify(ticket, task_id)


def test_no_letter_of_a_ticket_can_be_changed() -> None:
    tickets, task_id = Tickets(SECRET), uuid4()
    ticket = tickets.mint(user_id=USER, task_id=task_id, generation_id=uuid4())
    for place in range(len(ticket) - 1):
        letter = "A" if ticket[place] != "A" else "B"
        with pytest.raises(Unauthorized):
            tickets.verify(ticket[:place] + letter + ticket[place + 1 :], task_id)


@pytest.mark.parametrize(
    "ticket", ["", "x", "é" * 119, "A" * 119, "A" * 118, "=" * 119, "A" * 100_000, "\n" + "A" * 118]
)
def test_what_is_no_ticket_is_refused(ticket: str) -> None:
    with pytest.raises(Unauthorized):
        Tickets(SECRET).verify(ticket, uuid4())


def test_each_use_of_the_secret_has_a_key_of_its_own() -> None:
    """A signature of one use means nothing in another: neither a token's, nor a ticket's, nor a storage link's."""
    tickets, task_id = Tickets(SECRET), uuid4()
    signed = base64.urlsafe_b64decode(tickets.mint(user_id=USER, task_id=task_id, generation_id=uuid4()) + "=")
    payload, signature = signed[:57], signed[57:]
    assert len(tickets.storage_link_key) == 32
    for key in (SECRET.encode(), tickets.storage_link_key):
        assert hmac.digest(key, payload, hashlib.sha256) != signature
    assert Tickets(SECRET + "!").storage_link_key != tickets.storage_link_key
    assert Tickets(SECRET).storage_link_key == tickets.storage_link_key
