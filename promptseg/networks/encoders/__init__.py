"""Image encoders; each module beside this one registers its own."""

from promptseg.networks.encoders.base import ENCODERS, ImageEmbedding, ImageEncoder
from promptseg.registry import import_modules_of

import_modules_of(__name__, __path__)

__all__ = ["ENCODERS", "ImageEmbedding", "ImageEncoder"]
