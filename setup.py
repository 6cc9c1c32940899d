from setuptools import setup

setup(
    name="minibnn",
    version="0.1.0",
    description="Bayesian few-shot fine-tuning of Stable Diffusion, from scratch: a minimal, educational reference",
    python_requires=">=3.10",
    packages=["minibnn", "minibnn.experiments", "minibnn_kernels"],
    package_dir={"minibnn": "minibnn", "minibnn_kernels": "kernels"},  # kernels/ has no __init__.py: Hugging Face owns that name
    package_data={"minibnn": ["assets/*.safetensors", "assets/*.json", "assets/flow/*", "assets/tiny/*", "assets/tiny/*/*"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "pillow>=10.3",
        "tqdm>=4.66",
        "triton>=3.2; platform_system == 'Linux'",
    ],
    extras_require={
        "test": ["pytest>=8", "diffusers>=0.30", "transformers>=4.44", "accelerate>=0.30", "peft>=0.18", "scipy>=1.11", "ruff>=0.6", "setuptools>=64",
                 "matplotlib>=3.8", "nbformat>=5.9", "nbclient>=0.10", "ipykernel>=6.29"],  # these execute the tutorials
        "tutorials": ["matplotlib>=3.8", "nbformat>=5.9", "notebook>=7.2", "scipy>=1.11"],
        "experiments": ["scipy>=1.11"],  # intervals over seeds
        "metrics": ["transformers>=4.44"],  # CLIP and DINO of minibnn.photo_metrics
    },
)
