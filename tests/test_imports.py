"""Who may import whom (DESIGN section 3), read off the source; and what importing must not pull in."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'janus_jax'
ALLOWED = {
  'models': set(),
  'sharding': set(),
  'data': set(),
  'inference': {'models'},
  'training': {'models', 'sharding', 'data'},
  'conversion': {'models'},
  'evaluation': {'inference', 'data'},
}
# torch and transformers only inside functions that need them.
NEVER_AT_TOP = {'torch', 'transformers', 'tensorflow'}


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


def test_every_package_has_a_rule():
  assert {path.name for path in ROOT.iterdir() if (path / '__init__.py').exists()} == set(ALLOWED)


def test_torch_is_never_imported_at_the_top():
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


def test_data_never_imports_jax():
  names = [f'janus_jax.data.{path.stem}' for path in (ROOT / 'data').glob('*.py')]
  assert 'jax' not in modules_after('import ' + ', '.join(names))
