"""The one way in which bytes can fail to be audio."""


class AudioError(ValueError):
    """These bytes are not the audio they claim to be. The message is a sentence that a client may read."""
