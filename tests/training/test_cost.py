from functools import partial

import pytest
import torch
from torch import nn

from promptseg.commands import encoders, train
from promptseg.networks.cost import count_flops, count_parameters, network_cost, peak_bytes
from promptseg.networks.encoders import ENCODERS
from promptseg.networks.promptable import build_network
from promptseg.training.cost import Step, step_cost
from promptseg.training.cost_table import cost_table, plans_for_cost, trainer_table
from promptseg.training.settings import TrainingSettings
from promptseg.training.trainers import TRAINERS
from tests.small_plans import small_plans


def test_a_convolution_counted_by_hand():
    convolution = nn.Conv3d(2, 3, (1, 3, 5), padding=(0, 1, 2))
    image = torch.zeros(4, 2, 5, 6, 7)

    # 2 * 1 * 3 * 5 = 30 weights for each of 3 channels, and 3 biases
    assert count_parameters(convolution) == 93
    # 4 images of 5 * 6 * 7 = 210 voxels, 3 channels, 30 products each with its addition
    assert count_flops(lambda: convolution(image)) == 4 * 210 * 3 * 30 * 2


@pytest.mark.parametrize("training", [True, False])
def test_attention_counts_where_it_is_fused_too(training):
    # 2 sequences of 5 tokens, 8 channels, 2 heads, MLP of 16
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    tokens = torch.zeros(2, 5, 8)

    projections = 5 * 8 * (3 * 8) + 5 * 8 * 8  # queries, keys and values; what comes out
    attention = 2 * (5 * 4 * 5) * 2  # a head's scores, and its sums of values, 4 channels each
    mlp = 5 * 8 * 16 * 2
    with torch.no_grad():
        assert count_flops(lambda: layer(tokens)) == 2 * 2 * (projections + attention + mlp)


def test_work_on_single_elements_does_not_count():
    assert count_flops(lambda: torch.zeros(3, 5, 7).sigmoid().mean()) == 0


def test_buffers_are_no_parameters():
    assert count_parameters(nn.BatchNorm3d(5)) == 10  # 5 scales, 5 shifts; means are buffers


def test_peak_memory_counted_by_hand():
    held = torch.zeros(100)  # 400 bytes

    def call():
        first = held + 1  # 400 more
        second = torch.cat([first, first])  # 800 more: 1600 in all, the most
        del first
        third = second[:50] * 2  # 200, while 400 and 800 live; the slice is no copy
        return third

    assert peak_bytes(call, [held], "cpu") == 1600
    assert peak_bytes(lambda: held.view(10, 10).add_(1), [held], "cpu") == 400


def test_modules_that_are_held_count_with_their_buffers():
    module = nn.BatchNorm1d(6)  # 4 vectors of 6 floats, and a count of 8 bytes
    assert peak_bytes(lambda: None, [module], "cpu") == 4 * 6 * 4 + 8


def test_a_network_costs_what_its_parts_add_up_to():
    plans = small_plans()
    cost, network = network_cost(plans, "vit"), build_network(plans, "vit")

    assert cost.parameters == sum(p.numel() for p in network.parameters())
    encoder = sum(p.numel() for p in network.image_encoder.parameters())
    assert cost.encoder_parameters == encoder < cost.parameters
    assert cost.prediction_bytes > 4 * cost.parameters


def test_encoding_costs_more_in_a_larger_patch_and_parameters_do_not():
    small = network_cost(small_plans(), "residual")
    large = network_cost(small_plans(patch_size=(16, 12, 16)), "residual")
    assert large.parameters == small.parameters
    # twice the voxels of a network of convolutions
    assert large.encode_flops == pytest.approx(2 * small.encode_flops, rel=0.01)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_a_training_step_is_counted_without_computing_it_as_it_would_be_measured(encoder):
    plans, settings = (
        small_plans(patch_size=(8, 12, 16)),
        TrainingSettings(objects_per_step=2),
    )
    counted_cost = step_cost(plans, encoder, settings)
    step = Step(build_network(plans, encoder), plans, settings, "fp32")
    answer = partial(step.answer_prompts, settings.rounds, lambda: None)
    measured = peak_bytes(answer, step.held, "cpu")
    assert counted_cost.bytes == pytest.approx(measured, rel=0.07)
    # attention is counted as matrix products in the one, as a fused operation in the other
    assert counted_cost.flops == pytest.approx(count_flops(answer), rel=0.05)
    # weights, gradients and AdamW's two averages are all there when the optimizer has stepped
    assert counted_cost.bytes > 4 * 4 * count_parameters(step.network)


def test_a_step_costs_what_its_batch_labels_and_precision_ask_for():
    def cost(precision="fp32", answer_every=1, **changes):
        settings = TrainingSettings(answer_every=answer_every)
        return step_cost(small_plans(**changes), "unet", settings, precision)

    labels = {f"label {number}": number for number in range(1, 41)}
    once, twice = cost(), cost(batch_size=4)
    assert once.bytes < twice.bytes < 2 * once.bytes  # the objects stay four
    assert cost("bf16").bytes < once.bytes
    assert cost(labels=labels).bytes > once.bytes
    seldom = cost(answer_every=3)
    assert seldom.bytes == once.bytes and seldom.flops < once.flops


def test_a_large_network_is_counted_without_its_memory():
    plans = plans_for_cost((160, 192, 160), (32, 32, 32), "base")
    assert step_cost(plans, "unet", TrainingSettings()).bytes > 20e9


def test_the_preset_segvol_is_counted_too():
    plans = small_plans(preset="segvol", trainer="ViTTrainer")
    assert step_cost(plans, "vit", TrainingSettings()).bytes > 0


def test_the_table_names_every_encoder_its_trainers_and_its_parameters():
    plans = small_plans()
    table = cost_table(plans, {"ViTTrainer": "vit", "MyViTTrainer": "vit"})
    rows = {line.split()[0]: line for line in table.splitlines()[2:] if line}
    assert set(ENCODERS) < set(rows)
    assert "ViTTrainer, MyViTTrainer" in rows["vit"]
    assert f"{network_cost(plans, 'vit').parameters / 1e6:.2f}" in rows["vit"]
    assert "an addition count as two" in table and "patch (8, 12, 16)" in table


def test_an_encoder_that_cannot_be_built_is_a_row_that_says_why():
    plans = small_plans(size="enormous")
    for table in (cost_table(plans, {}), trainer_table(plans, {"ViTTrainer": "vit"})):
        assert "unknown size 'enormous' of the encoder vit" in table


def test_promptseg_encoders_takes_a_patch(capsys):
    assert encoders.main(["--patch-size", "8", "16", "24", "--stride", "4", "8", "8"]) == 0
    out = capsys.readouterr().out
    assert "size tiny, patch (8, 16, 24), stride (4, 8, 8) (zyx)" in out
    assert all(name in out for name in TRAINERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--patch-size", "8", "12", "20"],
            "patch (8, 12, 20) is not a multiple of stride (8, 8, 8)",
        ),
        (["--window", "0", "8", "8"], "expected 3 positive whole numbers, zyx, found (0, 8, 8)"),
        (["--stride", "8", "-8", "8"], "stride: expected 3 positive whole numbers, zyx"),
        (["-d", "4", "--size", "tiny"], "--size: the plans of dataset 4 fix that; leave out -d"),
        (["-d", "4", "--window", "8", "8", "8"], "--patch-size: the plans of dataset 4 fix that"),
        (["-d", "4", "--preprocessed", "nowhere"], "run `promptseg_plan -d 4` first"),
        (["-device", "abacus"], "unknown device 'abacus'"),
        (["--import", "no_such_module"], "no_such_module"),
    ],
)
def test_promptseg_encoders_refuses_in_one_line(arguments, message, capsys):
    assert encoders.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_trainers_are_listed_without_a_dataset(capsys):
    assert train.main(["--list-trainers"]) == 0
    out = capsys.readouterr().out
    for name in TRAINERS:
        (row,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert TRAINERS.get(name).encoder in row.split()
    parameters = network_cost(plans_for_cost(), "vit").parameters
    assert f" {parameters / 1e6:.2f} " in out


def test_training_needs_a_dataset_or_the_list_but_not_both(capsys):
    for arguments in ([], ["-d", "4", "--list-trainers"]):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 2
    assert "--list-trainers" in capsys.readouterr().err
