"""When a speech may be started once more."""

import pytest

from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable, VoiceGone
from server.providers.speech import PACED_OUT, may_start_again, pause_before_start

UNAVAILABLE = ProviderUnavailable()
THROTTLED = ProviderUnavailable(throttled=True)
PACED = ProviderUnavailable(throttled=True, diagnostics={"code": PACED_OUT})


@pytest.mark.parametrize(
    ("error", "text_sent", "bytes_heard", "may"),
    [
        (UNAVAILABLE, False, 0, True),
        (UNAVAILABLE, True, 0, False),
        (THROTTLED, False, 0, True),
        (THROTTLED, True, 0, True),
        (THROTTLED, True, 1, False),
        (UNAVAILABLE, True, 4800, False),
        (PACED, False, 0, False),
        (PACED, True, 0, False),
        (ProviderTimeout(), True, 0, False),
        (ProviderTimeout(), False, 0, False),
        (ProviderRejected(), False, 0, False),
        (VoiceGone(), False, 0, False),
    ],
)
def test_only_what_cannot_have_been_billed_or_heard_starts_again(
    error: ProviderError, text_sent: bool, bytes_heard: int, may: bool
) -> None:
    assert may_start_again(error, text_sent=text_sent, bytes_heard=bytes_heard) is may


def test_pauses_grow_and_a_throttle_makes_them_longer() -> None:
    assert 0.25 <= pause_before_start(1, throttled=False) < 0.4
    assert 0.5 <= pause_before_start(2, throttled=False) < 0.8
    assert 1.0 <= pause_before_start(1, throttled=True) < 1.6
    assert pause_before_start(50, throttled=True) <= 15
