"""What a student network learns from a teacher: the probabilities of a trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.plans import Plans
from promptseg.training.dataset import Batch

SAME_IN_BOTH = (  # fields of the plans that determine what a network sees and answers
    "preset",
    "channel_names",
    "modalities",
    "normalizations",
    "spacing",
    "patch_size",
    "labels",
)


class Teacher:
    """Trained networks whose mean probabilities a student learns; they do not change.

    Args:
        networks: at least one, on the CPU.
        source: file or folder they are from, for errors.

    Attributes:
        digest: SHA-256 of all weights, 64 hexadecimal digits, wherever the files are.
    """

    def __init__(self, networks: Sequence[nn.Module], source: Path | str) -> None:
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self.source = source
        digest = hashlib.sha256()
        for name, value in self.networks.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        self.digest = digest.hexdigest()

    def to(self, device: str | torch.device) -> Teacher:
        self.networks.to(device, memory_format=torch.channels_last_3d)
        return self

    @torch.no_grad()
    def probabilities(self, batch: Batch, temperature: float) -> Tensor:
        """(n, z, y, x) mean probabilities, of logits divided by the temperature, for n queries."""
        answers = (network(batch.image, batch.prompts)[0] for network in self.networks)
        return sum((a.float() / temperature).sigmoid() for a in answers) / len(self.networks)

    def check_same(self, digest: str | None) -> None:
        """Refuse to continue a student that began with another teacher.

        Raises:
            ValueError: if the digest in a checkpoint is not this teacher's.
        """
        if digest != self.digest:
            raise ValueError(
                f"{self.source} has other weights than the teacher this run began with (found "
                f"{self.digest[:12]}, expected {str(digest)[:12]}); name that one with --teacher, "
                f"or start again with --overwrite"
            )


def distillation_loss(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """How far a student's softened answers are from its teacher's; 0 where they are the same.

    The mean over all voxels of the Kullback-Leibler divergence of the student's from the
    teacher's distribution over {foreground, background}, times the squared temperature, which
    keeps its gradient about as large at every temperature.

    Args:
        logits: (n, z, y, x) logits of the student.
        probabilities: (n, z, y, x) probabilities of the teacher, of logits divided by the
            temperature.
        temperature: positive; above 1 the student learns more about voxels that the teacher is
            nearly sure of.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2: soft targets of a temperature
        beside the true labels, their term weighted by its square. Differs: two classes in each
        voxel, and the teacher's entropy, which has no gradient, is subtracted.
    """
    crossed = F.binary_cross_entropy_with_logits(logits.float() / temperature, probabilities)
    background = 1 - probabilities
    entropy = -torch.xlogy(probabilities, probabilities) - torch.xlogy(background, background)
    return temperature**2 * (crossed - entropy.mean())


def check_teacher_is_wanted(trainer: str, needs_teacher: bool, teacher: str | None) -> None:
    """A trainer that learns from a teacher must have one, any other must not.

    Raises:
        ValueError: with what to do.
    """
    if needs_teacher and teacher is None:
        raise ValueError(
            f"{trainer} learns from a trained model of the same plans, and none is given; name its "
            f"folder or zip file with --teacher, such as results/Dataset.../ViTTrainer__"
            f"PromptSegPlans__3d"
        )
    if teacher is not None and not needs_teacher:
        raise ValueError(
            f"{trainer} learns from labels alone, but --teacher {teacher} is given; leave it out, "
            f"or train with -tr DistillationTrainer"
        )


def check_teacher_fits(teacher: Plans, student: Plans, source: Path | str) -> None:
    """Refuse a teacher that was trained to see or answer something other than the student.

    Size, stride and batch size may differ, and so may the automatic prompts.

    Raises:
        ValueError: naming what differs.
    """
    differences = [
        f"{name} {_comparable(teacher, name)} there, {_comparable(student, name)} here"
        for name in SAME_IN_BOTH
        if _comparable(teacher, name) != _comparable(student, name)
    ]
    if differences:
        raise ValueError(
            f"{source} cannot teach with the plans {student.plans_name} of {student.dataset_name}: "
            f"{'; '.join(differences)}; train a teacher with the same plans, or plan alike"
        )


def _comparable(plans: Plans, name: str) -> object:
    """A field to compare and print; labels with their order, which indexes their vectors."""
    value = getattr(plans, name)
    return list(value.items()) if isinstance(value, dict) else value
