"""How much do more labels cost after an image was encoded? Decoding 20 labels compared with 1.

    python benchmarks/encode_decode.py

Five levels for each patch size and encoder size:

    names      `network.decode` on one encoding, asked by the labels' names
    decode     the same with a box for each label
    decoder    the same with all that comes after the image encoder, most of which `network.encode`
               does once for all labels
    predict    `Predictor.predict` with a box for each label on an image of several patches, all of
               which are encoded already
    image      the same starting from `set_image`, including the encoding

One label and twenty take turns; medians are printed with their ratio. A hook on the image encoder
counts the patches it encodes. Exits with 1 if the ratio exceeds 3 at any level but the last, or if
a patch is encoded twice. The weights are random, as times do not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from promptseg.inference.predictor import Predictor
from promptseg.networks.device import choose_device
from promptseg.networks.encoders import ENCODERS
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.plans import Plans
from promptseg.tables import markdown_row, markdown_table
from promptseg.training.cost_table import plans_for_cost

LABELS, BAR = 20, 3.0
PATCHES = {  # patch size and stride, zyx: of the hippocampus plans, and of a CT's
    "hippocampus": ((40, 56, 40), (8, 8, 8)),
    "CT": ((48, 64, 64), (8, 8, 8)),
}


class EncodedPatches:
    """The patches that passed through a network's image encoder, as digests of their voxels."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    @property
    def count(self) -> int:
        return len(self.contents)

    def add(self, module: torch.nn.Module, inputs: tuple, output: object) -> None:
        for patch in inputs[0]:
            voxels = patch.detach().float().cpu().contiguous().numpy()
            self.contents.append(hashlib.sha256(voxels.tobytes()).digest())


@contextmanager
def counted_encodings(network: PromptableNetwork) -> Iterator[EncodedPatches]:
    """Record, by a hook on the image encoder, which patches it encodes while the block runs."""
    encoded = EncodedPatches()
    hook = network.image_encoder.register_forward_hook(encoded.add)
    try:
        yield encoded
    finally:
        hook.remove()


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Median seconds for one label and for all labels, measured in turn."""

    one: float
    many: float

    @property
    def ratio(self) -> float:
        return self.many / self.one


def in_turn(one: Callable[[], object], many: Callable[[], object], runs: int, device: str) -> Turns:
    taken: dict[Callable, list[float]] = {one: [], many: []}
    for run in range(runs + 1):
        for call, seconds in taken.items():
            start = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if run:  # the first run is a warm-up
                seconds.append(time.perf_counter() - start)
    return Turns(one=statistics.median(taken[one]), many=statistics.median(taken[many]))


def make_plans(patch_size: Sequence[int], stride: Sequence[int], size: str) -> Plans:
    labels = {f"label {number}": number for number in range(1, LABELS + 1)}
    return dataclasses.replace(plans_for_cost(patch_size, stride, size), labels=labels)


def network_levels(
    network: PromptableNetwork, plans: Plans, runs: int, device: str
) -> dict[str, tuple[Turns, int, int]]:
    """One and twenty labels of one patch, without and with the upscaling that they share.

    Returns:
        The times, the number of patches encoded, and the number of patches, for each level.
    """
    rng = np.random.default_rng(0)
    queries = [
        Query(label=label, box=box_in(plans.patch_size, rng, fraction=0.4))
        for label in range(LABELS)
    ]
    image = torch.from_numpy(rng.uniform(0, 255, (1, 1, *plans.patch_size)).astype(np.float32))
    one, many = batch_queries(queries[:1]).to(device), batch_queries(queries).to(device)
    named = batch_queries([Query(label=label) for label in range(LABELS)]).to(device)
    with torch.inference_mode(), counted_encodings(network) as encoded:
        encoding = network.encode(image.to(device))
        names = in_turn(
            lambda: network.decode(encoding, named[:1]),
            lambda: network.decode(encoding, named),
            runs,
            device,
        )
        decode = in_turn(
            lambda: network.decode(encoding, one),
            lambda: network.decode(encoding, many),
            runs,
            device,
        )
        count = encoded.count
        features = network.image_encoder(image.to(device) / 127.5 - 1)

        def decoder(prompts: PromptBatch) -> None:
            maps = network.pyramid(features.embedding, features.features)
            shared = dataclasses.replace(
                encoding,
                features=maps[0],
                names=network.name_head(maps[0]),
                projected=network.prompt_head.project(maps[network.level]),
            )
            network.decode(shared, prompts)

        whole = in_turn(lambda: decoder(one), lambda: decoder(many), runs, device)
    return {
        "names": (names, count, 1),
        "decode": (decode, count, 1),
        "decoder": (whole, encoded.count - count, 1),
    }


def predictor_levels(
    network: PromptableNetwork, plans: Plans, runs: int, device: str
) -> dict[str, tuple[Turns, int, int]]:
    """One and twenty labels of one image, with all patches encoded in advance, or none.

    The box of every label spans nine tenths of each side, so that one label and twenty need about
    the same patches, and only the number of labels matters. Returns the same as `network_levels`.
    """
    rng = np.random.default_rng(0)
    shape = [int(1.5 * w) for w in plans.patch_size]
    image = rng.uniform(0, 255, shape).astype(np.float32)
    predictor = Predictor([network], plans, device=device)
    boxes = {label: box_in(shape, rng, fraction=0.9) for label in plans.labels}
    first = {"label 1": boxes["label 1"]}

    def from_image(prompts: dict[str, np.ndarray]) -> None:
        predictor.set_image(image, plans.spacing)
        predictor.predict(boxes=prompts)

    with counted_encodings(network) as encoded:
        from_image(boxes)
        patches = len(set(encoded.contents))
        prompted = in_turn(
            lambda: predictor.predict(boxes=first),
            lambda: predictor.predict(boxes=boxes),
            runs,
            device,
        )
        count = encoded.count
    whole = in_turn(lambda: from_image(first), lambda: from_image(boxes), min(runs, 3), device)
    with counted_encodings(network) as encoded:
        from_image(boxes)
    return {
        "predict": (prompted, count, patches),
        "image": (whole, encoded.count, len(set(encoded.contents))),
    }


def box_in(shape: Sequence[int], rng: np.random.Generator, fraction: float) -> np.ndarray:
    """A half-open box at a random place in a shape, each side a fraction of it."""
    sides = np.maximum(1, (np.asarray(shape) * fraction).astype(int))
    lower = rng.integers(0, np.asarray(shape) - sides + 1)
    return np.stack([lower, lower + sides])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--encoders", nargs="+", default=["vit"], help="names of the encoders (default: vit)"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["tiny", "small"],
        help="encoder sizes (default: tiny small)",
    )
    parser.add_argument("--runs", type=int, default=7, help="timed runs (default: %(default)s)")
    parser.add_argument("-device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    args = parser.parse_args()
    device = choose_device(args.device)
    print(
        f"{device}, {torch.get_num_threads()} threads on {len(os.sched_getaffinity(0))} cores, "
        f"load {os.getloadavg()[0]:.1f}, {args.runs} runs each, torch {torch.__version__}\n"
    )
    columns = ["patch", "encoder", "level", "one label, s", f"{LABELS} labels, s", "ratio"]
    print(markdown_table([*columns, "patches encoded", "bar"], []))
    missed = 0
    for name, (patch_size, stride) in PATCHES.items():
        for encoder in args.encoders:
            ENCODERS.get(encoder)
            for size in args.sizes:
                plans = make_plans(patch_size, stride, size)
                network = build_network(plans, encoder).to(
                    device, memory_format=torch.channels_last_3d
                )
                network.eval()
                title = [f"{name} {'x'.join(map(str, patch_size))}", f"{encoder} {size}"]
                levels = {
                    **network_levels(network, plans, args.runs, device),
                    **predictor_levels(network, plans, args.runs, device),
                }
                for level, measured in levels.items():
                    missed += print_row([*title, level], *measured, level != "image")
    return int(missed > 0)


def print_row(title: list[str], turns: Turns, encoded: int, patches: int, has_bar: bool) -> bool:
    """Print a row of the table and return whether it misses the bar."""
    missed = (has_bar and turns.ratio > BAR) or encoded != patches
    times = [f"{turns.one:.4f}", f"{turns.many:.4f}", f"{turns.ratio:.2f}"]
    verdict = "missed" if missed else "met" if has_bar else ""
    print(markdown_row([*title, *times, f"{encoded} of {patches}", verdict]), flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
