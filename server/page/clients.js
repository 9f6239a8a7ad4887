/**
 * clients.js: what goes where in programs that speak through OpenAI's speech endpoint.
 */

/**
 * @typedef {{address: string, key: string, voice: string}} Given `address` ends in /v1; `voice` is a voice's name
 * @type {{name: string, lines: (given: Given) => string, hint?: string}[]}
 */
export const CLIENTS = [
  {
    name: "curl",
    lines: ({ address, key, voice }) => `curl --fail-with-body ${address}/audio/speech \\
  -H 'Authorization: Bearer ${key}' \\
  -H 'Content-Type: application/json' \\
  -d ${shell(JSON.stringify({ model: "tts-1", voice, input: "Good evening." }))} \\
  -o speech.mp3`,
  },
  {
    name: "Python (openai)",
    lines: ({ address, key, voice }) => `from openai import OpenAI

client = OpenAI(base_url="${address}", api_key="${key}")
with client.audio.speech.with_streaming_response.create(model="tts-1", voice=${JSON.stringify(voice)}, input="Good evening.") as response:
    response.stream_to_file("speech.mp3")`,
  },
  {
    name: "Node (openai)",
    lines: ({ address, key, voice }) => `import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const openai = new OpenAI({ baseURL: "${address}", apiKey: "${key}" });
const speech = await openai.audio.speech.create({
  model: "tts-1", voice: ${JSON.stringify(voice)}, input: "Good evening.",
});
await writeFile("speech.mp3", Buffer.from(await speech.arrayBuffer()));`,
  },
  {
    name: "Open WebUI",
    lines: ({ address, key, voice }) => `AUDIO_TTS_ENGINE=openai
AUDIO_TTS_OPENAI_API_BASE_URL=${address}
AUDIO_TTS_OPENAI_API_KEY=${key}
AUDIO_TTS_MODEL=tts-1
AUDIO_TTS_VOICE=${voice}
AUDIO_TTS_SPLIT_ON=paragraphs`,
    hint: "Or under Admin Panel → Settings → Audio. Splitting by paragraphs starts the voice less often than by sentences.",
  },
  {
    name: "SillyTavern",
    lines: ({ address, key, voice }) => `TTS provider:      OpenAI Compatible
Provider endpoint: ${address}/audio/speech
API key:           ${key}
Model:             tts-1
Available voices:  ${voice}`,
    hint: "Under Extensions → TTS. Several voices are written with commas between them.",
  },
  {
    name: "LibreChat",
    lines: ({ address, key, voice }) => `# librechat.yaml
speech:
  tts:
    openai:
      url: "${address}/audio/speech"
      apiKey: "${key}"
      model: "tts-1"
      voices: [${JSON.stringify(voice)}]`,
  },
  {
    name: "Home Assistant (wyoming-openai)",
    lines: ({ address, key, voice }) => `# wyoming-openai, then add the Wyoming integration with port 10300
WYOMING_URI=tcp://0.0.0.0:10300
TTS_OPENAI_URL=${address}
TTS_OPENAI_KEY=${key}
TTS_MODELS=tts-1
TTS_VOICES=${shell(voice)}`,
  },
  {
    name: "LiveKit Agents",
    lines: ({ address, key, voice }) => `from livekit.plugins import openai

tts = openai.TTS(base_url="${address}", api_key="${key}", model="tts-1", voice=${JSON.stringify(voice)})`,
  },
  {
    name: "Pipecat",
    lines: ({ address, key }) => `from pipecat.services.openai.tts import OpenAITTSService

tts = OpenAITTSService(
    base_url="${address}", api_key="${key}", settings=OpenAITTSService.Settings(voice="alloy")
)`,
    hint: "It takes OpenAI's own names only: alloy means your default voice, or a voice of yours with that name.",
  },
];

/** A word as a shell takes it, whatever stands in it. */
function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
