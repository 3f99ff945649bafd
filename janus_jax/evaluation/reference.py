"""Figures of the Janus-Pro report (arXiv 2501.17811v1), Tables 3 to 5, as it prints them; a dash where it has none."""

from collections.abc import Mapping

# Benchmark -> number of the table, and what its column is called there.
COLUMNS: Mapping[str, tuple[int, str]] = {
  'pope': (3, 'POPE'),
  'mme': (3, 'MME-P'),
  'mmbench': (3, 'MMB'),
  'seedbench': (3, 'SEED'),
  'gqa': (3, 'GQA'),
  'mmmu': (3, 'MMMU'),
  'mmvet': (3, 'MM-Vet'),
  'geneval': (4, 'Overall'),
  'dpg': (5, 'Overall'),
}
UNDERSTANDING = ('pope', 'mme', 'mmbench', 'seedbench', 'gqa', 'mmmu', 'mmvet')
GENEVAL_SKILLS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr', 'overall')
DPG_CATEGORIES = ('global', 'entity', 'attribute', 'relation', 'other', 'overall')

_TABLE_3 = """
Janus|87.0 1338.0 69.4 63.7 59.1 30.5 34.3
Janus-Pro-1B|86.2 1444.0 75.5 68.3 59.3 36.3 39.8
Janus-Pro-7B|87.4 1567.1 79.2 72.1 62.0 41.0 50.0
Show-o-256|73.8 948.4 - - 48.7 25.1 -
Show-o-512|80.0 1097.2 - - 58.0 26.7 -
D-DiT|84.0 1124.7 - - 59.2 - -
MetaMorph|- - 75.2 71.8 - - -
ILLUME|88.5 1445.3 65.1 72.9 - 38.2 37.0
TokenFlow-XL|86.8 1545.9 68.9 68.7 62.7 38.7 40.7
LWM|75.2 - - - 44.8 - 9.6
VILA-U|85.8 1401.8 - 59.0 60.8 - 33.5
Chameleon|- - - - - 22.4 8.3
Emu3-Chat|85.2 1244 58.5 68.2 60.3 31.6 37.2
LLaVA-v1.5-7B|85.9 1510.7 64.3 58.6 62.0 35.4 31.1
Qwen-VL-Chat|- 1487.5 60.6 58.2 57.5 - -
"""
_TABLE_4 = """
LlamaGen|0.71 0.34 0.21 0.58 0.07 0.04 0.32
SDv1.5|0.97 0.38 0.35 0.76 0.04 0.06 0.43
PixArt-alpha|0.98 0.50 0.44 0.80 0.08 0.07 0.48
SDv2.1|0.98 0.51 0.44 0.85 0.07 0.17 0.50
DALL-E 2|0.94 0.66 0.49 0.77 0.10 0.19 0.52
Emu3-Gen|0.98 0.71 0.34 0.81 0.17 0.21 0.54
SDXL|0.98 0.74 0.39 0.85 0.15 0.23 0.55
DALL-E 3|0.96 0.87 0.47 0.83 0.43 0.45 0.67
SD3-Medium|0.99 0.94 0.72 0.89 0.33 0.60 0.74
SEED-X|0.97 0.58 0.26 0.80 0.19 0.14 0.49
Show-o|0.95 0.52 0.49 0.82 0.11 0.28 0.53
D-DiT|0.97 0.80 0.54 0.76 0.32 0.50 0.65
LWM|0.93 0.41 0.46 0.79 0.09 0.15 0.47
Transfusion|- - - - - - 0.63
ILLUME|0.99 0.86 0.45 0.71 0.39 0.28 0.61
TokenFlow-XL|0.95 0.60 0.41 0.81 0.16 0.24 0.55
Chameleon|- - - - - - 0.39
Janus|0.97 0.68 0.30 0.84 0.46 0.42 0.61
Janus-Pro-1B|0.98 0.82 0.51 0.89 0.65 0.56 0.73
Janus-Pro-7B|0.99 0.89 0.59 0.90 0.79 0.66 0.80
"""
_TABLE_5 = """
SDv1.5|74.63 74.23 75.39 73.49 67.81 63.18
PixArt-alpha|74.97 79.32 78.60 82.57 76.96 71.11
Lumina-Next|82.82 88.65 86.44 80.53 81.82 74.63
SDXL|83.27 82.43 80.91 86.76 80.41 74.65
Playground v2.5|83.06 82.59 81.20 84.08 83.50 75.47
Hunyuan-DiT|84.59 80.59 88.01 74.36 86.41 78.87
PixArt-Sigma|86.89 82.89 88.94 86.59 87.68 80.54
Emu3-Gen|85.21 86.68 86.84 90.22 83.15 80.60
DALL-E 3|90.97 89.61 88.39 90.58 89.83 83.50
SD3-Medium|87.90 91.01 88.83 80.70 88.68 84.08
Janus|82.33 87.38 87.70 85.46 86.41 79.68
Janus-Pro-1B|87.58 88.63 88.17 88.98 88.30 82.63
Janus-Pro-7B|86.90 88.90 89.40 89.32 89.48 84.19
"""


def _parse(text: str, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
  rows = (line.split('|') for line in text.strip().splitlines())
  return {model: dict(zip(names, figures.split(), strict=True)) for model, figures in rows}


# Model -> benchmark, skill or category -> figure.
TABLE_3 = _parse(_TABLE_3, UNDERSTANDING)
TABLE_4 = _parse(_TABLE_4, GENEVAL_SKILLS)
TABLE_5 = _parse(_TABLE_5, DPG_CATEGORIES)


# Benchmark -> which of its metrics are the other columns of its table, and their factor to the table's scale.
PARTS: Mapping[str, tuple[str, float]] = {'geneval': ('Task breakdown', 0.01), 'dpg': ('L1 category scores', 1)}


def report_figures(benchmark: str, column: str = 'overall') -> dict[str, str]:
  """Model -> the figure that the report prints for a benchmark, for the models that have one.

  Args:
    benchmark: name; of one that the report does not have, nothing is found.
    column: of GENEVAL_SKILLS or DPG_CATEGORIES.
  """
  if benchmark in UNDERSTANDING:
    return {model: row[benchmark] for model, row in TABLE_3.items() if row[benchmark] != '-'}
  table = {'geneval': TABLE_4, 'dpg': TABLE_5}.get(benchmark, {})
  return {model: row[column] for model, row in table.items() if column in row}
