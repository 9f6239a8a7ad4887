"""What a process says of itself as it starts."""

from pathlib import Path

from server.dev.simulator import Simulator
from server.settings import Settings
from server.startup import introduction
from tests.gateway import process
from tests.support import wait_for


async def test_a_process_says_in_one_line_what_it_is_and_names_the_bucket_that_is_not_there(
    settings: Settings, simulator: Simulator, s3_server: str, tmp_path: Path
) -> None:
    elsewhere = {
        "STORAGE_URL": f"s3://?endpoint={s3_server}&region=us-east-1",
        "STORAGE_BUCKET_REFERENCES": "nobody-made-this",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
    }
    async with process(settings, simulator, tmp_path / "log", LOG_FORMAT="text", **elsewhere) as serving:
        await wait_for(lambda: "storage cannot be used" in serving.log)
        lines = serving.log.splitlines()
    assert (
        f"speaks by qwen, keeps audio as buckets nobody-made-this and generations at {s3_server}, schema 00" in lines[0]
    )
    [trouble] = [line for line in lines if "storage cannot be used" in line]
    assert "nobody-made-this: " in trouble
    assert "NoSuchBucket" in trouble


def test_the_line_names_the_folder_of_a_disk(settings: Settings) -> None:
    assert f"keeps audio as files below {settings.storage.root}, schema" in introduction(settings)
