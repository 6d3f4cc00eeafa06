"""Node ids say which layer and which inode, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ImageFormatError
from lazyfs.image.nodes import MAX_LAYER, Place, node_of, place_of
from lazyfs.model import ROOT_NODE, Nid, NodeId
from lazyfs.plan import MAX_LAYERS

METABOX = 1 << 63
places = st.builds(
    Place,
    st.integers(0, MAX_LAYER),
    st.builds(
        lambda nid, flag: nid | flag, st.integers(0, (1 << 50) - 1), st.sampled_from([0, METABOX])
    ),
)


@given(places)
def test_a_place_comes_back(place: Place):
    node = node_of(place)
    assert ROOT_NODE < node < 1 << 63
    assert place_of(node) == place


@given(places, places)
def test_places_have_nodes_of_their_own(one: Place, other: Place):
    assert (node_of(one) == node_of(other)) is (one == other)


@pytest.mark.parametrize("nid", [1 << 50, 1 << 62, METABOX | 1 << 50, (1 << 64) - 1, METABOX - 1])
def test_a_nid_that_no_image_can_have_is_refused(nid: int):
    with pytest.raises(ImageFormatError, match=f"nid {nid} "):
        node_of(Place(0, Nid(nid)))


@given(st.integers(ROOT_NODE + 1, (1 << 64) - 1))
def test_any_number_is_some_place(node: int):
    """The kernel may ask for anything; who has so many layers decides if it is one."""
    place = place_of(NodeId(node))
    if place.layer <= MAX_LAYER:
        assert node_of(place) == node


@pytest.mark.parametrize("node", [ROOT_NODE, 0, -1])
def test_the_root_is_in_no_layer(node: int):
    with pytest.raises(AssertionError):
        place_of(NodeId(node))


def test_there_are_ids_for_all_layers_of_an_image():
    assert MAX_LAYERS <= MAX_LAYER + 1
