"""Every command as a module: `python -m promptseg train -d 4` is `promptseg_train -d 4`."""

import importlib
import pkgutil
import sys

from promptseg import commands

NAMES = sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if m.name != "parsing")


def main() -> int | None:
    """Run the command that the first argument names; its exit code."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in NAMES:
        print(f"usage: python -m promptseg {{{','.join(NAMES)}}} ...", file=sys.stderr)
        return 2
    return importlib.import_module(f"promptseg.commands.{name}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
