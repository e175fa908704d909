import os
import subprocess
import sys
from ctypes.util import find_library

import pytest
import torch
from torch import nn

from promptseg.training.precision import MixedPrecision, choose_precision


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_device_that_has_it_the_precision_is_full_unless_asked_for(device, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False}, False)
    assert choose_precision(None, device) == "fp32"
    assert choose_precision("bf16", device) == "bf16"


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_a_processor_that_multiplies_bfloat16_does_so_unless_asked_for_more(name, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, False)
    assert choose_precision(None, "cpu") == "bf16"
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision(None, "mps") == "fp32"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_are_computed_in_the_precision(precision, dtype):
    with MixedPrecision(precision, "cpu").autocast():
        assert (torch.ones(2, 3) @ torch.ones(3, 4)).dtype == dtype


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_clipped_at_their_own_size_and_not_at_the_scaled_one(precision):
    # The loss (3/4 a + b) / 2 has the gradient (3/8, 4/8), of norm 5/8; clipped to norm 1/8 it is
    # (0.075, 0.1), and plain gradient descent with rate 1 subtracts just that. Norm 10 clips
    # nothing. All are exact in 16 bits, and 65536 times the gradient is finite in float16.
    for clip, expected in ((0.125, [-0.075, -0.1]), (10.0, [-0.375, -0.5])):
        network = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        mixed = MixedPrecision(precision, "cpu")
        with mixed.autocast():
            answer = network(torch.tensor([[0.75, 1.0]]))
        mixed.optimizer_step(answer.float().sum() / 2, optimizer, network, clip)
        torch.testing.assert_close(network.weight.detach()[0], torch.tensor(expected))


def test_fp16_leaves_out_a_step_whose_gradients_overflow_and_lowers_the_scale():
    network = nn.Linear(1, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    mixed = MixedPrecision("fp16", "cpu")
    scale = mixed.scaler.get_scale()
    # 60000 is finite in float16; times the scale, 65536, the gradient is not
    with mixed.autocast():
        answer = network(torch.tensor([[60000.0]]))
    mixed.optimizer_step(answer.float().sum(), optimizer, network, 1.0)
    assert torch.equal(network.weight, before)
    assert mixed.scaler.get_scale() == scale / 2


# In one thread, where oneDNN's kernels for AMX wrote beyond their memory. The three are the width
# of the kernel and two sizes of image that ended in "double free or corruption".
CONVOLUTIONS = """
import promptseg, torch

torch.set_num_threads(1)
torch.manual_seed(0)
for width, shape in ((1, (10, 108, 88)), (3, (5, 108, 88)), (1, (1, 100, 100))):
    kernel, padding = (1, width, width), (0, width // 2, width // 2)
    weight = torch.randn(8, 16, *kernel, requires_grad=True)
    image, slope = torch.randn(1, 16, *shape), torch.randn(1, 8, *shape)
    expected = torch.autograd.grad(
        torch.nn.functional.conv3d(image, weight, padding=padding), weight, slope
    )[0]
    for _ in range(3):
        last = image.bfloat16().contiguous(memory_format=torch.channels_last_3d)
        answer = torch.nn.functional.conv3d(last, weight.bfloat16(), padding=padding)
        found = torch.autograd.grad(answer, weight, slope.bfloat16())[0]
        assert (found - expected).norm() < 0.02 * expected.norm()
print("done")
"""


def test_gradients_in_bfloat16_are_right_and_stay_within_their_memory():
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    if library := find_library("c_malloc_debug"):  # checks what is freed, where glibc has it
        environment |= {"LD_PRELOAD": library, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    done = subprocess.run(
        [sys.executable, "-c", CONVOLUTIONS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_what_a_person_chose_of_onednn_is_kept():
    code = "import promptseg, os; print(os.environ['ONEDNN_MAX_CPU_ISA'])"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "AVX2\n"
