"""What was left behind is found however much there is."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from server.jobs.reconcile import reconcile
from server.settings import Settings
from tests.at_size.conftest import Size
from tests.at_size.statements import Collected
from tests.gateway import running_gateway
from tests.support import with_limits


async def test_reconcile_looks_at_a_thousand_objects_at_a_time(
    settings: Settings, size: Size, collected: Collected
) -> None:
    """However many there are, and all of them left over: it keeps no more of them than it names."""
    folder = Path(settings.storage.root) / "generations" / str(uuid4())
    folder.mkdir(parents=True)
    for number in range(size.objects):
        (folder / f"{number}.wav").touch()
    said: list[str] = []
    async with running_gateway(settings) as gateway:
        parts = replace(gateway.parts, settings=with_limits(gateway.parts.settings, keep_objects_seconds=0.0))
        tracemalloc.start()
        try:
            found = await reconcile(parts, say=said.append)
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(found.objects) + found.further_objects == size.objects
    asked = [values for text, values in collected.statements.items() if "g.audio_object_key = a.key" in text]
    assert asked
    assert all(len(value) <= 1000 for values in asked for value in values if isinstance(value, list))
    assert sum("looked at" in line for line in said) == size.objects // 1000
    assert most_bytes < 64_000_000
    print(f"reconcile: {size.objects} objects left over, {most_bytes / 1e6:.0f} MB")
