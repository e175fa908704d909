from promptseg.commands.parsing import prepare_torch

prepare_torch()  # as the commands do it, and before torch is imported
