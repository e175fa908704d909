import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from promptseg.networks.locator import (
    Locator,
    _of_objects,
    box_of_shares,
    objects_of_shares,
    resampled,
    share_loss,
    shares,
)
from promptseg.prompts.strategies.fitted import view_of
from tests.locators import make_locator

SPACING = (4.0, 2.0, 2.5)


def overlap(lower: float, upper: float, size: int) -> np.ndarray:
    """(size,) how much of each voxel [i, i + 1) the interval covers."""
    at = np.arange(size)
    return np.clip(np.minimum(upper, at + 1) - np.maximum(lower, at), 0, 1)


def block(box: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    z, y, x = (overlap(*faces, size) for faces, size in zip(box.T, shape, strict=True))
    return z[:, None, None] * y[:, None] * x


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(1.01, 4), min_size=3))
@settings(max_examples=100, deadline=None)
def test_a_box_that_cuts_voxels_is_found_to_fractions(lower, size):
    # at least one voxel along each axis is full, and faces lie anywhere
    first = np.array([2, 3, 1]) + lower
    box = np.stack([first, np.ceil(first) + size[:3]])
    shape = (10, 12, 9)
    np.testing.assert_allclose(box_of_shares(block(box, shape)), box, atol=1e-6)


def test_objects_that_touch_in_a_view_are_boxed_one_by_one():
    shape = (12, 24, 9)
    first = np.array([[2.0, 3.0, 1.5], [9.0, 9.5, 7.0]])
    second = np.array([[3.0, 10.2, 2.0], [10.0, 17.0, 7.5]])  # 0.7 voxels behind it
    share = np.maximum(block(first, shape), 0.9 * block(second, shape))
    share[:, 9:11] = np.maximum(share[:, 9:11], 0.55 * share[:, 8:9])  # not a gap above 0.5
    (one, surer), (other, score) = objects_of_shares(share)
    assert surer > score > 0.5
    assert np.abs(one - first).max() < 1 and np.abs(other - second).max() < 1.2


def test_one_object_is_boxed_as_it_is_alone_and_ripples_are_no_objects():
    box = np.array([[2.3, 3.0, 1.5], [9.0, 9.5, 7.2]])
    share = block(box, (12, 24, 9))
    ripples = share * (1 - 0.2 * np.random.default_rng(0).random(share.shape))
    ((found, score),) = objects_of_shares(ripples)
    assert np.abs(found - box).max() < 0.6 and 0.7 < score < 1
    ((exact, _),) = objects_of_shares(share)
    np.testing.assert_allclose(exact, box_of_shares(share), atol=0.01)
    assert objects_of_shares(0.4 * share) == []


def test_of_boxes_that_cover_each_other_the_surest_is_kept():
    view = view_of(np.zeros((20, 20, 20)), (1.0, 1.0, 1.0))
    first = np.array([[2.0, 2, 2], [10, 10, 10]])
    found = [(first, 0.9), (first + 1, 0.8), (first + 8, 0.7), (np.zeros((2, 3)), 0.6)]
    proposal = _of_objects(found, view, np.ones(3))
    assert proposal.scores == (0.9, 0.7) and proposal.score == 0.9
    assert [b[0].tolist() for b in proposal.boxes] == [[2, 2, 2], [10, 10, 10]]
    assert _of_objects([], view, np.ones(3)).reason == "nothing_found"


def test_a_locator_of_several_objects_is_read_as_it_was_written(tmp_path):
    one = make_locator()
    several = Locator(**{**vars(one), "several": frozenset({"spleen"})})
    several.save(tmp_path / "locator.npz")
    again = Locator.load(tmp_path / "locator.npz")
    assert again.several == {"spleen"} and again.digest == several.digest != one.digest


@given(
    st.lists(st.floats(0, 5), min_size=3, max_size=3),
    st.lists(st.floats(0.15, 4), min_size=3, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_what_is_thinner_than_a_voxel_is_found_to_about_a_voxel(lower, size):
    box = np.stack([lower, np.add(lower, size)])
    share = block(box, (10, 10, 10))
    found = box_of_shares(share)
    if share.max() < 0.1:
        assert found is None
        return
    assert (found[0] < found[1]).all()
    assert np.abs(found - box).max() <= 1


def test_the_box_is_that_of_the_largest_component():
    share = np.zeros((6, 9, 14))
    share[1:5, 2:7, 3:9] = 0.9
    share[2:4, 3:6, 4:8] = 1.0
    share[2:4, 3:5, 11:13] = 1.0
    np.testing.assert_allclose(box_of_shares(share), [[1.1, 2.1, 3.1], [4.9, 6.9, 8.9]])
    share[3, 5, 9:11] = 0.7  # a bridge
    assert box_of_shares(share)[1, 2] == 13


def test_what_is_faint_is_taken_at_half_of_its_most_and_what_is_fainter_not():
    share = np.zeros((5, 6, 7))
    share[2, 2:4, 3:6], share[2, 4, 3:6] = 0.3, 0.1
    box = box_of_shares(share)
    np.testing.assert_allclose(box, [[2, 2, 3], [3, 4 + 1 / 3, 6]])
    assert box_of_shares(share / 4) is None
    alone = np.zeros((5, 6, 7))
    for value in (0.2, 0.4, 0.6, 1.0):
        alone[2, 3, 4] = value
        np.testing.assert_allclose(box_of_shares(alone), [[2, 3, 4], [3, 4, 5]])
    assert box_of_shares(np.zeros((3, 4, 5))) is None


def test_a_label_at_the_border_ends_there():
    share = np.zeros((4, 5, 6))
    share[:2, 3:, 2:5] = 1
    np.testing.assert_allclose(box_of_shares(share), [[0, 3, 2], [2, 5, 5]])


def test_maps_are_resampled_as_scipy_does_it():
    maps = torch.rand(2, 6, 9, 11, generator=torch.Generator().manual_seed(0))
    assert resampled(maps, SPACING, SPACING) is maps
    found = resampled(maps, SPACING, (2.0, 3.0, 2.5))
    assert found.shape == (2, 12, 6, 11)
    z = ((np.arange(12) + 0.5) * 6 / 12 - 0.5).clip(0, 5)
    y = ((np.arange(6) + 0.5) * 9 / 6 - 0.5).clip(0, 8)
    at = np.meshgrid(z, y, np.arange(11), indexing="ij")
    for map_, expected in zip(found.numpy(), maps.numpy(), strict=True):
        np.testing.assert_allclose(map_, ndimage.map_coordinates(expected, at, order=1), atol=1e-6)
    # an image of another kind does not fill the memory
    assert resampled(maps, (1000.0, 1000.0, 1000.0), SPACING).shape == maps.shape


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 17), (5, 8, 9), (16, 16, 16), (7, 33, 2)])
@pytest.mark.parametrize("spacing", [SPACING, (10.0, 1.0, 1.2), (1.0, 1.0, 1.0)])
def test_images_of_any_size_are_answered(shape, spacing):
    image = torch.rand(1, *shape) * 255
    found = shares(make_locator(spacing=spacing).networks, image)
    assert found.shape == (2, *shape)
    assert found.isfinite().all() and 0 <= found.min() and found.max() <= 1


def test_several_networks_answer_with_their_mean():
    networks = make_locator().networks
    image = torch.rand(1, 6, 8, 10) * 255
    each = [shares([network], image) for network in networks]
    torch.testing.assert_close(shares(networks, image), (each[0] + each[1]) / 2)
    assert not torch.equal(each[0], each[1])


def test_the_loss_is_least_where_shares_are_right():
    found = torch.rand(1, 2, 4, 5, 6, generator=torch.Generator().manual_seed(1)).round()
    right = (found - 0.5) * 40
    every = torch.zeros(1, 1, 4, 5, 6)
    assert share_loss(right, found, every) < 1e-3 < share_loss(right * 0.05, found, every)
    # one of two labels not found at all: cross-entropy of 20 in its voxels, Dice loss of a half
    missed = right.clone()
    missed[:, 1] = -20
    fraction = found[:, 1].mean().item() / 2
    assert share_loss(missed, found, every).item() == pytest.approx(20 * fraction + 0.5, rel=0.02)


def test_the_loss_is_that_of_the_voxels_that_are_known():
    rng = torch.Generator().manual_seed(2)
    logits, found = torch.randn(2, 3, 4, 5, 7, generator=rng), torch.rand(2, 3, 4, 5, 7)
    found[..., -2:] = 0
    ignored = torch.zeros(2, 1, 4, 5, 7)
    ignored[..., -2:] = 1
    expected = share_loss(logits[..., :-2], found[..., :-2], ignored[..., :-2])
    torch.testing.assert_close(share_loss(logits, found, ignored), expected)


def test_a_saved_locator_proposes_the_same(tmp_path):
    locator = make_locator()
    locator.save(tmp_path / "locator.npz")
    again = Locator.load(tmp_path / "locator.npz")
    assert (again.labels, again.spacing) == (locator.labels, locator.spacing)
    assert again.digest == locator.digest
    assert make_locator(networks=1).digest != locator.digest
    assert make_locator(labels=("liver", "lesion")).digest != locator.digest
    image = np.random.default_rng(0).uniform(0, 255, (22, 40, 31))
    view = view_of(image, (2.0, 1.0, 1.5))
    first, second = (one.propose(view) for one in (locator, again))
    assert set(first) == {"liver", "spleen"}
    for label in first:
        np.testing.assert_array_equal(first[label].box, second[label].box)
        if first[label].box is not None:
            assert (first[label].box[0] >= 0).all()
            assert (first[label].box[1] <= image.shape).all()


def _with(change):
    """The content of a good file, changed."""

    def damage(path):
        with np.load(path) as file:
            content = dict(file)
        change(content)
        np.savez(path, **content)

    return damage


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickled(path):
    with np.load(path) as file:
        content = dict(file)
    content["spacing"] = np.array([print, 1, 2], dtype=object)
    np.savez(path, **content, allow_pickle=True)


def _other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _pickled,
        _other_archive,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(io.BytesIO(b"weights").read()),
        _with(lambda content: content.pop("labels")),
        _with(lambda content: content.pop("spacing")),
        _with(lambda content: content.pop("0.head.bias")),
        _with(lambda content: content.update(spacing=np.array([1.0, np.nan, 1.0]))),
        _with(lambda content: content.update(spacing=np.array([1.0, 0.0, 1.0]))),
        _with(lambda content: content.update(spacing=np.array([1.0, 1.0]))),
        _with(lambda content: content.update(labels=np.array(["liver"]))),
        _with(lambda content: content["1.head.bias"].fill(np.nan)),
        _with(lambda content: content.update({"0.head.bias": np.zeros(5, np.float32)})),
        _with(lambda content: content.update({"x": np.zeros(5)})),
        _with(lambda content: [content.pop(key) for key in list(content) if "." in key]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "locator.npz"
    make_locator().save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"locator\.npz"):
        Locator.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"locator\.npz"):
        Locator.load(tmp_path / "locator.npz")
