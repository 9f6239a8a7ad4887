"""Which release this is."""

from importlib import metadata


def version() -> str:
    """As the installed package says it; words where nothing was installed."""
    try:
        return metadata.version("utter-server")
    except metadata.PackageNotFoundError:
        return "from a checkout that was not installed"
