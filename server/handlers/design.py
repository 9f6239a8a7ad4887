"""/api/voices/design: a description becomes a preview, and a preview that is kept becomes a voice."""

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from server.contract import DesignPreviewAnswer, DesignPreviewRequest, DesignSaveAnswer, DesignSaveRequest
from server.errors import TooLarge
from server.handlers.requests import (
    bearer,
    convert,
    idempotency_key,
    json_response,
    key_id_of,
    outward,
    parts_of,
    read_form,
    read_json,
)
from server.jobs import design
from server.jobs.requirements import plain

FORM_BYTES = design.LARGEST_PREVIEW_BYTES + 64 * 1024


async def preview(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    key = idempotency_key(request)
    task_id = await design.submit_preview(
        parts, user_id, await read_json(request, DesignPreviewRequest), key, key_id=key_id_of(request)
    )
    return json_response(DesignPreviewAnswer(task_id))


async def save(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    wanted, audio = await _read(request)
    voice = await design.save(parts, user_id, wanted, audio)
    return json_response(
        DesignSaveAnswer(
            id=voice.id,
            name=voice.name,
            description=voice.description,
            language=voice.language,
            source="designed",
            preview_url=outward(request, f"/api/voices/{voice.id}/preview"),
        )
    )


async def _read(request: Request) -> tuple[DesignSaveRequest, bytes | None]:
    """The request as JSON or as a form, and the file that a form may carry."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with read_form(request, limit_bytes=FORM_BYTES) as form:
            # Browsers make two characters of every line break, which counts where a text is nearly too long.
            texts = {name: value for name, value in form.items() if isinstance(value, str) and value}
            fields = {name: plain(value) for name, value in texts.items()}
            upload = form.get("audio")
            audio = await upload.read() if isinstance(upload, UploadFile) else None
        if audio is not None and len(audio) > design.LARGEST_PREVIEW_BYTES:
            raise TooLarge("The preview is larger than 10 MB.")
        return convert(fields, DesignSaveRequest), audio
    return await read_json(request, DesignSaveRequest), None
