"""Every command as a module: `python -m promptseg train -d 4` is `promptseg_train -d 4`."""

import importlib
import pkgutil
import sys

from promptseg import commands

NAMES = sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if m.name != "parsing")


def main() -> int:
    """Run the command that the first argument names, and return its exit code."""
    name, *arguments = sys.argv[1:] or [""]
    usage = f"usage: python -m promptseg {{{','.join(NAMES)}}} ..."
    if name in ("-h", "--help"):
        print(usage)
        return 0
    if name not in NAMES:
        print(usage, file=sys.stderr)
        if name:
            print(f"python -m promptseg: error: unknown command {name!r}", file=sys.stderr)
        return 2
    return importlib.import_module(f"promptseg.commands.{name}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
