"""What results of a sweep can be compared with."""

import dataclasses

from janus_jax.ablation import measuring
from janus_jax.ablation.settings import Evaluation
from janus_jax.runs.config import TrainConfig

EVALUATION = Evaluation(scores=True, questions_per_kind=4, images_per_group=4, seed=0, held_out_batches=1)


def test_scores_of_other_judges_are_measured_anew(monkeypatch):
  without = dataclasses.replace(EVALUATION, scores=False)
  before = [measuring.eval_fingerprint(evaluation, TrainConfig()) for evaluation in (EVALUATION, without)]
  monkeypatch.setattr(measuring, 'JUDGES', measuring.JUDGES + 1)
  after = [measuring.eval_fingerprint(evaluation, TrainConfig()) for evaluation in (EVALUATION, without)]
  assert before[0] != after[0]
  assert before[1] == after[1]
