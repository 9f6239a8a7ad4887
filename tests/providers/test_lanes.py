"""Which lane a voice takes."""

import pytest

from server.audio import MP3, WAV
from server.providers.lanes import JOBS, PIECES, REALTIME, Lane, lane_of
from server.settings import KNOWN_MODELS


@pytest.mark.parametrize(
    ("provider", "model", "lane"),
    [
        ("qwen", "qwen3-tts-vc-realtime-2026-01-15", REALTIME),
        ("qwen", "qwen3-tts-vd-realtime-2026-01-15", REALTIME),
        ("qwen", "qwen3-tts-vc-2026-01-22", PIECES),
        ("qwen", "qwen3-tts-vd-2026-01-26", PIECES),
        ("qwen", None, None),
        ("qwen", "", None),
        ("modal", None, JOBS),
        ("modal", "qwen3-tts-vc-realtime-2026-01-15", JOBS),
    ],
)
def test_provider_and_model_decide_the_lane(provider: str, model: str | None, lane: Lane | None) -> None:
    assert lane_of(provider, model) is lane


@pytest.mark.parametrize("model", sorted(KNOWN_MODELS))
def test_every_known_model_has_a_lane(model: str) -> None:
    assert lane_of("qwen", model) is not None


def test_a_lane_yields_what_is_preferred_or_its_own() -> None:
    assert REALTIME.audio_format(WAV) is WAV
    assert REALTIME.audio_format(MP3) is MP3
    assert PIECES.audio_format(MP3) is WAV
