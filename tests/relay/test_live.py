"""The growing audio in memory: offsets, cuts, shared events, and what nobody may hear yet."""

import asyncio
import base64
import re
from contextlib import ExitStack
from uuid import uuid4

import pytest

from server.audio import MP3
from server.relay.live import BATCH_BYTES, DELTA_BYTES, RECENT_EVENTS, AudioLog, LiveAudio, delta_event


def make_log() -> AudioLog:
    return AudioLog(task_id=uuid4(), attempt=1, audio_format=MP3, sample_rate_hz=24_000)


def spoken(*deltas: bytes) -> AudioLog:
    """A log of these deltas, all of them durable."""
    log = make_log()
    for delta in deltas:
        log.append(delta)
    log.committed(log.length)
    return log


def parsed(events: bytes) -> list[tuple[int, bytes]]:
    """Id and audio of each serialised event."""
    found = re.findall(rb'event: response\.audio\.delta\nid: (\d+)\ndata: \{"delta":"([^"]*)"\}\n\n', events)
    assert sum(len(delta_event(base64.b64decode(audio), int(stop))) for stop, audio in found) == len(events)
    return [(int(stop), base64.b64decode(audio)) for stop, audio in found]


def heard(log: AudioLog, start: int) -> list[tuple[int, bytes]]:
    """What a follower at ``start`` gets until it is level with the log."""
    events: list[tuple[int, bytes]] = []
    while start < log.visible:
        batch, stop = log.events(start)
        assert stop > start
        events += parsed(batch)
        start = stop
    return events


def test_an_id_is_the_offset_behind_its_delta() -> None:
    assert heard(spoken(b"abc", b"d", b"efgh"), 0) == [(3, b"abc"), (4, b"d"), (8, b"efgh")]


@pytest.mark.parametrize("start", range(9))
def test_a_follower_may_begin_at_any_byte(start: int) -> None:
    log = spoken(b"abc", b"d", b"efgh")
    events = heard(log, start)
    assert b"".join(audio for _, audio in events) == b"abcdefgh"[start:]
    assert [stop for stop, _ in events] == [stop for stop in (3, 4, 8) if stop > start]


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (1, 2), (2, 5), (3, 4), (4, 8), (7, 8), (5, 5)])
def test_payload_is_read_between_any_two_offsets(start: int, stop: int) -> None:
    assert spoken(b"abc", b"d", b"efgh").read(start, stop) == b"abcdefgh"[start:stop]


@pytest.mark.parametrize("size", [DELTA_BYTES, DELTA_BYTES + 1, 3 * DELTA_BYTES, 1024 * 1024])
def test_no_event_carries_more_than_16_kib_of_audio(size: int) -> None:
    """Whatever a provider sends as one delta."""
    audio = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    log = make_log()
    log.append(audio, base64.b64encode(audio))
    log.committed(log.length)
    events = heard(log, 0)
    assert max(len(part) for _, part in events) <= 16 * 1024
    assert b"".join(part for _, part in events) == audio


def test_an_empty_delta_is_none() -> None:
    log = spoken(b"abc", b"", b"d")
    assert heard(log, 0) == [(3, b"abc"), (4, b"d")]


def test_an_event_is_serialised_once_and_shared() -> None:
    log = spoken(b"abc")
    assert log.events(0)[0] is log.events(0)[0]
    assert log.events(1)[0] != log.events(0)[0]


def test_the_providers_own_base64_is_passed_on() -> None:
    """It spares encoding the same bytes again; what it says is the dialogue's to check."""
    log = make_log()
    log.append(b"abc", b"YWJj")
    log.append(b"\xff\xfe", b"//4=")
    log.committed(log.length)
    assert log.events(0)[0] == (
        b'event: response.audio.delta\nid: 3\ndata: {"delta":"YWJj"}\n\n'
        b'event: response.audio.delta\nid: 5\ndata: {"delta":"//4="}\n\n'
    )


@pytest.mark.parametrize("followed", [True, False])
def test_old_events_are_not_kept(followed: bool) -> None:
    """A long speech costs its audio, not its audio and a half more in Base64, whether anybody hears it or not."""
    log = make_log()
    log.committed(1)
    for number in range(RECENT_EVENTS * 3):
        log.append(b"%4d" % number, base64.b64encode(b"%4d" % number))
        if followed:
            log.events(number * 4)
    assert len(log._events) + len(log._encoded) <= RECENT_EVENTS
    assert [int(audio) for _, audio in heard(log, 0)] == list(range(RECENT_EVENTS * 3))


def test_a_follower_that_is_behind_gets_a_batch_at_a_time() -> None:
    log = spoken(*[b"x" * 1000] * 1000)
    batch, offset = log.events(0)
    assert BATCH_BYTES <= offset < BATCH_BYTES + 1000
    assert len(parsed(batch)) == offset // 1000


def test_nothing_is_visible_before_the_first_delta_is_durable() -> None:
    """So an attempt without a durable byte was heard by nobody, and may be spoken again."""
    log = make_log()
    wake = asyncio.Event()
    log.wakes.add(wake.set)
    log.append(b"abc")
    assert (log.length, log.visible, log.events(0)) == (3, 0, (b"", 0))
    assert not wake.is_set()
    log.committed(3)
    assert wake.is_set()
    assert heard(log, 0) == [(3, b"abc")]


def test_later_deltas_are_visible_at_once() -> None:
    log = spoken(b"abc")
    wake = asyncio.Event()
    log.wakes.add(wake.set)
    log.append(b"d")
    assert wake.is_set()
    assert (log.visible, log.durable) == (4, 3)


def test_the_end_of_the_audio_wakes_followers() -> None:
    live, log = LiveAudio(), spoken(b"abc")
    wake = asyncio.Event()
    log.wakes.add(wake.set)
    with live.speaking(log):
        while_speaking = live.get(log.task_id), log.ended
    assert while_speaking == (log, False)
    assert (live.get(log.task_id), log.ended) == (None, True)
    assert wake.is_set()


async def test_waiting_for_a_commit_means_the_next_one() -> None:
    log = spoken(b"abc")
    waiting = asyncio.create_task(log.next_commit())
    await asyncio.sleep(0)
    assert not waiting.done()
    log.committed(3)
    await asyncio.wait_for(waiting, 1.0)


def test_who_reads_a_long_speech_from_its_start_leaves_no_more_events_than_those_who_follow_closely() -> None:
    log = spoken(*[bytes([number % 256]) for number in range(RECENT_EVENTS * 4)])
    for start in (0, 1, 0):
        assert b"".join(audio for _, audio in heard(log, start)) == log.read(start, log.length)
    assert len(log._events) <= RECENT_EVENTS


def test_an_attempt_that_closes_does_not_take_the_next_ones_log_away() -> None:
    """A process may take its own run again while the first attempt is still closing."""
    live, first = LiveAudio(), make_log()
    second = AudioLog(task_id=first.task_id, attempt=2, audio_format=MP3, sample_rate_hz=24_000)
    with ExitStack() as closing:
        closing.enter_context(live.speaking(first))
        with live.speaking(second):
            closing.close()
            assert live.get(first.task_id) is second
            assert first.ended
            assert not second.ended
    assert live.get(first.task_id) is None
