"""The share of RAL's term, predicted from what is known at theta_old."""

import pytest

from experiments import attention_share


@pytest.mark.full
def test_the_prediction_holds_near_theta_old():
  """To first order; rows of two compiled programs differ by rounding."""
  config = attention_share.make_config(prompts=16, answers=8)
  measure = attention_share.Measure(config, minibatches=2)
  predicted = attention_share.predict(measure, "sgd")
  first, second = attention_share.rows(measure, "sgd", 3e-3, predicted)
  assert first.predicted == 0 and first.share < 1e-5
  assert second.share > 1e-5
  assert second.share == pytest.approx(second.predicted, rel=0.05)
  assert second.divergence == pytest.approx(
    second.predicted_divergence, rel=0.1
  )
