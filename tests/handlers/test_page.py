"""The page's files: what is served, under which policy, and where it is not."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette

from server.dev.session import session_route
from server.handlers.page import CONTENT_TYPES, FOLDER, HELPER, content_security_policy, page_routes
from server.settings import Settings, StorageSettings
from tests.support import AUTH_JWT_SECRET


def settings_with(**overrides: Any) -> Settings:
    fields: dict[str, Any] = {
        "database_url": "postgresql://nowhere",
        "storage": StorageSettings(kind="disk", root="/nowhere"),
        "auth_jwt_secret": AUTH_JWT_SECRET,
        "serve_page": True,
    }
    return Settings(**{**fields, **overrides})


def served(settings: Settings, *first: Any) -> httpx.AsyncClient:
    app = Starlette(routes=[*first, *page_routes(settings)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000")


async def test_the_page_is_not_served_unless_the_operator_wants_it() -> None:
    async with served(settings_with(serve_page=False)) as http:
        assert (await http.get("/")).status_code == 404
        assert (await http.get("/static/utter.js")).status_code == 404


async def test_the_helper_is_served_wherever_other_pages_may_ask() -> None:
    """All that it imports, at an address with its version too, and nothing of the page."""
    async with served(settings_with(serve_page=False, cors_allow_origins=("https://app.example",))) as http:
        for name in HELPER:
            newest, versioned = await http.get(f"/static/{name}"), await http.get(f"/static/v1/{name}")
            assert newest.status_code == versioned.status_code == 200
            assert newest.content == versioned.content
            assert versioned.headers["cross-origin-resource-policy"] == "cross-origin"
        for address in ("/", "/static/page.js", "/static/session.json"):
            assert (await http.get(address)).status_code == 404
    imported = {"utter.js"}
    for name in HELPER:
        imported |= set(re.findall(r"""from "\./([\w.-]+)";""", (FOLDER / name).read_text()))
    assert imported == {name for name in HELPER if name.endswith(".js")}


def test_the_package_is_the_helper_and_says_its_version() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    assert sorted(package["files"]) == sorted(HELPER)
    assert f'VERSION = "{package["version"]}"' in (FOLDER / "utter.js").read_text()
    assert package["version"].startswith("1.")  # as the address says


@pytest.mark.parametrize("address", ["/", "/generate"])
async def test_the_page_is_html_that_lets_nothing_foreign_in(address: str) -> None:
    async with served(settings_with()) as http:
        response = await http.get(address)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


async def test_every_file_is_served_under_static_with_its_type() -> None:
    async with served(settings_with()) as http:
        for path in FOLDER.iterdir():
            if path.name in ("index.html", "README.md"):
                continue
            response = await http.get(f"/static/{path.name}")
            assert response.status_code == 200, path.name
            assert response.headers["content-type"] == CONTENT_TYPES[path.suffix]
            assert response.content == path.read_bytes()
        assert (await http.get("/static/index.html")).status_code == 404
        assert (await http.get("/static/../app.py")).status_code == 404
        assert (await http.post("/static/utter.js")).status_code == 405


async def test_a_file_that_did_not_change_is_not_sent_again() -> None:
    async with served(settings_with()) as http:
        first = await http.get("/static/utter.js")
        again = await http.get("/static/utter.js", headers={"If-None-Match": first.headers["etag"]})
        other = await http.get("/static/utter.js", headers={"If-None-Match": '"something else"'})
        head = await http.head("/static/utter.js")
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200
    assert (head.status_code, head.content) == (200, b"")


def test_the_policy_knows_where_signed_links_lead() -> None:
    def policy(**overrides: Any) -> str:
        return content_security_policy(settings_with(**overrides))

    assert "connect-src 'self';" in policy()
    assert "media-src 'self' blob:;" in policy()
    assert "connect-src 'self' https://voice.example;" in policy(public_base_url="https://voice.example/base")
    named = StorageSettings(kind="s3", endpoint="https://store.example:9000")
    assert "connect-src 'self' https://store.example:9000 https://*.store.example:9000;" in policy(storage=named)
    address = StorageSettings(kind="s3", endpoint="http://127.0.0.1:9000")
    assert "connect-src 'self' http://127.0.0.1:9000;" in policy(storage=address)
    assert "connect-src 'self' https://*.amazonaws.com;" in policy(storage=StorageSettings(kind="s3"))


async def test_only_dev_hands_out_a_token_and_only_to_its_own_page() -> None:
    async with served(settings_with()) as http:
        assert (await http.get("/static/session.json")).json() == {"token": None}
    settings = settings_with()
    async with served(settings, session_route(settings, uuid4())) as http:
        for host in ("localhost:8000", "127.0.0.1:8000", "192.168.1.7:8000", "[::1]:8000"):
            response = await http.get("/static/session.json", headers={"Host": host})
            assert response.json()["token"], host
            assert response.headers["cache-control"] == "no-store"
        for host in ("rebound.example:8000", "127.0.0.1.example", ""):
            assert (await http.get("/static/session.json", headers={"Host": host})).json() == {"token": None}, host


def test_the_page_needs_nothing_but_its_own_files() -> None:
    """No inline script or style, no address on another host, and every file that is named exists."""
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=", page)
    names: set[str] = set()
    for path in FOLDER.iterdir():
        text = path.read_text()
        if path.suffix != ".svg":
            foreign = set(re.findall(r"https?://[\w.]+", text)) - {"https://voice.example", "http://www.w3.org"}
            assert not foreign, path.name
        names |= set(re.findall(r"""["(]/?static/([\w.-]+)""", text))
        names |= set(re.findall(r"""from "\./([\w.-]+)";""", text))
    assert names <= {path.name for path in FOLDER.iterdir()}
    assert {"page.js", "utter.js", "page.css"} <= names


def test_an_installed_server_has_its_page() -> None:
    """What is not Python is only installed where the project says so."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "page/*" in project["tool"]["setuptools"]["package-data"]["server"]
    assert json.loads((FOLDER / "session.json").read_text()) == {"token": None}
