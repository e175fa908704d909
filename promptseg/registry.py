"""Classes by name: the registry of encoders, of trainers and of automatic prompts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator


class Registry:
    """Classes by name, filled by a decorator where each class is defined."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Decorator that registers a class as `name`, as checkpoints and commands refer to it.

        Raises:
            ValueError: if the name already exists.
        """

        def add(cls: type) -> type:
            if name in self._classes:
                raise ValueError(
                    f"{self.kind} {name!r} already exists: {self._classes[name].__name__}"
                )
            self._classes[name] = cls
            cls.name = name
            return cls

        return add

    def get(self, name: str) -> type:
        """The class registered as `name`; a ValueError that lists all names if there is none."""
        if name not in self._classes:
            known = ", ".join(sorted(self._classes)) or "none"
            raise ValueError(f"unknown {self.kind} {name!r}; registered: {known}")
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes


def import_modules_of(package_name: str, package_path: list[str]) -> None:
    """Import every module of a package, so that the classes in it are registered."""
    for module in pkgutil.iter_modules(package_path):
        importlib.import_module(f"{package_name}.{module.name}")
