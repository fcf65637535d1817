"""What others install: the wheel works without this repository, and the source archive has what its tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source archive and the wheel made from it, by suffix."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)], check=True, timeout=300,
                   cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return {path.suffix: path for path in folder.iterdir()}


def test_the_wheel_works_without_the_repository(archives: dict[str, Path], tmp_path: Path) -> None:
    installed, project = tmp_path / "installed", tmp_path / "project"
    project.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
                    str(installed), str(archives[".whl"])], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), *_extra_paths()))}
    where = subprocess.run([sys.executable, "-c", "import pytest_qat; print(pytest_qat.__file__)"], cwd=project,
                           env=environment, check=True, timeout=60, capture_output=True, text=True).stdout
    assert Path(where.strip()).is_relative_to(installed)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-v", "--qat-model=torchvision:mobilenet_v2",
         "--qat-inputs=1x3x96x96", "-k", "prepare or coverage"],
        cwd=project, env=environment, check=False, timeout=600, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "torchvision:mobilenet_v2[fx-x86]::coverage" in result.stdout


def _extra_paths() -> list[str]:
    """What PYTHONPATH has besides this repository."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != REPOSITORY]


def test_the_source_archive_has_what_the_tests_read(archives: dict[str, Path]) -> None:
    with tarfile.open(archives[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(REPOSITORY).as_posix() for folder in ("pytest_qat", "fixtures", "tests", "docs")
              for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "mkdocs.yml", "pyproject.toml", ".ci/run",
               ".pre-commit-config.yaml"}
    assert {name for name in wanted - names if "/." not in name} == set()
