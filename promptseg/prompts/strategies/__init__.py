"""The strategies; each module beside this one registers its own."""

from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.registry import import_modules_of

import_modules_of(__name__, __path__)

__all__ = ["AUTO_PROMPTERS"]
