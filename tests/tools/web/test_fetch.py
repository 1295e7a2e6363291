from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from v32.tools import ToolError
from v32.tools.web import Cassette, Fetcher, FetchPolicy

pytestmark = pytest.mark.anyio

LOCAL = FetchPolicy(allowed_networks=("127.0.0.0/8",), seconds=5.0)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[fe80::1]", "[fd00::1]",
        "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::]", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(ToolError, match=r"is not a public address|no such host"):
        await Fetcher().fetch(f"http://{host}/latest/meta-data")


# The special-purpose registries of IANA, what is multicast, and what was site-local: first and last address count.
SPECIAL = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128", "::/96", "::ffff:0:0:0/96",
    "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:2::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip


@pytest.mark.parametrize("network", SPECIAL)
def test_no_special_purpose_network_is_public(network: str) -> None:
    net = ipaddress.ip_network(network)
    for address in (net[0], net[net.num_addresses // 2], net[-1]):
        assert not FetchPolicy().allows(address), address
        if address.version == 4:
            assert not FetchPolicy().allows(ipaddress.ip_address(f"::ffff:{address}")), address


@pytest.mark.parametrize(
    "address",
    [
        "1.0.0.0", "8.8.8.8", "9.255.255.255", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
        "191.255.255.255", "192.0.1.0", "192.167.255.255", "223.255.255.255", "::ffff:8.8.8.8", "2001:200::",
        "2606:4700:4700::1111", "2a00:1450:4001::200e", "2001:4860:4860::8888",
    ],
)  # fmt: skip
def test_public_addresses_are_allowed(address: str) -> None:
    assert FetchPolicy().allows(ipaddress.ip_address(address))


async def test_a_name_with_one_private_address_is_refused() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.7"]

    with pytest.raises(ToolError, match=r"mixed.test is at 10.0.0.7, which is not a public address"):
        await Fetcher(resolve=resolve).fetch("http://mixed.test/")


async def test_the_connection_goes_to_the_checked_address(site: Any) -> None:
    """The name cannot be resolved by the system, and its second answer would be refused: it is asked once."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])

    async def resolve(host: str, port: int) -> list[str]:
        assert host == "rebind.test"
        return next(answers)

    site.page("/", "<p>hello</p>")
    fetched = await Fetcher(LOCAL, resolve=resolve).fetch(f"http://rebind.test:{site.port}/")
    assert fetched.body == b"<p>hello</p>"
    assert site.requests[0].headers["host"] == f"rebind.test:{site.port}"


async def test_where_the_first_address_refuses_the_second_is_asked(site: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.9.9.9", "127.9.9.9", "127.0.0.1"]

    site.page("/", "there")
    fetched = await Fetcher(LOCAL, resolve=resolve).fetch(f"http://many.test:{site.port}/")
    assert (fetched.body, len(site.requests)) == (b"there", 1)


async def test_where_the_first_address_is_silent_the_second_is_asked(site: Any) -> None:
    """A listener whose queue is full answers no connection attempt."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.2", site.port))
        silent.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.2", site.port))

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]

        site.page("/", "there")
        policy = FetchPolicy(allowed_networks=("127.0.0.0/8",), seconds=2.0)
        assert (await Fetcher(policy, resolve=resolve).fetch(f"http://many.test:{site.port}/")).body == b"there"


async def test_every_redirect_is_checked(site: Any) -> None:
    site.page("/meta", "", 302, Location="http://169.254.169.254/latest/meta-data/iam")
    site.page("/file", "", 302, Location="file:///etc/passwd")
    site.page("/ok", "", 301, Location="/target?q=1")
    site.page("/target", "there")
    site.page("/loop", "", 307, Location="/loop")
    site.page("/odd", "", 302, Location="http://[")
    with pytest.raises(ToolError, match=r"169\.254\.169\.254, which is not a public address"):
        await Fetcher(LOCAL).fetch(f"{site.url}/meta")
    with pytest.raises(ToolError, match="is no http or https address"):
        await Fetcher(LOCAL).fetch(f"{site.url}/file")
    with pytest.raises(ToolError, match=r"redirects to 'http://\[', which is no web address"):
        await Fetcher(LOCAL).fetch(f"{site.url}/odd")
    with pytest.raises(ToolError, match="redirects more than 5 times"):
        await Fetcher(LOCAL).fetch(f"{site.url}/loop")
    fetched = await Fetcher(LOCAL).fetch(f"{site.url}/ok")
    assert (fetched.url, fetched.body) == (f"{site.url}/target?q=1", b"there")


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "http://", "http://user:pw@example.com/",
        "http://exa mple.com/", "http://example.com:99999/", "http://[::1", "http://\u0000/", "gopher://127.0.0.1:70/",
        "http://" + "a" * 300 + ".com/", "http://xn--\ud800/",
    ],
)  # fmt: skip
async def test_odd_addresses_are_refused_in_words(url: str) -> None:
    with pytest.raises(ToolError):
        await Fetcher(FetchPolicy(seconds=5.0)).fetch(url)


async def test_port_0_is_not_taken_for_the_usual_one() -> None:
    with pytest.raises(ToolError, match="is no plain web address"):
        await Fetcher(LOCAL).fetch("http://127.0.0.1:0/")


async def test_names_in_any_script_are_asked_for_in_their_ascii_form(site: Any) -> None:
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    site.page("/", "there")
    port = site.url.rpartition(":")[2]
    fetched = await Fetcher(LOCAL, resolve=resolve).fetch(f"http://Bücher.example:{port}/")
    assert (fetched.body, asked) == (b"there", ["xn--bcher-kva.example"])


@pytest.mark.slow
async def test_sizes_are_limited_after_unpacking(site: Any) -> None:
    policy = FetchPolicy(allowed_networks=("127.0.0.0/8",), max_bytes=1000)
    site.page("/long", "x" * 5000)
    site.page("/bomb", gzip.compress(b"x" * 5_000_000), Content_Encoding="gzip")
    site.page("/small", gzip.compress(b"small"), Content_Encoding="gzip")
    site.page("/odd", b"x", Content_Encoding="br")
    site.page("/damaged", b"nonsense", Content_Encoding="gzip")
    for path in ("/long", "/bomb"):
        fetched = await Fetcher(policy).fetch(site.url + path)
        assert (fetched.body, fetched.truncated) == (b"x" * 1000, True)
    assert (await Fetcher(policy).fetch(f"{site.url}/small")).body == b"small"
    with pytest.raises(ToolError, match="packed as 'br'"):
        await Fetcher(policy).fetch(f"{site.url}/odd")
    with pytest.raises(ToolError, match="is damaged"):
        await Fetcher(policy).fetch(f"{site.url}/damaged")


@pytest.mark.parametrize(
    ("packed", "after"),
    [
        pytest.param(100 << 20, 0, marks=pytest.mark.slow, id="unpacks to much"),
        pytest.param(5, 48 << 20, id="goes on after its end"),
    ],
)
async def test_what_is_packed_takes_no_more_memory_than_the_limit(site: Any, packed: int, after: int) -> None:
    site.page("/bomb", gzip.compress(bytes(packed)) + bytes(after), Content_Encoding="gzip")
    fetcher = Fetcher(FetchPolicy(allowed_networks=("127.0.0.0/8",), max_bytes=1 << 20))
    await fetcher.fetch(f"{site.url}/bomb")  # what is loaded for the first fetch does not count
    tracemalloc.start()
    try:
        fetched = await fetcher.fetch(f"{site.url}/bomb")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert fetched.body == bytes(min(packed, 1 << 20))


async def test_time_is_limited(site: Any) -> None:
    def slow(_: Any) -> Any:
        time.sleep(1.5)
        raise ConnectionError

    site.answers["/slow"] = slow
    policy = FetchPolicy(allowed_networks=("127.0.0.0/8",), seconds=0.3)
    start = time.perf_counter()
    with pytest.raises(ToolError, match=r"did not answer within 0.3 s|cannot be fetched"):
        await Fetcher(policy).fetch(f"{site.url}/slow")
    assert time.perf_counter() - start < 1.4


async def test_only_readable_types_and_good_answers(site: Any) -> None:
    site.page("/zip", b"PK", Content_Type="application/zip")
    site.page("/gone", b"", 410)
    with pytest.raises(ToolError, match="is application/zip; only text, HTML, JSON and PDF can be opened"):
        await Fetcher(LOCAL).fetch(f"{site.url}/zip")
    with pytest.raises(ToolError, match="answered 410 Gone"):
        await Fetcher(LOCAL).fetch(f"{site.url}/gone")
    with pytest.raises(ToolError, match="cannot be reached"):
        await Fetcher(LOCAL).fetch("http://127.0.0.1:1/")


async def test_a_recording_repeats_an_evaluation(site: Any, tmp_path: Path) -> None:
    site.page("/", b"\xff\x00 bytes")
    url = f"{site.url}/"
    first = await Fetcher(LOCAL, cassette=Cassette(tmp_path, "record")).fetch(url)
    site.page("/", "changed")
    assert await Fetcher(LOCAL, cassette=Cassette(tmp_path, "replay")).fetch(url) == first
    assert await Fetcher(LOCAL, cassette=Cassette(tmp_path, "cache")).fetch(url) == first
    assert len(site.requests) == 1
    with pytest.raises(ToolError, match="is not in the recording"):
        await Fetcher(LOCAL, cassette=Cassette(tmp_path, "replay")).fetch(f"{site.url}/other")
    for file in tmp_path.iterdir():
        file.write_text("{damaged")
    assert (await Fetcher(LOCAL, cassette=Cassette(tmp_path, "cache")).fetch(url)).body == b"changed"


async def test_recorded_failures_fail_again(site: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="answered 404"):
        await Fetcher(LOCAL, cassette=Cassette(tmp_path, "record")).fetch(f"{site.url}/absent")
    with pytest.raises(ToolError, match="answered 404"):
        await Fetcher(LOCAL, cassette=Cassette(tmp_path, "replay")).fetch(f"{site.url}/absent")
    assert len(site.requests) == 1
