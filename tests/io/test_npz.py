from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from promptseg.io.npz import npz_keys, read_npz

BOXES = [{"z_min": np.int64(1), "z_max": np.int64(3)}, {"z_min": np.int64(0), "z_max": np.int64(2)}]


def objects(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def member(pickled, shape=(1,)):
    """The bytes of an .npy file of objects with this pickle."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + pickled


def npz_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def plain(rng_shape=(2, 3, 5), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, rng_shape).astype(dtype)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float32", ">f8", "bool"])
def test_arrays_come_as_numpy_itself_reads_them(tmp_path, save, dtype):
    volume = plain(dtype=dtype)
    file = tmp_path / "a.npz"
    save(file, imgs=volume, fortran=np.asfortranarray(volume), text="xyz", none=volume[:0], one=7)

    found = read_npz(file, ("imgs", "fortran", "text", "none", "one", "absent"))

    with np.load(file) as expected:
        assert set(found) == set(expected)
        for key in found:
            assert found[key].dtype == expected[key].dtype
            np.testing.assert_array_equal(found[key], expected[key])


def test_object_arrays_become_plain_values(tmp_path):
    nested = {"fg": [[1, 2, 3]], "bg": [], "who": None, "f": np.float32(0.5), "t": (1, "a")}
    file = tmp_path / "a.npz"
    np.savez(
        file,
        boxes=objects(*BOXES),
        clicks=objects(nested, {"array": plain(), "text": np.str_("é")}),
        text_prompts={"1": "liver", "instance_label": 0},
        square=np.array([[None, 1], [2, {"a": np.bool_(True)}]], dtype=object),
    )

    found = read_npz(file, npz_keys(file))

    assert found["boxes"] == [{"z_min": 1, "z_max": 3}, {"z_min": 0, "z_max": 2}]
    assert all(type(v) is int for box in found["boxes"] for v in box.values())
    assert found["clicks"][0] == nested | {"t": [1, "a"]}
    np.testing.assert_array_equal(found["clicks"][1]["array"], plain())
    assert found["clicks"][1]["text"] == "é"
    assert found["text_prompts"] == {"1": "liver", "instance_label": 0}
    assert found["square"] == [[None, 1], [2, {"a": True}]]


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path, core, protocol):
    pickled = pickle.dumps(objects(*BOXES), protocol=protocol)
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    ours, other = names if names[0] in pickled else names[::-1]
    wanted = f"numpy.{core}.multiarray".encode()
    if wanted != ours:  # the name's length precedes it in protocol 4, and a frame's holds both
        prefix = (lambda n: b"\x8c" + bytes([len(n)]) + n) if protocol == 4 else lambda n: b"c" + n
        difference = len(other) - len(ours)
        count = pickled.count(prefix(ours))
        pickled = pickled.replace(prefix(ours), prefix(other))
        if protocol == 4:
            (frame,) = struct.unpack("<Q", pickled[3:11])
            pickled = pickled[:3] + struct.pack("<Q", frame + count * difference) + pickled[11:]
    assert wanted in pickled

    file = npz_of(tmp_path / "a.npz", boxes=member(pickled, (2,)))

    assert read_npz(file, ["boxes"])["boxes"] == BOXES


class Calls:
    """Pickles as a call of any function, as an attacker would write it."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def mark(path):
    return f"open({str(path)!r}, 'w').close()"


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch MARK",), r"(posix|nt)\.system"),
        (os.popen, ("touch MARK",), r"os\.popen"),
        (os.remove, ("MARK",), r"(posix|nt)\.remove"),
        (eval, ("open('MARK', 'w')",), r"builtins\.eval"),
        (exec, ("open('MARK', 'w')",), r"builtins\.exec"),
        (open, ("MARK", "w"), r"io\.open|_io\.open"),
        (getattr, ([], "append"), r"builtins\.getattr"),
        (__import__, ("os",), r"builtins\.__import__"),
        (compile, ("1", "", "eval"), r"builtins\.compile"),
        (map, (print, [1]), r"builtins\.map"),
        (set, ([1],), r"builtins\.set"),
        (bytearray, (b"a",), r"builtins\.bytearray"),
        (complex, (1, 2), r"builtins\.complex"),
        (type, ("A", (), {}), r"builtins\.type"),
        (np.load, ("MARK",), r"numpy\.load"),
        (np.fromfile, ("MARK",), r"numpy.*\.fromfile"),
        (np.save, ("MARK", 1), r"numpy\.save"),
        (np.zeros, ((3,),), r"numpy.*\.zeros"),
        (np.memmap, ("MARK",), r"numpy.*memmap"),
        (np.frombuffer, (b"12", "u1"), r"numpy.*\.frombuffer"),
        (np.matrix, ([[1]],), r"numpy.*matrix"),
        (pickle.loads, (b"N.",), r"_pickle\.loads"),
        (Calls, (print,), r"Calls"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda v: objects(v), lambda v: objects({"fg": [[1, v]]})])
def test_any_other_name_in_a_pickle_is_refused_and_named(
    tmp_path, monkeypatch, function, arguments, named, wrap
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.npz"
    np.savez(file, imgs=plain(), boxes=wrap(Calls(function, *arguments)))

    with pytest.raises(ValueError, match=rf"evil\.npz: boxes: pickled data with .*{named}"):
        read_npz(file, ["imgs", "boxes"])

    assert not (tmp_path / "MARK").exists()
    assert list(read_npz(file, ["imgs"])) == ["imgs"]  # what is not asked for is not looked at


def g(name):
    """Opcodes that push a global."""
    module, name = name.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n.",
        b"(S'touch MARK'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch MARK'\no.",  # OBJ
        b"\x80\x02cos\nsystem\n(S'touch MARK'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\nx\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bload.__call__\x93.",  # a dotted name
        g("numpy.core.multiarray._reconstruct.__globals__") + b".",
        g("numpy.dtype") + b".",
        g("numpy.ndarray") + b"(I3\ntR.",
        g("numpy.dtype") + b"(S'O8'\ntR(S'x'\ntR.",  # a call of a result
        g("numpy.dtype") + b"(S'O8'\ntR.",
        g("numpy.dtype") + b"}S'name'\nS'x'\nsb.",  # a change of the type itself
        g("numpy.dtype") + b"\x85\x81.",  # NEWOBJ
        g("numpy.core.multiarray.scalar")
        + g("numpy.dtype")
        + b"S'O8'\n\x85RB\x08\0\0\0AAAAAAAA\x86R.",
        g("numpy.core.multiarray.scalar") + g("numpy.dtype") + b"S'i8'\n\x85RB\x02\0\0\0AA\x86R.",
        g("numpy.core.multiarray.scalar") + b"S'i8'\nB\x08\0\0\0AAAAAAAA\x86R.",
        g("numpy.core.multiarray.scalar") + b")R.",
        g("numpy.core.multiarray._reconstruct") + b")R.",
        g("numpy.core.multiarray._reconstruct") + b")R}b.",
        b"S'persistent'\nQ.",
        b"Pid\n.",
        b"\x82\x01.",  # EXT1
        b"\x80\x04\x96\x01\0\0\0\0\0\0\0A.",  # a bytearray
        b"C\x01A.",  # bytes
        b"\x80\x04\x8f.",  # a set
        b"\x80\x04(I1\n\x91.",  # a frozenset
        b"]q\x00h\x00a.",  # a list in itself
        b"}N]s.",  # None as a key
        b"}(F1.5\nI1\nu.",  # a float as a key
        b"}]]s.",  # a list as a key
        b"r\xff\xff\xff\x7f.",  # memo 2**31 alone
        b"Nr\xff\xff\xff\x7f.",  # a memo of 2**31 entries
        b"Np99999999999\n.",
        b"N",
        b"",
        b".",
        b"garbage",
        b"\xff\xff\xff",
        b"0.",
        b"h\x05.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of exabytes
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fA.",  # bytes of exabytes
        b"\x8b\xff\xff\xff\x7fA.",  # a number of gigabytes
        b"\x80\x63N.",  # protocol 99
        b"]" * 100_000 + b"a" * 99_999 + b".",  # deep
    ],
)
def test_other_pickles_are_refused_without_harm(tmp_path, monkeypatch, pickled):
    monkeypatch.chdir(tmp_path)
    file = npz_of(tmp_path / "a.npz", boxes=member(pickled))
    with pytest.raises(ValueError, match=r"a\.npz: boxes: pickled data "):
        read_npz(file, ["boxes"])
    assert not (tmp_path / "MARK").exists()


def array_state(shape, dtype, data, fortran=False):
    """A pickled array with a state of one's own choosing."""
    empty = Calls(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b")
    empty.reduced += ((1, shape, dtype, fortran, data),)
    return pickle.dumps(empty, protocol=4)


@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [
        ((2**40,), np.dtype("u1"), b"A"),
        ((-1,), np.dtype("u1"), b"A"),
        ((2**40,), np.dtype("O"), [1]),
        ((2,), np.dtype("i8"), b"A" * 8),
        ((1,), np.dtype("O"), b"A" * 8),  # an address as an object
        ((1,), np.dtype("V8"), b"A" * 8),
        ((1,), np.dtype([("a", "O")]), b"A" * 8),
        ((1,), np.dtype("M8[s]"), b"A" * 8),
        ((1,), np.dtype("c16"), b"A" * 16),
        ((1,), "u1", b"A"),
        ([1], np.dtype("u1"), b"A"),
        (None, None, None),
    ],
)
def test_states_that_numpy_would_trust_are_refused(tmp_path, shape, dtype, data):
    file = npz_of(tmp_path / "a.npz", clicks=member(array_state(shape, dtype, data)))
    with pytest.raises(ValueError, match=r"a\.npz: clicks: pickled data with "):
        read_npz(file, ["clicks"])


def dtype_state(code, *state):
    """A pickled dtype that is a copy of its own, changed by a state of one's own choosing."""
    return Calls(np.dtype, code, False, True, state=(3, *state))


@pytest.mark.parametrize(
    "dtype",
    [
        # numpy takes each of these, and ends the process when the array is looked at.
        dtype_state("f8", "<", None, ("a",), {"a": (np.dtype("O"), 0)}, -1, -1, 0),
        dtype_state("u1", "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 1, 1, 0),
        dtype_state("f8", "<", None, ("a",), {"a": (np.dtype("f8"), 1 << 40)}, -1, -1, 0),
        dtype_state("V8", "|", None, ("a",), {"a": (np.dtype("f8"), 1 << 30)}, 8, 1, 0),
        dtype_state("V8", "|", (np.dtype("f8"), (1 << 20,)), None, None, 8, 1, 0),
    ],
)
def test_the_state_of_a_dtype_is_never_applied(tmp_path, dtype):
    file = npz_of(tmp_path / "a.npz", clicks=member(array_state((1,), dtype, b"A" * 8)))
    try:
        found = read_npz(file, ["clicks"])["clicks"]
    except ValueError as error:
        assert "a.npz: clicks: pickled data with " in str(error)
    else:  # the plain type alone is read
        assert found.dtype == np.float64 and found.dtype.names is None
        np.testing.assert_array_equal(found, np.frombuffer(b"A" * 8))


def with_deep_key(key, count):
    """A dictionary with a key of tuples in tuples; the hash of enough of them ends the process."""
    nested = {
        "at once": b"N" + b"\x85" * count,
        "by mark": b"(" * count + b"N" + b"t" * count,
        "by memo": b"N" + b"\x85q\x000h\x00" * count,
        "in pairs": b"N" + b"2\x86" * count,
    }[key]
    return b"\x80\x04}" + nested + b"Ns."


@pytest.mark.parametrize("key", ["at once", "by mark", "by memo", "in pairs"])
def test_deep_keys_are_refused_before_they_are_keys(tmp_path, key):
    file = npz_of(tmp_path / "a.npz", boxes=member(with_deep_key(key, 200_000)))
    read = "from promptseg.io.npz import read_npz; read_npz(sys.argv[1], ['boxes'])"
    # In a process of its own: without the check this one would be gone.
    command = [sys.executable, "-c", f"import sys; {read}", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "a.npz: boxes: pickled data with more than 32 levels" in run.stderr


def test_text_without_characters_is_refused(tmp_path):
    # numpy has no type of 0 characters: it would make 1, and the file would fill none of them.
    with_text = io.BytesIO()
    header = {"descr": "<U0", "fortran_order": False, "shape": (1000,)}
    np.lib.format.write_array_header_1_0(with_text, header)
    file = npz_of(tmp_path / "a.npz", text=with_text.getvalue())
    with pytest.raises(
        ValueError, match="text: expected numbers or text, found values of type <U0"
    ):
        read_npz(file, ["text"])
    state = array_state((1000,), np.dtype("U1"), b"").replace(b"\x8c\x02U1", b"\x8c\x02U0")
    assert b"U0" in state
    with pytest.raises(ValueError, match="clicks: pickled data with values of type 'U0'"):
        read_npz(npz_of(tmp_path / "b.npz", clicks=member(state)), ["clicks"])


def test_few_bytes_that_unfold_to_many_values_are_refused(tmp_path):
    value = "a"
    for _ in range(30):  # 2**30 strings in 30 lists
        value = [value, value]
    file = npz_of(tmp_path / "a.npz", boxes=member(pickle.dumps(value)))
    with pytest.raises(ValueError, match="more than 250000 values or 32 levels"):
        read_npz(file, ["boxes"])


def header_only(descr, shape, fortran=False, magic=b"\x93NUMPY\x01\x00", data=b""):
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape!r}}}".encode()
    return magic + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header_only("|u1", (10**9, 10**9)), "is damaged"),
        (header_only("|u1", (2, 3), data=b"A" * 5), r"shape \(2, 3\) of uint8, which is 6 bytes"),
        (header_only("|u1", (2, 3), data=b"A" * 7), "but there are 7"),
        (header_only("|u1", (-2, -3), data=b"A" * 6), "damaged"),
        (header_only("|V8", (1,), data=b"A" * 8), "expected numbers or text, found"),
        (header_only("<c16", (1,), data=b"A" * 16), "expected numbers or text, found .*complex"),
        (header_only("<M8[s]", (1,), data=b"A" * 8), "expected numbers or text, found .*datetime"),
        (header_only([("a", "<u1")], (1,), data=b"A"), "expected numbers or text, found"),
        (header_only([("a", "|O")], (1,), data=b"A" * 8), "expected numbers or text, found"),
        (header_only("|u1", "x"), "is not an array"),
        (header_only("no type", (1,)), "is not an array"),
        (header_only("|u1", (1,), magic=b"\x93NUMPY\x09\x00"), r"version \(9, 0\) is not known"),
        (b"", "is not an array"),
        (b"text", "is not an array"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "is not an array"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "is not an array"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, content, message):
    file = npz_of(tmp_path / "a.npz", imgs=content)
    with pytest.raises(ValueError, match=rf"a\.npz: imgs: .*{message}"):
        read_npz(file, ["imgs"])


def test_an_archive_that_unpacks_beyond_the_limit_is_refused_before_it_is_unpacked(tmp_path):
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, imgs=np.zeros((64, 512, 512), np.uint8), gts=np.zeros(3))
    assert file.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match=r"bomb\.npz: imgs would take 16777344 bytes .* limit of"):
        read_npz(file, ["imgs"], most_bytes=1 << 24)
    assert read_npz(file, ["gts"], most_bytes=1 << 24)["gts"].shape == (3,)
    file = npz_of(tmp_path / "pickled.npz", boxes=member(b"]" + b"0" * (17 << 20)))
    with pytest.raises(ValueError, match="boxes: pickled data of .* limit of 16777216"):
        read_npz(file, ["boxes"])


@pytest.mark.parametrize(
    "name", ["../imgs.npy", "/etc/imgs.npy", "a/imgs.npy", "..\\imgs.npy", "C:imgs.npy", "imgs.txt"]
)
def test_entries_that_are_no_plain_array_names_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(name, b"x")
    for read in (npz_keys, lambda file: read_npz(file, ["imgs"])):
        with pytest.raises(ValueError, match=r"a\.npz: expected arrays \(NAME\.npy\) only, found"):
            read(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("imgs.npy", b"x")
        archive.writestr("imgs.npy", b"y")
    with pytest.raises(ValueError, match="duplicate array 'imgs.npy', found 2 times"):
        read_npz(tmp_path / "a.npz", ["imgs"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no zip", "cannot be read as .npz"),
        (b"PK\x03\x04", "cannot be read"),
    ],
)
def test_files_of_other_formats_are_refused(tmp_path, content, message):
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.npz {message}"):
        read_npz(file, ["imgs"])
    with pytest.raises(ValueError, match=rf"a\.npz {message}"):
        npz_keys(file)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for name in ("b.npz", "folder.npz"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such file"):
            read_npz(tmp_path / name, ["imgs"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_is_an_error_or_leaves_the_values_alone(tmp_path, save):
    rng = np.random.default_rng(3)
    file = tmp_path / "a.npz"
    save(file, imgs=plain((3, 7, 5)), boxes=objects(*BOXES))
    whole = file.read_bytes()
    expected = read_npz(file, ["imgs", "boxes"])
    refused = 0
    for turn in range(300):
        damaged = bytearray(whole)
        if turn % 3 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        else:
            for place in rng.integers(0, len(damaged), 3):
                damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            found = read_npz(file, ["imgs", "boxes"])
        except ValueError as error:
            assert "a.npz" in str(error)
            refused += 1
        else:
            for key in found:
                np.testing.assert_array_equal(found[key], expected[key])
    assert refused > 200
