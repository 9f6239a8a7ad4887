"""Signed links to objects that this server keeps itself: ``/api/storage/<bucket>/<key>?expires=…&signature=…``.

A link is a capability: whoever holds it may do the one thing it names until it expires. The signature covers the
method, the bucket, the key, the expiry and the file name, so none of them can be exchanged.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from server.errors import Unauthorized
from server.storage import Bucket

PREFIX = "/api/storage"


class LinkSigner:
    """Makes and checks links. Its key is derived for this one use."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def path(
        self,
        method: str,
        bucket: Bucket,
        key: str,
        *,
        expires_seconds: int,
        filename: str | None = None,
        size: int | None = None,
    ) -> str:
        """The path and query of a link. ``GET`` covers HEAD.

        Args:
            size: The only size in bytes that may be PUT; None for any.
        """
        expires, told = str(int(time.time()) + expires_seconds), None if size is None else str(size)
        query = {"expires": expires, "signature": self._signature(method, bucket, key, expires, filename, told)}
        if told is not None:
            query["size"] = told
        if filename is not None:
            query["filename"] = filename
        return f"{PREFIX}/{bucket.value}/{quote(key)}?{urlencode(query)}"

    def check(self, method: str, bucket: Bucket, key: str, query: Mapping[str, str]) -> None:
        """Let pass what `path` made for this method, bucket and key.

        Raises:
            Unauthorized: With status 403, if the link was altered, was never ours, or has expired.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        expected = self._signature(method, bucket, key, expires, query.get("filename"), query.get("size"))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise Unauthorized("This link is not valid.", status=403)
        if not re.fullmatch(r"[0-9]{1,15}", expires) or int(expires) < time.time():
            raise Unauthorized("This link has expired.", status=403)

    def _signature(
        self, method: str, bucket: Bucket, key: str, expires: str, filename: str | None, size: str | None
    ) -> str:
        # JSON keeps the parts apart: no part can borrow letters from its neighbour.
        parts = json.dumps([method, bucket.value, key, expires, filename, *([size] if size else [])]).encode()
        digest = hmac.new(self._key, parts, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
