from promptseg.commands.parsing import share_cores

share_cores()  # as the commands do it, and before torch is imported
