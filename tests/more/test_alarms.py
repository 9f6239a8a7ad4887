"""The alarms and the dashboard of docs/deploy, by a real Prometheus that scrapes a server in use."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from server.metrics import Metrics
from tests.gateway import Client, Gateway
from tests.support import free_port, wait_for

DEPLOY = Path(__file__).parent.parent.parent / "docs" / "deploy"
ALARMS = DEPLOY / "alarms.yml"
COMPARISON = re.compile(r"\s[<>]\s*[0-9.e+]+$")


def dashboard_queries() -> list[str]:
    """What the panels ask."""
    panels = json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.fixture
async def prometheus(gateway: Gateway, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that has scraped the gateway and read the alarms; a client of its API."""
    program = shutil.which("prometheus")
    assert program, "this test needs Prometheus: apt-get install prometheus"
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "rule_files": [str(ALARMS)],
        "scrape_configs": [
            {"job_name": "utter", "static_configs": [{"targets": [urlsplit(gateway.url).netloc]}]},
        ],
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=20.0, trust_env=False) as client:

            async def scraped_twice() -> bool:
                assert process.returncode is None, (tmp_path / "log").read_text()
                try:
                    return bool(await ask(client, "count_over_time(utter_queue_depth[5m]) > 2"))
                except httpx.HTTPError:
                    return False

            await wait_for(scraped_twice, 60.0)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def ask(prometheus: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    """The series that a query returns."""
    answer = await prometheus.get("/api/v1/query", params={"query": query})
    if answer.status_code == 503:  # not ready yet
        return []
    assert answer.status_code == 200, f"{query}: {answer.text}"
    series: list[dict[str, Any]] = answer.json()["data"]["result"]
    return series


def test_the_alarms_are_well_formed() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "this test needs Prometheus: apt-get install prometheus"
    checked = subprocess.run([promtool, "check", "rules", ALARMS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_every_query_finds_its_series(
    prometheus: httpx.AsyncClient, client: Client, voice_id: UUID, gateway: Gateway
) -> None:
    """Of the alarms what they compare, and none of them is raised by a server that is well."""
    await client.ended((await client.generate(voice_id))["task_id"])
    [group] = (await prometheus.get("/api/v1/rules")).json()["data"]["groups"]
    compared = {rule["query"]: COMPARISON.sub("", rule["query"]) for rule in group["rules"]}
    assert all(query != left for query, left in compared.items())
    queries = [*compared.values(), *dashboard_queries()]
    assert len(queries) > 40
    assert [query for query in queries if not await ask(prometheus, query)] == []

    async def evaluated() -> bool:
        [now] = (await prometheus.get("/api/v1/rules")).json()["data"]["groups"]
        return all(rule["health"] == "ok" for rule in now["rules"])

    await wait_for(evaluated, 30.0)
    alerts = (await prometheus.get("/api/v1/alerts")).json()["data"]["alerts"]
    assert [alert["labels"] for alert in alerts if alert["state"] == "firing"] == []

    # An alarm is more than a query that parses: this one sees what it is for.
    for _ in range(20):
        gateway.parts.metrics.provider_closed(1011)

    async def raised() -> bool:
        found = (await prometheus.get("/api/v1/alerts")).json()["data"]["alerts"]
        return any(
            alert["labels"]["alertname"] == "UtterProviderCloses" and alert["labels"]["code"] == "1011"
            for alert in found
        )

    await wait_for(raised, 30.0)


def test_every_metric_is_on_the_dashboard_or_in_an_alarm() -> None:
    named = set(re.findall(r"\butter_[a-z_]+", ALARMS.read_text() + " ".join(dashboard_queries())))
    exposed = set(re.findall(r"^# TYPE (utter_\S+) (?:counter|gauge|histogram)", Metrics().exposition().decode(), re.M))
    shown = {re.sub(r"_(bucket|total)$", "", name) for name in named}
    counted = {name for name in exposed if not name.endswith("_created")}
    assert {re.sub(r"_total$", "", name) for name in counted} == shown
