"""The command promptseg_train as a module, for torchrun: `torchrun ... -m promptseg.train`.

To be run, not imported: the public `promptseg.train` is the function in `pipeline.py`.
"""

import sys

from promptseg.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
