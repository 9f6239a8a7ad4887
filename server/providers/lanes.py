"""Which lane a speech takes: one answer for a provider and a model, asked by whoever has to know.

A voice is bound for life to the model that it was made for, so its lane never changes. One more way to speak is one
more row here.
"""

from typing import Literal

import msgspec

from server.audio import MP3, WAV, AudioFormat
from server.settings import speaks_by_tasks

Variable = Literal["speed", "pitch", "volume"]
LaneName = Literal["realtime", "inference", "pieces", "jobs"]


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a text becomes audio.

    Attributes:
        begins: ``spoken``: a process opens a conversation and hears the speech. ``bought``: the text is cut into
            pieces, each of them a purchase of its own. ``submitted``: the text goes to a job API together with the
            voice's recording before the request is answered, and is looked at until it is done.
        formats: What the lane itself can yield, its own choice first. ``wav`` means raw samples to which we write the
            header.
        streams: It can be followed while it is spoken.
        varies: What a request may vary: ``speed`` and ``pitch`` as factors of 0.5 to 2.0, ``volume`` from 0 to 100.
        seeds: The same text, voice and seed repeat the same audio.
        instructs: It can be told in free words how to say a text.
        times_words: It says when each word is heard.
        goes_on: It says which sentence every byte belongs to, so that a speech that broke off can be taken up.
    """

    name: LaneName
    begins: Literal["spoken", "bought", "submitted"]
    formats: tuple[AudioFormat, ...]
    streams: bool
    varies: tuple[Variable, ...] = ()
    seeds: bool = False
    instructs: bool = False
    times_words: bool = False
    goes_on: bool = False

    def needs_encoding(self, audio_format: AudioFormat) -> bool:
        """Whether this lane yields samples only, and speech in that format has to be made of them."""
        return audio_format not in self.formats

    def audio_format(self, preferred: AudioFormat) -> AudioFormat:
        """What speech on this lane is heard and stored as: what is preferred, where the lane yields it."""
        return preferred if preferred in self.formats else self.formats[0]


REALTIME = Lane(name="realtime", begins="spoken", formats=(MP3, WAV), streams=True, varies=("speed", "pitch", "volume"))
INFERENCE = Lane(
    name="inference",
    begins="spoken",
    formats=(MP3, WAV),
    streams=True,
    varies=("speed", "pitch", "volume"),
    seeds=True,
    instructs=True,
    times_words=True,
    goes_on=True,
)
# Streams too, a piece at a time.
PIECES = Lane(name="pieces", begins="bought", formats=(WAV,), streams=True)
JOBS = Lane(name="jobs", begins="submitted", formats=(WAV,), streams=False)


def lane_of(provider: str, model: str | None) -> Lane | None:
    """The lane of a voice of this provider that was made for this model; None where nothing here speaks it.

    Whether a model is a realtime one is read off its name, as the vendor forms it.
    """
    if provider == "modal":
        return JOBS
    if not model:
        return None
    if speaks_by_tasks(model):
        return INFERENCE
    return REALTIME if "-realtime" in model else PIECES
