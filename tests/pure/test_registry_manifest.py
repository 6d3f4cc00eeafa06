import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import manifest as m
from registry.digest import Digest
from registry.errors import ContentError, InvalidReferenceError, NotFoundError, RegistryError
from registry.manifest import Descriptor, Index, Manifest, Platform, choose_platform, parse_platform
from registry.mediatype import DOCKER_INDEX, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

HEX = "0123456789abcdef" * 4


def descriptor(**changes: object) -> dict[str, object]:
    return {"mediaType": "application/x", "digest": f"sha256:{HEX}", "size": 3} | changes


def document(**changes: object) -> dict[str, object]:
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    return base | {"config": descriptor(), "layers": [descriptor(), descriptor()]} | changes


def raw(value: object) -> bytes:
    return json.dumps(value).encode()


def test_manifest_keeps_everything():
    value = document(
        artifactType="application/y",
        subject=descriptor(size=9),
        annotations={"b": "2", "a": "1"},
        layers=[
            descriptor(
                urls=["https://example.com/x"],
                annotations={"k": "v"},
                data="aGk=",
                artifactType="t",
                platform={
                    "os": "linux",
                    "architecture": "arm",
                    "variant": "v7",
                    "os.version": "1",
                    "os.features": ["erofs"],
                    "features": ["old"],
                },
                future={"x": [1, 2.5, None, True]},
            )
        ],
        newField=[1],
    )
    decoded = m.decode_manifest(raw(value), OCI_MANIFEST)
    assert json.loads(decoded.encode()) == value
    assert decoded.subject is not None
    assert decoded.subject.size_bytes == 9
    assert decoded.layers[0].platform == Platform(
        "linux", "arm", "v7", "1", ("erofs",), {"features": ["old"]}
    )
    assert m.decode_manifest(decoded.encode(), OCI_MANIFEST) == decoded


def test_index_keeps_everything():
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(platform={"architecture": "amd64", "os": "linux"})],
        "annotations": {"a": "1"},
        "z": 1,
    }
    decoded = m.decode_index(raw(value), OCI_INDEX)
    assert json.loads(decoded.encode()) == value


def test_encoding_is_deterministic():
    config = Descriptor(OCI_CONFIG, Digest.of(b"{}"), 2, {"b": "1", "a": "ü"})
    one = Manifest(config, (), annotations={"x": "1", "y": "2"}).encode()
    two = Manifest(config, (), annotations={"y": "2", "x": "1"}).encode()
    assert one == two
    assert one.startswith(b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest')
    assert '"annotations":{"a":"ü","b":"1"}'.encode() in one


def test_docker_types_are_read():
    value = document(mediaType=DOCKER_MANIFEST)
    assert isinstance(m.decode(raw(value), DOCKER_MANIFEST), Manifest)
    index = {"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": []}
    assert isinstance(m.decode(raw(index), DOCKER_INDEX), Index)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "not a JSON object"),
        (document(schemaVersion=1), "schema version"),
        (document(mediaType=OCI_INDEX), "calls itself"),
        (document(manifests=[]), "belongs to another kind"),
        (document(fsLayers=[]), "belongs to another kind"),
        (document(layers={}), "not a list"),
        (document(layers=[descriptor()] * 4097), "limit"),
        (document(layers=["x"]), "not a JSON object"),
        (document(config=None), "not a JSON object"),
        (document(layers=[descriptor(size=-1)]), "not a size"),
        (document(layers=[descriptor(size=True)]), "not a size"),
        (document(layers=[descriptor(size=1.0)]), "not a size"),
        (document(layers=[descriptor(size="1")]), "not a size"),
        (document(layers=[descriptor(size=1 << 63)]), "not a size"),
        (document(layers=[descriptor(digest="sha256:..")]), "not a digest"),
        (document(layers=[descriptor(annotations={"a": 1})]), "something else than strings"),
        (document(layers=[descriptor(urls=["a"] * 65)]), "limit"),
        (document(annotations=[]), "not a JSON object"),
    ],
)
def test_broken_manifests_are_refused(value, why):
    with pytest.raises(ContentError, match=why):
        m.decode_manifest(raw(value), OCI_MANIFEST)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"schemaVersion": 2, "x": NaN}',
        b'{"schemaVersion": 2, "x": 1e999}',
        b'{"schemaVersion": 2, "x": "\\ud800"}',
        b'{"schemaVersion": 2, "x": ' + b"9" * 5000 + b"}",
        b" " * (4 << 20) + b"{}",
    ],
)
def test_broken_json_is_refused(text):
    with pytest.raises(ContentError):
        m.decode(text, OCI_MANIFEST)


def test_an_index_is_no_manifest():
    index = {"schemaVersion": 2, "manifests": []}
    with pytest.raises(ContentError, match="config"):
        m.decode(raw(index | {"config": {}}), OCI_INDEX)
    with pytest.raises(ContentError, match="not an image manifest"):
        m.decode(raw(index), "application/json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [*document(), "manifests", "annotations", "subject", "artifactType", "platform", "x"]
)


@given(st.dictionaries(KEYS, JSON | st.builds(descriptor, size=JSON, platform=JSON, urls=JSON)))
def test_only_own_errors_escape(changes):
    for media_type in (OCI_MANIFEST, OCI_INDEX):
        try:
            decoded = m.decode(raw(document(mediaType=media_type) | changes), media_type)
        except RegistryError:
            continue
        assert m.decode(decoded.encode(), media_type) == decoded


@given(st.binary(max_size=200))
def test_bytes_are_a_manifest_or_refused(data):
    with pytest.raises(RegistryError):
        m.decode(data, OCI_MANIFEST)


def entry(number: int, platform: str | None, *features: str, media_type: str = OCI_MANIFEST):
    named = None
    if platform is not None:
        system, _, rest = platform.partition("/")
        architecture, _, variant = rest.partition("/")
        named = Platform(system, architecture, variant, os_features=features)
    return Descriptor(media_type, Digest("sha256", f"{number:064x}"), 1, platform=named)


X = "linux/amd64"
TABLE = [
    # entries, wanted, wanted features, chosen entry (None: refused)
    ([("linux/arm64",), (X,)], X, (), 1),
    ([("windows/amd64",), ("linux/arm64",)], X, (), None),
    ([(X,), (X,)], X, (), 0),
    # features of the operating system
    ([(X,), (X, "erofs")], X, (), 0),
    ([(X, "erofs"), (X,)], X, (), 1),
    ([(X,), (X, "erofs")], X, ("erofs",), 1),
    ([(X, "erofs"), (X,)], X, ("erofs",), 0),
    ([(X, "erofs")], X, (), 0),
    ([(X,)], X, ("erofs",), 0),
    ([(X, "erofs", "other"), (X, "erofs")], X, ("erofs",), 1),
    ([("linux/arm64", "erofs"), (X,)], X, ("erofs",), 1),
    # variants
    ([("linux/arm64/v8",)], "linux/arm64", (), 0),
    ([("linux/arm64",)], "linux/arm64/v8", (), 0),
    ([("linux/arm64/v9",)], "linux/arm64", (), None),
    ([("linux/arm64/v9",), ("linux/arm64/v8",)], "linux/arm64/v9", (), 0),
    ([("linux/arm64/v8",)], "linux/arm64/v9", (), 0),
    ([("linux/arm64/v8.1",), ("linux/arm64/v8",)], "linux/arm64/v8.2", (), 0),
    ([("linux/arm/v6",), ("linux/arm/v7",)], "linux/arm/v7", (), 1),
    ([("linux/arm/v7",), ("linux/arm/v6",)], "linux/arm/v6", (), 1),
    ([("linux/arm/v5",), ("linux/arm/v6",)], "linux/arm", (), 1),
    ([("linux/amd64/v3",)], X, (), None),
    ([("linux/amd64/v3",), ("linux/amd64/v2",), (X,)], X, (), 2),
    ([(X,), ("linux/amd64/v2",), ("linux/amd64/v3",)], "linux/amd64/v2", (), 1),
    ([("linux/mips64le/hardfloat",)], "linux/mips64le/hardfloat", (), 0),
    ([("linux/mips64le/hardfloat",)], "linux/mips64le", (), None),
    # other spellings
    ([("linux/x86_64",)], X, (), 0),
    ([("linux/aarch64",)], "linux/arm64/v8", (), 0),
    # entries that do not say their platform
    ([(None,)], X, (), 0),
    ([(None,), (X,)], X, (), 1),
    ([(None,), (None,)], X, (), None),
    # attestations
    ([("unknown/unknown",), (X,)], X, (), 1),
    ([("unknown/unknown",)], X, (), None),
]


@pytest.mark.parametrize(("entries", "wanted", "features", "chosen"), TABLE)
def test_platform_choice(entries, wanted, features, chosen):
    index = Index(tuple(entry(n, *words) for n, words in enumerate(entries)))
    asked = parse_platform(wanted)
    asked = Platform(asked.os, asked.architecture, asked.variant, os_features=features)
    if chosen is None:
        with pytest.raises(NotFoundError, match="no image for linux/"):
            choose_platform(index, asked)
    else:
        assert choose_platform(index, asked) == index.manifests[chosen]


def test_choice_passes_over_other_content():
    index = Index((entry(0, X, media_type="application/x"), entry(1, X)))
    assert choose_platform(index, parse_platform(X)) == index.manifests[1]
    with pytest.raises(NotFoundError, match="there is: none"):
        choose_platform(Index(()), parse_platform(X))


def test_os_version_must_match_when_it_is_wanted():
    old = Descriptor(
        OCI_MANIFEST, Digest.of(b"1"), 1, platform=Platform("windows", "amd64", "", "1")
    )
    new = Descriptor(
        OCI_MANIFEST, Digest.of(b"2"), 1, platform=Platform("windows", "amd64", "", "2")
    )
    index = Index((old, new))
    assert choose_platform(index, Platform("windows", "amd64", os_version="2")) == new
    assert choose_platform(index, Platform("windows", "amd64")) == old


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("Linux/AArch64", Platform("linux", "arm64")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
    ],
)
def test_platforms(text, expected):
    assert parse_platform(text) == expected


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/amd64\n"])
def test_broken_platforms(text):
    with pytest.raises(InvalidReferenceError):
        parse_platform(text)


def test_host_platform_is_chosen_by_its_own_name():
    host = m.host_platform()
    assert parse_platform(str(host)) == host


def test_annotations_change_without_loss():
    before = Descriptor(OCI_MANIFEST, Digest.of(b""), 0, {"a": "1", "b": "2"}, extra={"x": 1})
    after = before.annotated({"a": None, "c": "3"})
    assert after.annotations == {"b": "2", "c": "3"}
    assert after.extra == {"x": 1}
    assert before.annotations == {"a": "1", "b": "2"}
