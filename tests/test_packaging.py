"""The package as a wheel and as an editable install, from any folder, beside Hugging Face's package `kernels`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is built, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("minibnn", "kernels"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def isolated(script, cwd):
    """Run Python without any installed package (-S) and outside the checkout."""
    subprocess.run([sys.executable, "-I", "-S", "-c", script], cwd=cwd, check=True)


def test_wheel_holds_the_package_and_the_bundled_model(source, tmp_path):
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "minibnn").rglob("__init__.py")]
    assert "minibnn/experiments/stage/__init__.py" in packages
    for name in ("train.py", "assets/tiny/recipe.json", "assets/tiny/tokenizer/merges.txt", "assets/clean.json",
                 "assets/tiny/unet/diffusion_pytorch_model.safetensors"):
        assert f"minibnn/{name}" in names
    assert not set(packages) - set(names)
    assert "minibnn_kernels/bayes_linear.py" in names and not [name for name in names if name.startswith("kernels/")]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    isolated(f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import minibnn.options.parsing", "/")
    model = tmp_path / "site" / "minibnn" / "assets" / "tiny"
    assert sum(f.stat().st_size for f in model.rglob("*") if f.is_file()) <= 24e6


def test_editable_install_works_from_anywhere(source, tmp_path):
    prefix = tmp_path / "prefix"
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", "--prefix", prefix, "-e", source],
        check=True,
    )
    (site,) = prefix.glob("lib/python*/site-packages")
    for cwd in ("/", source):
        script = (
            f"import site; site.addsitedir({str(site)!r}); import minibnn.options.parsing as m\n"
            f"assert m.__file__.startswith({str(source)!r}); import importlib.util as u\n"
            f"assert u.find_spec('minibnn_kernels.bayes_linear').origin.startswith({str(source)!r})"
        )
        isolated(script, cwd)
    assert (prefix / "bin" / "minibnn").exists()


def test_hugging_faces_kernels_package_is_not_shadowed(tmp_path):
    """Without kernels/__init__.py a regular package of that name wins, also from the checkout."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(): return 'theirs'")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    script = "from kernels import get_kernel; assert get_kernel() == 'theirs'; import minibnn"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
