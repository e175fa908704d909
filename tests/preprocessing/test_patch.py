import blosc2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.preprocessing.patch import cut_patch


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    patch_size=st.tuples(*[st.integers(1, 7)] * 3),
    start=st.tuples(*[st.integers(-6, 8)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_a_cut_patch_equals_slicing_a_volume_padded_on_all_sides(shape, patch_size, start):
    volume = np.arange(1, 1 + 2 * np.prod(shape)).reshape(2, *shape)
    padded = np.pad(volume, [(0, 0)] + [(20, 20)] * 3)
    slices = tuple(slice(20 + s, 20 + s + w) for s, w in zip(start, patch_size, strict=True))

    cut = cut_patch(volume, np.array(start), patch_size)

    np.testing.assert_array_equal(cut, padded[(slice(None), *slices)])


class Stored:
    """A volume that notes what is read of it."""

    def __init__(self, volume: np.ndarray) -> None:
        self.volume, self.shape, self.read = volume, volume.shape, 0

    def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
        part = self.volume[region]
        self.read += part.size
        return part


def test_of_a_stored_volume_only_the_patch_is_read():
    volume = np.arange(1, 1 + 9 * 10 * 11).reshape(1, 9, 10, 11)
    stored = Stored(volume)

    cut = cut_patch(stored, np.array([-2, 3, 8]), (4, 5, 6))

    expected = np.zeros((1, 4, 5, 6), int)
    expected[:, 2:, :, :3] = volume[:, :2, 3:8, 8:]
    np.testing.assert_array_equal(cut, expected)
    assert stored.read == 2 * 5 * 3


def test_a_patch_of_a_compressed_volume_is_that_of_the_array():
    volume = np.random.default_rng(0).integers(0, 255, (2, 9, 10, 11), np.uint8)
    compressed = blosc2.asarray(volume)

    for start in ([1, 2, 3], [-2, 8, 9], [20, 0, 0]):
        cut = cut_patch(compressed, np.array(start), (4, 5, 6))
        assert isinstance(cut, np.ndarray) and cut.dtype == np.uint8
        np.testing.assert_array_equal(cut, cut_patch(volume, np.array(start), (4, 5, 6)))
