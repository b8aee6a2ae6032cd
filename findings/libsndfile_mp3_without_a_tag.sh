#!/usr/bin/env bash
# One would guess: a variable-bitrate mp3 whose information frame is missing is read to its end, or
# refused. Seen: libsndfile estimates the length from the first frames, reads only a part of the
# recording without any error, and `info` agrees with what was read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import io

import numpy as np
import soundfile

print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__)
rate, seconds = 16_000, 20
rng = np.random.default_rng(0)
# A breath-like recording: quiet, then loud, so that a variable bitrate varies.
envelope = np.clip(np.linspace(-1, 1.5, rate * seconds), 0.001, 1)
samples = rng.normal(0, 0.2, rate * seconds) * envelope
buffer = io.BytesIO()
with soundfile.SoundFile(
    buffer, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III",
    compression_level=0.5, bitrate_mode="VARIABLE",
) as file:
    file.write(samples)
whole = buffer.getvalue()
read_whole = len(soundfile.read(io.BytesIO(whole))[0]) / rate
start = whole.index(b"\xff\xf3") if b"\xff\xf3" in whole[:4096] else whole.index(b"\xff\xfb")
tag = max(whole.find(b"Xing"), whole.find(b"Info"))
assert tag > 0, "the file has no information frame to begin with"
second = min(i for i in (whole.find(whole[start:start + 2], tag), ) if i > 0)
without = whole[second:]
with soundfile.SoundFile(io.BytesIO(without)) as file:
    promised = file.frames / rate
read = len(soundfile.read(io.BytesIO(without))[0]) / rate
print(f"{seconds} s were written; with the information frame {read_whole:.1f} s are read")
print(f"without it the header promises {promised:.1f} s and {read:.1f} s are read, without an error")
assert read_whole > 19.5
assert read < 0.8 * seconds, "the whole recording is read now: this finding is out of date"
PY
