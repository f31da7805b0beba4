"""SipHash-2-4 in compiled code, against the vectors that its authors publish."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.kernel.toolkit.siphash import siphash

# vectors_sip64 of the reference implementation (github.com/veorq/SipHash, CC0): the hash of the bytes 00 01 02 …, of
# length 0 to 63, with the key 00 01 … 0f.
VECTORS = bytes.fromhex(
    """
    310e0edd47db6f72 fd67dc93c539f874 5a4fa9d909806c0d 2d7efbd796666785 b7877127e09427cf 8da699cd64557618
    cee3fe586e46c9cb 37d1018bf50002ab 6224939a79f5f593 b0e4a90bdf82009e f3b9dd94c5bb5d7a a7ad6b22462fb3f4
    fbe50e86bc8f1e75 903d84c02756ea14 eef27a8e90ca23f7 e545be4961ca29a1 db9bc2577fcc2a3f 9447be2cf5e99a69
    9cd38d96f0b3c14b bd6179a71dc96dbb 98eea21af25cd6be c7673b2eb0cbf2d0 883ea3e395675393 c8ce5ccd8c030ca8
    94af49f6c650adb8 eab8858ade92e1bc f315bb5bb835d817 adcf6b0763612e2f a5c91da7acaa4dde 716595876650a2a6
    28ef495c53a387ad 42c341d8fa92d832 ce7cf2722f512771 e37859f94623f3a7 381205bb1ab0e012 ae97a10fd434e015
    b4a31508beff4d31 81396229f0907902 4d0cf49ee5d4dcca 5c73336a76d8bf9a d0a704536ba93e0e 925958fcd6420cad
    a915c29bc8067318 952b79f3bc0aa6d4 f21df2e41d4535f9 87577519048f53a9 10a56cf5dfcd9adb eb75095ccd986cd0
    51a9cb9ecba312e6 96afadfc2ce666c7 72fe52975a4364ee 5a1645b276d592a1 b274cb8ebf87870a 6f9bb4203de7b381
    eaecb2a30b22a87f 9924a43cc1315724 bd838d3aafbf8db7 0b1a2a3265d51aea 135079a3231ce660 932b2846e4d70666
    e1915f5cb1eca46c f325965ca16d629f 575ff28e60381be5 724506eb4c328a95
    """
)
KEY = IdentityKey.of_bytes(bytes(range(16)))


def test_the_published_vectors_come_out() -> None:
    # Wherever the text stands, and right before the end of the buffer.
    for size, (before, after) in product(range(64), ((0, 0), (3, 0), (5, 9))):
        data = np.frombuffer(bytes([0xA5] * before) + bytes(range(size)) + bytes([0x5A] * after), dtype=np.uint8)
        found = siphash(data, before, before + size, KEY.low, KEY.high)
        assert found.to_bytes(8, "little", signed=True) == VECTORS[8 * size : 8 * size + 8], size


@given(text=st.text(max_size=40), key=st.binary(min_size=16, max_size=16))
def test_an_identity_is_above_every_public_code_and_fits_an_int64(text: str, key: bytes) -> None:
    identity = IdentityKey.of_bytes(key).of(text)
    assert kernel.IDENTITY_BIT <= identity < 2 * kernel.IDENTITY_BIT < 2**63 + 1
    assert IdentityKey.of_bytes(key).of_all(["a", text, ""]) == [
        IdentityKey.of_bytes(key).of(each) for each in ("a", text, "")
    ]


def test_every_byte_of_the_key_and_of_the_text_counts() -> None:
    keys = [bytes(byte == place for byte in range(16)) for place in range(16)]
    assert len({IdentityKey.of_bytes(key).of("merchant-17") for key in (bytes(16), *keys)}) == 17
    texts = ["", "a", "a\0", "\0a", "merchant-17", "merchant-18", "m" * 8, "m" * 9, "m" * 264]
    assert len({LAPTOP_KEY.of(text) for text in texts}) == len(texts)
