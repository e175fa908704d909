"""`promptseg_export`: files that answer as the network does, used as documented, without torch."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from promptseg.commands import export
from promptseg.export.check import check
from promptseg.export.description import describe
from promptseg.export.export_model import FILES, export_model
from promptseg.export.graphs import prompt_tensors, write_decoder, write_encoder
from promptseg.files import read_json
from promptseg.networks.encoders import ENCODERS
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.plans import Normalization, Plans
from promptseg.training.checkpoint import save_checkpoint
from promptseg.training.settings import TrainingSettings
from tests.shallow import shallow_networks
from tests.small_plans import small_plans

PATCH_SIZE = (8, 12, 16)
BOX = [[1, 2, 3], [6, 9, 12]]
EXAMPLE = [  # the queries of the documentation's example
    Query(label=0, points=[[4, 6, 8], [1, 2, 3]], point_labels=[1, 0]),
    Query(box=[[1, 2.5, 3], [5, 9.5, 12]]),
    Query(label=1, box=[[0, 0, 4], [8, 6, 16]], points=[[2, 3, 9]], point_labels=[1]),
]


@dataclass
class Exported:
    plans: Plans
    network: PromptableNetwork
    model: Path
    folder: Path
    output: str

    def sessions(self) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
        return tuple(onnxruntime.InferenceSession(self.folder / name) for name in FILES[:2])


def write_model(folder: Path, plans: Plans, encoder: str, *, folds=("0",)) -> PromptableNetwork:
    torch.manual_seed(0)
    network = build_network(plans, encoder).eval()
    for fold in folds:
        content = {
            "trainer": "Any",
            "encoder": encoder,
            "plans": plans.to_json()
            | {"normalizations": [n.to_json() for n in plans.normalizations]},
            "settings": TrainingSettings().to_json(),
            "network": network.state_dict(),
        }
        save_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", content)
    return network


def plans_of(name: str) -> Plans:
    normalization = Normalization(kind="window", lower=-20.0, upper=180.0)
    return small_plans(
        preset="segvol" if name == "segvol" else "none",
        normalizations=(normalization,),
        stride=(2, 4, 4) if name == "segvol" else (1, 2, 2),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, name) -> Iterator[Exported]:
    folder = tmp_path_factory.mktemp(name)
    plans = plans_of(name)
    with shallow_networks():
        network = write_model(folder / "model", plans, "vit" if name == "segvol" else name)
        yield Exported(plans, network, folder / "model", folder / "exported", "")


def run_command(exported: Exported, capsys) -> str:
    """The command's own words, from the one run of this network."""
    if not exported.output:
        model = exported.model
        if exported.plans.preset == "segvol":  # one of them from a zip file
            model = shutil.make_archive(str(model), "zip", model)
        arguments = ["-m", str(model), "-o", str(exported.folder), "-f", "0"]
        assert export.main(arguments) == 0
        exported.output = capsys.readouterr().out
    return exported.output


def documented_example() -> str:
    page = Path(__file__).parents[2] / "documentation" / "reference" / "export.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return code


@torch.inference_mode()
def answers_one_by_one(exported: Exported, image: np.ndarray, queries) -> list[np.ndarray]:
    """Logits and predicted IoU from PyTorch; no query ever meets another, nothing is padded."""
    encoding = exported.network.encode(torch.from_numpy(image)[None])
    answers = [exported.network.decode(encoding, batch_queries([query])) for query in queries]
    return [torch.cat(parts).numpy() for parts in zip(*answers, strict=True)]


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "vit"])
def test_every_other_encoder_gives_its_maps(name, tmp_path):
    # Their decoders are vit's but for widths, and exporting one takes longer than an encoder.
    with shallow_networks():
        network = build_network(plans_of(name), name).eval()
    write_encoder(network, plans_of(name), path := tmp_path / "encoder.onnx")
    images = np.random.default_rng(4).uniform(0, 255, (3, 1, *PATCH_SIZE)).astype(np.float32)
    found = onnxruntime.InferenceSession(path).run(None, {"image": images})
    with torch.inference_mode():
        encoding = network.encode(torch.from_numpy(images))
    expected = encoding.tensors()
    assert list(expected) == ["features", "names", "projected", "values", "compared"]
    for part, of_network in zip(found, expected.values(), strict=True):
        assert_near(part, of_network.numpy())


def test_regions_are_answered_and_described(tmp_path):
    regions = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    plans = small_plans(labels=regions, regions_class_order=(1, 2, 3))
    torch.manual_seed(2)
    network = build_network(plans, "mobilenet").eval()
    files = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    write_decoder(network, plans, write_encoder(network, plans, files[0]), files[1])
    encoder, decoder = map(onnxruntime.InferenceSession, files)
    images = np.random.default_rng(4).uniform(0, 255, (1, 1, *PATCH_SIZE)).astype(np.float32)
    queries = batch_queries([Query(label=index) for index in range(3)] + [Query(label=1, box=BOX)])
    given = [*encoder.run(None, {"image": images})]
    given += [tensor.numpy() for tensor in prompt_tensors(network, queries, PATCH_SIZE)]
    names = [entry.name for entry in decoder.get_inputs()]
    found, _ = decoder.run(None, dict(zip(names, given, strict=True)))
    with torch.inference_mode():
        encoding = network.encode(torch.from_numpy(images))
        expected, _ = network.decode(encoding, queries, whole=True)
    assert_near(found, expected.numpy())
    about = describe(plans, *files, {})
    assert about["labels"][1] == {"index": 1, "name": "core", "value": 2, "values": (2, 3)}
    assert "written in turn" in about["postprocessing"]["mask"]


@pytest.mark.parametrize("name", ["vit", "segvol"], scope="module")
def test_the_documented_example_gives_the_networks_answers(
    exported, name, tmp_path, monkeypatch, capsys
):
    said = run_command(exported, capsys)
    assert float(re.search(r"largest relative difference (\S+)", said)[1]) < 1e-3
    assert sorted(path.name for path in exported.folder.iterdir()) == sorted(FILES)

    raw = np.random.default_rng(1).uniform(-50, 250, (1, *PATCH_SIZE)).astype(np.float32)
    np.save(tmp_path / "patch.npy", raw)
    shutil.copytree(exported.folder, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(documented_example(), space)  # what a reader of the page would run

    image = (raw.clip(-20, 180) + 20) / 200 * 255
    logits, iou = answers_one_by_one(exported, image.astype(np.float32), EXAMPLE)
    assert_near(space["logits"], logits)
    assert_near(space["quality"], iou)
    np.testing.assert_array_equal(space["masks"], space["logits"] > 0)
    np.testing.assert_allclose(space["predicted_iou"], torch.tensor(iou).sigmoid(), rtol=1e-3)


vit = pytest.mark.parametrize("name", ["vit"], scope="module")


@vit
def test_padding_points_change_nothing_wherever_they_stand(exported, capsys):
    run_command(exported, capsys)
    encode, decode = exported.sessions()
    image = np.random.default_rng(2).uniform(0, 255, (1, *PATCH_SIZE)).astype(np.float32)
    names = [output.name for output in encode.get_outputs()]
    encoded = dict(zip(names, encode.run(names, {"image": image[None]}), strict=True))
    expected, _ = answers_one_by_one(exported, image, EXAMPLE[:1])
    points, kinds = [[4, 6, 8], [1, 2, 3]], [1, 0]
    for places in ([0, 1], [1, 0], [3, 1], [0, 6]):
        padded = np.full((1, max(places) + 1, 3), 7, np.float32)
        padded_kinds = np.full(padded.shape[:2], -1)
        padded[0, places], padded_kinds[0, places] = points, kinds
        logits = decode.run(
            ["logits"],
            {
                **encoded,
                "labels": np.array([0]),
                "boxes": np.full((1, 2, 3), 5, np.float32),  # of no meaning without has_box
                "has_box": np.array([False]),
                "points": padded,
                "point_labels": padded_kinds,
                "regions": np.zeros((1, *PATCH_SIZE), np.float32),
                "previous": np.full((1, *PATCH_SIZE), 3, np.float32),  # without has_previous
                "has_previous": np.array([False]),
            },
        )[0]
        assert_near(logits, expected, 1e-5)


@vit
def test_images_of_a_batch_are_encoded_as_each_alone(exported, capsys):
    run_command(exported, capsys)
    encode, _ = exported.sessions()
    images = np.random.default_rng(3).uniform(0, 255, (3, 1, *PATCH_SIZE)).astype(np.float32)
    together = encode.run(None, {"image": images})
    for i in range(3):
        for part, alone in zip(
            together, encode.run(None, {"image": images[i : i + 1]}), strict=True
        ):
            assert_near(part[i : i + 1], alone, 1e-5)


@vit
def test_the_json_says_what_the_files_take_and_what_the_plans_say(exported, capsys):
    run_command(exported, capsys)
    about = read_json(exported.folder / "export.json")
    assert about["format_version"] == 1 and about["axes"] == ["z", "y", "x"]
    assert about["model"]["fold"] == "0" and about["model"]["dataset"] == "Dataset001_Small"
    assert about["patch_size"] == about["window"] == [8, 12, 16] and about["stride"] == [1, 2, 2]
    assert about["preprocessing"]["spacing_mm"] == [2.5, 1.0, 0.75]
    (channel,) = about["preprocessing"]["channels"]
    assert channel["normalization"] == {"kind": "window", "lower": -20.0, "upper": 180.0}
    assert about["labels"] == [
        {"index": 0, "name": "liver", "value": 1},
        {"index": 1, "name": "spleen", "value": 2},
        {"index": 2, "name": "lesion", "value": 5},
    ]
    for part, session in zip(("encoder", "decoder"), exported.sessions(), strict=True):
        for said, there in (
            (about[part]["inputs"], session.get_inputs()),
            (about[part]["outputs"], session.get_outputs()),
        ):
            assert [(v["name"], v["shape"]) for v in said] == [(v.name, v.shape) for v in there]
    shapes = {v["name"]: v["shape"] for v in about["decoder"]["inputs"]}
    assert shapes["points"] == ["queries", "points", 3]
    assert shapes["image_features"] == [1, 16, 8, 12, 16]
    assert shapes["image_names"] == [1, 4, 8, 12, 16]  # background and three labels
    assert shapes["image_projected"] == [1, 16, 8, 6, 8]
    assert shapes["image_values"] == [1, 1, 8, 12, 16]
    assert shapes["image_compared"] == [1, 17, 8, 6, 8]
    assert shapes["regions"] == shapes["previous"] == ["queries", 8, 12, 16]
    assert shapes["has_previous"] == ["queries"]
    assert about["decoder"]["outputs"][0]["shape"] == ["queries", 8, 12, 16]


@vit
def test_files_of_other_weights_are_noticed(exported, capsys):
    run_command(exported, capsys)
    paths = [exported.folder / name for name in FILES[:2]]
    assert check(exported.network, exported.plans, *paths) < 1e-4
    other = build_network(exported.plans, "vit")  # as shallow: the fixture still holds
    other.load_state_dict(exported.network.state_dict())
    with torch.no_grad():
        other.quality_head.rate[-1].bias += 0.1
    message = r"encoder.onnx and decoder.onnx answer differently .* allowed 1e-03; .*not kept"
    with pytest.raises(RuntimeError, match=message):
        check(other, exported.plans, *paths)


def test_a_network_that_cannot_be_exported_leaves_the_old_files(tmp_path, monkeypatch):
    class Broken(ENCODERS.get("vit")):
        def forward(self, image):
            raise RuntimeError("no forward pass")

    monkeypatch.setitem(ENCODERS._classes, "broken", Broken)
    write_model(tmp_path / "model", small_plans(), "broken")
    output = tmp_path / "out"
    output.mkdir()
    for name in FILES:
        (output / name).write_text("old")
    with pytest.raises(RuntimeError, match="no forward pass"):
        export_model(tmp_path / "model", output)
    assert [(path.name, path.read_text()) for path in sorted(output.iterdir())] == [
        (name, "old") for name in sorted(FILES)
    ]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_message(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert export.main(["-m", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    error = f"error: exporting needs {package}; pip install onnx onnxscript onnxruntime\n"
    assert capsys.readouterr().err == error


def test_without_onnxruntime_nothing_is_checked_and_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert check(None, small_plans(), tmp_path / "encoder.onnx", tmp_path / "decoder.onnx") is None
    assert "not checked" in caplog.text and "pip install onnxruntime" in caplog.text


def test_several_folds_must_be_chosen_from(tmp_path):
    write_model(tmp_path / "model", small_plans(), "vit", folds=("0", "3"))
    with pytest.raises(ValueError, match="has 2 folds .* choose a fold with -f"):
        export_model(tmp_path / "model", tmp_path / "out")
    with pytest.raises(
        FileNotFoundError, match="folds with a checkpoint_final.pth: fold_0, fold_3"
    ):
        export_model(tmp_path / "model", tmp_path / "out", fold="1")
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        export_model(tmp_path / "nothing", tmp_path / "out")
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "model")
    with pytest.raises(ValueError, match=r"zipped\.zip has 2 folds .* choose a fold with -f"):
        export_model(Path(zipped), tmp_path / "out")
    assert not (tmp_path / "out").exists()
