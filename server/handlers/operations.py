"""What the API offers, one operation after another: what the document of it is made from."""

from typing import Any, NamedTuple, get_args

from server import contract
from server.handlers.requests import LARGEST_PAGE


class Media(NamedTuple):
    """A success that is no JSON.

    Attributes:
        example: What it may look like as text.
    """

    types: tuple[str, ...]
    description: str = "OK"
    example: str = ""


REDIRECT = Media((), "A redirect")
NOTHING = Media((), "Nothing more will come")
STREAM = Media(
    ("text/event-stream", "audio/mpeg", "audio/wav"),
    "Events, or the audio itself. `task` (data: a TaskAnswer) comes at the beginning, at every change, and last of all "
    "with the id `end`. `response.audio.delta` (data: a DeltaEvent) is the next audio; its id says how many bytes of "
    "audio there are up to and including it. `words` (data: a WordsEvent, without an id) comes where `words=1` asks "
    "for it. A comment every 15 seconds tells that the connection lives, and `retry` when to come back.",
    "retry: 1000\n\n"
    'event: task\ndata: {"id":"1255a0b4-7b0e-4b55-9f0a-0d8f0c9a4e11","type":"generate","status":"processing"}\n\n'
    'event: response.audio.delta\nid: 2400\ndata: {"delta":"//PExABS9Dks"}\n\n'
    'event: words\ndata: {"words":[{"text":"Good","start_ms":120,"end_ms":310}]}\n\n'
    "event: task\nid: end\n"
    'data: {"id":"1255a0b4-7b0e-4b55-9f0a-0d8f0c9a4e11","type":"generate","status":"completed"}\n\n',
)
SPEECH = Media(
    ("audio/mpeg", "audio/wav", "audio/pcm", "text/event-stream"),
    "The audio, while it is spoken; with `stream_format` `sse` events without names, told by their `type`: "
    "`speech.audio.delta` (an OpenAIDeltaEvent), at the end `speech.audio.done` (an OpenAIDoneEvent), or "
    "`speech.audio.error` with an `error` as problems have it.",
    'data: {"type":"speech.audio.delta","audio":"//PExABS9Dks"}\n\n'
    'data: {"type":"speech.audio.done","usage":{"input_tokens":26,"output_tokens":0,"total_tokens":26}}\n\n',
)


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        answers: What a success answers, by status: the type of its JSON, or what else it is.
        query: Parameters as ``name: schema``.
        required: Those of ``query`` that have to be there.
        file: A member that a form may carry as a file, where the body may be a form.
        problems: The statuses of a ``Problem`` that a client should know; any other failure is one, too.
    """

    method: str
    path: str
    summary: str
    description: str
    answers: dict[int, Any]
    body: Any = None
    query: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - a NamedTuple's defaults are never changed
    problems: tuple[int, ...] = ()
    signed_in: bool = True
    headers: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    file: str = ""


_PAGE = {
    "page": {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": 1},
    "per_page": {"type": "integer", "minimum": 1, "maximum": 100},
}
_TEXT = {"type": "string", "pattern": "^[^\u0000]*$"}
_SEARCH = {"search": _TEXT}
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_AT = {"type": "string", "pattern": f"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[^,]+,{_UUID}$"}
_CURSOR = "its `created_at`, a comma, its `id`"
_AS = {"as": {"type": "string", "enum": ["events", "audio"]}}
_WORDS = {"words": {"type": "string", "enum": ["1"], "description": "Also say when words are heard"}}

OPERATIONS = (
    Operation(
        "post",
        "/api/generate",
        "Speak a text; poll the task, or follow stream_url",
        (
            "Takes the text at once and answers with its task. Where the voice can be heard while it speaks, "
            "`stream_url` is an address for an `EventSource`. Sent again with the same `Idempotency-Key` it gives "
            "the first answer and makes nothing."
        ),
        {200: contract.GenerateAnswer},
        body=contract.GenerateRequest,
        problems=(400, 401, 404, 409, 413, 502, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "post",
        "/api/generate/stream",
        "Speak a text and hear it at once: events, raw audio (Accept: audio/*), or JSON with status 201",
        (
            "Does in one request what POST /api/generate and GET /api/generate/stream do in two. Hanging up does "
            "not end the speech. What can go wrong before the first byte is answered as JSON."
        ),
        {200: STREAM, 201: contract.GenerateAnswer},
        body=contract.GenerateRequest,
        query={**_AS, **_WORDS},
        problems=(400, 401, 404, 406, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "get",
        "/api/generate/stream",
        "Follow a speech while it is spoken, or replay it; creates nothing",
        (
            "Needs the ticket of a `stream_url`, or a bearer token. Goes on at any byte: `offset`, the header "
            "`Last-Event-ID` or `lastEventId` say where. The last event has the id `end`; after it 204 says that "
            "nothing more will come."
        ),
        {200: STREAM, 204: NOTHING, 302: REDIRECT},
        query={
            "task_id": {"type": "string", "format": "uuid"},
            "ticket": {"type": "string"},
            **_AS,
            **_WORDS,
            "offset": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
            "lastEventId": {"type": "string", "pattern": "^([0-9]{1,18}|end)$"},
        },
        required=("task_id",),
        problems=(400, 401, 404, 406, 409),
        headers=("Last-Event-ID",),
    ),
    Operation(
        "get",
        "/api/tasks/{task_id}",
        "How a task stands",
        ("`result` is there once the task has completed, `error` once it has failed. `stream_url` is fresh each time."),
        {200: contract.TaskAnswer},
        problems=(400, 401, 404),
    ),
    Operation(
        "delete",
        "/api/tasks/{task_id}",
        "Put a task away; its audio stays",
        "An active task is cancelled first. What it has made stays in the history.",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation(
        "post",
        "/api/tasks/{task_id}/cancel",
        "Cancel",
        ("Nothing can complete the task from then on. A task that is over stays as it is, and `status` says how."),
        {200: contract.CancelAnswer},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations",
        "The history, newest first",
        "By pages, or what is older, newer or named. `q` searches text and voice, `search` the text alone.",
        {200: contract.GenerationsAnswer},
        query={
            **_PAGE,
            **_SEARCH,
            "status": {"type": "string", "enum": ["all", *get_args(contract.TaskStatus)]},
            "q": {**_TEXT, "description": "Words in the text or in the name of the voice"},
            "voice_id": {"type": "string", "format": "uuid"},
            "before": {**_AT, "description": f"Older than this entry: {_CURSOR}"},
            "since": {**_AT, "description": f"Newer than this entry: {_CURSOR}"},
            "ids": {
                "type": "string",
                "pattern": f"^{_UUID}(,{_UUID}){{0,99}}$",
                "description": "These alone: up to 100 ids with commas between them",
            },
        },
        problems=(400, 401),
    ),
    Operation(
        "post",
        "/api/generations/zip",
        "The audio of up to 50 generations as one ZIP",
        "In the order of the request. What has no audio is not found.",
        {200: Media(("application/zip",), "The ZIP, while it is made")},
        body=contract.ZipRequest,
        problems=(400, 401, 404, 413, 503),
    ),
    Operation(
        "delete",
        "/api/generations/{generation_id}",
        "Delete with its audio",
        "One that is being spoken is cancelled first.",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/audio",
        "302 to a link that needs no token and works for an hour",
        (
            "With `Accept: application/json` the link comes in the body, for whoever must not follow a redirect "
            "with a token. Not found until the audio is stored."
        ),
        {200: contract.LinkAnswer, 302: REDIRECT},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/audio.mp3",
        "The audio as MP3, whatever it is stored as",
        (
            "A redirect where that is what is stored, as of `/audio`; what is stored as WAV is encoded while it is "
            "downloaded. Not found until the audio is stored."
        ),
        {200: Media(("audio/mpeg",), "The MP3, while it is made"), 302: REDIRECT},
        problems=(400, 401, 404, 503),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/words",
        "When each word is heard, where the voice's lane says so; else none",
        "What `words` events told while it was spoken, for whoever marks words while it is played again.",
        {200: contract.WordsEvent},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/captions.vtt",
        "What was spoken as WebVTT captions, where the voice's lane says when words are heard",
        "Not found where the voice does not say when its words are heard.",
        {200: Media(("text/vtt",), example="WEBVTT\n\n00:00:00.000 --> 00:00:01.300\nGood evening.\n\n")},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/captions.srt",
        "The same as SubRip captions",
        "Not found where the voice does not say when its words are heard.",
        {200: Media(("application/x-subrip",))},
        problems=(400, 401, 404),
    ),
    Operation(
        "post",
        "/api/generations/{generation_id}/regenerate",
        "What a form needs to speak this again",
        "Nothing is spoken by this: send what it answers to POST /api/generate.",
        {200: contract.RegenerateAnswer},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/voices",
        "The voices that are not deleted, newest first",
        (
            "`compatible` says whether the voice can speak on this server now, `varies` what of its speech can be "
            "chosen."
        ),
        {200: contract.VoicesAnswer},
        query={
            **_PAGE,
            **_SEARCH,
            "source": {"type": "string", "enum": ["all", "uploaded", "designed"]},
            "q": {**_TEXT, "description": "Words in the name, language, kind or description"},
        },
        problems=(400, 401),
    ),
    Operation(
        "get",
        "/api/voices/{voice_id}/preview",
        "302 to the recording that a voice was made from",
        "With `Accept: application/json` the link comes in the body.",
        {200: contract.LinkAnswer, 302: REDIRECT},
        problems=(400, 401, 404),
    ),
    Operation(
        "patch",
        "/api/voices/{voice_id}",
        "Rename a voice, or make it the default: the one that speaks where a program names none",
        "What is absent stays as it is.",
        {200: contract.VoiceEntry},
        body=contract.VoiceChange,
        problems=(400, 401, 404, 413),
    ),
    Operation(
        "post",
        "/api/voices/{voice_id}/renew",
        "Make a voice again whose model is gone; a task of type `clone` tells when it can speak",
        ("From the recording and its transcript, or from the description. Its id, its name and its history stay."),
        {200: contract.RenewAnswer},
        problems=(400, 401, 404, 409),
    ),
    Operation(
        "delete",
        "/api/voices/{voice_id}",
        "Hide a voice; its history stays",
        "What it has spoken stays in the history.",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation(
        "post",
        "/api/clone/upload-url",
        "Get the address to which a recording is uploaded by PUT",
        ("First of three steps: get an address, PUT the recording there (WAV, MP3 or M4A, 3 to 60 seconds), finalize."),
        {200: contract.CloneUploadAnswer},
        body=contract.CloneUploadRequest,
        problems=(400, 401, 413, 503),
    ),
    Operation(
        "post",
        "/api/clone/finalize",
        "Make a voice from the uploaded recording",
        "Answered when the voice can speak. Sent again for the same recording it buys nothing again.",
        {200: contract.CloneFinalizeAnswer},
        body=contract.CloneFinalizeRequest,
        problems=(400, 401, 404, 413, 502, 503, 504),
    ),
    Operation(
        "post",
        "/api/voices/design/preview",
        "Have a voice designed from a description, to be heard first",
        (
            "Answers with a task of type `design_preview`; the result of a completed one is a link to what the "
            "voice sounds like."
        ),
        {200: contract.DesignPreviewAnswer},
        body=contract.DesignPreviewRequest,
        problems=(400, 401, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "post",
        "/api/voices/design",
        "Keep the voice of a finished preview (JSON, or a form that may carry the preview as `audio`)",
        "With `task_id` the voice that was heard is kept.",
        {200: contract.DesignSaveAnswer},
        body=contract.DesignSaveRequest,
        file="audio",
        problems=(400, 401, 404, 409, 413, 503),
    ),
    Operation(
        "post",
        "/api/keys",
        "Make a key for a program; it is shown this once. Takes a sign-in token",
        "A key cannot make another one.",
        {201: contract.KeyCreated},
        body=contract.KeyRequest,
        problems=(400, 401, 403, 409, 413),
    ),
    Operation(
        "get",
        "/api/keys",
        "The user's keys, newest first",
        "No key is shown again: `prefix` is what it begins with.",
        {200: contract.KeysAnswer},
        problems=(401,),
    ),
    Operation(
        "delete",
        "/api/keys/{key_id}",
        "Revoke a key, in force within 5 s. Takes a sign-in token",
        "A key cannot revoke another one.",
        {200: contract.Ok},
        problems=(400, 401, 403, 404),
    ),
    Operation(
        "get",
        "/api/usage",
        "What one has had spoken and made, by UTC day, and what one may; of the last 30 days if nothing else is said",
        "Deleting a speech lowers nothing. A limit that is null does not exist.",
        {200: contract.UsageAnswer},
        query={"from": {"type": "string", "format": "date"}, "to": {"type": "string", "format": "date"}},
        problems=(400, 401),
    ),
    Operation(
        "post",
        "/v1/audio/speech",
        "Speak as OpenAI's speech endpoint does: audio while it is spoken, or (stream_format: sse) events with it",
        (
            "`voice` is a voice's name or id; one of OpenAI's own names, or none, means the default voice. The "
            "model and whatever else a client sends is ignored."
        ),
        {200: SPEECH},
        body=contract.SpeechWanted,
        problems=(400, 401, 409, 413, 429, 502, 503, 504),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "get",
        "/v1/audio/voices",
        "The voices that can speak",
        "For programs that let their user choose among voices.",
        {200: contract.SpeakingVoices},
        problems=(401, 429),
    ),
    Operation(
        "get",
        "/v1/models",
        "Names that clients know; any will do",
        "For programs that ask before they speak.",
        {200: contract.ModelList},
        problems=(401, 429),
    ),
    Operation(
        "get",
        "/v1/models/{model}",
        "One of them",
        "For programs that ask before they speak.",
        {200: contract.Model},
        problems=(401, 404, 429),
    ),
    Operation(
        "get",
        "/api/health",
        "Whether this process answers",
        "Asks nobody else: neither the database nor the store.",
        {200: contract.Ok},
        signed_in=False,
    ),
    Operation(
        "get",
        "/api/ready",
        "Whether it can do its work",
        (
            "503 where one of its members is false, and while the process is leaving. `degraded` names what still "
            "works, but worse."
        ),
        {200: contract.ReadyAnswer, 503: contract.ReadyAnswer},
        signed_in=False,
    ),
    Operation(
        "get",
        "/api/languages",
        "The languages, and what this server offers",
        "`capabilities` says what a page may offer.",
        {200: contract.LanguagesAnswer},
        signed_in=False,
    ),
    Operation(
        "get",
        "/api/me",
        "Who is signed in",
        "Answers whoever asks. `profile` is there where the database keeps profiles.",
        {200: contract.MeAnswer},
        signed_in=False,
    ),
    Operation(
        "patch",
        "/api/profile",
        "Change how others see one; where the database keeps profiles",
        "What is absent stays, an empty text empties.",
        {200: contract.ProfileAnswer},
        body=contract.ProfileChange,
        problems=(400, 401, 404, 409, 413),
    ),
    Operation(
        "get",
        "/api/openapi.json",
        "This document",
        "Limits are those of this server's settings.",
        {200: dict[str, Any]},
        signed_in=False,
    ),
    Operation(
        "get",
        "/metrics",
        "Prometheus",
        "For private addresses, or with the operator's own token.",
        {200: Media(("text/plain",), example="# TYPE utter_active_streams gauge\nutter_active_streams 3.0\n")},
        signed_in=False,
        problems=(401, 403),
    ),
)
