"""``hosts.toml`` as containerd has it, proxies, and what is made of a host's answers."""

import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.deadlines import INFINITE, deadlines
from registry.errors import ConfigurationError, RegistryError
from registry.health import (
    DISTRUST_S,
    FAILURES_TO_TELL,
    HEDGES_PER_REQUEST,
    LONGEST_SKIP_S,
    SHORTEST_HEDGE_S,
    UNKNOWN_HEDGE_S,
    HostHealth,
    Rank,
)
from registry.hosts import (
    Capability,
    HostConfig,
    certificate_files,
    default_host,
    folder_names,
    parse_hosts_file,
)
from registry.proxies import proxy_for
from registry.retry import (
    BUDGET_TOKENS,
    BUDGET_TOKENS_PER_S,
    RetryBudget,
    RetryPolicy,
    TokenBucket,
    ask_again,
)

HUB = "registry-1.docker.io"


def parse(text: str, endpoint: str = HUB) -> tuple[HostConfig, ...]:
    return parse_hosts_file(text.encode(), "/etc/certs.d/docker.io", endpoint)


# The file


def test_the_example_of_containerds_documentation():
    mirrors = parse("""
        server = "https://registry-1.docker.io"    # Exclude this to not use upstream

        [host."https://public-mirror.example.com"]
          capabilities = ["pull"]
        [host."https://docker-mirror.internal"]
          capabilities = ["pull", "resolve"]
          ca = "docker-mirror.crt"
    """)
    assert mirrors == (
        HostConfig("public-mirror.example.com", "https", capabilities=frozenset({Capability.PULL})),
        HostConfig(
            "docker-mirror.internal",
            "https",
            capabilities=frozenset({Capability.PULL, Capability.RESOLVE}),
            ca=("/etc/certs.d/docker.io/docker-mirror.crt",),
        ),
        HostConfig(HUB, "https"),
    )


def test_every_field():
    first, last = parse("""
        skip_verify = true
        dial_timeout = "1m30s"
        ca = ["/a.pem", "b.pem"]
        [header]
          x-own = "of the registry"
        [host."http://Mirror.Internal:5000/prefix/"]
          capabilities = ["Pull", "PUSH", "referrers"]
          client = [["c.cert", "c.key"], ["/d.pem", ""], "e.pem"]
          dial_timeout = "300ms"
          override_path = true
          [host."http://Mirror.Internal:5000/prefix/".header]
            x-one = "1"
            x-two = ["2", "3"]
    """)
    assert first == HostConfig(
        host="mirror.internal:5000",
        scheme="http",
        path="/prefix",
        capabilities=frozenset({Capability.PULL, Capability.PUSH, Capability.REFERRERS}),
        client=(
            ("/etc/certs.d/docker.io/c.cert", "/etc/certs.d/docker.io/c.key"),
            ("/d.pem", ""),
            ("/etc/certs.d/docker.io/e.pem", ""),
        ),
        headers=(("x-one", "1"), ("x-two", "2"), ("x-two", "3")),
        dial_timeout_s=0.3,
    )
    assert last == HostConfig(
        host=HUB,
        ca=("/a.pem", "/etc/certs.d/docker.io/b.pem"),
        skip_verify=True,
        headers=(("x-own", "of the registry"),),
        dial_timeout_s=90.0,
    )
    assert "of the registry" not in repr(last)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.b", ("https", "a.b", "/v2")),
        ("https://a.b/", ("https", "a.b", "/v2")),
        ("https://a.b/v2", ("https", "a.b", "/v2")),
        ("https://a.b/v2/", ("https", "a.b", "/v2")),
        ("https://a.b/us", ("https", "a.b", "/us/v2")),
        ("https://a.b//us/./v2", ("https", "a.b", "/us/v2")),
        ("a.b:5000", ("https", "a.b:5000", "/v2")),
        ("http://[::1]:5000", ("http", "[::1]:5000", "/v2")),
        ("https://docker.io", ("https", "registry-1.docker.io", "/v2")),
    ],
)
def test_urls_of_hosts(url, expected):
    for text in (f'server = "{url}"', f'[host."{url}"]'):
        host = parse(text)[0]
        assert (host.scheme, host.host, host.path) == expected


def test_the_path_of_a_host_is_taken_as_it_is_if_asked_for():
    for url, path in (("a.b", ""), ("https://a.b/us/", "/us"), ("https://a.b/us/v2", "/us/v2")):
        assert parse(f'server = "{url}"\noverride_path = true')[0].path == path


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "host = 3",
        "server = 3",
        '[host]\n"https://a" = 3',
        'server = "https://"',
        'server = "https://user:pw@a"',
        'server = "https://a:0"',
        'server = "https://a:99999"',
        'server = "https://a?b=c"',
        'server = "https://a/../b"',
        'server = "https://a b"',
        'server = "ftp://a"',
        'capabilities = ["delete"]',
        "capabilities = [3]",
        "ca = 3",
        "client = 3",
        'client = [["a"]]',
        'client = [["a", "b", "c"]]',
        'client = [["", "b"]]',
        "client = [[1, 2]]",
        'skip_verify = "yes"',
        "override_path = 1",
        'dial_timeout = "soon"',
        'dial_timeout = "-1s"',
        'dial_timeout = "0s"',
        'dial_timeout = "1s2"',
        'dial_timeout = "99999h"',
        "dial_timeout = 3",
        'header = "x"',
        '[header]\n"a b" = "c"',
        '[header]\na = "b\\r\\nc: d"',
        "[header]\na = 3",
        '[header]\nHost = "b"',
        '[header]\nrange = "bytes=0-1"',
        "\n".join(f'[host."https://h{n}"]' for n in range(65)),
    ],
)
def test_files_that_cannot_be_used(text):
    with pytest.raises(ConfigurationError, match=r"hosts\.toml") as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["server", "capabilities", "ca", "client", "header", "skip_verify", "dial_timeout"]
        ),
        _VALUES,
    )
)
def test_odd_values_raise_nothing_else(table):
    def write(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        if isinstance(value, list):
            return "[" + ", ".join(map(write, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{write(k)} = {write(v)}" for k, v in value.items()) + "}"
        return repr(value)

    text = "\n".join(f"{key} = {write(value)}" for key, value in table.items())
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    with contextlib.suppress(RegistryError):
        parse(text)


def test_names_of_folders():
    assert folder_names("example.com") == ("example.com",)
    assert folder_names("example.com:5000") == ("example.com_5000_", "example.com:5000")


def test_certificates_as_docker_has_them():
    names = ("b.cert", "ca.crt", "a.cert", "a.key", "x.key")
    host = certificate_files(names, "/d", "example.com")
    assert host.ca == ("/d/ca.crt",)
    assert host.client == (("/d/a.cert", "/d/a.key"), ("/d/b.cert", ""))
    assert default_host("example.com").capabilities == frozenset(Capability)


# Proxies


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("*", True),
        ("example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("a.example.com", True),
        ("b.example.com", False),
        ("le.com", False),
        ("other, example.com ,", True),
        ("example.com:443", True),
        ("example.com:80", False),
        ("EXAMPLE.COM", True),
        ("10.0.0.0/8", False),
    ],
)
def test_no_proxy(no_proxy, direct):
    environment = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": no_proxy}
    found = proxy_for("https", "a.example.com", None, environment)
    assert (found is None) is direct


def test_proxies():
    environment = {"HTTP_PROXY": "p:1", "https_proxy": "http://q:2", "HTTPS_PROXY": "http://r:3"}
    assert proxy_for("http", "a", None, environment) == "http://p:1"
    assert proxy_for("https", "a", None, environment) == "http://q:2"
    assert proxy_for("https", "a", None, {"ALL_PROXY": "http://s:4"}) == "http://s:4"
    assert proxy_for("https", "a", None, {}) is None
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "x.localhost"):
        assert proxy_for("http", host, 5000, environment) is None
    networks = {"HTTP_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8,fd00::/8,192.0.2.7"}
    for host, direct in (("10.1.2.3", True), ("11.1.2.3", False), ("fd00::1", True)):
        assert (proxy_for("http", host, None, networks) is None) is direct
    assert proxy_for("http", "192.0.2.7", None, networks) is None


# Time


def test_no_step_takes_all_of_the_time():
    limits = deadlines(30)
    assert limits.total_s == 30
    assert max(limits.connect_s, limits.first_byte_s, limits.stall_s) <= 15
    assert deadlines(30, 0.5).connect_s == 0.5
    assert deadlines(3, 100).connect_s == 3
    patient = deadlines(0)
    assert patient.total_s == INFINITE
    assert patient.stall_s < INFINITE  # a dead connection is noticed all the same


def test_delays_stop_growing():
    policy = RetryPolicy(1e9, attempts=None)
    assert policy.delay_s(1, 0, None, 1.0) == pytest.approx(0.2)
    assert policy.delay_s(10_000, 0, None, 1.0) == pytest.approx(policy.longest_delay_s)


def test_token_bucket():
    bucket = TokenBucket(2, 0.5)
    assert [bucket.take(0), bucket.take(0)] == [0, 0]
    assert bucket.take(0) == pytest.approx(2)
    assert bucket.take(1) == pytest.approx(1)
    assert bucket.take(2) == 0
    assert bucket.take(1) == pytest.approx(2)  # a clock that went back gives nothing away
    bucket.add(100)
    assert [bucket.take(2), bucket.take(2)] == [0, 0]
    assert TokenBucket(1, 0, first=0).take(1e9) == INFINITE


def test_a_host_that_is_gone_gets_a_few_more_requests_a_second():
    budget = RetryBudget(0)
    taken = sum(not budget.take(now / 100) for now in range(6000))
    assert taken == pytest.approx(BUDGET_TOKENS + 60 * BUDGET_TOKENS_PER_S, abs=3)


def test_a_host_that_fails_now_and_then_is_asked_again_freely():
    budget = RetryBudget(0)
    for _ in range(1000):
        budget.add_success()
        assert not budget.take(0)


def test_who_is_asked_again():
    assert ask_again(["a"])
    assert not ask_again(["a", "a"])
    assert ask_again(["a", "b"])
    assert not ask_again(["a", "b", "a"])
    assert not ask_again(["a", "b", "c", "d"])


# Health


def test_a_host_that_fails_is_skipped_for_ever_longer():
    health = HostHealth()
    now, skipped = 0.0, []
    for count in range(1, 12):
        assert health.failed(now, "503") is (count == FAILURES_TO_TELL)
        start = now
        while health.rank(now) is Rank.FAILING:
            now += 0.5
        skipped.append(now - start)
    assert skipped[:4] == [1, 2, 4, 8]
    assert skipped[-1] == LONGEST_SKIP_S
    assert health.status("h", "mirror", now).state == "failing"
    # One request finds out whether it works again, the others keep away meanwhile.
    health.chosen(now)
    assert health.rank(now) is Rank.FAILING
    assert health.succeeded()
    assert not health.succeeded()
    assert health.rank(now) is Rank.USABLE
    assert health.status("h", "mirror", now).state == "ok"


def test_a_host_that_asks_to_be_left_alone_is_left_alone():
    health = HostHealth()
    health.failed(0, "429", 30)
    assert health.rank(29) is Rank.FAILING
    assert health.rank(30) is Rank.USABLE
    health.failed(30, "429", 1e9)
    assert health.rank(30 + LONGEST_SKIP_S) is Rank.USABLE


def test_a_host_that_lied_is_asked_last_for_a_bounded_time():
    health = HostHealth()
    assert health.lied(5.0, "wrong bytes")
    assert not health.lied(6.0, "wrong bytes")
    assert health.succeeded() is False
    assert health.rank(6.0 + DISTRUST_S - 1) is Rank.DISTRUSTED
    status = health.status("h", "mirror", 6.0)
    assert (status.state, status.wrong_answers, status.for_s) == ("distrusted", 2, DISTRUST_S)
    assert status.last_problem == "wrong bytes"
    assert health.rank(6.0 + DISTRUST_S) is Rank.USABLE


def test_when_a_second_request_is_sent_is_learnt():
    health = HostHealth()
    assert health.hedge_after_s(100) == UNKNOWN_HEDGE_S
    assert health.hedge_after_s(1) == 1
    for _ in range(200):
        health.chosen(0)
        health.first_byte(0.1)
    assert health.hedge_after_s(100) == pytest.approx(0.2)
    for _ in range(200):
        health.chosen(0)
        health.first_byte(0.001)
    assert health.hedge_after_s(100) == SHORTEST_HEDGE_S


def test_second_requests_are_a_bounded_share():
    health = HostHealth()
    sent = 0
    for _ in range(1000):
        health.chosen(0)
        if health.hedge_after_s(1) is not None:
            health.hedged(0)
            sent += 1
    assert sent <= 1000 * HEDGES_PER_REQUEST + 3
    assert health.status("h", "mirror", 0).hedges == sent
