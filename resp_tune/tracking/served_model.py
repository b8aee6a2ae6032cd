"""Serve the winner as an MLflow model ("models from code": nothing is pickled).

`mlflow.pyfunc.load_model("models:/resp_tune@champion").predict(waveforms)` takes float32 waveforms
`[batch, samples]` at the sample rate of the front end, or of the encoder, and gives probabilities
`[batch, classes]`, a data frame with one column a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from resp_tune.training.model_bundle import Bundle

ARTIFACT = "winner"


class ServedModel(PythonModel):
    """The bundle behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle beside this file."""
        from resp_tune.training.model_bundle import load_bundle

        self.bundle: Bundle = load_bundle(context.artifacts[ARTIFACT])

    # MLflow takes the type hint of `model_input` for a declaration, and warns at each load of those
    # that it does not know; a plain array leaves it to the signature.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return probabilities `[batch, classes]` of waveforms `[batch, samples]`."""
        waveforms = np.atleast_2d(np.asarray(model_input, dtype=np.float32))
        rows = [self.bundle.predict_waveform(torch.from_numpy(row.copy())) for row in waveforms]
        return pd.DataFrame(np.stack(rows), columns=list(self.bundle.classes))


set_model(ServedModel())
