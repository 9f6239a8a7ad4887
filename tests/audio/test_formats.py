"""What the payload of a generation is."""

import pytest

from server.audio import MP3, WAV, duration_seconds, format_named, pcm_duration_seconds, wav_header
from tests.audio.samples import mp3, tone


def test_each_format_knows_what_a_file_has_in_front_of_the_payload() -> None:
    assert (MP3.name, MP3.mime, MP3.header_bytes, MP3.provider_format) == ("mp3", "audio/mpeg", 0, "mp3")
    assert (WAV.name, WAV.mime, WAV.header_bytes, WAV.provider_format) == ("wav", "audio/wav", 44, "pcm")
    for audio_format in (MP3, WAV):
        assert format_named(audio_format.name) is audio_format
        assert len(audio_format.file_header(4800, 24000)) == audio_format.header_bytes
        assert len(audio_format.file_header(None, 24000)) == audio_format.header_bytes
    assert WAV.file_header(4800, 24000) == wav_header(4800, 24000)


def test_an_unknown_format_has_no_name_here() -> None:
    with pytest.raises(KeyError):
        format_named("opus")


def test_samples_last_as_long_as_there_are_whole_ones() -> None:
    assert pcm_duration_seconds(48000, 24000) == 1.0
    assert pcm_duration_seconds(48001, 24000) == 1.0
    assert duration_seconds(WAV, tone(2.5, 24000).tobytes(), 24000) == 2.5


def test_a_clock_measures_slices_that_split_a_sample() -> None:
    clock = WAV.clock(8000)
    for _ in range(3200):
        clock.feed(b"\0\0\0\0\0")
    assert clock.seconds == 1.0


def test_an_mp3_lasts_as_long_as_its_frames_whatever_rate_is_claimed() -> None:
    data = mp3(1.0, 44100, kbps=128)
    assert duration_seconds(MP3, data, 24000) == duration_seconds(MP3, data, 44100) == pytest.approx(1.0, abs=0.1)
