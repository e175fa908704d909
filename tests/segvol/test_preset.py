"""Plans with SegVol's preset: what they fix, and training and prediction with them."""

import dataclasses
import shutil

import numpy as np
import pytest

from promptseg.commands import plan as plan_command
from promptseg.experiment_planning.planner import plan_dataset, possible_sizes
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.inference.load import load_predictor
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, write_image
from promptseg.plans import load_plans, save_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.normalize import foreground_clipping, normalize, to_uint8
from promptseg.preprocessing.preprocess import preprocess_dataset
from promptseg.segvol.predictor import SegVolPredictor
from tests.synthetic import synthetic_case, write_raw_dataset
from tests.trained import train

SHAPES = {
    "case_0": (9, 20, 30),
    "case_1": (12, 26, 24),
    "case_2": (7, 40, 36),
    "case_3": (16, 22, 28),
}
SPACINGS = {
    "case_0": (4.0, 0.8, 0.7),
    "case_1": (2.5, 1.1, 1.0),
    "case_2": (5.0, 0.6, 0.6),
    "case_3": (3, 1, 1),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    """Four cases of different shapes and spacings, planned with the preset by the command."""
    root = tmp_path_factory.mktemp("segvol")
    raw = write_raw_dataset(root / "raw", 3, "Mixed", cases=list(SHAPES), modality="MRI")
    rng = np.random.default_rng(5)
    for name, shape in SHAPES.items():
        geometry = Geometry(shape=shape, spacing=SPACINGS[name])
        image, segmentation = synthetic_case(rng, shape, "MRI")
        write_image(raw / "imagesTr" / f"{name}_0000.nii.gz", image, geometry)
        write_image(raw / "labelsTr" / f"{name}.nii.gz", segmentation, geometry)
    roots = [f"--{name}={root / name}" for name in ("raw", "preprocessed")]
    assert plan_command.main(["-d", "3", "--preset", "segvol", "-np", "0", *roots]) == 0
    return Folders(raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results")


def test_the_preset_fixes_what_the_released_weights_ask_for(folders):
    plans = load_plans(folders.preprocessed / "Dataset003_Mixed" / "PromptSegPlans.json")
    assert (plans.preset, plans.size) == ("segvol", "base")
    assert (plans.patch_size, plans.stride) == ((32, 256, 256), (4, 16, 16))
    assert plans.normalizations == (foreground_clipping(),)
    assert plans.keeps_spacing and plans.spacing == pytest.approx((3.5, 0.9, 0.85))
    assert plans.median_shape == (10, 24, 29)  # of the images as they are, halves to even
    for rule in ("patch_size", "spacing", "normalization"):
        assert "preset segvol" in plans.reasons[rule]


def test_every_image_keeps_its_own_voxels_and_is_normalized_as_segvol_does(folders):
    dataset = PreprocessedDataset(folders.preprocessed / "Dataset003_Mixed" / "PromptSegPlans_3d")
    rng = np.random.default_rng(5)
    assert set(dataset.case_ids) == set(SHAPES)
    for name, shape in SHAPES.items():
        raw, segmentation = synthetic_case(rng, shape, "MRI")
        properties = dataset.properties(name)
        assert tuple(properties["shape"]) == shape
        np.testing.assert_allclose(properties["spacing"], SPACINGS[name], rtol=1e-6)
        stored = np.asarray(dataset.image(name)[:])
        np.testing.assert_array_equal(stored[0], to_uint8(normalize(raw, foreground_clipping())))
        np.testing.assert_array_equal(np.asarray(dataset.segmentation(name)[:]), segmentation)


def test_cases_are_kept_for_the_same_plans_and_made_anew_without_the_preset(folders, tmp_path):
    plans = load_plans(folders.preprocessed / "Dataset003_Mixed" / "PromptSegPlans.json")
    cases = read_raw_dataset(folders.raw / "Dataset003_Mixed").cases

    def made(plans) -> dict[str, int]:
        assert preprocess_dataset(cases, plans, tmp_path, 0) == {}
        return {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in SHAPES}

    times = made(plans)
    # the spacing is for the record only, so another one changes nothing
    assert made(dataclasses.replace(plans, spacing=(9.0, 9.0, 9.0))) == times
    again = made(dataclasses.replace(plans, preset="none"))
    assert not set(again.values()) & set(times.values())
    assert tuple(PreprocessedDataset(tmp_path).properties("case_0")["shape"]) != SHAPES["case_0"]


def test_plans_of_the_preset_train_and_predict(folders):
    """With a small patch and network written into the plans by hand: the released take hours."""
    source = folders.preprocessed / "Dataset003_Mixed"
    plans = load_plans(source / "PromptSegPlans.json")
    small = dataclasses.replace(
        plans, plans_name="Small", size="tiny", patch_size=(8, 16, 24), stride=(2, 8, 8)
    )
    save_plans(source / "Small.json", small)
    boxes = read_json(source / "PromptSegPlans_auto_prompt_boxes.json")
    write_json(source / "Small_auto_prompt_boxes.json", boxes)
    (source / "Small_3d").symlink_to(source / "PromptSegPlans_3d")
    request = {"plans_name": "Small", "fold": "0"}
    with pytest.raises(FileNotFoundError, match=r"Small_locator\.npz: no such file, which"):
        train(3, folders, **request)
    shutil.copy(source / "PromptSegPlans_locator.npz", source / "Small_locator.npz")

    model = train(
        3,
        folders,
        **request,
        epochs=1,
        iterations_per_epoch=4,
        processes=0,
    )

    assert model.name == "ViTTrainer__Small__3d"  # as the plans say
    report = read_json(model / "fold_0" / "validation" / "predict_report.json")
    assert report["failed"] == 0 and report["cases"]
    predictor = load_predictor(model, device="cpu")
    assert type(predictor) is SegVolPredictor
    # four steps asked for the label by name, so it can be asked for now
    assert predictor.networks[0].label_text.learned.all()
    image, _ = synthetic_case(np.random.default_rng(1), (9, 21, 33), "MRI")
    predictor.set_image(image, (4.0, 0.8, 0.7))
    result = predictor.predict()
    assert result.segmentation.shape == (9, 21, 33)
    assert all(0 < r.predicted_iou < 1 for r in result.labels.values())


def test_what_does_not_fit_the_preset_is_refused(tmp_path):
    assert possible_sizes(None, "none") == ["tiny", "small", "base"]
    assert possible_sizes("small", "none") == ["small"]
    assert possible_sizes(None, "segvol") == possible_sizes("base", "segvol") == ["base"]
    with pytest.raises(ValueError, match="unknown preset 'sam'; there are none, segvol"):
        possible_sizes(None, "sam")
    with pytest.raises(ValueError, match="SegVol's weights have size 'base'; leave out.*'tiny'"):
        possible_sizes("tiny", "segvol")
    with pytest.raises(ValueError, match="unknown size 'huge'; there are tiny, small, base"):
        possible_sizes("huge", "segvol")
    write_raw_dataset(tmp_path / "raw", 2, "Two", cases=2, channels=2, modality="MRI")
    roots = Folders(raw=tmp_path / "raw", preprocessed=tmp_path / "p", results=tmp_path / "r")
    with pytest.raises(
        ValueError, match=r"Dataset002_Two has 2 channels \(MRI, MRI\).*look at one"
    ):
        plan_dataset(2, roots, preset="segvol", processes=0)
    assert not (tmp_path / "p").exists()
