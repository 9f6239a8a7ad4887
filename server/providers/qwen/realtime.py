"""Qwen's realtime lane: one session a speech on ``/api-ws/v1/realtime``, the model in the address."""

from urllib.parse import urlencode

from server.providers.pacing import Pacer
from server.providers.qwen.errors import OperatorAlarm, operator_alarm
from server.providers.qwen.events import Dialogue
from server.providers.qwen.session import Sockets, SocketSpeech
from server.providers.speech import SpeechRequest, Take
from server.settings import Settings


class QwenRealtime:
    """Speaks with voices whose target model is a realtime one. Arguments are those of ``Sockets``."""

    def __init__(self, settings: Settings, pacer: Pacer, alarm: OperatorAlarm = operator_alarm) -> None:
        self._sockets = Sockets(settings, settings.dashscope_ws_url, pacer, alarm)

    async def knock(self, model: str) -> None:
        """Ask whether a session with this model opens; see ``Sockets.knock``."""
        await self._sockets.knock(query=urlencode({"model": model}), answers=True)

    def speak(self, request: SpeechRequest, take: Take | None = None, /) -> SocketSpeech:
        """Prepare one session; it is connected when it is iterated."""
        return self._sockets.speak(request, Dialogue(request), query=urlencode({"model": request.model}), take=take)
