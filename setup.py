from setuptools import find_packages, setup

setup(
    name="ldm",
    version="0.1.0",
    description="DreamBooth fine-tuning of latent diffusion models on PyTorch Lightning",
    packages=find_packages(include=["ldm", "ldm.*"]),
    package_data={"ldm.pages": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "pytorch-lightning>=2.6",
        "omegaconf>=2.3",
        "transformers>=5.23",
        "diffusers>=0.42",
        "einops>=0.8",
        "peft>=0.21",
        "tensorboard>=2.16",
        "wandb>=0.19",
        "pillow>=11.0",
        "numpy>=1.26",
        "annotated-types>=0.7",
        "pydantic>=2.10",
        "safetensors>=0.5",
        "tqdm>=4.66",
        "jinja2>=3.1",
    ],
    extras_require={
        "browser": ["axe-playwright-python>=0.1.8", "playwright>=1.60"],  # for the tests of pages
        "heic": ["pillow-heif>=1.0"],
        "test": [
            "bitsandbytes>=0.50",
            "mypy>=2.4",
            "prodigyopt>=1.1",
            "pytest>=8",
            "pytest-cov>=7",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "schedulefree>=1.4",
        ],
    },
)
