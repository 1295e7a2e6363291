"""Pages over TLS: the certificate is checked against the name, though the connection goes to an address."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from v32.tools import ToolError
from v32.tools.web import Fetcher, FetchPolicy

pytestmark = pytest.mark.anyio

LOCAL = FetchPolicy(allowed_networks=("127.0.0.0/8",), seconds=5.0)


class Authority:
    """A certificate authority of our own, and the certificates it signs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-keyout", str(self._key), "-out", str(self.certificate),
        )  # fmt: skip

    def sign(self, name: str, days: int = 2) -> Path:
        """Certificate and key for a name, in one file."""
        key, request, signed = (self._folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        _openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key), "-days",
            str(days), "-copy_extensions", "copy", "-out", str(signed),
        )  # fmt: skip
        signed.write_text(signed.read_text() + key.read_text())
        return signed


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("makes its certificates with the program openssl, which is not installed")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"<p>{self.headers['Host']} {self.path}</p>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    """A server that shows the certificate of `site.test`, whatever name is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.sign("site.test"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


async def here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


async def test_a_page_over_tls_is_asked_for_by_name_and_fetched_from_the_checked_address(
    authority: Authority, port: int
) -> None:
    trusting = Fetcher(LOCAL, resolve=here, tls=ssl.create_default_context(cafile=authority.certificate))
    fetched = await trusting.fetch(f"https://site.test:{port}/a?b=1")
    assert fetched.body == f"<p>site.test:{port} /a?b=1</p>".encode()


async def test_a_certificate_for_another_name_is_refused(authority: Authority, port: int) -> None:
    trusting = Fetcher(LOCAL, resolve=here, tls=ssl.create_default_context(cafile=authority.certificate))
    with pytest.raises(ToolError, match=r"(?i)certificate.*other\.test"):
        await trusting.fetch(f"https://other.test:{port}/")
    with pytest.raises(ToolError, match=r"(?i)certificate"):
        await trusting.fetch(f"https://127.0.0.1:{port}/")


async def test_an_authority_that_nobody_trusts_is_refused(port: int) -> None:
    with pytest.raises(ToolError, match=r"(?i)certificate verify failed"):
        await Fetcher(LOCAL, resolve=here).fetch(f"https://site.test:{port}/")


async def test_a_server_without_tls_is_told(site: object) -> None:
    with pytest.raises(ToolError, match=r"cannot be (reached|fetched)"):
        await Fetcher(LOCAL, resolve=here).fetch(f"https://site.test:{site.port}/")  # type: ignore[attr-defined]
