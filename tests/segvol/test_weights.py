"""SegVol's checkpoints: layouts, names, shapes, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from promptseg.networks.encoders.vit import ViTSize
from promptseg.segvol.network import SegVolNetwork, SegVolSizes
from promptseg.segvol.weights import (
    expected_shape,
    is_new,
    load_segvol,
    read_segvol_state,
    segvol_network,
    segvol_sizes,
    segvol_state,
    sources_of,
)
from tests.segvol.checkpoint import segvol_shapes, segvol_state_dict, write_segvol_checkpoint

PATCH_SIZE, STRIDE = (8, 32, 16), (4, 8, 4)
SMALL = {"patch_size": PATCH_SIZE, "patch": STRIDE, "hidden": 48, "layers": 2}


@pytest.fixture(scope="module")
def state():
    return segvol_state_dict(1, **SMALL)


def load(state, **changes):
    return segvol_network(state, **{"patch_size": PATCH_SIZE, "stride": STRIDE, **changes})


def test_the_synthetic_checkpoint_has_the_released_names_and_sizes():
    # Counted on SegVol's own classes: keys, parameters (with 3 x 384 + 77 buffer values) by part.
    shapes = segvol_shapes()
    counts = {}
    for key, shape in shapes.items():
        part = key.split(".")[0]
        keys, numbers = counts.get(part, (0, 0))
        counts[part] = (keys + 1, numbers + torch.Size(shape).numel())
    assert len(shapes) == 475
    assert counts == {
        "image_encoder": (137, 87_388_416),
        "prompt_encoder": (17, 17_996 + 3 * 384),
        "mask_decoder": (122, 29_923_716),
        "text_encoder": (199, 63_559_936 + 77),
    }
    # a sample of the published table, one of each kind
    assert shapes["image_encoder.patch_embedding.patch_embeddings.1.weight"] == (768, 1024)
    assert shapes["image_encoder.patch_embedding.position_embeddings"] == (1, 2048, 768)
    assert shapes["image_encoder.blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["mask_decoder.output_upscaling.0.weight"] == (768, 192, 2, 2, 2)
    assert shapes["mask_decoder.output_upscaling.1.bias"] == (192, 16, 32, 32)
    assert shapes["mask_decoder.output_hypernetworks_mlps.3.layers.2.weight"] == (96, 768)
    assert shapes["mask_decoder.transformer.layers.1.mlp.lin1.weight"] == (2048, 768)
    assert shapes["prompt_encoder.mask_downscaling.6.weight"] == (768, 16, 1, 1)
    assert shapes["text_encoder.dim_align.weight"] == (768, 512)


def test_the_released_names_are_all_used_or_known_to_be_unused():
    with torch.device("meta"):
        network = SegVolNetwork(
            SegVolSizes(), patch_size=(32, 256, 256), stride=(4, 16, 16), label_count=1
        )
    shapes, used = segvol_shapes(), set()
    for name, tensor in network.state_dict().items():
        if is_new(name) or name.endswith("in_proj_bias"):
            continue
        for key in sources_of(name):
            assert shapes[key] == expected_shape(name, tensor.shape, (4, 16, 16)), name
            used.add(key)
    left = {key for key in shapes if key not in used}
    assert all("clip_text_model" in key or "mask_downscaling" in key for key in left)
    assert len(left) == 197 + 10


@pytest.mark.parametrize("layout", ["github", "huggingface", "training", "bare"])
def test_every_layout_gives_segvols_own_names(tmp_path, layout):
    written = write_segvol_checkpoint(tmp_path / "weights.pth", layout=layout, **SMALL)
    read = read_segvol_state(tmp_path / "weights.pth")
    assert read.keys() == written.keys()
    assert "text_encoder.clip_text_model.text_model.final_layer_norm.weight" in read
    assert all(torch.equal(read[key], written[key]) for key in read)


def test_an_optimizer_beside_the_weights_does_no_harm(tmp_path, state):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    content = {
        "model": {f"module.{key}": value for key, value in state.items()},
        "epoch": 270,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 270, "base_lrs": [1e-4]},
    }
    torch.save(content, tmp_path / "SegVol_v1.pth")
    assert read_segvol_state(tmp_path / "SegVol_v1.pth").keys() == state.keys()


class Anything:
    pass


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "0 entries such as none"),
        ([], "found list"),
        (3, "found int"),
        (torch.zeros(3), "found Tensor"),
        ({"model": {}}, "0 entries"),
        ({"model": torch.zeros(2)}, "1 entries such as model"),
        ({"epoch": 3, "optimizer": {}}, "2 entries such as epoch, optimizer"),
        ({"state_dict": {"model.encoder.norm.weight": torch.zeros(2)}}, "such as encoder.norm"),
        ({0: torch.zeros(2)}, "1 entries such as 0"),
        ({"image_encoder.a": torch.zeros(1), "mask_decoder.b": torch.zeros(1)}, "such as image_en"),
        (
            {"image_encoder.a": torch.zeros(1), "mask_decoder.b": 1, "prompt_encoder.c": 2},
            "expected tensors named",
        ),
        ({"model.image_encoder.a": torch.zeros(1), "norm": torch.zeros(1)}, "such as model.image"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth is not a SegVol checkpoint: .*{message}"):
        read_segvol_state(tmp_path / "x.pth")


def test_code_in_a_file_is_not_run(tmp_path, state):
    torch.save({"model": state, "config": Anything()}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth cannot be read .* it holds pickled code \(tests\..*Anything\)"
    ):
        read_segvol_state(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 truncated"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth cannot be read as a file of weights"):
        read_segvol_state(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        read_segvol_state(tmp_path / "y.pth")


def test_sizes_are_read_off_the_shapes():
    state = segvol_state_dict(
        **{**SMALL, "hidden": 32, "layers": 3, "mlp": 40}, decoder_mlp=56, text=20
    )
    sizes = segvol_sizes(state, stride=STRIDE, heads=4, decoder_heads=2)
    assert sizes == SegVolSizes(
        vit=ViTSize(channels=32, layers=3, heads=4, mlp_channels=40, stem_channels=0),
        channels_in=1,
        decoder_layers=2,
        decoder_heads=2,
        decoder_mlp_channels=56,
        mask_tokens=4,
        iou_channels=256,
        text_channels=20,
    )


def test_every_tensor_is_loaded_or_reported(state, caplog):
    network = load(state)
    report = load_segvol(network, state)
    used = {key for name in report.loaded for key in sources_of(name)}
    assert used & set(state) | set(report.left_out) == set(state)
    assert not used & set(report.left_out)
    assert set(report.loaded) | set(report.missing) == set(network.state_dict())
    assert set(report.missing) == {"label_text.tokens.weight", "label_text.learned"}
    assert all("CLIP" in why or "SegVol never runs it" in why for why in report.left_out.values())
    with caplog.at_level(logging.INFO):
        load(state)
    assert "21 of the file, not used, CLIP's text model" in caplog.text
    assert "mask_downscaling.0.weight" in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        "image_encoder.norm.bias",
        "image_encoder.blocks.0.attn.qkv.weight",
        "image_encoder.patch_embedding.position_embeddings",
        "image_encoder.patch_embedding.patch_embeddings.1.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.point_embeddings.3.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.mask_tokens.weight",
        "mask_decoder.output_upscaling.1.weight",
        "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias",
        "mask_decoder.iou_prediction_head.layers.2.weight",
        "mask_decoder.transformer.layers.1.mlp.lin2.weight",
    ],
)
def test_a_missing_or_misshapen_tensor_is_an_error_that_names_it(state, key):
    network = load(state)
    without = {name: value for name, value in state.items() if name != key}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"nothing was loaded\n  {key}: not in the file"):
        load_segvol(network, without)
    longer = {**state, key: torch.cat([state[key], state[key]])}
    with pytest.raises(ValueError, match=rf"  {key}: is \(.*\) in the file, \(.*\) here"):
        load_segvol(network, longer)
    assert all(torch.equal(before[n], value) for n, value in network.state_dict().items())


def test_all_that_is_missing_is_named_at_once(state):
    without = {key: value for key, value in state.items() if "norm1" not in key}
    with pytest.raises(
        ValueError, match="8 tensors are missing, surplus or of another shape"
    ) as caught:
        load(without)
    for i in range(2):
        assert f"image_encoder.blocks.{i}.norm1.weight: not in the file" in str(caught.value)
        assert f"mask_decoder.transformer.layers.{i}.norm1.bias" in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"patch_size": (8, 16, 32)},
            "output_upscaling.1.weight: is .12, 4, 8, 8.",
        ),  # as many cells
        (
            {"patch_size": (8, 32, 32)},
            r"position_embeddings: is \(1, 32, 48\) .* \(1, 64, 48\) here",
        ),
        (
            {"stride": (2, 8, 8), "patch_size": (8, 32, 32)},
            "does not fit this network .patch .8, 32",
        ),
        ({"stride": (4, 8, 8)}, "is .48, 128. in the file, .48, 256. here"),
        ({"stride": (4, 8, 5)}, "not a multiple of stride"),
        ({"heads": 7}, "48 channels cannot be split into 7 heads of the image encoder"),
        ({"decoder_heads": 7}, "or 24 of its half into 7 heads of the decoder"),
    ],
)
def test_sizes_that_the_weights_contradict_are_refused(state, changes, message):
    with pytest.raises(ValueError, match=message):
        load(state, **changes)


def test_the_text_branch_may_be_missing_or_of_another_width(state):
    # SegVol's code fixes 768 and 96 there, whatever the width of the rest.
    odd = {key: value for key, value in state.items() if not key.startswith("text_encoder.")}
    name = "mask_decoder.txt_align_upscaled_embedding"
    odd |= {f"{name}.weight": torch.ones(96, 768), f"{name}.bias": torch.ones(96)}
    network = load(odd)
    report = load_segvol(network, odd)
    assert report.left_out[f"{name}.weight"] == "is (96, 768) in the file, (6, 48) here"
    assert {"label_text.align.weight", "mask_decoder.text_response.bias"} <= set(report.missing)


def test_unused_parts_of_newer_monai_are_reported_and_unknown_names_refused(state):
    more = dict(state)
    for part in ("norm_cross_attn.weight", "cross_attn.qkv.weight"):
        more[f"image_encoder.blocks.0.{part}"] = torch.zeros(48)
    report = load_segvol(load(more), more)
    assert report.left_out["image_encoder.blocks.0.norm_cross_attn.weight"].startswith("MONAI")
    assert report.left_out["image_encoder.blocks.0.cross_attn.qkv.weight"].startswith("MONAI")
    more["image_encoder.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 tensors are .*\n  image_encoder.extra: no such param"):
        load(more)


def test_layers_that_the_network_does_not_have_are_an_error(state):
    fewer = {key: value for key, value in state.items() if "encoder.blocks.1." not in key}
    with pytest.raises(ValueError, match="11 tensors .*\n  image_encoder.blocks.1.* no such param"):
        load_segvol(load(fewer), state)


def test_labels_get_vectors_of_the_text_width(state):
    network = load(state, labels=4)
    assert network.label_text.tokens.weight.shape == (4, 24)
    assert not network.label_text.learned.any()
    assert not network.training


def test_half_precision_weights_are_read_as_float32(state):
    halved = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    network = load(halved)
    assert network.image_encoder.positions.dtype == torch.float32


def test_prefixes_are_stripped_only_where_every_name_has_them(state):
    mixed = {f"module.model.{key}": value for key, value in state.items()}
    assert segvol_state(mixed).keys() == state.keys()
    assert segvol_state(state).keys() == state.keys()


def test_a_bias_of_qkv_that_segvol_does_not_have_is_used_where_there_is_one(state):
    more = {**state, "image_encoder.blocks.1.attn.qkv.bias": torch.arange(144.0)}
    layers = load(more).image_encoder.blocks.layers
    assert torch.equal(layers[1].self_attn.in_proj_bias, torch.arange(144.0))
    assert not layers[0].self_attn.in_proj_bias.any()
