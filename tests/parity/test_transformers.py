"""Live parity with `transformers`: GPT-2 and Llama, same weights, same batches."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="pip install torch transformers runs the live comparison")

import language_models


@pytest.mark.parametrize("name", language_models.CASES)
def test_logits_gradients_and_twenty_steps(name: str) -> None:
    case = language_models.CASES[name]
    language_models.compare(language_models.run_graphc(case), language_models.run_transformers(case))
