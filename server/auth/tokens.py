"""Who is asking: bearer tokens of the sign-in service, and the tickets and keys that we sign ourselves."""

import asyncio
import hmac
import logging
import re
import struct
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.auth.remembered import Remembered
from server.errors import Unauthorized, UtterError
from server.settings import STRONG_SECRET_BYTES, Settings

_log = logging.getLogger(__name__)

PublicKey = RSAPublicKey | EllipticCurvePublicKey

LEEWAY_SECONDS: Final = 10  # two machines' clocks rarely agree better
REMEMBERED_SECONDS: Final = 600.0
REMEMBERED_AT_MOST: Final = 10_000
_NOT_VALID: Final = "Your sign-in is not valid. Please sign in again."
_EXPIRED: Final = "Your sign-in has expired. Please sign in again."
_TICKET_USE: Final = b"utter stream ticket"
# Narrower than UUID(), which also takes braces, "urn:uuid:", underscores and digits of other scripts.
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class KeysUnavailable(UtterError):
    """The sign-in service's keys cannot be fetched, so nobody can say whether the token is good."""

    category, default_status = "internal", 503
    default_detail = "Signing in cannot be checked right now. Please try again in a moment."

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "5"})


class RemoteKeys:
    """The public keys at a JWKS address (RFC 7517), kept in memory.

    They are fetched again when they are older than ``fresh_seconds``, and when a token names a key that is not among
    them, but at most once per ``refresh_seconds`` (``retry_seconds`` as long as there are none at all): whoever
    invents key names must not make us flood the sign-in service. While it is down, the keys we have stay good. One
    request fetches at a time; those that could do without its result do not wait for it.
    """

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        *,
        fresh_seconds: float = 600.0,
        refresh_seconds: float = 10.0,
        retry_seconds: float = 1.0,
        timeout_seconds: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._http, self._clock = url, http, clock
        self._fresh_seconds, self._refresh_seconds, self._retry_seconds = fresh_seconds, refresh_seconds, retry_seconds
        self._timeout_seconds = timeout_seconds
        self._lock = asyncio.Lock()
        #: Another number each time that the keys change: what another set has proved is proved no more.
        self.edition = 0
        self._keys: dict[tuple[str, str | None], PublicKey] | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._last_try_failed = False

    async def key(self, algorithm: str, key_id: str | None) -> PublicKey:
        """The key that a token of ``algorithm`` ('RS256' or 'ES256') names.

        Raises:
            Unauthorized: If the key set has no such key.
            KeysUnavailable: If the key set could not be fetched and what we have does not decide it.
        """
        found = self._lookup(algorithm, key_id)
        if found is None:
            async with self._lock:  # another request may have fetched it meanwhile
                found = self._lookup(algorithm, key_id)
                if found is None and self._may_try():
                    await self._fetch()
                    found = self._lookup(algorithm, key_id)
        elif self._is_old() and self._may_try() and not self._lock.locked():
            async with self._lock:
                await self._fetch()
            found = self._lookup(algorithm, key_id)
        if found is not None:
            return found
        if self._keys is None or self._last_try_failed:
            raise KeysUnavailable
        raise Unauthorized(_NOT_VALID)

    def still_prove(self, edition: int) -> bool:
        """Whether what was proved by that edition may be believed: it is the current one, and not due for a fetch."""
        return edition == self.edition and not self._is_old()

    def _lookup(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        keys = self._keys or {}
        if key_id is not None:
            return keys.get((algorithm, key_id))
        # A token need not name its key where there is no choice.
        candidates = [key for (of_algorithm, _), key in keys.items() if of_algorithm == algorithm]
        return candidates[0] if len(candidates) == 1 else None

    def _is_old(self) -> bool:
        return self._clock() - self._fetched_at > self._fresh_seconds

    def _may_try(self) -> bool:
        pause = self._retry_seconds if self._keys is None else self._refresh_seconds
        return self._clock() - self._tried_at >= pause

    async def _fetch(self) -> None:
        """Replace the keys by those at the address now; on failure keep them and note it.

        The pause until the next try counts from the end of this one, so those who waited for a slow failure fail with
        it. A fetch that was cancelled counts as none.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._http.get(
                    self._url, headers={"Accept": "application/json"}, follow_redirects=False
                )
            if response.status_code != 200:
                raise ValueError(f"it answered {response.status_code}")
            keys = _public_keys(response.json())
            if not keys:
                raise ValueError("it has no RS256 or ES256 key")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as exc:
            self._tried_at, self._last_try_failed = self._clock(), True
            _log.warning("the sign-in keys could not be fetched: %s", str(exc) or type(exc).__name__)
            return
        if keys != self._keys:
            self.edition += 1
        self._keys, self._last_try_failed = keys, False
        self._fetched_at = self._tried_at = self._clock()


class _Verified(msgspec.Struct, frozen=True):
    """Whose a token was found to be; ``edition`` of the key set that proved it, None for a shared secret."""

    user_id: UUID
    edition: int | None


class Authenticator:
    """Tells whose bearer token it is.

    The token's header only chooses among what is configured: a shared secret serves HS256 and nothing else, a key set
    serves RS256 and ES256 and nothing else. So a public key can never be passed off as a shared secret.

    Whose a token is is remembered for a while, by its hash: never beyond its expiry, nor beyond the key set that
    proved it.

    Args:
        previous_secret: Also accepted, so that a secret can be exchanged while tokens of the old one are about.
    """

    def __init__(
        self,
        *,
        secret: str | None,
        keys: RemoteKeys | None,
        audience: str,
        previous_secret: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = tuple(_hmac_key(known) for known in (secret, previous_secret) if known is not None)
        self._keys = keys
        self._audience = audience
        self._clock = clock
        self._verified: Remembered[bytes, _Verified] = Remembered(REMEMBERED_AT_MOST)

    @classmethod
    def from_settings(cls, settings: Settings, http: httpx.AsyncClient) -> "Authenticator":
        """``http`` fetches the key set; its owner closes it."""
        return cls(
            secret=settings.auth_jwt_secret,
            previous_secret=settings.auth_jwt_secret_previous,
            keys=RemoteKeys(settings.auth_jwks_url, http) if settings.auth_jwks_url else None,
            audience=settings.auth_jwt_audience,
        )

    async def user_id(self, token: str) -> UUID:
        """The user that a token speaks for: its ``sub``.

        Raises:
            Unauthorized: If the token is not one of ours, or no longer, or does not name a user.
            KeysUnavailable: If nobody can say.
        """
        name = sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(name, self._clock())
        if known and (known.edition is None or (self._keys and self._keys.still_prove(known.edition))):
            return known.user_id
        try:
            header = jwt.get_unverified_header(token)
            claims = await self._claims(token, header)
        except jwt.ExpiredSignatureError as exc:
            raise Unauthorized(_EXPIRED) from exc
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as exc:
            raise Unauthorized(_NOT_VALID) from exc
        subject = claims["sub"]
        if not isinstance(subject, str) or not _UUID.fullmatch(subject):
            raise Unauthorized(_NOT_VALID)
        user_id = UUID(subject)
        edition = None if self._keys is None or header["alg"] == "HS256" else self._keys.edition
        until = min(float(claims["exp"]), self._clock() + REMEMBERED_SECONDS)
        self._verified.put(name, _Verified(user_id, edition), until)
        return user_id

    async def _claims(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        """What the token says, once one of the keys that may have signed it has proved it."""
        *others, last = await self._candidates(header)
        for key in others:
            try:
                return self._decoded(token, key, header["alg"])
            except jwt.InvalidSignatureError:
                continue
        return self._decoded(token, last, header["alg"])

    def _decoded(self, token: str, key: bytes | PublicKey, algorithm: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            leeway=LEEWAY_SECONDS,
            # A clock that runs ahead at the sign-in service is no reason to refuse; "nbf" and "exp" decide.
            options={"require": ["exp", "sub", "aud"], "verify_iat": False},
        )
        return claims

    async def _candidates(self, header: dict[str, Any]) -> tuple[bytes | PublicKey, ...]:
        algorithm = header.get("alg")
        if algorithm == "HS256" and self._secrets:
            return self._secrets
        if algorithm in ("RS256", "ES256") and self._keys is not None:
            return (await self._keys.key(algorithm, header.get("kid")),)
        raise Unauthorized(_NOT_VALID)


class Ticket(msgspec.Struct, frozen=True):
    """Permission to follow one task of one user until ``expires_at`` (seconds since 1970)."""

    user_id: UUID
    task_id: UUID
    generation_id: UUID
    expires_at: int


class Tickets:
    """Signs stream tickets: an ``EventSource`` cannot send a token, and a token must not stand in an address.

    Every use of the secret gets a key of its own (HKDF, RFC 5869), so that a signature made for one use means nothing
    in another, and none of them is the key that signs tokens.
    """

    LIFETIME_SECONDS: Final = 3600
    _FORMAT: Final = struct.Struct(">B16s16s16sQ")  # version, user, task, generation, expiry
    _VERSION: Final = 1
    _LETTERS: Final = re.compile(r"[A-Za-z0-9_-]{119}")  # 57 bytes of payload, 32 of signature

    def __init__(
        self, secret: str, *, previous_secret: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._ticket_key = _derived_key(secret, _TICKET_USE)
        self._accepted_keys = [self._ticket_key]
        if previous_secret:
            self._accepted_keys.append(_derived_key(previous_secret, _TICKET_USE))
        self._clock = clock
        #: Signs links to local storage; object stores sign their own.
        self.storage_link_key = _derived_key(secret, b"utter storage link")

    @classmethod
    def from_settings(cls, settings: Settings) -> "Tickets":
        secret = settings.stream_ticket_secret or settings.auth_jwt_secret
        if not secret:
            raise ValueError("tickets need STREAM_TICKET_SECRET or AUTH_JWT_SECRET")
        # A secret of the tickets' own is not the one that is exchanged.
        return cls(secret, previous_secret=None if settings.stream_ticket_secret else settings.auth_jwt_secret_previous)

    def mint(self, *, user_id: UUID, task_id: UUID, generation_id: UUID) -> str:
        """A ticket that holds for an hour, as letters that need no escaping in an address."""
        expires_at = int(self._clock()) + self.LIFETIME_SECONDS
        payload = self._FORMAT.pack(self._VERSION, user_id.bytes, task_id.bytes, generation_id.bytes, expires_at)
        return urlsafe_b64encode(payload + _signature(self._ticket_key, payload)).rstrip(b"=").decode()

    def verify(self, ticket: str, task_id: UUID) -> Ticket:
        """What a ticket for this task says.

        Raises:
            Unauthorized: If it was not signed by us, names another task, or has expired.
        """
        not_valid = Unauthorized("This link is not valid. Please reload the page.")
        if not self._LETTERS.fullmatch(ticket):  # the decoder itself would pass over foreign letters
            raise not_valid
        signed = urlsafe_b64decode(ticket + "=")
        payload, signature = signed[: self._FORMAT.size], signed[self._FORMAT.size :]
        if not any(hmac.compare_digest(signature, _signature(key, payload)) for key in self._accepted_keys):
            raise not_valid
        version, user, task, generation, expires_at = self._FORMAT.unpack(payload)
        if version != self._VERSION or task != task_id.bytes:
            raise not_valid
        if self._clock() >= expires_at:
            raise Unauthorized("This link has expired. Please reload the page.")
        return Ticket(UUID(bytes=user), task_id, UUID(bytes=generation), expires_at)


def mint_bearer(user_id: UUID, *, days: float, secret: str, audience: str) -> str:
    """A bearer token as the sign-in service would mint it, for scripts and for `dev`."""
    now = int(time.time())
    claims = {"sub": str(user_id), "aud": audience, "iat": now, "exp": now + int(days * 86_400)}
    return jwt.encode(claims, _hmac_key(secret), algorithm="HS256")


def _hmac_key(secret: str) -> bytes:
    """The secret, padded to the length below which the token library complains at every call.

    HMAC itself fills a key up with zeros to its block (RFC 2104), so the signature is the same; that a short secret is
    weak is said once, at start-up (``Settings.weaknesses``).
    """
    return secret.encode().ljust(STRONG_SECRET_BYTES, b"\0")


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, sha256)


def _derived_key(secret: str, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(secret.encode())


def _public_keys(document: Any) -> dict[tuple[str, str | None], PublicKey]:
    """The usable keys of a JWKS document, by algorithm and key id.

    What we cannot or must not use is passed over: symmetric keys, keys for encryption, other curves, and RSA keys
    under 2048 bits (RFC 7518 §3.3 forbids them).
    """
    keys: dict[tuple[str, str | None], PublicKey] = {}
    entries = document.get("keys") if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        if "verify" not in entry.get("key_ops", ["verify"]):
            continue
        algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(entry.get("kty")))
        if algorithm is None or entry.get("alg", algorithm) != algorithm:
            continue
        if algorithm == "ES256" and entry.get("crv") != "P-256":
            continue
        try:
            key = jwt.PyJWK(entry, algorithm=algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError):
            _log.warning("the sign-in key set holds a key that cannot be read")
            continue
        # A key set never holds private keys; one that does by mistake still has a public half.
        if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
            key = key.public_key()
        if isinstance(key, RSAPublicKey) and key.key_size < 2048:
            _log.warning("the sign-in key set holds an RSA key that is too short to be trusted")
            continue
        key_id = entry.get("kid")
        keys[algorithm, key_id if isinstance(key_id, str) else None] = key
    return keys
