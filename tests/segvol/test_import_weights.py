"""From a file of SegVol's weights through the real commands to segmentations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from promptseg.commands import import_segvol as import_command
from promptseg.commands import predict as predict_command
from promptseg.files import read_json, write_json
from promptseg.inference.load import load_predictor
from promptseg.io.images import Geometry, read_image, write_image
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.plans import Plans, load_plans
from promptseg.prompts.types import write_prompts_file
from promptseg.segvol.import_weights import import_segvol, segvol_plans
from promptseg.segvol.predictor import SegVolPredictor
from promptseg.segvol.weights import segvol_network
from tests.segvol.checkpoint import write_segvol_checkpoint
from tests.segvol.literal import literal_segvol
from tests.segvol.test_predictor import box_of, points_of, volume

PATCH_SIZE, STRIDE = (8, 32, 48), (2, 8, 8)
REDUCED = {"size": "tiny", "patch_size": PATCH_SIZE, "stride": STRIDE}
FLAGS = ["--size", "tiny", "--patch-size", *map(str, PATCH_SIZE), "--stride", *map(str, STRIDE)]
# Turned about two axes by 3-4-5 and 5-12-13 triangles.
OBLIQUE = (
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    @ np.array([[1, 0, 0], [0, 5 / 13, -12 / 13], [0, 12 / 13, 5 / 13]])
).ravel()
IMAGES = {"a": ((7, 41, 30), ".nii.gz"), "b": ((19, 37, 90), ".nrrd"), "c": ((4, 20, 60), ".mha")}


def write_weights(path, layout="github"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {"patch_size": PATCH_SIZE, "patch": STRIDE, "hidden": 192, "layers": 6}
    return write_segvol_checkpoint(path, layout=layout, seed=3, **sizes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the released layout, and its state dict."""
    path = tmp_path_factory.mktemp("weights") / "SegVol_v1.pth"
    return path, write_weights(path)


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "segvol"
    assert import_command.main([str(weights[0]), "-o", str(folder), *FLAGS]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, (shape, ending) in IMAGES.items():
        geometry = Geometry(
            shape=shape,
            spacing=(4.0, 0.9, 1.1),
            origin=(-120.5, 33.25, 7.125),
            direction=tuple(OBLIQUE),
        )
        write_image(folder / f"{name}_0000{ending}", volume(shape), geometry)
    return folder


def predicted(*arguments) -> tuple[int, dict]:
    code = predict_command.main([str(a) for a in arguments])
    output = arguments[arguments.index("-o") + 1]
    return code, read_json(output / "predict_report.json")


def test_the_intensity_prompt_segments_a_folder_on_the_images_own_grid(
    model, images, tmp_path, capsys
):
    code, report = predicted(
        "-m", model, "-i", images, "-o", tmp_path, "--auto-prompt", "intensity"
    )
    assert code == 0 and report["failed"] == 0
    for name, (shape, ending) in IMAGES.items():
        array, geometry = read_image(tmp_path / f"{name}{ending}")
        _, expected = read_image(images / f"{name}_0000{ending}")
        assert array.shape[1:] == shape and array.dtype == np.uint8
        assert geometry.difference_from(expected, tolerance=1e-6) is None
        result = report["cases"][name]["labels"]["object"]
        assert result["source"] == "intensity" and len(result["boxes"]) == 1
        assert result["predicted_iou"] is None and result["voxels"] == (array == 1).sum()
    # --auto-prompt alone means the same: the plans of an import name no other strategy
    again = tmp_path / "again"
    assert predicted("-m", model, "-i", images, "-o", again, "--auto-prompt")[0] == 0
    for name, (_, ending) in IMAGES.items():
        first, second = (read_image(f / f"{name}{ending}")[0] for f in (tmp_path, again))
        np.testing.assert_array_equal(first, second)


def test_prompts_from_a_file_give_what_a_literal_walk_with_the_same_weights_gives(
    model, weights, images, tmp_path
):
    prompts = {}
    for name, (shape, _) in IMAGES.items():
        points, kinds = points_of(shape)
        given = {"boxes": [box_of(shape).tolist()]}
        if name == "c":
            given = {"points": points.tolist(), "point_labels": kinds.tolist()}
        prompts[name] = {"object": given}
    write_prompts_file(tmp_path / "prompts.json", prompts)
    code, report = predicted(
        "-m", model, "-i", images, "-o", tmp_path / "out", "--prompts", tmp_path / "prompts.json"
    )
    assert code == 0 and report["failed"] == 0

    network = segvol_network(weights[1], patch_size=PATCH_SIZE, stride=STRIDE, heads=6)

    @torch.no_grad()
    def ask(image, box, points, kinds):
        if box is not None:
            box = np.reshape(box, (2, 3)) + [(0, 0, 0), (1, 1, 1)]
        query = Query(box=box, points=points, point_labels=kinds)
        return network(255 * image, batch_queries([query]))[0][0]

    found = 0
    for name, (shape, ending) in IMAGES.items():
        given = {"points": points_of(shape)} if name == "c" else {"box": box_of(shape)}
        expected = literal_segvol(volume(shape), PATCH_SIZE, ask, **given)
        array = read_image(tmp_path / "out" / f"{name}{ending}")[0][0]
        sure = np.abs(expected) > 1e-2
        assert sure.mean() > 0.9
        np.testing.assert_array_equal((array == 1)[sure], (expected > 0)[sure])
        found += (array == 1).sum()
    assert found > 100


def test_a_label_without_prompt_is_reported_and_stops_nothing(model, images, tmp_path):
    code, report = predicted("-m", model, "-i", images, "-o", tmp_path)
    assert code == 0 and report["failed"] == 0
    for name, (_, ending) in IMAGES.items():
        assert not read_image(tmp_path / f"{name}{ending}")[0].any()
        result = report["cases"][name]["labels"]["object"]
        assert result["reason"] == "no_box" and result["flags"] == ["no_box", "empty"]


@pytest.mark.parametrize("layout", ["huggingface", "training", "bare"])
def test_every_layout_gives_the_same_model(model, layout, tmp_path):
    write_weights(tmp_path / "w.bin", layout)
    import_segvol(tmp_path / "w.bin", tmp_path / "model", **REDUCED)
    ours, theirs = (
        torch.load(folder / "fold_all" / "checkpoint_final.pth", weights_only=True)
        for folder in (tmp_path / "model", model)
    )
    assert ours["plans"] == theirs["plans"] and ours["network"].keys() == theirs["network"].keys()
    for name, tensor in theirs["network"].items():
        if not name.startswith("label_text"):  # random: SegVol has CLIP here
            assert torch.equal(ours["network"][name], tensor), name


def test_a_model_folder_is_whole_and_says_what_it_is(model, weights):
    files = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()}
    assert files == {"plans.json", "dataset.json", "fold_all/checkpoint_final.pth"}
    plans = load_plans(model / "plans.json")
    assert plans.preset == "segvol" and plans.keeps_spacing and plans.labels == {"object": 1}
    assert (plans.patch_size, plans.stride, plans.size) == (PATCH_SIZE, STRIDE, "tiny")
    assert read_json(model / "dataset.json")["labels"] == {"background": 0, "object": 1}
    assert not list(model.parent.glob(".writing_*"))
    predictor = load_predictor(model, device="cpu")
    assert type(predictor) is SegVolPredictor and predictor.flips == [()]


def test_the_command_says_what_was_loaded_and_what_was_not(weights, tmp_path, capsys):
    arguments = [str(weights[0]), "-o", str(tmp_path / "m"), *FLAGS, "--labels", "liver", "tumour"]
    assert import_command.main(arguments) == 0
    told = capsys.readouterr().out
    assert "tensors of the network loaded" in told
    assert "CLIP's text model" in told and "no_box" in told
    assert f"promptseg_predict -m {tmp_path / 'm'}" in told
    assert load_plans(tmp_path / "m" / "plans.json").labels == {"liver": 1, "tumour": 2}


def test_the_released_sizes_are_the_default():
    plans = segvol_plans(["object"])
    assert (plans.patch_size, plans.stride, plans.size) == ((32, 256, 256), (4, 16, 16), "base")
    assert Plans.from_json(json.loads(json.dumps(plans.to_json()))) == plans


def test_an_earlier_import_is_replaced_only_when_asked(model, weights, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()  # an empty folder is as good as none
    import_segvol(weights[0], folder, **REDUCED)
    with pytest.raises(FileExistsError, match="is not empty.*--overwrite"):
        import_segvol(weights[0], folder, **REDUCED)
    import_segvol(weights[0], folder, labels=["liver"], overwrite=True, **REDUCED)
    assert load_plans(folder / "plans.json").labels == {"liver": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "fold_0/checkpoint_final.pth", "fold_all/progress.png"]
)
def test_a_folder_with_anything_else_in_it_is_left_as_it_is(weights, tmp_path, name):
    folder = tmp_path / "model"
    import_segvol(weights[0], folder, **REDUCED)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("someone's work")
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match=f"contains more than an earlier import.*{name}"):
        import_segvol(weights[0], folder, overwrite=True, **REDUCED)
    assert sorted(folder.rglob("*")) == before


def test_a_failed_import_leaves_nothing_or_what_was_there(weights, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    module = "promptseg.segvol.import_weights.save_checkpoint"

    def full(path, content):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, full)
        with pytest.raises(OSError, match="no space"):
            import_segvol(weights[0], folder, **REDUCED)
    assert not list(tmp_path.iterdir())
    import_segvol(weights[0], folder, **REDUCED)
    with monkeypatch.context() as patch:
        patch.setattr(module, full)
        with pytest.raises(OSError, match="no space"):
            import_segvol(weights[0], folder, labels=["liver"], overwrite=True, **REDUCED)
    assert load_plans(folder / "plans.json").labels == {"object": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_earlier_import_is_kept_when_the_new_one_cannot_be_moved(weights, tmp_path, monkeypatch):
    folder, rename = tmp_path / "model", Path.rename
    import_segvol(weights[0], folder, **REDUCED)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    moves = []

    def failing(path, target):
        if Path(target) == folder and not moves:
            moves.append(path)
            raise PermissionError("the folder is in use")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(PermissionError, match="in use"):
            import_segvol(weights[0], folder, labels=["liver"], overwrite=True, **REDUCED)
    assert moves and {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "cannot be read as a file of weights"),
        (b"not a checkpoint", "cannot be read as a file of weights"),
        ({"state_dict": {"layer.weight": torch.zeros(2)}}, "is not a SegVol checkpoint"),
        ({"epoch": 3}, "is not a SegVol checkpoint"),
        ([1, 2], "is not a SegVol checkpoint"),
    ],
)
def test_files_that_are_not_weights_of_segvol_are_refused(content, told, tmp_path, capsys):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert import_command.main([str(path), "-o", str(tmp_path / "model"), *FLAGS]) == 1
    error = capsys.readouterr().err
    assert told in error and "w.pth" in error
    assert not (tmp_path / "model").exists()


def test_a_missing_file_and_wrong_sizes_are_refused_with_what_does_not_fit(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth: no such file of weights"):
        import_segvol(tmp_path / "nowhere.pth", tmp_path / "model", **REDUCED)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*position_embeddings"):
        import_segvol(weights[0], tmp_path / "model", **{**REDUCED, "patch_size": (8, 32, 64)})
    with pytest.raises(ValueError, match=r"patch \(8, 32, 50\) is not a multiple of stride"):
        import_segvol(weights[0], tmp_path / "model", **{**REDUCED, "patch_size": (8, 32, 50)})
    with pytest.raises(ValueError, match="patch_size: expected 3 positive whole numbers"):
        import_segvol(weights[0], tmp_path / "model", **{**REDUCED, "patch_size": (8, 0, 48)})
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        import_segvol(weights[0], tmp_path / "model", **{**REDUCED, "size": "huge"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "labels, told",
    [
        (["liver", "liver"], "duplicate name 'liver'"),
        (["background"], "background"),
        (["liver", " "], "a name is empty"),
        ([], "labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(weights, tmp_path, labels, told):
    with pytest.raises(ValueError, match=told):
        import_segvol(weights[0], tmp_path / "model", labels=labels, **REDUCED)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(weights, tmp_path):
    write_json(tmp_path / "model", {})
    with pytest.raises(FileExistsError, match="model is a file; give a folder"):
        import_segvol(weights[0], tmp_path / "model", overwrite=True, **REDUCED)
