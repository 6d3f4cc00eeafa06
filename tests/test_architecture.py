"""What the import contracts cannot say about how the code is laid out."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lazyfs", "registry", "cache")
MAX_LINES = 500

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)


def pure_modules() -> list[str]:
    """Those that the contract in pyproject.toml names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (modules,) = [
        contract["source_modules"]
        for contract in contracts
        if contract["name"] == "pure code does no I/O"
    ]
    assert len(modules) >= 10
    return list(modules)


def files_of(module: str) -> list[Path]:
    """A module's file, or all files of a package."""
    place = ROOT.joinpath(*module.split("."))
    return (
        [place.with_suffix(".py")] if place.with_suffix(".py").exists() else [*place.rglob("*.py")]
    )


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), path)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_code_is_found():
    """Or the tests below would pass on nothing."""
    assert len(FILES) > 100
    assert any(isinstance(node, WAITING) for path in FILES for node in ast.walk(parse(path)))


@pytest.mark.parametrize("module", pure_modules())
def test_pure_code_waits_for_nothing(module: str):
    files = files_of(module)
    assert files
    for path in files:
        found = [node for node in ast.walk(parse(path)) if isinstance(node, WAITING)]
        assert found == [], shown(path)
        generators = [
            node
            for node in ast.walk(parse(path))
            if isinstance(node, ast.comprehension) and node.is_async
        ]
        assert generators == [], shown(path)


@pytest.mark.parametrize("package", ["registry", "cache"])
def test_importing_a_package_loads_nothing_else(package: str):
    """Or who wants a digest would load a network client, and no static check would see it."""
    tree = parse(ROOT / package / "__init__.py")
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    imported = [node.names for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert {name.name for names in imported for name in names} <= {"sys"}


def test_no_module_is_too_long_to_read():
    lengths = {shown(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_nothing_is_imported_for_types_only():
    """A cycle that needs it would be one all the same."""
    for path in FILES:
        names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
        assert "TYPE_CHECKING" not in names, shown(path)


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_module_is_named_after_nothing(name: str):
    assert [shown(path) for path in FILES if path.stem == name] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package: str):
    assert (ROOT / package / "py.typed").exists()
