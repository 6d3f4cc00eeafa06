"""containerd's filters, as its snapshots are listed by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.snapshotter.errors import InvalidRequestError
from lazyfs.snapshotter.filters import MAX_FILTER_CHARACTERS, matcher
from lazyfs.snapshotter.model import TARGET, Kind, Snapshot, layer_request

ONE = Snapshot(
    1, "default/1/a", "default/2/b", Kind.COMMITTED, 0, 0, {TARGET: "sha256:12", "x": 'y "z"'}
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name==default/1/a",
        'parent=="default/2/b"',
        "kind==committed",
        # The very words of containerd's metadata/snapshot.go:
        'labels."containerd.io/snapshot.ref"==sha256:12,parent=="default/2/b"',
        r'labels.x=="y \"z\""',
        "labels.x",
        "labels.nothing!=q",
        "name~=^default/",
        "kind!=active,name",
    ],
)
def test_a_filter_that_matches(text: str):
    assert matcher([text])(ONE)
    assert matcher(["name==another", text])(ONE)


@pytest.mark.parametrize(
    "text",
    [
        "name==default/1",
        'labels."containerd.io/snapshot.ref"==sha256:13,parent=="default/2/b"',
        'labels."containerd.io/snapshot.ref"==sha256:12,parent==""',
        "labels.nothing",
        "nothing==1",
        "kind==view",
        "name~=^b",
    ],
)
def test_a_filter_that_does_not_match(text: str):
    assert not matcher([text])(ONE)


def test_no_filters_let_everything_through():
    assert matcher([])(ONE)


@pytest.mark.parametrize(
    "text",
    ["==", "name=1", 'name=="a', "name==a b", "name~=(", ",", "x" * (MAX_FILTER_CHARACTERS + 1)],
)
def test_what_is_no_filter_is_refused(text: str):
    with pytest.raises(InvalidRequestError):
        matcher([text])


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_refused(text: str):
    try:
        found = matcher([text])
    except InvalidRequestError:
        return
    assert found(ONE) in (True, False)


def test_a_layer_is_named_by_containerds_labels():
    name, digest = "containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest"
    found = layer_request({name: "r/a:1", digest: "sha256:9"})
    assert found is not None
    assert (found.image, found.manifest, found.digest) == ("r/a:1", None, "sha256:9")
    assert layer_request({name: "r/a:1"}) is None
    assert layer_request({digest: "sha256:9"}) is None
