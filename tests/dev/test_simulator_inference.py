"""The simulated run-task socket to a client that follows no rules, or its own."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from server.dev.simulator import API_KEY, Simulator

MODEL = "qwen-audio-3.0-tts-flash"
VOICE = f"{MODEL}-narrator-0000000000000000000000000000abcd"


@dataclass
class Talk:
    """A socket, and what is said on it."""

    socket: ClientConnection

    async def say(self, action: str, task_id: str, payload: Any) -> None:
        header = {"action": action, "task_id": task_id, "streaming": "duplex"}
        await self.socket.send(json.dumps({"header": header, "payload": payload}))

    async def begin(self, task_id: str, **given: Any) -> None:
        parameters = {"text_type": "PlainText", "voice": VOICE, "format": "pcm", "sample_rate": 24_000}
        payload = {"task_group": "audio", "task": "tts", "function": "SpeechSynthesizer", "model": MODEL}
        await self.say("run-task", task_id, {**payload, "parameters": parameters, "input": {}, **given})

    async def speak(self, task_id: str, text: str) -> None:
        await self.say("continue-task", task_id, {"input": {"text": text}})
        await self.say("finish-task", task_id, {"input": {}})

    async def until(self, *events: str) -> tuple[dict[str, Any], int]:
        """The first of these events, and how many bytes of audio came before it."""
        audio = 0
        async for frame in self.socket:
            if isinstance(frame, bytes):
                audio += len(frame)
                continue
            message: dict[str, Any] = json.loads(frame)
            if message["header"]["event"] in events:
                return message, audio
        raise AssertionError(f"closed before {events}")

    async def closed(self) -> int | None:
        await self.socket.wait_closed()
        return self.socket.close_code


@asynccontextmanager
async def talking(simulator: Simulator) -> AsyncIterator[Talk]:
    address = simulator.environment()["DASHSCOPE_INFERENCE_WS_URL"]
    async with websockets.connect(
        address, additional_headers={"authorization": f"Bearer {API_KEY}"}, close_timeout=0.2
    ) as socket:
        yield Talk(socket)


async def test_a_task_without_its_input_fails_and_the_socket_is_closed(simulator: Simulator) -> None:
    async with talking(simulator) as talk:
        await talk.begin(uuid4().hex, input=None)
        failed, _ = await talk.until("task-failed")
        assert failed["header"]["error_message"] == "task can not be null"
        assert await talk.closed() == 1000


async def test_what_is_no_message_closes_the_socket_with_1007(simulator: Simulator) -> None:
    async with talking(simulator) as talk:
        await talk.socket.send("Good morning.")
        assert await talk.closed() == 1007


async def test_text_before_the_task_has_started_fails_it(simulator: Simulator) -> None:
    async with talking(simulator) as talk:
        plan = simulator.behave("realtime", {"do": "hold", "at": "created"})
        task_id = uuid4().hex
        await talk.say("continue-task", task_id, {"input": {"text": "Too early."}})
        await talk.until("task-failed")
        assert await talk.closed() == 1000
        plan.release()


async def test_a_client_that_says_nothing_loses_its_task(simulator: Simulator) -> None:
    simulator.silent_seconds = 0.1
    async with talking(simulator) as talk:
        await talk.begin(uuid4().hex)
        failed, _ = await talk.until("task-failed")
        assert (failed["header"]["error_code"], "request timeout" in failed["header"]["error_message"]) == (
            "CLIENT_ERROR",
            True,
        )


async def test_a_socket_is_used_again_and_closed_when_nobody_does(simulator: Simulator) -> None:
    simulator.behave("realtime", {"after_finished": "stay_open"}, times=0)
    async with talking(simulator) as talk:
        for text in ("The first task.", "The second one."):
            task_id = uuid4().hex
            await talk.begin(task_id)
            await talk.until("task-started")
            await talk.speak(task_id, text)
            finished, audio = await talk.until("task-finished", "task-failed")
            assert (finished["header"]["event"], finished["header"]["task_id"]) == ("task-finished", task_id)
            assert audio > 20_000
            simulator.idle_seconds = 0.1
        assert await talk.closed() == 1000
    assert [call["text"] for call in simulator.calls] == ["The first task.", "The second one."]


async def test_a_second_task_ends_the_one_that_runs(simulator: Simulator) -> None:
    plan = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    async with talking(simulator) as talk:
        one, other = uuid4().hex, uuid4().hex
        await talk.begin(one)
        await talk.until("task-started")
        await talk.speak(one, "This is not heard to its end. Not at all.")
        await plan.held()
        await talk.begin(other)
        await talk.until("task-started")
        await talk.speak(other, "This is.")
        finished, _ = await talk.until("task-finished")
        assert finished["header"]["task_id"] == other
        plan.release()


@pytest.mark.parametrize("how", ["at_once", "late", "never"])
async def test_a_cancel_is_answered_as_it_is_told(simulator: Simulator, how: str) -> None:
    plan = simulator.behave("realtime", {"cancel": how, "do": "hold", "after_deltas": 1})
    async with talking(simulator) as talk:
        task_id = uuid4().hex
        await talk.begin(task_id)
        await talk.until("task-started")
        await talk.speak(task_id, "A sentence. Another one.")
        await plan.held()
        if how == "late":
            plan.release()
        await talk.say("finish-task", task_id, {"input": {"directive": "cancel"}})
        if how != "never":
            await talk.until("task-finished")
        await simulator.until(lambda calls: "cancelled_at" in calls[0])
        plan.release()


async def test_models_that_are_billed_by_tokens_count_them(simulator: Simulator) -> None:
    model = "qwen-audio-3.1-tts-flash"
    async with talking(simulator) as talk:
        task_id = uuid4().hex
        parameters = {"text_type": "PlainText", "voice": VOICE.replace("3.0", "3.1"), "format": "pcm"}
        await talk.begin(task_id, model=model, parameters={**parameters, "sample_rate": 24_000})
        await talk.until("task-started")
        await talk.speak(task_id, "Good morning.")
        finished, _ = await talk.until("task-finished")
        usage = finished["payload"]["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 13
