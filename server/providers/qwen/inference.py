"""The run-task family's lane: one task a speech on ``/api-ws/v1/inference``, the model in its first message."""

from server.providers.pacing import Pacer
from server.providers.qwen.errors import OperatorAlarm, operator_alarm
from server.providers.qwen.inference_events import InferenceDialogue
from server.providers.qwen.session import Sockets, SocketSpeech
from server.providers.speech import SpeechRequest, Take
from server.settings import Settings


class QwenInference:
    """Speaks with voices of the Qwen-Audio and CosyVoice families. Arguments are those of ``Sockets``."""

    def __init__(self, settings: Settings, pacer: Pacer, alarm: OperatorAlarm = operator_alarm) -> None:
        address = settings.dashscope_inference_ws_url
        self._sockets = Sockets(settings, address, pacer, alarm, tells_frames_apart=True)

    async def knock(self, _model: str) -> None:
        """Ask whether the socket opens; which models it has is told only to those who speak."""
        await self._sockets.knock(answers=False)

    def speak(self, request: SpeechRequest, take: Take | None = None, /) -> SocketSpeech:
        """Prepare one session; it is connected when it is iterated."""
        return self._sockets.speak(request, InferenceDialogue(request), take=take)
