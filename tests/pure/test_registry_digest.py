import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.digest import Digest, DigestVerifier, verify
from registry.errors import ContentError, RegistryError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_known_answer():
    assert str(Digest.of(b"abc")) == f"sha256:{ABC}"
    assert Digest.parse(f"sha256:{ABC}").raw == hashlib.sha256(b"abc").digest()
    assert len(Digest.of(b"abc", "sha512").raw) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        f"sha256:{ABC[:-1]}",
        f"sha256:{ABC.upper()}",
        f"sha512:{ABC}",
        f"md5:{ABC[:32]}",
        f"sha256:{ABC}\n",
        f"sha256:../{ABC[3:]}",
        f"sha256:{'٣' * 64}",
    ],
)
def test_refuses(text):
    with pytest.raises(ContentError, match="not a digest"):
        Digest.parse(text)


@given(st.text())
def test_text_is_a_digest_or_refused(text):
    with suppress(RegistryError):
        assert str(Digest.parse(text)) == text


@given(st.lists(st.binary(max_size=20)), st.sampled_from(["sha256", "sha512"]))
def test_pieces_add_up(pieces, algorithm):
    whole = b"".join(pieces)
    verifier = DigestVerifier(Digest.of(whole, algorithm), len(whole), "x")
    for piece in pieces:
        verifier.update(piece)
    verifier.finish()


def test_size_is_checked_before_the_hash():
    digest = Digest.of(b"abcd")
    verifier = DigestVerifier(digest, 3, "layer")
    verifier.update(b"ab")
    with pytest.raises(ContentError, match="layer: longer than the promised 3 bytes"):
        verifier.update(b"cd")
    with pytest.raises(ContentError, match="layer: 4 bytes, wanted 5"):
        verify(b"abcd", digest, 5, "layer")


def test_other_bytes_name_both_digests():
    with pytest.raises(ContentError) as caught:
        verify(b"abd", Digest.of(b"abc"), 3, "layer")
    assert ABC in str(caught.value)
    assert hashlib.sha256(b"abd").hexdigest() in str(caught.value)
