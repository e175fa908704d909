"""Weights from a file: what is taken, what is listed, what is refused, and what a run keeps."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from promptseg.networks.promptable import build_network
from promptseg.plans import load_plans
from promptseg.training.checkpoint import load_checkpoint, save_checkpoint
from promptseg.training.fold import load_fold
from promptseg.training.pretrained import load_pretrained
from promptseg.training.request import RunOptions
from promptseg.training.settings import TrainingSettings
from promptseg.training.trainer import BaseTrainer
from promptseg.training.trainers import TRAINERS
from tests.segvol.checkpoint import write_segvol_checkpoint
from tests.small_plans import small_plans
from tests.trained import train

TINY = {"hidden": 192, "layers": 6, "mlp": 768}  # size `tiny`
PLANS = small_plans(preset="segvol")
SMALL = {"patch_size": PLANS.patch_size, "patch": PLANS.stride, **TINY}


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def built(plans, encoder="vit", seed=0):
    torch.manual_seed(seed)
    return build_network(plans, encoder)


def write_own(path, network, plans, encoder="vit"):
    content = {
        "trainer": "ViTTrainer",
        "encoder": encoder,
        "plans": plans.to_json(),
        "network": network.state_dict(),
    }
    save_checkpoint(path, content)


@pytest.mark.parametrize("layout", ["github", "huggingface", "training"])
def test_segvols_weights_fill_a_network_of_the_preset(tmp_path, layout, caplog):
    state = write_segvol_checkpoint(tmp_path / "w.pth", layout=layout, **SMALL, text=512)
    network = built(PLANS)
    with caplog.at_level(logging.INFO):
        report = load_pretrained(network, PLANS, tmp_path / "w.pth")
    key = "image_encoder.blocks.5.attn.qkv.weight"
    layer = network.image_encoder.blocks.layers[5].self_attn
    assert torch.equal(layer.in_proj_weight, state[key])
    assert not layer.in_proj_bias.any()
    assert set(report.missing) == {"label_text.tokens.weight", "label_text.learned"}
    assert "w.pth: " in caplog.text and "label_text.tokens.weight" in caplog.text


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"layers": 5}, r"image_encoder.blocks.5.norm1.weight: not in the file"),
        ({"hidden": 96}, r"position_embeddings: is \(1, 48, 96\) in the file, \(1, 48, 192\) here"),
        ({"patch_size": (8, 12, 32)}, r"is \(1, 96, 192\) in the file"),
        ({"decoder_mlp": 64}, "mlp.lin1.weight: is .64, 192. in the file, .2048, 192. here"),
    ],
)
def test_segvols_weights_of_other_sizes_are_refused_with_the_preset(tmp_path, sizes, message):
    write_segvol_checkpoint(tmp_path / "w.pth", **{**SMALL, **sizes})
    network = built(PLANS)
    before = weights_of(network)
    with pytest.raises(ValueError, match=rf"(?s)w\.pth does not fit this network.*{message}"):
        load_pretrained(network, PLANS, tmp_path / "w.pth")
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


def test_other_plans_take_the_blocks_of_segvols_encoder(tmp_path):
    # Fewer layers in the file: those there are fit, the rest keeps its values.
    state = write_segvol_checkpoint(tmp_path / "w.pth", **{**SMALL, "layers": 4})
    plans = small_plans()
    network = built(plans)
    for layer in network.image_encoder.blocks.layers:
        torch.nn.init.ones_(layer.self_attn.in_proj_bias)  # zero at first, and in SegVol
    before = weights_of(network)
    report = load_pretrained(network, plans, tmp_path / "w.pth")

    after = network.state_dict()
    # 12 tensors a layer (their bias of qkv is 0), 2 of the last normalization
    assert len(report.loaded) == 4 * 12 + 2
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (name not in report.loaded), name
    name = "image_encoder.blocks.layers.3.linear1.weight"
    assert torch.equal(after[name], state["image_encoder.blocks.3.mlp.linear1.weight"])
    assert not after["image_encoder.blocks.layers.0.self_attn.in_proj_bias"].any()
    assert set(report.missing) == set(after) - set(report.loaded)
    assert (
        report.missing["image_encoder.stem.blocks.0.0.convolution.weight"]
        == "not a part of SegVol's"
    )
    assert "mask_decoder.mask_tokens.weight" in report.left_out


@pytest.mark.parametrize("size, encoder", [("small", "vit"), ("tiny", "mobilenet")])
def test_nothing_that_fits_is_refused(tmp_path, size, encoder):
    write_segvol_checkpoint(tmp_path / "w.pth", **SMALL)
    plans = small_plans(size=size)
    network = built(plans, encoder)
    before = weights_of(network)
    with pytest.raises(ValueError, match="nothing of its image encoder fits .*--preset segvol"):
        load_pretrained(network, plans, tmp_path / "w.pth")
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


@pytest.mark.parametrize(
    "preset, tables",
    [  # and the number of rows before those of labels
        (
            "none",
            {
                "prompt_head.label_vectors.weight": 0,
                "name_head.classes.weight": 1,
                "name_head.classes.bias": 1,
            },
        ),
        ("segvol", {"label_text.tokens.weight": 0}),
    ],
)
def test_label_vectors_of_our_checkpoints_follow_the_names(tmp_path, preset, tables):
    old_plans = small_plans(preset=preset)  # liver 1, spleen 2, lesion 5
    plans = small_plans(preset=preset, labels={"kidney": 1, "lesion": 2, "liver": 3, "aorta": 4})
    old = built(old_plans, seed=1)
    if preset == "segvol":
        old.label_text.learned[:2] = True  # liver, spleen
    write_own(tmp_path / "checkpoint_final.pth", old, old_plans)
    network = built(plans, seed=2)
    fresh = weights_of(network)

    report = load_pretrained(network, plans, tmp_path / "checkpoint_final.pth")

    for table, before in tables.items():
        theirs, ours = old.state_dict()[table], network.state_dict()[table]
        own = fresh[table]
        assert torch.equal(ours[before + 1], theirs[before + 2])
        assert torch.equal(ours[before + 2], theirs[before])
        assert torch.equal(ours[before], own[before])
        assert torch.equal(ours[before + 3], own[before + 3])
        assert torch.equal(ours[:before], theirs[:before])  # background
        assert torch.equal(ours[before + 4 :], theirs[before + 3 :])  # no label
        assert f"{table} of kidney" in report.missing and f"{table} of aorta" in report.missing
        assert report.left_out[f"{table} of spleen"] == "no such label here"
    if preset == "segvol":
        assert network.label_text.learned.tolist() == [False, False, True, False]
    others = set(report.loaded) - {*tables, "label_text.learned"}
    assert others == set(fresh) - {*tables, "label_text.learned"}
    for name in others:
        assert torch.equal(network.state_dict()[name], old.state_dict()[name])


def test_what_another_patch_or_channel_count_changes_is_listed(tmp_path, caplog):
    old_plans = small_plans()
    write_own(tmp_path / "checkpoint_best.pth", built(old_plans), old_plans)
    plans = small_plans(patch_size=(8, 16, 16), channel_names=("T1", "T2"))
    with caplog.at_level(logging.INFO):
        report = load_pretrained(built(plans), plans, tmp_path / "checkpoint_best.pth")
    changed = {"image_encoder.positions", "image_encoder.stem.blocks.0.0.convolution.weight"}
    changed |= {"prompt_head.maps.weight", "prompt_head.on_voxels.0.weight"}  # see the image
    assert set(report.left_out) == set(report.missing) == changed
    why = report.left_out["image_encoder.positions"]
    assert why == "(1, 192, 4, 3, 4) in the file, (1, 192, 4, 4, 4) here"
    assert f"{why}: image_encoder.positions" in caplog.text


def test_checkpoints_of_other_encoders_presets_and_sizes_are_refused(tmp_path):
    plans, path = small_plans(), tmp_path / "c.pth"
    write_own(path, built(plans, "mobilenet"), plans, "mobilenet")
    with pytest.raises(ValueError, match=r"c\.pth is of the encoder mobilenet, this network's is "):
        load_pretrained(built(plans), plans, path)
    with pytest.raises(ValueError, match="with the preset none, these plans have the preset segv"):
        load_pretrained(built(PLANS), PLANS, path)
    write_own(path, built(PLANS), PLANS)
    with pytest.raises(ValueError, match="with the preset segvol, .* have the preset none"):
        load_pretrained(built(plans), plans, path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"format_version": 99}, "checkpoint format 99"),
        (
            {"format_version": 1},
            "not a whole checkpoint: it lacks trainer, encoder, plans, network",
        ),
        (
            {"format_version": 1, "trainer": "A", "network": {}},
            "not a whole checkpoint: it lacks encoder, plans; give one that promptseg_train wrote",
        ),
        ({"weights": torch.zeros(1)}, "not a SegVol checkpoint"),
        ([1, 2], "not a SegVol checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth .*{message}"):
        load_pretrained(built(PLANS), PLANS, tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        load_pretrained(built(PLANS), PLANS, tmp_path / "y.pth")


def trainer(planned, folder, *, resume=False, epochs=1, **settings) -> BaseTrainer:
    """A run of two steps an epoch with a plan of the preset, on the planned dataset's cases."""
    every = load_fold(planned.preprocessed / "Dataset007_Boxes", "PromptSegPlans", "all")
    given = dataclasses.replace(
        every,
        plans=dataclasses.replace(every.plans, preset="segvol", size="tiny"),
        training_cases=every.training_cases[1:],
        validation_cases=every.training_cases[:1],
    )
    values = {"epochs": epochs, "iterations_per_epoch": 2, "recipe": "paper", "initial_lr": 1e-4}
    return TRAINERS.get("ViTTrainer")(
        given,
        folder,
        TrainingSettings(**{**values, **settings}),
        RunOptions(device="cpu", processes=0, resume=resume),
        extend={"epochs": epochs} if resume else None,
    )


def test_a_frozen_encoder_keeps_segvols_weights_and_a_resumed_run_knows(planned, tmp_path, caplog):
    source = planned.preprocessed / "Dataset007_Boxes"
    plans = load_plans(source / "PromptSegPlans.json")
    file = tmp_path / "w.pth"
    write_segvol_checkpoint(file, patch_size=plans.patch_size, patch=plans.stride, **TINY, text=512)
    fold = tmp_path / "fold_0"
    with caplog.at_level(logging.INFO):
        run = trainer(planned, fold, pretrained_weights=str(file), freeze="encoder")
        run.prepare()
    start = weights_of(run.network)
    encoder = sum(v.numel() for v in run.network.image_encoder.parameters())
    every = sum(v.numel() for v in run.network.parameters())
    assert f"the encoder is frozen: {every - encoder} of {every} parameters train" in caplog.text
    assert sum(len(g["params"]) for g in run.learner.optimizer.param_groups) == sum(
        p.requires_grad for p in run.network.parameters()
    )
    assert run.run() and run.progress.step == 2

    after = run.network.state_dict()
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert not any(name.startswith("image_encoder.") for name in changed)
    assert {"mask_decoder.mask_tokens.weight", "label_text.learned"} <= changed

    file.unlink()  # a resumed run needs it no more
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = trainer(planned, fold, resume=True, epochs=2)
        again.prepare()
    assert "pretrained" not in caplog.text.split("settings:")[0]
    assert "the encoder is frozen" in caplog.text
    assert again.progress.step == 2 and again.settings.freeze == "encoder"
    assert torch.equal(
        again.network.state_dict()["label_text.learned"], after["label_text.learned"]
    )
    assert again.run() and again.progress.step == 4
    name = "image_encoder.positions"
    assert torch.equal(again.network.state_dict()[name], start[name])


def test_without_freezing_the_encoder_trains(planned, tmp_path):
    run = trainer(planned, tmp_path / "fold_0", recipe="scratch")
    run.prepare()
    start = weights_of(run.network)
    assert run.run()
    name = "image_encoder.patches.weight"
    assert not torch.equal(run.network.state_dict()[name], start[name])


def test_the_recipe_follows_the_weights(planned, tmp_path):
    folders = dataclasses.replace(planned, results=tmp_path)
    short = {"fold": "all", "epochs": 1, "iterations_per_epoch": 1, "processes": 0}
    model = train(7, folders, **short)
    first = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert first["settings"]["recipe"] == "scratch"
    kept = tmp_path / "kept.pth"
    (model / "fold_all" / "checkpoint_final.pth").rename(kept)

    model = train(7, folders, **short, pretrained_weights=kept, overwrite=True, initial_lr=1e-9)
    second = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert second["settings"]["recipe"] == "paper"
    assert second["settings"]["pretrained_weights"] == str(kept)
    for name, value in first["network"].items():
        torch.testing.assert_close(second["network"][name], value, rtol=0, atol=1e-6)

    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        train(7, folders, **short, pretrained_weights=tmp_path / "none.pth", overwrite=True)
    assert (model / "fold_all" / "checkpoint_final.pth").exists()


def test_only_the_encoder_can_be_frozen():
    with pytest.raises(ValueError, match="freeze must be encoder, or not given; got 'decoder'"):
        TrainingSettings(freeze="decoder")
