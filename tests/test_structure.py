"""Dependency goes one way: a file imports from the floors below its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A folder is one name, and its files may import each other.
FLOORS = (
    "cache config edit kept layers tap",
    "pair_config",
    "gemma siglip",
    "paligemma",
    "failures hub image machine masks picture_parts published samplers tokenizer",
    "caption packed weights",
    "bpe framing mask_file picture_file snapshot video",
    "download",
    "checkpoint exact graphs grounding prefix quantize trace",
    "answer int8_file joined metrics",
    "column_mlp",
    "arithmetic",
    "engine pair_checkpoint",
    "anatomy contrastive many probes",
    "vlm",  # the door: `import vlm`
    "batch tiny",
    "ui",
    "app",
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
FILES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "app.py", *(ROOT / "vlm").rglob("*.py"))
    if path.exists()
)


@pytest.fixture(params=FILES, ids=str)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_file_has_a_floor(file: Path):
    assert name_of(file) in FLOOR, f"say in FLOORS where {file} belongs"


def test_a_file_imports_only_from_the_floors_below(file: Path):
    here = name_of(file)
    for module in imports(ROOT / file):
        if module.split(".")[0] == "vlm":
            there = part_of(module)
            below = FLOOR[there] < FLOOR[here]
            assert below or (there == here and is_folder(file)), f"{here} -> {module}"


def test_what_only_some_may_import(file: Path):
    name = name_of(file)
    foreign = {module.split(".")[0] for module in imports(ROOT / file)}
    assert "transformers" not in foreign, "the oracle is for tests"
    if name not in ("ui", "app"):
        assert "gradio" not in foreign
    if name == "ui":
        assert "torch" not in foreign, "drawing needs no model"
    if FLOOR[name] <= FLOOR["paligemma"]:
        assert foreign <= {"torch", "vlm"} | sys.stdlib_module_names


def test_an_import_from_above_is_noticed(tmp_path: Path):
    source = tmp_path / "layers.py"
    source.write_text(
        "def f():\n    from vlm import engine, tap\n    import vlm.ui.page"
    )
    assert [part_of(m) for m in imports(source)] == ["engine", "tap", "ui"]


def name_of(file: Path) -> str:
    """vlm/gemma.py is gemma, vlm/ui/page.py is ui, vlm/__init__.py is vlm."""
    parts = file.with_suffix("").parts
    return "vlm" if parts[1:] == ("__init__",) else parts[:2][-1]


def part_of(module: str) -> str:
    """vlm.ui.page is of ui; a public name (`from vlm import load`) is of vlm."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "vlm"


def is_folder(file: Path) -> bool:
    return len(file.parts) > 2


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in a file, relative imports refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "vlm":
                yield from (f"vlm.{alias.name}" for alias in node.names)
            else:
                yield node.module
