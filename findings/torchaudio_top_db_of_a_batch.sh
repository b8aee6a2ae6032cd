#!/usr/bin/env bash
# One would guess: AmplitudeToDB(top_db=80) on a batch of log-mels [batch, mel, time] limits each item
# to 80 dB below its own maximum. Seen: it takes the maximum of the whole batch, so a quiet recording
# beside a loud one loses its lowest bands; [batch, 1, mel, time] is limited item by item.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchaudio==2.11.0
"$folder/venv/bin/python" - <<'PY'
import torch
import torchaudio

print("torch", torch.__version__, "torchaudio", torchaudio.__version__)
generator = torch.Generator().manual_seed(0)
power = torch.rand(2, 32, 50, generator=generator) * torch.logspace(-8, 0, 32)[:, None]
power[1] *= 1e-4  # a recording 40 dB quieter than the one beside it
to_db = torchaudio.transforms.AmplitudeToDB("power", top_db=80)
alone = torch.stack([to_db(item) for item in power])
three = (to_db(power) - alone).abs().amax(dim=(1, 2))
four = (to_db(power[:, None])[:, 0] - alone).abs().amax(dim=(1, 2))
print("largest difference from each item alone, in dB, [batch, mel, time]   :", three.tolist())
print("largest difference from each item alone, in dB, [batch, 1, mel, time]:", four.tolist())
assert three[1] > 15, "the items of a batch are limited one by one now: out of date"
assert four.max() == 0
PY
