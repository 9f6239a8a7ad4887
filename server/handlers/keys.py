"""/api/keys: what a person's programs sign in with."""

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from server.auth.keyring import hash_of, new_key, shown
from server.contract import KeyCreated, KeyEntry, KeyRequest, KeysAnswer, Ok
from server.errors import Conflict, Invalid, NotFound
from server.handlers.requests import bearer, bearer_in_person, json_response, parts_of, path_uuid, read_json
from server.records import keys
from server.text import is_visible

KEYS_AT_MOST = 20


async def create(request: Request) -> Response:
    """The only answer that ever holds the key itself."""
    parts = parts_of(request)
    user_id = await bearer_in_person(request)
    wanted = await read_json(request, KeyRequest)
    name = wanted.name.strip()
    if not is_visible(name):
        raise Invalid("Please give the key a name, so that you recognise it later.")
    key = new_key()
    async with parts.database.transaction() as connection:
        made = await keys.create(
            connection,
            user_id,
            name=name,
            prefix=shown(key),
            key_hash=hash_of(key),
            expires_in_days=wanted.expires_in_days,
            at_most=KEYS_AT_MOST,
        )
    if made is None:
        raise Conflict(f"You have {KEYS_AT_MOST} keys, and that is as many as you may have. Please delete one first.")
    answer = KeyCreated(
        id=made.id, name=made.name, prefix=made.prefix, key=key, created_at=made.created_at, expires_at=made.expires_at
    )
    return json_response(answer, status=201)


async def list_keys(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    async with parts.database.connection() as connection:
        found = await keys.listed(connection, user_id)
    return json_response(KeysAnswer([KeyEntry(**structs.asdict(key)) for key in found]))


async def delete_key(request: Request) -> Response:
    """Revoked at once here, and within seconds in every other process."""
    parts = parts_of(request)
    user_id = await bearer_in_person(request)
    key_id = path_uuid(request, "key_id")
    async with parts.database.connection() as connection:
        if not await keys.delete(connection, key_id, user_id):
            raise NotFound("This key does not exist.")
    parts.keyring.forget(key_id)
    return json_response(Ok())
