"""What every object store does, whatever is behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta

import pytest

from server.errors import NotFound, TooLarge
from server.storage import PART_BYTES, PROBE_KEY, Bucket, ObjectStore, content_disposition, in_parts
from server.storage.zipped import Member, zipped

KEY = "3f0c/9a1d.mp3"
SPEECH = bytes(range(256)) * 4096  # 1 MiB
SMALL = b"0123456789"


async def in_slices(data: bytes, size: int = 5000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read_range(store: ObjectStore, start: int, stop: int | None) -> bytes:
    async with store.open(Bucket.GENERATIONS, KEY, start=start, stop=stop) as slices:
        return b"".join([piece async for piece in slices])


async def keys(store: ObjectStore, bucket: Bucket) -> set[str]:
    return {stored.key async for stored in store.list(bucket)}


async def test_what_was_put_is_read_back_with_its_type(store: ObjectStore) -> None:
    longer = SPEECH * 2
    for body, whole in ((SPEECH, SPEECH), (in_slices(SPEECH), SPEECH), (in_slices(longer), longer)):
        await store.put(Bucket.GENERATIONS, KEY, body, content_type="audio/mpeg", size=len(whole))
        found = await store.head(Bucket.GENERATIONS, KEY)
        assert found is not None
        assert (found.key, found.size, found.content_type) == (KEY, len(whole), "audio/mpeg")
        assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=1)
        assert await store.read(Bucket.GENERATIONS, KEY, limit=len(whole)) == whole


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put(Bucket.GENERATIONS, KEY, b"", content_type="audio/mpeg", size=0)
    found = await store.head(Bucket.GENERATIONS, KEY)
    assert found is not None
    assert found.size == 0
    assert await store.read(Bucket.GENERATIONS, KEY, limit=10) == b""


async def test_a_range_is_exact_and_empty_behind_the_end(store: ObjectStore) -> None:
    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/mpeg", size=len(SMALL))
    expected = {
        (0, None): SMALL,
        (3, None): b"3456789",
        (3, 5): b"34",
        (9, 100): b"9",
        (10, None): b"",
        (44, None): b"",
        (5, 5): b"",
        (0, 0): b"",
    }
    assert {span: await read_range(store, *span) for span in expected} == expected


async def test_a_reader_who_leaves_early_takes_nothing_along(store: ObjectStore) -> None:
    await store.put(Bucket.GENERATIONS, KEY, SPEECH, content_type="audio/mpeg", size=len(SPEECH))
    for _ in range(100):
        async with store.open(Bucket.GENERATIONS, KEY) as slices:
            assert (await anext(aiter(slices)))[:3] == SPEECH[:3]
    assert await store.read(Bucket.GENERATIONS, KEY, limit=len(SPEECH)) == SPEECH


async def test_what_is_absent_is_not_found(store: ObjectStore) -> None:
    assert await store.head(Bucket.GENERATIONS, KEY) is None
    for start, stop in ((0, None), (5, 9), (5, 5)):
        with pytest.raises(NotFound):
            await read_range(store, start, stop)
    with pytest.raises(NotFound):
        await store.read(Bucket.GENERATIONS, KEY, limit=10)
    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/mpeg", size=10)
    assert await store.head(Bucket.GENERATIONS, "3f0c") is None
    assert await store.head(Bucket.GENERATIONS, f"{KEY}/below") is None


async def test_read_refuses_more_than_it_was_allowed(store: ObjectStore) -> None:
    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/mpeg", size=10)
    with pytest.raises(TooLarge):
        await store.read(Bucket.GENERATIONS, KEY, limit=9)


async def test_deleting_twice_is_deleting_once(store: ObjectStore) -> None:
    await store.delete(Bucket.GENERATIONS, KEY)
    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/wav", size=10)
    await store.delete(Bucket.GENERATIONS, KEY)
    await store.delete(Bucket.GENERATIONS, KEY)
    assert await store.head(Bucket.GENERATIONS, KEY) is None


async def test_the_buckets_are_apart(store: ObjectStore) -> None:
    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/mpeg", size=10)
    assert await store.head(Bucket.REFERENCES, KEY) is None
    assert await keys(store, Bucket.REFERENCES) == set()


async def test_the_list_names_every_object_and_never_the_probe(store: ObjectStore) -> None:
    await store.probe()
    names = {f"user/{index}.mp3" for index in range(30)} | {"user/voice/reference.wav", "other/a b%c+é.mp3"}
    await asyncio.gather(
        *(store.put(Bucket.GENERATIONS, name, SMALL, content_type="audio/x-m4a", size=10) for name in names)
    )
    listed = [stored async for stored in store.list(Bucket.GENERATIONS)]
    assert {stored.key for stored in listed} == names
    assert {stored.size for stored in listed} == {10}
    assert await keys(store, Bucket.REFERENCES) == set()
    assert await store.read(Bucket.GENERATIONS, PROBE_KEY, limit=100) == b"ready"


async def test_a_list_is_in_order_and_goes_on_behind_any_key(store: ObjectStore) -> None:
    """A folder stands where its slash puts it: `a b`, `a-b/…`, `a/…`, `ab`."""
    names = ("a b.mp3", "a-b/1.mp3", "a/1.mp3", "a/b/2.mp3", "a/b.mp3", "ab.mp3", "b/é.mp3", "b/z.mp3", "é.mp3")
    for name in names:
        await store.put(Bucket.GENERATIONS, name, SMALL, content_type="audio/mpeg", size=10)
    listed = [stored.key async for stored in store.list(Bucket.GENERATIONS)]
    assert listed == sorted(names, key=str.encode)
    for place in (*listed, "a", "a/", "a/b", "a/zz", "nothing/there"):
        behind = [stored.key async for stored in store.list(Bucket.GENERATIONS, after=place)]
        assert behind == [key for key in listed if key.encode() > place.encode()], place


@pytest.mark.parametrize("claimed", [9, 11])
async def test_a_body_of_another_size_is_not_stored(store: ObjectStore, claimed: int) -> None:
    for body in (SMALL, in_slices(SMALL, 3)):
        with pytest.raises(ValueError, match="bytes"):
            await store.put(Bucket.GENERATIONS, KEY, body, content_type="audio/mpeg", size=claimed)
    assert await store.head(Bucket.GENERATIONS, KEY) is None


async def test_a_body_that_breaks_off_leaves_what_was_there(store: ObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield SPEECH
        raise ConnectionError("the source is gone")

    await store.put(Bucket.GENERATIONS, KEY, SMALL, content_type="audio/mpeg", size=10)
    with pytest.raises(ConnectionError):
        await store.put(Bucket.GENERATIONS, KEY, broken(), content_type="audio/mpeg", size=2 * len(SPEECH))
    assert await store.read(Bucket.GENERATIONS, KEY, limit=10) == SMALL


async def test_a_cancelled_put_stores_nothing(store: ObjectStore) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield SPEECH
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        store.put(Bucket.GENERATIONS, KEY, endless(), content_type="audio/mpeg", size=2 * len(SPEECH))
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.head(Bucket.GENERATIONS, KEY) is None
    assert await keys(store, Bucket.GENERATIONS) == set()


async def test_a_reader_during_puts_finds_one_whole_object_or_the_other(store: ObjectStore) -> None:
    """Two writers and a reader at once: never a mixture, never a part."""
    one, other = b"1" * 700_000, b"2" * 600_000
    await store.put(Bucket.GENERATIONS, KEY, one, content_type="audio/mpeg", size=len(one))
    seen: set[bytes] = set()

    async def write(body: bytes) -> None:
        for _ in range(15):
            await store.put(Bucket.GENERATIONS, KEY, body, content_type="audio/mpeg", size=len(body))

    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(write(one)), group.create_task(write(other))]
        while not all(writer.done() for writer in writers):
            seen.add(await store.read(Bucket.GENERATIONS, KEY, limit=len(one)))
    assert seen <= {one, other}


async def test_readers_that_take_their_time_keep_nobody_from_storing(s3_store: ObjectStore) -> None:
    """More of them than there are connections to the store, and each in the middle of what it reads."""
    large = bytes(PART_BYTES + 100_000)
    await s3_store.put(Bucket.GENERATIONS, KEY, large, content_type="audio/wav", size=len(large))
    member = Member("one.wav", Bucket.GENERATIONS, KEY, datetime.now(UTC))
    async with AsyncExitStack() as readers, asyncio.timeout(60.0):
        for _ in range(70):
            await anext(await readers.enter_async_context(aclosing(zipped(s3_store, [member]))))
        await s3_store.put(Bucket.GENERATIONS, "b/c.mp3", SMALL, content_type="audio/mpeg", size=len(SMALL))


async def test_what_is_read_in_parts_is_the_object_from_where_one_asks(store: ObjectStore) -> None:
    for size in (0, 10, PART_BYTES, PART_BYTES + 1):
        whole = (b"speech" * (size // 6 + 1))[:size]
        await store.put(Bucket.GENERATIONS, KEY, whole, content_type="audio/mpeg", size=size)
        for start in {0, size // 2, size}:
            read = [part async for part in in_parts(store, Bucket.GENERATIONS, KEY, start=start)]
            assert b"".join(read) == whole[start:]
            assert all(len(part) <= PART_BYTES for part in read)
    with pytest.raises(NotFound):
        await anext(in_parts(store, Bucket.GENERATIONS, "a/nothing.mp3"))


async def test_a_key_that_leads_elsewhere_is_refused(store: ObjectStore) -> None:
    for key in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", ".type", "a/.b", "a\0b", "a\\b", "a" * 201):
        with pytest.raises(ValueError, match="key"):
            await store.put(Bucket.GENERATIONS, key, SMALL, content_type="audio/mpeg", size=10)
        with pytest.raises(ValueError, match="key"):
            await store.signed_put(Bucket.GENERATIONS, key, expires_seconds=60, base_url="http://127.0.0.1")
    assert await keys(store, Bucket.GENERATIONS) == set()


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("a1.mp3", 'attachment; filename="a1.mp3"'),
        ('sa"y.mp3', "attachment; filename=\"sa_y.mp3\"; filename*=UTF-8''sa%22y.mp3"),
        ("Grüße.mp3", "attachment; filename=\"Gr__e.mp3\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe.mp3"),
        ("../a\r\nSet-Cookie: b.mp3", 'attachment; filename=".._a__Set-Cookie: b.mp3"'),
        ("100%.mp3", "attachment; filename=\"100_.mp3\"; filename*=UTF-8''100%25.mp3"),
        ("", 'attachment; filename="audio"'),
    ],
)
def test_a_file_name_fits_into_a_header(filename: str, header: str) -> None:
    assert content_disposition(filename) == header
