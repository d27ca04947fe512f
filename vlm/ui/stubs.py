"""Gradio without its stubs: half as long to import, and nothing is written.

As the class of each component is made, Gradio parses its source and the .pyi file that
it keeps beside it for editors, and writes that file anew where they differ. Nobody
edits here, and where the packages lie may not be written to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType


def leave_out() -> None:
    """To be called before Gradio is imported."""
    if WRITER not in sys.modules:
        sys.meta_path.insert(0, Finder())


WRITER = "gradio.component_meta"


class Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WRITER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.create_or_modify_pyi = lambda *_: None
