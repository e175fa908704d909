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

    cut = cut_patch(volume, shape, np.array(start), patch_size)

    np.testing.assert_array_equal(cut, padded[(slice(None), *slices)])
