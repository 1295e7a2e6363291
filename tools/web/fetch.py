"""URL in, bytes out, and nothing else reached: http(s) only, public addresses only, all of it within limits.

Every hop of a redirect is checked as the first one was. The name is resolved here, every address it has is checked,
and the connection goes to the checked address itself, so that a name which answers differently the second time (DNS
rebinding) gains nothing. The certificate is still checked against the name.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import anyio
import httpx
import idna

from v32.tools.tool import ToolError
from v32.tools.web.cassette import Cassette

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

# Of IPv6 only this part is given out to anybody; of it and of IPv4, what IANA's special-purpose registries hold is not
# the public's. A table of our own, because that of `ipaddress` changes with the version of Python.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(ipaddress.ip_network(network) for network in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/3",  # multicast, reserved, broadcast
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",  # protocols and Teredo, documentation, 6to4, documentation
))  # fmt: skip
MAX_ADDRESSES = 4
"""Of one name, tried in turn."""
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Limits of fetching, chosen by the operator."""

    max_bytes: int = 8 << 20
    max_redirects: int = 5
    seconds: float = 20.0
    reading_bytes: int = 512 << 20
    """Memory that reading a page may take: a few bytes of a PDF can unpack to any number."""
    content_types: tuple[str, ...] = (
        "text/", "application/xhtml+xml", "application/xml", "application/json", "application/pdf",
    )  # fmt: skip
    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, such as `10.1.0.0/16`."""
    user_agent: str = "v32 (agent; https://pypi.org/project/v32)"

    def allows(self, address: Address) -> bool:
        """Public, or allowed by name. Private, loopback, link-local (metadata services), multicast: not public."""
        plain = getattr(address, "ipv4_mapped", None) or address
        if any(plain in ipaddress.ip_network(net) for net in self.allowed_networks):
            return True
        is_given_out = plain.version == 4 or plain in _GIVEN_OUT
        return is_given_out and not any(plain in network for network in _SPECIAL)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came back: the last URL, its status, its type without parameters, its bytes."""

    url: str
    status: int
    content_type: str
    charset: str | None
    body: bytes
    truncated: bool = False


class Fetcher:
    """Fetches pages; what goes wrong is a `ToolError` for the model.

    `resolve` finds the addresses of a name; `tls` says whom to trust (default: the authorities that httpx brings).
    """

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        cassette: Cassette | None = None,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy or FetchPolicy()
        self.cassette = cassette or Cassette()
        self._addresses = resolve or _system_addresses
        self._tls = tls

    async def fetch(self, url: str) -> Fetched:
        answer = await self.cassette.answer(f"GET {url}", lambda: self._answer(url))
        return Fetched(**{**answer, "body": base64.b64decode(answer["body"])})

    async def _answer(self, url: str) -> dict[str, Any]:
        with anyio.move_on_after(self.policy.seconds):
            fetched = await self._follow(url)
            body = base64.b64encode(fetched.body).decode()
            return {name: getattr(fetched, name) for name in Fetched.__slots__} | {"body": body}
        raise ToolError(f"{url[:200]} did not answer within {self.policy.seconds:g} s")

    async def _follow(self, url: str) -> Fetched:
        first = url
        for _ in range(self.policy.max_redirects + 1):
            fetched, location = await self._get(url)
            if location is None:
                return fetched
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise ToolError(f"{url[:200]} redirects to {location[:200]!r}, which is no web address") from error
        raise ToolError(f"{first[:200]} redirects more than {self.policy.max_redirects} times")

    async def _get(self, url: str) -> tuple[Fetched, str | None]:
        """One request; the second part is where it redirects to."""
        scheme, host, port, target = _taken_apart(url)
        addresses = await self._resolve(host, port)
        headers = {"Host": _netloc(host, port, scheme), "User-Agent": self.policy.user_agent, "Accept-Encoding": "gzip"}
        self._tls = self._tls or httpx.create_ssl_context(trust_env=False)  # takes longer than most fetches
        timeout = httpx.Timeout(self.policy.seconds, connect=self.policy.seconds / len(addresses))
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout) as client:
            for last, address in ((address is addresses[-1], address) for address in addresses):
                request = client.build_request(
                    "GET",
                    f"{scheme}://{_netloc(str(address), port, scheme)}{target}",
                    headers=headers,
                    extensions={"sni_hostname": host},
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    if last:
                        reason = str(error) or "no answer"
                        raise ToolError(f"{url[:200]} cannot be reached: {reason}") from error
                    continue
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise ToolError(f"{url[:200]} cannot be fetched: {error or type(error).__name__}") from error
                try:
                    return await self._receive(url, response)
                except httpx.HTTPError as error:
                    raise ToolError(f"{url[:200]} broke off: {error or type(error).__name__}") from error
                finally:
                    await response.aclose()
        raise AssertionError("a name has at least one address")

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            addresses = [ipaddress.ip_address(address) for address in await self._addresses(host, port)]
        except (OSError, UnicodeError) as error:
            raise ToolError(f"no such host: {host[:200]!r}") from error
        if not addresses:
            raise ToolError(f"no such host: {host[:200]!r}")
        for address in addresses:
            if not self.policy.allows(address):
                raise ToolError(f"{host[:200]} is at {address}, which is not a public address; it may not be opened")
        return list(dict.fromkeys(addresses))[:MAX_ADDRESSES]

    async def _receive(self, url: str, response: httpx.Response) -> tuple[Fetched, str | None]:
        location = response.headers.get("location")
        kind, _, parameters = response.headers.get("content-type", "text/plain").partition(";")
        kind = kind.strip().lower()
        charset = parameters.partition("charset=")[2].split(";")[0].strip(" \"'") or None
        if response.status_code in _REDIRECTS and location:
            return Fetched(url, response.status_code, kind, charset, b""), location
        if response.status_code >= 400:
            raise ToolError(f"{url[:200]} answered {response.status_code} {response.reason_phrase}".rstrip())
        if not any(kind.startswith(allowed) for allowed in self.policy.content_types):
            raise ToolError(f"{url[:200]} is {kind or 'of unknown type'}; only text, HTML, JSON and PDF can be opened")
        body, truncated = await self._body(url, response)
        return Fetched(url, response.status_code, kind, charset, body, truncated), None

    async def _body(self, url: str, response: httpx.Response) -> tuple[bytes, bool]:
        """At most `max_bytes`, counted after unpacking."""
        body = bytearray()
        async for piece in _unpacked(url, response, self.policy.max_bytes + 1):
            body += piece
            if len(body) > self.policy.max_bytes:
                return bytes(body[: self.policy.max_bytes]), True
        return bytes(body), False


async def _system_addresses(host: str, port: int) -> list[str]:
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]).split("%")[0] for info in found]


async def _unpacked(url: str, response: httpx.Response, at_most: int) -> AsyncIterator[bytes]:
    """The body without its encoding; a piece never unpacks to more than `at_most`."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise ToolError(f"{url[:200]} is packed as {encoding[:40]!r}, which was not asked for")
    unpacker = zlib.decompressobj(47) if encoding not in ("identity", "") else None
    async for piece in response.aiter_raw(64 << 10):
        try:
            yield piece if unpacker is None else unpacker.decompress(piece, at_most)
        except zlib.error as error:
            raise ToolError(f"{url[:200]} is damaged: {error}") from error
        if unpacker is not None and unpacker.eof:
            return  # what follows would be kept, without a limit


def _taken_apart(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port, and what is asked for. Raises `ToolError` for anything but a plain http(s) address."""
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname or ""
        host = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except ValueError as error:
        raise ToolError(f"{url[:200]!r} is no web address: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise ToolError(f"{url[:200]!r} is no http or https address")
    if not host or port == 0 or parts.username is not None or any(ord(char) <= 32 for char in parts.netloc):
        raise ToolError(f"{url[:200]!r} is no plain web address; write https://host/path")
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return scheme, host, port or (443 if scheme == "https" else 80), target


def _netloc(host: str, port: int, scheme: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"
