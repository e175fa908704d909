"""Metadata, dependencies and commands."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

COMMANDS = (
    "convert",
    "plan",
    "train",
    "predict",
    "encoders",
    "import_segvol",
    "auto_prompt",
    "evaluate",
    "export",
    "find_best",
    "demo",
)

DICOM = ["highdicom>=0.26"]
EXPORT = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5", "torch>=2.7"]
TENSORBOARD = ["tensorboard>=2.16"]

setup(
    name="promptseg",
    version="0.1.0",
    description="Self-configuring promptable 3D medical image segmentation with automatic prompts",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["promptseg", "promptseg.*"]),
    python_requires=">=3.10",
    install_requires=[
        "SimpleITK>=2.3",
        "acvl-utils>=0.2.6",
        "batchgenerators>=0.25",
        "blosc2>=3.0",
        "connected-components-3d>=3.12",
        "matplotlib>=3.10",
        "monai>=1.4",
        "msgpack>=1.0",
        "nibabel>=5.2",
        "numpy>=1.26",
        "pydicom>=3.0",
        "scikit-image>=0.22",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "threadpoolctl>=3.1",
        "tifffile>=2022.8.12",
        "torch>=2.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "dask": ["distributed>=2024.1"],
        "dicom": DICOM,
        "docs": ["mkdocs-material>=9.5"],
        "export": EXPORT,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.19"],
        "test": [
            *DICOM,
            *EXPORT,
            *TENSORBOARD,
            "distributed>=2024.1",
            "hypothesis>=6.100",
            "pytest>=8",
            "ruff>=0.9",
        ],
    },
    entry_points={
        "console_scripts": [
            f"promptseg_{name} = promptseg.commands.{name}:main" for name in COMMANDS
        ]
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
