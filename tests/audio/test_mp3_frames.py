"""Whole frames out of an MP3 that arrives in slices cut anywhere."""

import lameenc
import miniaudio
import numpy as np
import pytest

from server.audio import Mp3Joint, SampleJoint, WholeFrames, mp3_duration_seconds
from tests.audio.samples import id3v2, mp3

SPEECH = mp3(1.0, kbps=128)


def _reaching() -> bytes:
    """What LAME makes of noise that comes and goes: many frames begin in the one before them."""
    encoder = lameenc.Encoder()
    encoder.silence()
    encoder.set_bit_rate(128)
    encoder.set_in_sample_rate(24_000)
    encoder.set_channels(1)
    encoder.set_quality(2)
    at = np.arange(48_000)
    noise = np.random.default_rng(1).normal(0, 0.3, 48_000) * (at % 6000 < 300)
    loud = ((np.sin(at / 9.0) * 0.4 + noise) * 20_000).clip(-32_000, 32_000)
    return bytes(encoder.encode(loud.astype("<i2").tobytes()) + encoder.flush())


REACHING = _reaching()


def fed(data: bytes, size: int) -> tuple[list[bytes], WholeFrames]:
    frames = WholeFrames()
    handed = [frames.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return [*handed, frames.finish()], frames


@pytest.mark.parametrize("size", [1, 7, 383, 384, 385, 5000, 1_000_000])
def test_nothing_of_a_stream_is_lost_however_it_is_cut(size: int) -> None:
    handed, frames = fed(SPEECH, size)
    assert b"".join(handed) == SPEECH
    assert frames.seconds == pytest.approx(mp3_duration_seconds(SPEECH), abs=0.03)


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_tags_and_noise_are_left_out(size: int) -> None:
    handed, _ = fed(id3v2(3000) + SPEECH + b"noise \xff" * 9 + id3v2(10) + SPEECH + b"TAG" + bytes(125), size)
    assert b"".join(handed) == SPEECH + SPEECH


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_a_frame_that_is_not_whole_is_left_out(size: int) -> None:
    handed, _ = fed(SPEECH[:-10], size)
    kept = b"".join(handed)
    assert SPEECH.startswith(kept)
    assert 0 < len(SPEECH) - len(kept) <= 400


@pytest.mark.parametrize("data", [b"", b"\xff", bytes(10_000), b"\xff\xfb" * 3000, b"ID3", b"RIFFxxxxWAVE"])
def test_what_is_no_mp3_has_no_frames(data: bytes) -> None:
    for size in (1, 64, 1_000_000):
        assert b"".join(fed(data, size)[0]) == b""


def test_a_single_frame_is_believed_at_the_end() -> None:
    frame = SPEECH[: len(SPEECH) // 2]
    whole = b"".join(fed(frame, 50)[0])
    first = whole[:384]
    assert b"".join(fed(first, 50)[0]) == first


def sides(data: bytes) -> list[int]:
    """How far each frame reaches back, in bytes."""
    return [data[at + 4] for at in range(0, len(data), 384)]


@pytest.mark.parametrize("given_seconds", [0.0, 0.024, 0.5])
def test_what_follows_a_joint_begins_where_the_first_stream_ended(given_seconds: float) -> None:
    """Frame by frame as it comes; as much is left away as was heard, and everything after it is as it was."""
    joint = Mp3Joint(given_seconds)
    joined = b"".join(joint.feed(SPEECH[at : at + 384]) for at in range(0, len(SPEECH), 384))
    left = round(given_seconds / 0.024) * 384
    assert len(joined) == len(SPEECH) - left
    assert joined[384:] == SPEECH[left + 384 :]


def test_a_frame_that_reaches_back_beyond_the_joint_is_silent_and_keeps_its_data_for_the_next() -> None:
    at = next(384 * number for number, reach in enumerate(sides(REACHING)) if reach)
    joined = Mp3Joint(at / 384 * 0.024).feed(REACHING)
    assert joined[4:13] == bytes(9)
    assert joined[13:] == REACHING[at + 13 :]
    assert len(miniaudio.decode(joined, nchannels=1, sample_rate=24_000).samples) > 0


def test_index_frames_are_left_out_at_a_joint() -> None:
    index = bytearray(SPEECH[:384])
    index[13:17] = b"Info"
    assert Mp3Joint(0.0).feed(bytes(index) + SPEECH) == SPEECH


def test_of_a_sentence_that_was_shorter_no_more_is_left_away_than_it_was_long() -> None:
    joint = Mp3Joint(10.0)
    assert joint.feed(SPEECH[: 384 * 10]) == b""
    joint.leave_away_at_most(0.048)
    assert len(joint.feed(SPEECH[384 * 10 :])) == len(SPEECH) - 384 * 12
    samples = SampleJoint(1000)
    assert samples.feed(bytes(600)) == b""
    samples.leave_away_at_most(0.1)
    assert samples.feed(b"xx" * 300) == b"xx" * 300
