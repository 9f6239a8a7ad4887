"""The Modal job API over the wire, with the traps that its deployments are known to set."""

import asyncio
import hashlib
from base64 import b64encode
from typing import Any

import httpx
import pytest

from server.audio import parse_wav, wav_header
from server.dev.simulator import Simulator
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.providers.modal.api import NOT_CONFIGURED, NOT_CONNECTED, Modal
from server.providers.modal.speech import ModalSpeech
from server.providers.speech import AudioDelta, SpeechEnd, SpeechEvent, SpeechRequest, SpeechStatus
from tests.providers.conftest import MakeSettings
from tests.support import free_port

TEXT = "A job of the simulation."
REFERENCE = b"any recording will do"
DESIGN = {"text": "Designed.", "language": "English", "instruct": "A bright voice."}


@pytest.fixture
def modal(provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator) -> Modal:
    return Modal(provider_settings(**addresses(simulator)), http)


def addresses(simulator: Simulator) -> dict[str, Any]:
    return {name.lower(): url for name, url in simulator.environment().items() if name.startswith("MODAL_")}


async def submitted(modal: Modal) -> str:
    return await modal.submit(text=TEXT, language="English", reference=REFERENCE, transcript="any recording")


async def look(modal: Modal, job: str, within_seconds: float = 5.0) -> str:
    return (await modal.poll(job, within_seconds=within_seconds)).status


def actions(simulator: Simulator) -> list[str]:
    return [call["action"] for call in simulator.calls]


# --- submitting -------------------------------------------------------------------------------------------------------


async def test_a_job_is_submitted_with_the_recording_and_what_is_said_in_it(modal: Modal, simulator: Simulator) -> None:
    job = await submitted(modal)
    assert job.startswith("fc-")
    [call] = simulator.calls
    assert (call["text"], call["language"], call["transcript"]) == (TEXT, "English", "any recording")
    assert call["voice"] == hashlib.sha256(b64encode(REFERENCE)).hexdigest()


@pytest.mark.parametrize("location", ["relative", "absolute"])
async def test_a_submission_behind_redirects_is_made_once(modal: Modal, simulator: Simulator, location: str) -> None:
    simulator.behave("modal", {"redirects": 3, "location": location}, action="submit")
    assert await look(modal, await submitted(modal)) == "completed"
    assert actions(simulator) == ["submit", "status"]


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ({"do": "answer", "status": 400, "json": {"detail": "text is required"}}, ProviderRejected),
        ({"do": "answer", "status": 500, "json": {"detail": "boom"}}, ProviderUnavailable),
        ({"do": "answer", "status": 429, "text": "slow down"}, ProviderUnavailable),
        ({"do": "answer", "status": 408, "text": "took too long"}, ProviderUnavailable),
        ({"do": "html"}, ProviderUnavailable),
        # From here on a job may be running that nobody knows by name.
        ({"do": "answer", "status": 504, "text": ""}, ProviderTimeout),
        ({"do": "answer", "status": 200, "json": {"status": "submitted"}}, ProviderTimeout),
        ({"do": "answer", "status": 200, "json": {"job_id": "  "}}, ProviderTimeout),
        ({"do": "abort"}, ProviderTimeout),
    ],
)
async def test_a_failed_submission_says_whether_a_job_may_exist(
    modal: Modal, simulator: Simulator, behaviour: dict[str, Any], kind: type[ProviderError]
) -> None:
    simulator.behave("modal", behaviour, action="submit")
    with pytest.raises(ProviderError) as caught:
        await submitted(modal)
    assert type(caught.value) is kind
    assert len(simulator.calls) == 1
    assert "boom" not in caught.value.detail


async def test_a_submission_that_is_not_answered_ends_at_its_deadline(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    modal = Modal(provider_settings(**addresses(simulator), modal_submit_seconds=0.1), http)
    simulator.behave("modal", {"do": "hang"}, action="submit")
    with pytest.raises(ProviderTimeout):
        await submitted(modal)


async def test_what_cannot_be_connected_was_never_sent(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    modal = Modal(provider_settings(**{**addresses(simulator), "modal_job_submit": nowhere}), http)
    with pytest.raises(ProviderUnavailable) as caught:
        await submitted(modal)
    assert caught.value.diagnostics["code"] == NOT_CONNECTED


async def test_an_endpoint_that_nobody_configured_is_unavailable(
    provider_settings: MakeSettings, http: httpx.AsyncClient
) -> None:
    modal = Modal(provider_settings(), http)
    assert not modal.can_cancel
    for call in (submitted(modal), look(modal, "fc-1"), modal.result("fc-1"), modal.cancel("fc-1")):
        with pytest.raises(ProviderUnavailable) as caught:
            await call
        assert caught.value.diagnostics == {"code": NOT_CONFIGURED}


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_a_look_tells_running_completed_and_failed(modal: Modal, simulator: Simulator) -> None:
    simulator.behave("modal", {"job_seconds": 60}, action="submit")
    simulator.behave("modal", {"fails": "CUDA out of memory"}, action="submit")
    running, failing, done = await submitted(modal), await submitted(modal), await submitted(modal)
    seen = await modal.poll(running, within_seconds=5.0)
    assert seen.status == "running"
    assert seen.elapsed_seconds is not None
    assert await look(modal, done) == "completed"
    assert (await modal.poll(failing, within_seconds=5.0)).error == "CUDA out of memory"
    assert await look(modal, "fc-nobody-knows") == "failed"


@pytest.mark.parametrize(
    "body",
    [
        {"job_id": "x", "status": "running"},
        {"job_id": "x", "status": "queued", "result_ready": False, "elapsed_seconds": "soon"},
        {"job_id": "x", "status": "RUNNING-SOMEWHERE", "error": {"a": 1}, "more": []},
    ],
)
async def test_words_that_we_do_not_know_mean_running(modal: Modal, simulator: Simulator, body: Any) -> None:
    simulator.behave("modal", {"do": "answer", "status": 200, "json": body}, action="status")
    seen = await modal.poll("fc-1", within_seconds=5.0)
    assert (seen.status, seen.elapsed_seconds, seen.error) == ("running", None, None)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"do": "answer", "status": 500, "json": {"detail": "no"}},
        {"do": "answer", "status": 200, "text": "fine"},
        {"do": "answer", "status": 200, "json": []},
        {"do": "answer", "status": 404, "text": ""},
        {"do": "html"},
        {"do": "abort"},
        {"do": "hang"},
    ],
)
async def test_a_look_that_fails_says_nothing_about_the_job(
    modal: Modal, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    job = await submitted(modal)
    simulator.behave("modal", behaviour, action="status")
    with pytest.raises(ProviderError):
        await look(modal, job, within_seconds=0.2)
    assert await look(modal, job) == "completed"


# --- results ----------------------------------------------------------------------------------------------------------


async def test_a_result_is_waited_for(modal: Modal, simulator: Simulator) -> None:
    job = await submitted(modal)
    simulator.behave("modal", {"reports": "processing"}, action="result", times=5)
    assert parse_wav(await modal.result(job)).frames > 0
    assert actions(simulator).count("result") == 6


@pytest.mark.parametrize(
    "behaviour",
    [
        {"do": "answer", "status": 500, "json": {"detail": "Failed to get result: no"}},
        {"do": "answer", "status": 504, "text": ""},
        {"do": "answer", "status": 200, "text": "this is no WAV"},
        {"do": "abort"},
        {"redirects": 2},
    ],
)
async def test_a_fault_that_passes_costs_one_try_and_no_result(
    modal: Modal, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    job = await submitted(modal)
    simulator.behave("modal", behaviour, action="result")
    assert parse_wav(await modal.result(job)).frames > 0


async def test_a_result_that_keeps_failing_is_given_up_after_its_tries(modal: Modal, simulator: Simulator) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        await modal.result("fc-nobody-knows")
    assert actions(simulator) == ["result"] * 3
    assert caught.value.diagnostics["tries"] == 3
    assert "not found" in caught.value.diagnostics["message"]


async def test_a_result_that_is_refused_is_not_asked_for_again(modal: Modal, simulator: Simulator) -> None:
    simulator.behave("modal", {"do": "answer", "status": 403, "text": ""}, action="result")
    with pytest.raises(ProviderRejected):
        await modal.result(await submitted(modal))
    assert actions(simulator).count("result") == 1


async def test_a_result_that_never_comes_ends_at_its_deadline(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    modal = Modal(provider_settings(**addresses(simulator), download_seconds=0.1), http)
    simulator.behave("modal", {"reports": "processing"}, action="result", times=0)
    with pytest.raises(ProviderUnavailable):
        await modal.result(await submitted(modal))


async def test_a_result_is_heard_as_samples_at_its_own_rate(modal: Modal, simulator: Simulator) -> None:
    job = await submitted(modal)
    wav = parse_wav(await modal.result(job))
    events = await heard(modal, job)
    audio = b"".join(event.audio for event in events if isinstance(event, AudioDelta))
    assert audio == bytes(wav.samples)
    assert events[:2] == [
        SpeechStatus("provider_downloading"),
        SpeechStatus("provider_persisting", wav.sample_rate_hz),
    ]
    assert events[-1] == SpeechEnd({"job_id": job, "audio_bytes": len(audio)})


async def heard(modal: Modal, job: str) -> list[SpeechEvent]:
    request = SpeechRequest(text=TEXT, voice="", model="", response_format="pcm", job=job)
    async with ModalSpeech(modal).speak(request) as speech:
        return [event async for event in speech]


async def test_a_result_without_a_sample_is_a_failure(modal: Modal, simulator: Simulator) -> None:
    job = await submitted(modal)
    empty = wav_header(0, 12_320).decode("ascii")  # a rate whose bytes are letters, since it travels as text here
    simulator.behave("modal", {"do": "answer", "status": 200, "text": empty}, action="result")
    with pytest.raises(ProviderUnavailable) as caught:
        await heard(modal, job)
    assert caught.value.diagnostics["code"] == "no_audio"


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_a_cancelled_job_is_called_failed(modal: Modal, simulator: Simulator) -> None:
    simulator.behave("modal", {"job_seconds": 60}, action="submit")
    job = await submitted(modal)
    assert modal.can_cancel
    await modal.cancel(job)
    assert await look(modal, job) == "failed"


async def test_a_cancel_that_fails_says_so(modal: Modal) -> None:
    with pytest.raises(ProviderUnavailable):
        await modal.cancel("fc-nobody-knows")


# --- designing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["relative", "absolute"])
@pytest.mark.parametrize(("redirects", "pending"), [(0, 0), (1, 0), (3, 0), (1, 2)])
async def test_a_design_is_found_behind_redirects_and_not_yet(
    modal: Modal, simulator: Simulator, location: str, redirects: int, pending: int
) -> None:
    behaviour = {"redirects": redirects, "location": location, "pending": pending}
    simulator.behave("modal", behaviour, action="design")
    assert parse_wav(await modal.design(**DESIGN)).frames > 0
    assert [(call["action"], call["billed"]) for call in simulator.calls] == [("design", 1)]


async def test_a_design_survives_a_cold_start(modal: Modal, simulator: Simulator) -> None:
    """The request is waited for as long as a job may take, not as long as other requests."""
    held = simulator.behave("modal", {"do": "hold"}, action="design")
    designing = asyncio.create_task(modal.design(**DESIGN))
    await held.held()
    held.release()
    assert parse_wav(await designing).frames > 0


async def test_a_design_that_never_comes_ends_at_the_deadline_of_a_job(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    modal = Modal(provider_settings(**addresses(simulator), modal_job_seconds=0.2), http)
    simulator.behave("modal", {"redirects": 1, "pending": 1_000_000}, action="design")
    with pytest.raises(ProviderTimeout):
        await modal.design(**DESIGN)
    assert actions(simulator) == ["design"]


async def test_redirects_in_a_circle_end(modal: Modal, simulator: Simulator) -> None:
    simulator.behave("modal", {"redirects": 1000}, action="design")
    with pytest.raises(ProviderUnavailable) as caught:
        await modal.design(**DESIGN)
    assert caught.value.diagnostics["code"] == "redirected_too_often"


async def test_a_redirect_to_another_host_is_not_followed(modal: Modal, simulator: Simulator) -> None:
    elsewhere = {"do": "answer", "status": 303, "text": "", "headers": {"location": "http://localhost/"}}
    simulator.behave("modal", elsewhere, action="design")
    with pytest.raises(ProviderRejected):
        await modal.design(**DESIGN)


async def test_accepted_without_a_word_where_the_answer_will_be_is_a_failure(
    modal: Modal, simulator: Simulator
) -> None:
    """Asking again would run it again."""
    simulator.behave("modal", {"do": "answer", "status": 202, "json": {"detail": "Job still processing"}})
    with pytest.raises(ProviderUnavailable):
        await modal.design(**DESIGN)
    assert len(simulator.calls) == 1


async def test_a_design_that_is_refused_says_so(modal: Modal) -> None:
    with pytest.raises(ProviderRejected) as caught:
        await modal.design(**{**DESIGN, "language": "Klingon"})
    assert "Klingon" not in caught.value.detail
