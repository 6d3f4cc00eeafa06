import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidReferenceError
from registry.reference import (
    LocalName,
    Reference,
    Transport,
    is_loopback,
    parse_image_name,
    parse_reference,
)

D = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "canonical", "endpoint"),
    [
        ("busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
        ("docker://busybox:1", "docker.io/library/busybox:1", "registry-1.docker.io"),
        ("a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
        ("ghcr.io/a/b_c/d--e", "ghcr.io/a/b_c/d--e:latest", "ghcr.io"),
        ("localhost/x", "localhost/x:latest", "localhost"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000"),
        ("Reg.Example.COM/x", "reg.example.com/x:latest", "reg.example.com"),
        ("h:80/x:5000", "h:80/x:5000", "h:80"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000"),
        (f"q.io/x@{D}", f"q.io/x@{D}", "q.io"),
        (f"q.io/x:t@{D}", f"q.io/x:t@{D}", "q.io"),
        (f"busybox@{D}", f"docker.io/library/busybox@{D}", "registry-1.docker.io"),
    ],
)
def test_registry_names(text, canonical, endpoint):
    reference = parse_image_name(text)
    assert isinstance(reference, Reference)
    assert str(reference) == canonical
    assert reference.endpoint == endpoint
    assert parse_image_name(canonical) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:dir", LocalName(Transport.OCI, "dir")),
        ("oci:/a b/c:v1", LocalName(Transport.OCI, "/a b/c", "v1")),
        ("oci:d:h.io/x:v1", LocalName(Transport.OCI, "d", "h.io/x:v1")),
        ("oci-archive:f.tar:t", LocalName(Transport.OCI_ARCHIVE, "f.tar", "t")),
        ("docker-archive:f.tar", LocalName(Transport.DOCKER_ARCHIVE, "f.tar")),
        ("docker-archive:f:a/b:1", LocalName(Transport.DOCKER_ARCHIVE, "f", "a/b:1")),
    ],
)
def test_local_names(text, expected):
    assert parse_image_name(text) == expected
    assert str(expected) == text


def test_local_name_with_digest():
    name = parse_image_name(f"oci:dir:tag@{D}")
    assert isinstance(name, LocalName)
    assert (name.path, name.tag, str(name.digest)) == ("dir", "tag", D)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "Upper",
        "HOST/x",
        "a//b",
        "a/b/",
        "x:",
        "x:bad tag",
        "x:" + "t" * 129,
        "x@sha256:12",
        "x@",
        "-x",
        "a..b",
        "h.io:/x",
        "h.io:99999/x",
        "h.io:0/x",
        "user@h.io/x",
        "user:secret@h.io/x",
        "https://h.io/x",
        "h.io/x?y=z",
        "h.io/x#y",
        "h.io/../x",
        "h.io/x\n",
        "[::1/x",
        "[zz]/x.y",
        "[1.2]:5000/x",
        "oci:",
        "oci::tag",
        "oci:d:",
        "oci:d:a b",
        "docker-archive:",
        "x" * 5000,
        "a/" * 200 + "a",
    ],
)
def test_refuses(text):
    with pytest.raises(InvalidReferenceError) as caught:
        parse_image_name(text)
    assert len(str(caught.value)) < 1000


def test_unknown_transports_are_named():
    with pytest.raises(InvalidReferenceError, match="unknown transport 'containers-storage'"):
        parse_image_name("containers-storage://x")


@given(st.text(alphabet=st.sampled_from("abzAZ019._-:/@[]% \n?#é"), max_size=60) | st.text())
def test_any_text_parses_to_itself_or_is_refused(text):
    try:
        name = parse_image_name(text)
    except InvalidReferenceError:
        return
    assert parse_image_name(str(name)) == name
    if isinstance(name, Reference):
        # What goes into a URL can hold nothing that means something there.
        assert not set(f"{name.registry}/{name.repository}") & set("@?#%\\ \n")
        assert ".." not in name.repository


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("x.localhost", True),
        ("127.0.0.1:80", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("[::2]:5000", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("notlocalhost", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("2130706433", False),
        ("example.com", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_reference_needs_no_transport():
    assert str(parse_reference("oci/x")) == "docker.io/oci/x:latest"
