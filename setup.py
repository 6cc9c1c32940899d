from setuptools import setup

ROOMS = ("cli", "experiments", "files", "finetune", "lab", "neighbours", "networks", "options", "photo", "world")
ASSETS = ("*.safetensors", "*.json", "flow/*", "t*/*", "t*/*/*")

setup(
    name="minibnn",
    version="0.1.0",
    description="Bayesian few-shot fine-tuning of Stable Diffusion, from scratch: a minimal, educational reference",
    python_requires=">=3.11",
    packages=["minibnn", *(f"minibnn.{room}" for room in ROOMS), "minibnn_kernels"],
    # kernels/ has no __init__.py, because the package `kernels` is Hugging Face's
    package_dir={"minibnn": "minibnn", "minibnn_kernels": "kernels"},
    package_data={"minibnn": [f"assets/{pattern}" for pattern in ASSETS]},
    entry_points={"console_scripts": ["minibnn = minibnn.__main__:main"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "pillow>=10.3",
        "tqdm>=4.66",
        "triton>=3.2; platform_system == 'Linux'",
    ],
    extras_require={
        "test": [
            "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6", "setuptools>=64",
            "diffusers>=0.30", "transformers>=4.44", "accelerate>=0.30", "peft>=0.18", "scipy>=1.11",  # the oracles
            "matplotlib>=3.8", "nbformat>=5.9", "nbclient>=0.10", "ipykernel>=6.29",  # these execute the tutorials
        ],
        "tutorials": ["matplotlib>=3.8", "nbformat>=5.9", "notebook>=7.2", "scipy>=1.11"],
        "experiments": ["scipy>=1.11"],  # intervals over seeds
        "metrics": ["transformers>=4.44"],  # CLIP and DINO of the command photo-measures
    },
)
