"""Maps the folders of the repository to the packages v32.*; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("agent", "tools", "model_runtime", "kernels", "sandboxes")

setup(
    packages=[
        "v32",  # a namespace with nothing but `python -m v32`
        *(f"v32.{folder}" for folder in FOLDERS),
        *(f"v32.{folder}.{name}" for folder in FOLDERS for name in find_packages(folder)),
        "v32.examples.tiny_v32",
    ],
    package_dir={f"v32.{folder}": folder for folder in FOLDERS} | {"v32.examples.tiny_v32": "examples/tiny_v32"},
)
