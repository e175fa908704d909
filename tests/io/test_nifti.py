from __future__ import annotations

import gzip
import logging
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promptseg.io.geometry import Geometry
from promptseg.io.images import count_channels, read_image, write_image
from promptseg.io.itk import _quiet_itk
from tests.io.test_images import SHAPE, random_volume


def header_of(
    *,
    order="<",
    magic=b"n+1",
    dim=(3, 7, 5, 4),
    datatype=4,
    bits=16,
    pixdim=(1, 0.7, 0.8, 2.5),
    offset=352,
    slope=(0, 0),
    units=2,
    intent=0,
    codes=(0, 0),
    quaternion=(0, 0, 0),
    qoffset=(0, 0, 0),
    sform=((0,) * 4,) * 3,
):
    """A NIfTI-1 header, field by field as the standard has them."""
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, *dim, *[1] * (8 - len(dim)))
    struct.pack_into(f"{order}hhh", header, 68, intent, datatype, bits)
    struct.pack_into(f"{order}4f", header, 76, *pixdim)
    struct.pack_into(f"{order}3f", header, 108, offset, *slope)
    header[123] = units
    struct.pack_into(f"{order}hh6f", header, 252, *codes, *quaternion, *qoffset)
    header[280:328] = np.asarray(sform, f"{order}f4").tobytes()
    header[344 : 344 + len(magic)] = magic
    return bytes(header)


VOXELS = np.arange(140, dtype="<i2").tobytes()  # of the header as it is by default


def test_an_rgb_nifti_counts_as_whole(tmp_path):
    # Its header counts the three components within a voxel's bits, unlike a vector's.
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(header_of(datatype=128, bits=24) + rgb.tobytes())

    assert count_channels(tmp_path / "a.nii.gz") == 3
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz")[0], np.moveaxis(rgb, -1, 0))


def test_nan_is_found_in_a_big_endian_nifti(tmp_path):
    volume = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    volume[1, 2, 3] = np.nan
    header = header_of(order=">", datatype=16, bits=32)
    (tmp_path / "a.nii").write_bytes(header + volume.astype(">f4").tobytes())

    np.testing.assert_array_equal(read_image(tmp_path / "a.nii")[0][0], volume)


def test_a_two_file_nifti_is_read_whole_and_refused_cut_short(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(random_volume()), str(tmp_path / "a.hdr"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.hdr")[0][0], random_volume())

    data = tmp_path / "a.img"
    data.write_bytes(data.read_bytes()[:-9])

    with pytest.raises(ValueError, match=r"a\.hdr is cut short: its header promises 280 bytes"):
        read_image(tmp_path / "a.hdr")


def reads_as_itk_does(path, tolerance=2e-6):
    """`read_image` gives what ITK's own reader gives of a file that it reads correctly."""
    found, geometry = read_image(path)
    with _quiet_itk():
        expected = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(expected)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(
        found, array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    )
    np.testing.assert_allclose(geometry.spacing, expected.GetSpacing()[::-1], rtol=1e-7)
    np.testing.assert_allclose(geometry.origin, expected.GetOrigin(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(geometry.direction, expected.GetDirection(), atol=tolerance)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
    mirrored=st.tuples(*[st.sampled_from([1, -1])] * 3),
    turns=st.tuples(*[st.floats(-180, 180)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    moved=st.sampled_from([0, 0, 0.5]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    qfac=st.sampled_from([0, 1, -1]),
    signs=st.tuples(*[st.sampled_from([1, 1, 1, 1, -1])] * 3),
    units=st.sampled_from([0, 1, 2, 3, 10]),
    order=st.sampled_from("<>"),
    kind=st.sampled_from([("u1", 2), ("i2", 4), ("i4", 8), ("f4", 16), ("f8", 64), ("u2", 512)]),
    slope=st.sampled_from([(0, 0), (1, 0), (np.nan, np.nan), (0, 3), (-2.5, 1000.1), (np.inf, 1)]),
)
def test_geometry_and_values_are_those_of_itk(
    tmp_path, spacing, mirrored, turns, origin, moved, codes, qfac, signs, units, order, kind, slope
):
    # The sform is the qform's rotation, mirrored or moved at times, so that the two may disagree.
    # Of an sform with a code above 1 ITK compares singular vectors, whose sign and order rounding
    # decides: it takes either of two forms that differ by a mirrored axis or a rounded quaternion.
    rounding_decides = codes[0] > 0 and codes[1] > 1
    assume(not rounding_decides or (mirrored == (1, 1, 1) and qfac >= 0))
    rotation = Rotation.from_euler("zyx", turns, degrees=True)
    matrix = rotation.as_matrix() * mirrored * spacing
    x, y, z, w = rotation.as_quat()
    dtype, datatype = kind
    header = header_of(
        order=order,
        datatype=datatype,
        bits=8 * np.dtype(dtype).itemsize,
        pixdim=(qfac, *np.multiply(spacing, signs)),
        slope=slope,
        units=units,
        codes=codes,
        quaternion=np.multiply((x, y, z), 1 if w >= 0 else -1),
        qoffset=origin,
        sform=np.column_stack([matrix, np.add(origin, moved)]),
    )
    volume = np.random.default_rng(0).integers(0, 250, SHAPE).astype(order + dtype)
    (tmp_path / "a.nii").write_bytes(header + volume.tobytes())

    reads_as_itk_does(tmp_path / "a.nii", tolerance=5e-4 if rounding_decides else 2e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": (4, 7, 5, 4, 1)},  # one time point
        {"dim": (3, 7, 20, 0)},
        {"dim": (3, 7, 20, 1)},
        {"dim": (3, 7, 5, 4, 9)},  # beyond the dimensions that there are
        {"dim": (5, 7, 5, 2, 1, 2), "intent": 1007},  # two components
        {"pixdim": (1, 0, np.nan, 2.5), "codes": (1, 0)},
        {"codes": (1, 0), "quaternion": (0.9, 0.9, 0.3), "qoffset": (3, np.nan, np.inf)},
        {"bits": 8},
        {"datatype": 256, "bits": 8},
    ],
)
def test_odd_headers_are_read_as_itk_does(tmp_path, fields):
    (tmp_path / "a.nii").write_bytes(header_of(**fields) + VOXELS)
    reads_as_itk_does(tmp_path / "a.nii")


def test_an_sform_of_nan_gives_way_to_a_qform_and_is_refused_alone(tmp_path):
    for codes in ((1, 2), (1, 1), (0, 1)):
        header = header_of(codes=codes, quaternion=(0, 0, 1), sform=np.full((3, 4), np.nan))
        (tmp_path / "a.nii").write_bytes(header + VOXELS)
        if codes[0]:
            assert read_image(tmp_path / "a.nii")[1].direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        else:
            with pytest.raises(ValueError, match=r"not perpendicular \(cosine nan"):
                read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("magic", [b"ni1", b""])
def test_two_files_of_nifti_and_analyze_are_read_as_itk_does(tmp_path, magic):
    # Analyze 7.5 has no magic; what lies in the fields that NIfTI added is not read.
    header = header_of(magic=magic, offset=0, slope=(2, 1) if magic else (0, 0))
    if not magic:
        header = header[:252] + b"\1" * 92 + header[344:]
    (tmp_path / "a.hdr").write_bytes(header)
    (tmp_path / "a.img").write_bytes(VOXELS)
    reads_as_itk_does(tmp_path / "a.hdr")


@pytest.mark.parametrize("data", ["a.img", "a.img.gz"])
def test_a_compressed_header_finds_its_voxels(tmp_path, data):
    header = header_of(magic=b"ni1", offset=0)
    for name, content in (("a.hdr", header), ("a.hdr.gz", gzip.compress(header))):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"voxels are missing; expected a\.img beside it"):
        read_image(tmp_path / "a.hdr.gz")
    (tmp_path / data).write_bytes(gzip.compress(VOXELS) if data.endswith(".gz") else VOXELS)
    found = [read_image(tmp_path / name)[0] for name in ("a.hdr", "a.hdr.gz")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": (5, 7, 5, 2, 1, 2)}, r"expected three dimensions, found 5 \(size \(7, 5, 2, 1, 2"),
        ({"dim": (9, 7, 5, 2)}, r"is damaged: its header has the dimensions \[9, 7, 5"),
        ({"dim": (3, -7, 5, 4)}, "is damaged: its header has the dimensions"),
        ({"intent": 1005}, "voxels are matrices"),
        ({"datatype": 32, "bits": 64}, "complex numbers; save their magnitude"),
        ({"datatype": 1536, "bits": 128}, "voxels of type .* are not supported"),
        ({"datatype": 77}, "voxels of an unknown datatype, 77"),
        (
            {"dim": (3, 32767, 32767, 32767)},
            "is cut short: its header promises 70362301923678 bytes",
        ),
        ({"magic": b"ni1"}, r"a header whose voxels are missing; expected a\.img beside it"),
        *[
            ({"offset": offset}, "is damaged: by its header the voxels begin at byte")
            for offset in (0, 16, 348, -5, np.nan, np.inf, 1e30)
        ],
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_promise_other_voxels_are_refused(tmp_path, fields, message, packed):
    # ITK takes the voxels from elsewhere for a wrong offset, and crashes for five dimensions.
    content = header_of(**fields) + VOXELS
    (tmp_path / "a.nii").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=rf"a\.nii.* {message}|a\.nii: {message}"):
        read_image(tmp_path / "a.nii")


def test_infinity_is_scaled_with_the_other_voxels(tmp_path):
    values = np.resize(np.array([1, np.inf, np.nan, -np.inf], "<f4"), SHAPE)
    (tmp_path / "a.nii").write_bytes(header_of(datatype=16, slope=(-2, 1)) + values.tobytes())
    found = read_image(tmp_path / "a.nii")[0][0]
    np.testing.assert_array_equal(found.ravel()[:4], [-1, -np.inf, np.nan, np.inf])


def test_a_nifti_is_known_by_its_content(tmp_path):
    # Packed without saying so, not packed though its name says so, and under a name of another
    # format, where ITK would take it without any of the checks.
    content = header_of() + VOXELS
    for name in ("a.nii.gz", "b.mha"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_image(path)[0].ravel(), np.arange(140))
    (tmp_path / "b.mha").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"b\.mha is cut short: its header promises 632 bytes"):
        read_image(tmp_path / "b.mha")


def test_reading_holds_the_voxels_once(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (20, 400, 500), np.uint8)
    for ending in (".nii", ".nii.gz"):
        write_image(tmp_path / f"a{ending}", volume, Geometry(shape=volume.shape, spacing=(1,) * 3))
        tracemalloc.start()
        read_image(tmp_path / f"a{ending}")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert volume.nbytes < peak < volume.nbytes + (10 << 20)


def write_sheared(path, shear):
    """A NIfTI with only an sform, whose second axis leans by `shear` towards the first."""
    write_image(path, random_volume(), Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.7)))
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)  # qform_code, sform_code
    rows = [[-0.7, 0.8 * shear, 0, 3], [0, -0.8, 0, 4], [0, 0, 2.5, 5]]
    content[280:328] = np.array(rows, np.float32).tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("shear", [1e-5, 1e-3, 0.01, 0.04])
def test_a_slightly_sheared_nifti_is_read_with_perpendicular_axes(tmp_path, capfd, caplog, shear):
    write_sheared(tmp_path / "a.nii", shear)

    with caplog.at_level(logging.WARNING):
        image, geometry = read_image(tmp_path / "a.nii")

    np.testing.assert_array_equal(image[0], random_volume())
    np.testing.assert_allclose(geometry.spacing, (2.5, 0.8, 0.7), rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, (-3, -4, 5))
    direction = np.reshape(geometry.direction, (3, 3))
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(direction, np.eye(3), atol=shear)
    assert bool(caplog.messages) == (shear >= 1e-3)
    assert capfd.readouterr().err == ""  # nothing from ITK itself
    assert count_channels(tmp_path / "a.nii") == 1


def test_a_slightly_sheared_oblique_nifti_keeps_its_rotation(tmp_path):
    # ITK, told to permit it (ITK_NIFTI_SFORM_PERMISSIVE), gives the inverse rotation.
    rotation = Rotation.from_euler("zyx", (30, 20, -10), degrees=True).as_matrix()
    sheared = rotation @ [[1, 0.01, 0], [0, 1, 0], [0, 0, 1]] * (0.7, 0.8, 2.5)
    header = header_of(codes=(0, 1), sform=np.column_stack([sheared, (3, 4, 5)]))
    (tmp_path / "a.nii").write_bytes(header + VOXELS)

    direction = np.reshape(read_image(tmp_path / "a.nii")[1].direction, (3, 3))

    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction, np.diag([-1, -1, 1]) @ rotation, atol=0.006)


def test_a_strongly_sheared_nifti_is_refused(tmp_path):
    write_sheared(tmp_path / "a.nii", 0.2)

    with pytest.raises(ValueError, match=r"a\.nii: its axes are not perpendicular \(cosine 0\.196"):
        read_image(tmp_path / "a.nii")


def moved_sform(**fields) -> bytes:
    """A file whose qform and sform are 26 mm apart, as after coregistration."""
    sform = np.column_stack([np.diag([2.0, 3.0, 4.0]), [-10, 26, 5]])
    pixdim = fields.pop("pixdim", (1, 2, 3, 4))
    place = {"codes": (1, 2), "qoffset": (-10, 0, 5), "sform": sform, **fields}
    return header_of(pixdim=pixdim, **place) + VOXELS


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (0, 4), (3, 0), (0, 0)])
def test_what_is_written_like_a_nifti_lies_there_for_every_program(tmp_path, codes, ending):
    source, target = tmp_path / "a.nii", tmp_path / f"b{ending}"
    source.write_bytes(moved_sform(codes=codes))
    image, geometry = read_image(source)
    mask = (image[0] > np.median(image)).astype(np.uint8)
    write_image(target, mask, geometry, like=source)

    found, there = read_image(target)
    np.testing.assert_array_equal(found[0], mask)
    assert there == geometry and found.dtype == np.uint8
    one, other = nibabel.load(source), nibabel.load(target)
    np.testing.assert_array_equal(np.asarray(other.dataobj), mask.T)
    np.testing.assert_array_equal(other.affine, one.affine)
    for form in ("get_qform", "get_sform"):
        (expected, code), (affine, its) = (getattr(n, form)(coded=True) for n in (one, other))
        assert its == code
        if code:
            np.testing.assert_array_equal(affine, expected)
    with _quiet_itk():
        one, other = (sitk.ReadImage(str(path)) for path in (source, target))
    assert (one.GetOrigin(), one.GetDirection(), one.GetSpacing()) == (
        (other.GetOrigin(), other.GetDirection(), other.GetSpacing())
    )


def test_a_mask_of_another_format_is_not_written_like_a_nifti(tmp_path):
    (tmp_path / "a.nii").write_bytes(moved_sform())
    image, geometry = read_image(tmp_path / "a.nii")
    write_image(tmp_path / "b.nrrd", image[0], geometry, like=tmp_path / "a.nii")
    assert read_image(tmp_path / "b.nrrd")[1].difference_from(geometry) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "differ (origins [-10.0, 0.0, 5.0] and [-10.0, 26.0, 5.0], xyz, mm); the qform is"),
        ({"codes": (2, 1)}, "26.0, 5.0], xyz, mm); the sform is used"),
        ({"codes": (0, 2), "pixdim": (1, 2, 3, 5)}, "[2.0, 3.0, 5.0] by pixdim and of [2.0, 3.0, "),
        ({"codes": (1, 0), "pixdim": (1, 2, 0, 4)}, "voxels of 2, 0, 4 (xyz): 0 and NaN are"),
        ({"codes": (1, 0), "pixdim": (1, 2, 3, np.nan)}, "voxels of 2, 3, nan (xyz)"),
    ],
)
def test_forms_and_scales_that_disagree_are_said(tmp_path, caplog, fields, message):
    (tmp_path / "a.nii").write_bytes(moved_sform(**fields))
    read_image(tmp_path / "a.nii")
    assert message in caplog.text


def test_forms_that_agree_are_not_mentioned(tmp_path, caplog):
    sform = np.column_stack([np.diag([2.0, 3.0, 4.0]), [-10, 0, 5.001]])
    (tmp_path / "a.nii").write_bytes(moved_sform(sform=sform))
    read_image(tmp_path / "a.nii")
    assert not caplog.text


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr"])
def test_nifti_2_is_read_as_the_same_nifti_1_and_written_like(tmp_path, order, ending):
    (tmp_path / "one.nii").write_bytes(moved_sform(slope=(2, 1)))
    one = nibabel.load(tmp_path / "one.nii")
    header = nibabel.Nifti2Header.from_header(one.header).as_byteswapped(order)
    stored = np.asarray(one.dataobj.get_unscaled())
    kind = nibabel.Nifti2Pair if ending == ".hdr" else nibabel.Nifti2Image
    image = kind(stored, None, header)
    image.header.set_slope_inter(2, 1)
    kind.to_filename(image, tmp_path / f"two{ending}")
    assert nibabel.load(tmp_path / f"two{ending}").header["sizeof_hdr"] == 540

    expected, place = read_image(tmp_path / "one.nii")
    found, there = read_image(tmp_path / f"two{ending}")
    np.testing.assert_array_equal(found, expected)
    assert there == place and found.dtype == expected.dtype
    assert count_channels(tmp_path / f"two{ending}") == 1
    mask = (found[0] > np.median(found)).astype(np.uint8)
    write_image(tmp_path / "mask.nii.gz", mask, there, like=tmp_path / f"two{ending}")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert written.header["sizeof_hdr"] == 348  # which all programs read
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask.T)
    np.testing.assert_allclose(written.affine, one.affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:400], "is cut short: it holds 400 bytes, less than a header"),
        (lambda content: content[:-1], "is cut short: its header promises 824 bytes"),
        (lambda content: content[:4] + b"n+1" + content[7:], "is damaged or cut short"),
        (lambda content: content[:168] + struct.pack("<q", 348) + content[176:], "voxels begin at"),
        (
            lambda content: content[:16] + struct.pack("<4q", 3, *[2**40] * 3) + content[48:],
            "header promises 2658455991569831745807614120560689696 bytes",
        ),
    ],
)
def test_a_damaged_nifti_2_is_refused(tmp_path, damage, message):
    volume = np.arange(140, dtype=np.int16).reshape(7, 5, 4)
    nibabel.Nifti2Image(volume, np.eye(4)).to_filename(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(damage((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.nii.*{message}"):
        read_image(tmp_path / "a.nii")


def test_a_mask_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path):
    volume = np.zeros((2, 1, 40_000), np.uint8)
    volume[1, 0, 39_000:] = 3
    nibabel.Nifti2Image(volume.T, np.diag([-0.5, -2, 3, 1])).to_filename(tmp_path / "a.nii.gz")
    image, geometry = read_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "b.nii.gz", image[0], geometry, like=tmp_path / "a.nii.gz")
    found, there = read_image(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(found[0], volume)
    assert there == geometry and geometry.spacing == (3, 2, 0.5)
