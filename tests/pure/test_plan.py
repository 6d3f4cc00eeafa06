"""What a manifest's layers are good for: read in parts, whole, or not at all, and why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import PlanError
from lazyfs.model import VerifyMode
from lazyfs.plan import MAX_LAYERS, LayerMode, LayerPlan, plan_layers
from lazyfs.seekable.mediatypes import CHUNK_INDEX_LAYER, LayerEncoding
from registry.digest import Digest
from registry.manifest import Descriptor
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer, Verity

IMAGE = b"some bytes" * 1000
SEEKABLE, RAW, ZSTD = build.seekable(IMAGE), build.raw(IMAGE), build.zstd(IMAGE)
SPEC = build.spec_seekable(IMAGE)
ALWAYS, FETCH, OFF = VerifyMode.ALWAYS, VerifyMode.FETCH, VerifyMode.OFF


def descriptor(media_type: str, content: bytes = IMAGE, **annotations: str) -> Descriptor:
    named = {f"org.erofs.{name.replace('__', '.')}": value for name, value in annotations.items()}
    return Descriptor(media_type, Digest.of(content), len(content), named)


def plans(*layers: Descriptor, verify: VerifyMode = ALWAYS) -> tuple[LayerPlan, ...]:
    return plan_layers(layers, verify)


def refusal(*layers: Descriptor) -> str:
    with pytest.raises(PlanError) as caught:
        plans(*layers)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("layer", "verify", "mode", "encoding", "why"),
    [
        (SEEKABLE, ALWAYS, LayerMode.SEEKABLE, LayerEncoding.ZSTD, "seekable: there is a chunk"),
        (SEEKABLE, FETCH, LayerMode.SEEKABLE, LayerEncoding.ZSTD, "seekable"),
        (SEEKABLE, OFF, LayerMode.SEEKABLE, LayerEncoding.ZSTD, "seekable"),
        (SPEC, ALWAYS, LayerMode.SEEKABLE, LayerEncoding.ZSTD, "seekable"),
        (RAW, ALWAYS, LayerMode.WHOLE, LayerEncoding.RAW, "fetched whole: a raw image has no"),
        (RAW, FETCH, LayerMode.WHOLE, LayerEncoding.RAW, "--verify=off would read it lazily"),
        (RAW, OFF, LayerMode.RAW, LayerEncoding.RAW, "without any verification"),
        (ZSTD, ALWAYS, LayerMode.WHOLE, LayerEncoding.ZSTD, "fetched whole: the blob has no chunk"),
        (ZSTD, OFF, LayerMode.WHOLE, LayerEncoding.ZSTD, "fetched whole: the blob has no chunk"),
        (
            build.spec_raw(IMAGE, Verity()),
            ALWAYS,
            LayerMode.SEEKABLE,
            LayerEncoding.RAW,
            "proven by",
        ),
        (
            build.spec_seekable(IMAGE, verity=None, index_digest=False),
            ALWAYS,
            LayerMode.WHOLE,
            LayerEncoding.ZSTD,
            "fetched whole: the manifest has no digest of the chunk index",
        ),
        (
            build.spec_seekable(IMAGE, verity=None, index_digest=False),
            OFF,
            LayerMode.SEEKABLE,
            LayerEncoding.ZSTD,
            "seekable",
        ),
        (
            build.spec_seekable(IMAGE, index_digest=False),
            ALWAYS,
            LayerMode.SEEKABLE,
            LayerEncoding.ZSTD,
            "seekable",
        ),
    ],
)
def test_what_proves_a_layer_decides_how_it_is_read(
    layer: Layer, verify: VerifyMode, mode: LayerMode, encoding: LayerEncoding, why: str
):
    (plan,) = plans(layer.descriptor, verify=verify)
    assert (plan.mode, plan.encoding) == (mode, encoding)
    assert why in plan.why
    assert (plan.pointers is not None) is (mode is LayerMode.SEEKABLE)
    assert plan.descriptor == layer.descriptor


def test_an_index_in_a_format_that_nobody_knows_makes_the_layer_whole():
    layer = SPEC.changed(mediaType="application/vnd.example.index\x1b[2J" + "x" * 200)
    (plan,) = plans(layer.descriptor)
    assert plan.mode is LayerMode.WHOLE
    assert "the chunk index is an unknown" in plan.why
    assert plan.why.isprintable()
    assert len(plan.why) < 200


def test_layers_keep_their_order():
    layers = [descriptor(RAW.media_type, b"%d" % number) for number in range(MAX_LAYERS)]
    assert [plan.descriptor for plan in plans(*layers)] == layers


def test_no_layers_and_too_many_are_refused():
    assert "no layers" in refusal()
    message = refusal(*[RAW.descriptor] * (MAX_LAYERS + 1))
    assert f"{MAX_LAYERS + 1} layers, at most {MAX_LAYERS}" in message


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.erofs.layer.v2",
        "text/plain\n\x1b[31mred",
        "",
    ],
)
def test_a_layer_of_another_kind_is_refused_with_advice(media_type: str):
    message = refusal(RAW.descriptor, descriptor(media_type))
    assert message.startswith("layer 2 is ")
    assert "lazyfs convert" in message


def test_an_erofs_layer_in_an_unknown_encoding_is_refused():
    assert "unknown encoding" in refusal(descriptor(RAW.media_type + "+xz\x07"))


# Roles, devices and standalone indexes of the image specification


def device(content: bytes) -> Descriptor:
    return descriptor("application/vnd.oci.image.layer.v1.tar", content, role="device")


def data(content: bytes) -> Descriptor:
    return descriptor("application/vnd.erofs", content, role="overlay-data")


def lower(content: bytes) -> Descriptor:
    return descriptor("application/vnd.erofs", content, role="overlay-lower")


def test_devices_and_data_belong_to_the_next_image():
    d1, d2, d3 = device(b"1"), device(b"2"), device(b"3")
    x1, x2 = data(b"x"), data(b"y")
    one, two, three = lower(b"one"), lower(b"two"), lower(b"three")
    first, second, third = plans(d1, x1, d2, x2, one, two, d3, three)
    assert [plan.descriptor for plan in (first, second, third)] == [one, two, three]
    assert [plan.descriptor for plan in first.devices] == [d1, d2]
    assert [plan.descriptor for plan in first.data] == [x1, x2]
    assert [[plan.descriptor for plan in part.devices] for part in first.data] == [[d1], [d1, d2]]
    assert (second.devices, second.data) == ((), ())
    assert [plan.descriptor for plan in third.devices] == [d3]
    assert third.data == ()


@pytest.mark.parametrize("last", [device(b"1"), data(b"x")])
def test_what_no_image_uses_must_not_be_the_last(last: Descriptor):
    assert "the last layer is not" in refusal(lower(b"one"), last)
    assert "the last layer is not" in refusal(last)


def test_a_device_may_be_of_any_kind_but_not_in_any_encoding():
    for media_type, encoding in (
        ("application/vnd.oci.image.layer.v1.tar", LayerEncoding.RAW),
        ("application/vnd.oci.image.layer.v1.tar+gzip", LayerEncoding.GZIP),
        ("application/vnd.oci.image.layer.v1.tar+zstd", LayerEncoding.ZSTD),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", LayerEncoding.GZIP),
    ):
        (plan,) = plans(descriptor(media_type, b"d", role="device"), lower(b"one"))
        (found,) = plan.devices
        assert found.encoding is encoding
        assert found.mode is LayerMode.WHOLE
    assert "unknown encoding" in refusal(descriptor("a/b+xz", b"d", role="device"), lower(b"one"))


def index_of(layer: Descriptor) -> Descriptor:
    return descriptor(
        CHUNK_INDEX_LAYER, b"index" * 20, **{"chunk-index__target": str(layer.digest)}
    )


def test_an_index_of_its_own_stands_behind_its_layer():
    one = descriptor("application/vnd.erofs+zstd", b"one")
    index = index_of(one)
    first, second = plans(one, index, lower(b"two"))
    assert first.index == index
    assert first.mode is LayerMode.SEEKABLE
    assert first.pointers is not None
    assert first.pointers.table is not None
    assert first.pointers.table.digest == index.digest.raw
    assert second.index is None


def test_an_index_elsewhere_is_refused():
    one, two = (descriptor("application/vnd.erofs+zstd", name) for name in (b"one", b"two"))
    assert "neither the first nor the last" in refusal(index_of(one), one)
    assert "neither the first nor the last" in refusal(one, index_of(one))
    assert "but stands behind" in refusal(two, index_of(one), one)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"role": "root"}, "unknown role 'root'"),
        ({"role": "\x1b[2J"}, "unknown role"),
        ({"chunk-index__range": "5:3"}, "does not lie in a blob"),
        ({"chunk-index__range": "99999999"}, "does not lie in a blob"),
        ({"chunk-index__range": "-1"}, "is not a number"),
        ({"chunk-index__range": "1:2:3"}, "is not a number"),
        ({"chunk-index__digest": "sha256:abc"}, "is not a digest"),
        ({"chunk-index__digest": "sha1:" + "a" * 40}, "is not a sha256 or sha512 digest"),
        ({"uncompressed-digest": "text"}, "is not a sha256 or sha512 digest"),
        ({"dmverity__hash_offset": "4096"}, "dmverity.root_digest is missing"),
        ({"dmverity__root_digest": "sha256:" + "a" * 64}, "dmverity.hash_offset is missing"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(annotations: dict, message: str):
    assert message in refusal(descriptor("application/vnd.erofs+zstd", **annotations))


media_types = st.one_of(
    st.sampled_from(
        [
            RAW.media_type,
            ZSTD.media_type,
            SPEC.media_type,
            "application/vnd.erofs",
            CHUNK_INDEX_LAYER,
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ]
    ),
    st.text(max_size=40),
)
values = st.one_of(
    st.integers(0, 20_000).map(str),
    st.sampled_from(["device", "overlay-data", "sha256:" + "a" * 64, "sha512:" + "b" * 128, "1:9"]),
    st.text(max_size=20),
)
names = st.sampled_from([*SEEKABLE.annotations, *SPEC.annotations, "org.erofs.role"])
descriptors = st.builds(
    Descriptor,
    media_types,
    st.binary(max_size=2).map(Digest.of),
    st.integers(0, 1 << 63),
    st.dictionaries(names, values, max_size=6),
)


@given(st.lists(descriptors, max_size=6), st.sampled_from(VerifyMode))
@settings(max_examples=300)
def test_any_manifest_gives_a_plan_or_one_line(layers: list[Descriptor], verify: VerifyMode):
    try:
        found = plan_layers(layers, verify)
    except PlanError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert 0 < len(found) <= len(layers)
        assert all(plan.why.isprintable() for plan in found)
