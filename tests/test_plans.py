"""Plans through JSON, and everything that a plans file can have wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.files import write_json
from promptseg.plans import Plans, load_plans, save_plans
from promptseg.preprocessing.normalize import ct_window, percentile_clipping
from tests.prompts.strategies.fitted_cases import block_cases
from tests.small_plans import small_plans

PLANS = small_plans(
    channel_names=("CT", "T1"),
    modalities=("CT", "MRI"),
    normalizations=(ct_window("lung"), percentile_clipping()),
    auto_prompts={"liver": {"strategy": "atlas", "candidates": {"atlas": {"parameters": {}}}}},
    reasons={"spacing": "median"},
)


def good() -> dict:
    return json.loads(json.dumps(PLANS.to_json()))


def test_plans_survive_their_file(tmp_path):
    path = tmp_path / "PromptSegPlans.json"
    save_plans(path, PLANS)
    read = load_plans(path)
    assert read == PLANS
    assert isinstance(read.patch_size, tuple) and isinstance(read.channel_names, tuple)
    assert list(read.labels) == ["liver", "spleen", "lesion"]
    assert read.data_identifier == "PromptSegPlans_3d"


def test_plans_of_version_0_1_0_are_read_under_their_present_names():
    content = good()
    content["window"] = content.pop("patch_size")
    assert Plans.from_json(content) == PLANS


LATER = {
    "format_version",
    "preset",
    "finest_stride",
    "trainer",
    "estimate",
    "orientation",
    "ignore_label",
    "regions_class_order",
    "single_component",
    "training_images",
}  # of which earlier plans have none


@pytest.mark.parametrize("field", sorted(set(PLANS.to_json()) - LATER))
def test_a_missing_field_and_a_null_are_named(field):
    content = good()
    del content[field]
    with pytest.raises(ValueError, match=f"^p.json: missing {field}; run promptseg_plan again"):
        Plans.from_json(content, "p.json")
    with pytest.raises(ValueError, match=f"^p.json: {field}: expected .*, found None"):
        Plans.from_json({**good(), field: None}, "p.json")


BAD = [
    ({"colour": 1, "a": 2}, "unknown a, colour; is it a promptseg plan"),
    ({"format_version": 2}, "plans format 2, this version of promptseg reads 1; run promptseg"),
    ({"format_version": "1"}, "plans format '1'"),
    ({"dataset_name": ""}, "dataset_name: expected a name, found ''"),
    ({"size": 3}, "size: expected a name, found 3"),
    ({"ignore_label": 0}, "ignore_label: expected a positive whole number, or null, found 0"),
    ({"spacing": [1, 1]}, r"spacing: expected 3 positive lengths in mm, zyx, found \[1, 1\]"),
    ({"spacing": [1, 1, 0]}, "spacing: expected 3 positive lengths"),
    ({"spacing": [1, 1, -2.5]}, "spacing: expected 3 positive lengths"),
    ({"spacing": [1, 1, float("nan")]}, "spacing: expected 3 positive lengths"),
    ({"spacing": [1, 1, float("inf")]}, "spacing: expected 3 positive lengths"),
    ({"spacing": ["1", "1", "1"]}, "spacing: expected 3 positive lengths"),
    ({"spacing": 1.0}, "spacing: expected 3 positive lengths"),
    ({"patch_size": [8, 12.5, 16]}, "patch_size: expected 3 positive whole numbers, zyx"),
    ({"patch_size": [8, 12, 16, 16]}, "patch_size: expected 3 positive whole numbers"),
    ({"patch_size": [8, 12, True]}, "patch_size: expected 3 positive whole numbers"),
    ({"patch_size": [8, 13, 16]}, r"patch \(8, 13, 16\) is not a multiple of stride \(2, 4, 4\)"),
    ({"stride": [2, 0, 4]}, "stride: expected 3 positive whole numbers"),
    ({"finest_stride": [1, 2]}, "finest_stride: expected 3 positive whole numbers"),
    ({"finest_stride": [1, 0, 2]}, "finest_stride: expected 3 positive whole numbers"),
    ({"median_shape": "8x12x16"}, "median_shape: expected 3 positive whole numbers"),
    ({"batch_size": "2"}, "batch_size: expected a positive whole number, found '2'"),
    ({"batch_size": 0}, "batch_size: expected a positive whole number"),
    ({"batch_size": 1.5}, "batch_size: expected a positive whole number"),
    ({"channel_names": "CT"}, "channel_names: expected a list of names, found 'CT'"),
    ({"channel_names": ["CT", 1]}, "channel_names: expected a list of names"),
    ({"channel_names": []}, "channel_names: expected a list of names"),
    ({"modalities": ["CT"]}, "need as many entries as channels, found 2, 1, 2"),
    ({"normalizations": {}}, "normalizations: expected a list of objects"),
    ({"normalizations": [1, 2]}, "normalizations: .*mapping"),
    ({"normalizations": [{"kind": "window", "lower": 0}] * 2}, "normalizations: .*'upper'"),
    (
        {"normalizations": [{"kind": "zscore", "lower": 0, "upper": 1}] * 2},
        "normalizations: normalization kind 'zscore' is none of",
    ),
    (
        {"normalizations": [{"kind": "window", "lower": 3, "upper": 1}] * 2},
        "normalizations: normalization needs lower < upper",
    ),
    ({"labels": {}}, "labels: expected names with different positive whole numbers"),
    ({"labels": ["liver"]}, "labels: expected names with different"),
    ({"labels": {"liver": "1"}}, "labels: expected names with different"),
    ({"labels": {"background": 0, "liver": 1}}, "labels: expected names with different"),
    ({"labels": {"liver": 1, "spleen": 1}}, "labels: expected names with different"),
    ({"orientation": "RA"}, "orientation: expected three letters, such as RAS, found 'RA'"),
    ({"orientation": "RLS"}, "orientation: expected three letters"),
    ({"orientation": ["R", "A", "S"]}, "orientation: expected three letters"),
    ({"single_component": "liver"}, "single_component: expected a list of names, which may be"),
    ({"single_component": ["liver", 3]}, "single_component: expected a list of names, which may"),
    ({"training_images": 3}, "training_images: expected an object, found 3"),
    ({"preset": "sam"}, "preset: expected one of none, segvol, found 'sam'"),
    ({"auto_prompts": []}, r"auto_prompts: expected an object, found \[\]"),
    ({"reasons": "none"}, "reasons: expected an object"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_wrong_fields_are_named_with_what_is_expected(changes, message):
    with pytest.raises(ValueError, match=f"^p.json: .*{message}|^p.json: {message}"):
        Plans.from_json({**good(), **changes}, "p.json")


def test_plans_from_before_there_were_presets_have_none():
    content = good()
    del content["preset"]
    assert Plans.from_json(content) == Plans.from_json(good())


def test_plans_from_before_maps_could_be_coarser_have_a_map_of_all_voxels():
    content = good()
    del content["finest_stride"]
    assert Plans.from_json(content).finest_stride == (1, 1, 1)
    coarser = Plans.from_json({**content, "finest_stride": [1, 2, 2]})
    assert coarser.finest_stride == (1, 2, 2) and coarser.stride == PLANS.stride


@pytest.mark.parametrize("content", [None, [], "plans", 3])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(ValueError, match="plans: expected a JSON object, found"):
        Plans.from_json(content)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.json: no such plans; `promptseg_plan -d ID`"):
        load_plans(tmp_path / "x.json")
    (tmp_path / "cut.json").write_text('{"format_version": 1,')
    with pytest.raises(ValueError, match=r"cut\.json"):
        load_plans(tmp_path / "cut.json")
    write_json(tmp_path / "other.json", {"labels": {}})
    with pytest.raises(ValueError, match=r"other\.json: plans format None"):
        load_plans(tmp_path / "other.json")


def test_the_documentation_names_every_field_and_its_example_is_read():
    text = (Path(__file__).parents[1] / "documentation" / "reference" / "plans.md").read_text()
    for field in PLANS.to_json():
        assert f"| `{field}` |" in text
    entry = fit_labels(block_cases(5, unfitted=("intensity",)), ["block"]).labels["block"]
    first_column = " ".join(line.split("|")[1] for line in text.splitlines() if line[:1] == "|")
    for field in {*entry, *(key for of in entry["candidates"].values() for key in of)}:
        assert f"`{field}`" in first_column
    example = text.split("```json\n")[1].split("```")[0]
    assert Plans.from_json(json.loads(example)).patch_size == (40, 56, 40)
