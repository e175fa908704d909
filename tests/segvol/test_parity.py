"""The forward pass against an independent one, on random weights under SegVol's names."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import ViT
from monai.networks.nets.vista3d import TwoWayTransformer

from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import decode_in_parts
from promptseg.segvol.mask_decoder import SegVolMaskDecoder
from promptseg.segvol.weights import segvol_network
from tests.segvol.checkpoint import segvol_state_dict
from tests.segvol.reference import Reference

# Neither patch nor stride nor grid (2, 4, 4), (3, 2, 5) has two axes that could be swapped unseen.
INSTANCES = {
    "small": {"patch_size": (8, 32, 16), "patch": (4, 8, 4), "hidden": 48, "layers": 2},
    "other": {"patch_size": (6, 8, 20), "patch": (2, 4, 4), "hidden": 32, "layers": 3, "mlp": 40},
}
HEADS = {"small": 12, "other": 4}
BOXES = torch.tensor([[1, 3, 2, 5, 6, 9], [0, 0, 0, 3, 7, 11], [2.0, 5, 7, 2, 5, 7]])  # inclusive
POINTS = torch.tensor([[[1, 2, 3], [5, 7, 15]], [[0, 0, 0], [2, 5, 1]], [[3, 1, 9], [-1, -1, -1]]])
LABELS = torch.tensor([[1, 0], [1, 1], [0, -1]])


def half_open(boxes):
    return boxes.reshape(-1, 2, 3) + torch.tensor([[0.0], [1.0]])


def assert_equal(ours, theirs):
    """Within 1e-4 of the largest value: hundreds of times float32's rounding."""
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.fixture(scope="module", params=list(INSTANCES))
def instance(request):
    """Our network, the reference, two images and a text embedding for three queries."""
    sizes = INSTANCES[request.param]
    state = segvol_state_dict(3, **sizes)
    heads = HEADS[request.param]
    network = segvol_network(
        state, patch_size=sizes["patch_size"], stride=sizes["patch"], heads=heads, labels=2
    )
    random = torch.Generator().manual_seed(4)
    image = torch.rand(2, 1, *sizes["patch_size"], generator=random)
    vectors = torch.randn(3, 24, generator=random)
    reference = Reference(state, sizes["patch_size"], sizes["patch"], heads)
    with torch.inference_mode():
        yield network, reference, image, vectors


def test_the_image_embedding_is_segvols(instance):
    network, reference, image, _ = instance
    assert_equal(network.image_encoder(image), reference.image_embedding(image))


def test_the_grid_encodings_are_segvols(instance):
    network, reference, _, _ = instance
    assert_equal(network.prompt_encoder.dense_positions(), reference.dense_positions())


PROMPTS = {
    "none": (),
    "boxes": ("boxes",),
    "points": ("points",),
    "text": ("text",),
    "boxes and points": ("boxes", "points"),
    "boxes and text": ("boxes", "text"),
    "points and text": ("points", "text"),
    "all": ("boxes", "points", "text"),
}


@pytest.mark.parametrize("kinds", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("images", [1, 3])
def test_prompts_and_masks_are_segvols(instance, kinds, images):
    # Three queries about one image, or one query about each of three; padded points (-1) included.
    network, reference, image, vectors = instance
    image = torch.cat([image, image.flip(2)])[:images]
    ours, theirs, text = {}, {}, None
    if "boxes" in kinds:
        ours["boxes"], theirs["boxes"] = half_open(BOXES), BOXES
    if "points" in kinds:
        ours |= {"points": POINTS, "point_labels": LABELS}
        theirs["points"] = (POINTS, LABELS)
    if "text" in kinds:
        ours["text"] = text = network.label_text.align(vectors)
        theirs["text"] = reference.linear("text_encoder.dim_align", vectors.double())
        assert_equal(text, theirs["text"])

    sparse, dense = network.prompt_encoder(**ours)
    logits, iou = network.mask_decoder(
        network.image_encoder(image),
        network.prompt_encoder.dense_positions(),
        sparse,
        dense,
        text=text,
    )

    expected = reference.sparse(**theirs)
    if kinds:
        assert_equal(sparse, expected)
    else:  # one query without a token, about every image
        assert sparse.shape == expected.shape
        expected = expected.expand(images, -1, -1)
    assert_equal(dense, reference.dense(len(sparse)))
    want_logits, want_iou = reference.decode(
        reference.image_embedding(image), expected, theirs.get("text")
    )
    assert logits.shape[1] == 4
    assert_equal(logits, want_logits)
    assert_equal(iou, want_iou)


def test_a_mixed_batch_gives_each_query_what_segvol_gives_it_alone(instance):
    network, reference, image, _ = instance
    network.label_text.learned[1] = True  # label 0 has no text yet
    pairs = [  # our query, SegVol's prompts
        (Query(), {}),
        (Query(image=1, label=0), {}),
        (Query(label=1), {"text": 1}),
        (Query(box=half_open(BOXES[0])[0]), {"boxes": 0}),
        (Query(image=1, box=half_open(BOXES[1])[0], label=0), {"boxes": 1}),
        (Query(image=1, points=POINTS[0], point_labels=LABELS[0]), {"points": 0}),
        (Query(points=POINTS[2, :1], point_labels=LABELS[2, :1]), {"points": 2}),
        (
            Query(
                label=1,
                image=1,
                box=half_open(BOXES[2])[0],
                points=POINTS[1],
                point_labels=LABELS[1],
            ),
            {"points": 1, "boxes": 2, "text": 1},
        ),
    ]
    encoding = network.encode(image * 255)
    logits, iou = network.decode(encoding, batch_queries([query for query, _ in pairs]))
    parts = decode_in_parts(network, encoding, batch_queries([q for q, _ in pairs]), most=3)
    torch.testing.assert_close(parts[0], logits, rtol=1e-4, atol=1e-5)

    embedding = reference.image_embedding(image)
    for i, (query, given) in enumerate(pairs):
        theirs = {}
        if "boxes" in given:
            theirs["boxes"] = BOXES[given["boxes"]][None]
        if "points" in given:
            k = 1 if given["points"] == 2 else 2
            theirs["points"] = (
                POINTS[given["points"], :k][None],
                LABELS[given["points"], :k][None],
            )
        if "text" in given:
            vector = network.label_text.tokens.weight[given["text"]][None].double()
            theirs["text"] = reference.linear("text_encoder.dim_align", vector)
        low, want_iou = reference.decode(
            embedding[query.image][None], reference.sparse(**theirs), theirs.get("text")
        )
        want = F.interpolate(low, image.shape[2:], mode="trilinear", align_corners=False)
        assert_equal(logits[i], want[0, 0])
        assert_equal(iou[i], want_iou[0, 0])
    network.label_text.learned[1] = False


@pytest.mark.parametrize(
    "broken",
    [
        "prompt_encoder.point_embeddings.2.weight",
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.output_upscaling.1.bias",
        "mask_decoder.output_hypernetworks_mlps.0.layers.1.weight",
        "mask_decoder.txt_align_upscaled_embedding.weight",
        "image_encoder.blocks.1.attn.qkv.weight",
    ],
)
def test_the_comparison_sees_a_single_wrong_tensor(broken):
    sizes = INSTANCES["small"]
    state = segvol_state_dict(3, **sizes)
    wrong = {**state, broken: state[broken].flip(-1)}
    network = segvol_network(wrong, patch_size=sizes["patch_size"], stride=sizes["patch"])
    reference = Reference(state, sizes["patch_size"], sizes["patch"], 12)
    image = torch.rand(1, 1, *sizes["patch_size"], generator=torch.Generator().manual_seed(0))
    text = torch.linspace(-2, 3, 48).expand(3, -1)
    with torch.inference_mode():
        box, dense = network.prompt_encoder(boxes=half_open(BOXES), text=text)
        point, _ = network.prompt_encoder(points=POINTS, point_labels=LABELS, text=text)
        worst = 0.0
        for sparse, theirs in (
            (box, reference.sparse(boxes=BOXES, text=text)),
            (point, reference.sparse(points=(POINTS, LABELS), text=text)),
        ):
            logits, _ = network.mask_decoder(
                network.image_encoder(image),
                network.prompt_encoder.dense_positions(),
                sparse,
                dense,
                text=text,
            )
            want, _ = reference.decode(reference.image_embedding(image), theirs, text)
            worst = max(worst, float((logits - want).abs().max() / want.abs().max()))
    assert worst > 1e-3


@torch.inference_mode()
def test_the_image_encoder_is_the_monai_one_that_segvol_builds():
    pytest.importorskip("einops")  # MONAI's ViT needs it, nothing here does
    torch.manual_seed(5)
    theirs = ViT(
        in_channels=1,
        img_size=(8, 32, 16),
        patch_size=(4, 8, 4),
        hidden_size=48,
        mlp_dim=192,
        num_layers=2,
        num_heads=12,
        proj_type="perceptron",
    ).eval()
    state = segvol_state_dict(3, **INSTANCES["small"])
    mine = {name: value for name, value in state.items() if not name.startswith("image_encoder.")}
    mine |= {f"image_encoder.{name}": value for name, value in theirs.state_dict().items()}
    network = segvol_network(mine, patch_size=(8, 32, 16), stride=(4, 8, 4))
    image = torch.rand(2, 1, 8, 32, 16)
    tokens, _ = theirs(image)
    want = tokens.transpose(1, 2).reshape(2, 48, 2, 4, 4)
    assert_equal(network.image_encoder(image), want.double())


@torch.inference_mode()
def test_the_two_way_transformer_is_monais_copy_of_sams():
    torch.manual_seed(6)
    theirs = TwoWayTransformer(2, 48, 8, 64).eval()
    ours = SegVolMaskDecoder(
        48, (2, 4, 3), heads=8, mlp_channels=64, depth=2, mask_tokens=4, iou_channels=16
    ).transformer
    ours.load_state_dict(theirs.state_dict())
    source, places = torch.randn(3, 48, 2, 4, 3), torch.randn(48, 2, 4, 3)
    tokens = torch.randn(3, 7, 48)
    want = theirs(source, places.expand_as(source), tokens)
    for mine, other in zip(
        ours(source, places, tokens, torch.ones(3, 7, dtype=torch.bool)), want, strict=True
    ):
        assert_equal(mine, other.double())
