"""Which package may import which, read off the source; and what importing must not pull in."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'janus_jax'
# Of each package, the others that it may import.
ALLOWED = {
  'models': set(),
  'sharding': set(),
  'data': set(),
  'reporting': set(),
  'conversion': {'models', 'sharding', 'data'},
  'inference': {'models', 'data'},
  'training': {'models', 'sharding', 'data', 'inference'},
  'evaluation': {'data', 'reporting', 'inference'},
}
CORE = set(ALLOWED)
ALLOWED['toy'] = CORE
ALLOWED['runs'] = {*CORE, 'toy'}
# Never one another.
ALLOWED |= {package: {*CORE, 'toy', 'runs'} for package in ('planning', 'ablation', 'benchmarking', 'serving')}
ALLOWED['plugins'] = {*CORE, 'runs', 'cli'}  # One of them is started, as verbs are.
# The modules of `runs` that know of the toy world: where its data is opened, where its config is parsed, where a model
# is scored on it along the way, and where it gives prompts and rewards.
KNOW_THE_TOY = {'datasets.py', 'config.py', 'callbacks.py', 'rollouts.py'}
# Only inside functions that need them.
NEVER_AT_TOP = {'torch', 'transformers', 'tensorflow', 'matplotlib', 'pandas', 'gradio'}


def imported_modules(tree: ast.AST) -> set[str]:
  modules = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      # `from janus_jax.models import layers` imports janus_jax.models.layers.
      modules |= {f'{node.module}.{alias.name}' for alias in node.names}
  return modules


def package_of(module: str) -> str | None:
  """The package of ours that a module name belongs to; None for others and for errors.py, which all may use."""
  parts = module.split('.')
  if parts[0] != 'janus_jax' or len(parts) < 2 or parts[1] == 'errors':
    return None
  return parts[1]


@pytest.mark.parametrize('package', sorted(ALLOWED))
def test_packages_import_only_what_the_design_allows(package):
  for path in (ROOT / package).rglob('*.py'):
    modules = imported_modules(ast.parse(path.read_text()))
    packages = {package_of(module) for module in modules} - {None, package}
    assert packages <= ALLOWED[package], f'{path} imports {packages - ALLOWED[package]}'


def test_few_modules_of_runs_know_the_toy_world():
  found = {
    path.name
    for path in (ROOT / 'runs').glob('*.py')
    if 'toy' in map(package_of, imported_modules(ast.parse(path.read_text())))
  }
  assert found == KNOW_THE_TOY


def test_verbs_stand_alone_at_the_root():
  """With the package's own module, `cli` and `errors`; nobody imports a verb."""
  names = {path.stem for path in ROOT.glob('*.py')}
  assert len(names) <= 18
  verbs = names - {'__init__', 'cli', 'errors'}
  for path in ROOT.rglob('*.py'):
    imported = imported_modules(ast.parse(path.read_text()))
    assert not {f'janus_jax.{verb}' for verb in verbs} & imported, path


def test_every_package_has_a_rule():
  assert {path.name for path in ROOT.iterdir() if (path / '__init__.py').exists()} == set(ALLOWED)


def test_what_may_be_missing_is_never_imported_at_the_top():
  for path in ROOT.rglob('*.py'):
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {module.split('.')[0] for node in top for module in imported_modules(node)}
    assert not roots & NEVER_AT_TOP, path


def test_no_private_jax():
  for path in [*ROOT.rglob('*.py'), *ROOT.parent.glob('tests/**/*.py')]:
    private = {module for module in imported_modules(ast.parse(path.read_text())) if module.startswith('jax._src')}
    assert not private, path


def modules_after(statement: str) -> set[str]:
  code = f'import sys; {statement}; print(*sys.modules)'
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
  return set(result.stdout.split())


def test_model_core_needs_only_jax_and_flax():
  loaded = modules_after('import janus_jax.models.janus')
  assert not loaded & {'grain', 'tensorflow_datasets', 'ml_collections', 'torch', 'transformers', 'PIL'}


DATA = {
  '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__'): path
  for path in sorted((ROOT / 'data').rglob('*.py'))
}


def needs_grain(name: str) -> bool:
  """Whether a data module imports grain, itself or through another data module."""
  modules = imported_modules(ast.parse(DATA[name].read_text()))
  if any(module.split('.')[0] == 'grain' for module in modules):
    return True
  # Of `from a.b import c`, both a.b and a.b.c may be a module.
  inner = {part for module in modules for part in (module, module.rpartition('.')[0])} & set(DATA) - {name}
  return any(map(needs_grain, inner))


def test_data_never_imports_jax():
  for name, path in DATA.items():
    roots = {module.split('.')[0] for module in imported_modules(ast.parse(path.read_text()))}
    assert not roots & {'jax', 'jaxlib', 'flax', 'optax'}, name


def test_data_without_grain_loads_no_jax():
  # Grain itself imports jax, so what needs grain cannot be held to this.
  light = [name for name in DATA if not needs_grain(name)]
  assert {'janus_jax.data.images', 'janus_jax.data.packing', 'janus_jax.data.prompts'} <= set(light)
  assert not modules_after('import ' + ', '.join(light)) & {'jax', 'jaxlib', 'flax'}


def test_data_initialises_no_jax_backend():
  # JAX refuses to change the number of devices once a backend is there.
  code = f'import {", ".join(DATA)}, jax; jax.config.update("jax_num_cpu_devices", 3); print(jax.device_count())'
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT.parent, env=environment
  )
  assert result.stdout == '3\n', result.stderr
