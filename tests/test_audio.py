"""Decoding: formats, first channel, resampling against torchaudio, and files that are no audio."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from support.front_ends import FILTERS
from support.small_sets import imagined, originals, write_audio

from resp_tune.config import EncoderFrontEnd, FrontEnd, Resampling, preset
from resp_tune.data.sounds.audio_files import AudioError, read_audio
from resp_tune.data.sounds.waveforms import (
    FLAT_TO,
    describe_uneven_bands,
    load_waveform,
    read_sound,
    resampler,
)
from resp_tune.errors import UserError
from resp_tune.features.logmel import log_mels

TOLERANCE = {
    "PCM_16": 2**-15,
    "PCM_24": 2**-23,
    "PCM_32": 2**-23,
    "FLOAT": 2**-23,
    "DOUBLE": 2**-23,
}


@pytest.mark.parametrize("subtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_every_depth(tmp_path: Path, subtype: str, channels: int) -> None:
    path = tmp_path / "a.wav"
    written = write_audio(path, rate=10_000, channels=channels, subtype=subtype)
    samples, rate = read_audio(path)
    assert (rate, samples.shape, samples.dtype) == (10_000, (channels, 10_000), np.float32)
    np.testing.assert_allclose(samples, written.T, atol=TOLERANCE[subtype])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.flac"
    written = write_audio(path, rate=44_100, subtype=subtype)
    samples, rate = read_audio(path)
    assert rate == 44_100
    np.testing.assert_allclose(samples, written.T, atol=TOLERANCE[subtype])


def test_full_scale_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([-32768, 0, 16384], dtype=np.int16), 4000)
    assert read_audio(path)[0].tolist() == [[-1.0, 0.0, 0.5]]


def test_first_channel_of_stereo(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    written = write_audio(path, channels=2)
    waveform = load_waveform(path, 4000)
    assert (waveform.dtype, waveform.shape) == (torch.float32, (4000,))
    np.testing.assert_allclose(waveform.numpy(), written[:, 0], atol=2**-15)


@pytest.mark.parametrize(
    ("source", "target"), [(44_100, 4000), (10_000, 4000), (4000, 44_100), (22_050, 16_000)]
)
@pytest.mark.parametrize("resampling", ["kaiser", "hann"])
def test_resampling_equals_torchaudio(
    tmp_path: Path, source: int, target: int, resampling: Resampling
) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, rate=source, seconds=0.7)
    samples = torch.from_numpy(read_audio(path)[0][0])
    ours, options = load_waveform(path, target, resampling), FILTERS[resampling]
    assert torch.equal(ours, torchaudio.transforms.Resample(source, target, **options)(samples))
    functional = torchaudio.functional.resample(samples, source, target, **options)
    torch.testing.assert_close(ours, functional, atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", [44_100, 48_000, 10_000, 8000, 11_025, 44_101])
def test_resampling_is_flat_up_to_the_end_of_the_mel_bank(source: int) -> None:
    """Recordings at the target rate are not filtered: the others must look the same to the bank."""
    levels = {}
    for frequency in (100, 1000, 1700, 1800, 1900, 2100, 2200, 2400, 3000):
        times = np.arange(2 * source) / source
        tone = torch.from_numpy(np.sin(2 * np.pi * frequency * times)).float()
        inner = resampler(source, 4000, "kaiser")(tone)[1000:-1000]
        levels[frequency] = 10 * np.log10(2 * inner.square().mean().item() + 1e-20)
    assert FLAT_TO * 4000 / 2 == 1900
    assert all(abs(levels[f]) <= 0.02 for f in levels if f <= 1900), levels
    assert all(levels[f] <= -100 for f in levels if f > 2000), levels


def test_white_noise_has_the_same_last_bands_at_every_rate() -> None:
    """The difference of the last two mel bands does not tell which recordings were resampled."""
    front_end = preset("baseline").replace({"f_max": 1900.0}).front_end
    generator = np.random.default_rng(0)
    drop = {}
    for rate in (4000, 8000, 10_000, 44_100):
        noise = torch.from_numpy(generator.normal(0, 0.1, 60 * rate)).float()
        waveform = noise if rate == 4000 else resampler(rate, 4000, "kaiser")(noise)
        mels = log_mels(waveform, [front_end])[0].mean(0)
        drop[rate] = float(mels[-1] - mels[-2])
    assert max(drop.values()) - min(drop.values()) < 0.3, drop


@pytest.mark.parametrize(
    ("rates", "target", "f_max", "line"),
    [
        ((4000, 4000), 4000, 2000.0, None),
        ((44_100, 44_100), 4000, 2000.0, None),
        ((10_000, 44_100), 4000, 2000.0, None),  # all are resampled in the same way
        ((4000, 44_100), 4000, 1900.0, None),
        ((4000, 44_100, 44_100), 4000, 2000.0, "1 of 3 recordings made at 4000 Hz, the others at "
         "up to 44100 Hz: mel bands above 1900 Hz (here up to 2000 Hz) show which"),
        ((4000, 8000), 8000, 4000.0, "mel bands above 1900 Hz (here up to 4000 Hz)"),
        ((10_000, 44_100), 16_000, 8000.0, "mel bands above 4750 Hz (here up to 8000 Hz)"),
        ((44_100, 48_000), 44_100, 22_050.0, "mel bands above 20947.5 Hz"),
    ],
)  # fmt: skip
def test_bands_that_not_all_recordings_fill(
    rates: tuple[int, ...], target: int, f_max: float, line: str | None
) -> None:
    names = [(f"{100 + i}_1b1_Al_sc_Meditron", "COPD") for i in range(len(rates))]
    recordings = [
        dataclasses.replace(recording, sample_rate=rate)
        for recording, rate in zip(imagined(names).recordings, rates, strict=True)
    ]
    found = describe_uneven_bands(recordings, [FrontEnd(target, 256, 128, 32, 50.0, f_max)])
    assert found is None if line is None else found is not None and line in found


@pytest.mark.parametrize(("f_max", "end"), [(None, 22_050), (2000.0, 2000), (1900.0, None)])
def test_an_encoder_may_hear_what_not_all_recordings_hold(
    f_max: float | None, end: int | None
) -> None:
    names = [(f"{100 + i}_1b1_Al_sc_Meditron", "COPD") for i in range(2)]
    one, other = imagined(names).recordings
    recordings = [
        dataclasses.replace(one, sample_rate=4000), dataclasses.replace(other, sample_rate=44_100),
    ]  # fmt: skip
    found = describe_uneven_bands(recordings, [EncoderFrontEnd("e.onnx", "last", 2, f_max)])
    expected = f"frequencies above 1900 Hz (here up to {end} Hz) show which"
    assert found is None if end is None else found is not None and expected in found


def test_rates_without_a_common_divisor(tmp_path: Path) -> None:
    """44 101 Hz is resampled with an approximate ratio: a tone must come out where it was."""
    path = tmp_path / "a.wav"
    times = np.arange(5 * 44_101) / 44_101
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * times), 44_101, subtype="FLOAT")
    waveform = load_waveform(path, 4000).numpy()
    assert abs(len(waveform) - 20_000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / 4000)
    np.testing.assert_allclose(waveform[100:-100], expected[100:-100], atol=2e-3)


def _nan(path: Path) -> None:
    soundfile.write(path, np.array([0.0, np.nan] * 2000), 4000, subtype="FLOAT")


def _flac_without_end(path: Path) -> None:
    write_audio(path.with_suffix(".flac"), seconds=5)
    data = path.with_suffix(".flac").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0), 4000)


def _header_only(path: Path) -> None:
    write_audio(path)
    path.write_bytes(path.read_bytes()[:20])


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "text": (lambda path: path.write_text("hello\n" * 100), "cannot be read as wav or FLAC"),
    "truncated header": (_header_only, "cannot be read as wav or FLAC"),
    "NaN": (_nan, "not numbers"),
    "no samples": (_no_samples, "holds no samples"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "broken link": (lambda path: path.symlink_to("gone.wav"), "cannot be opened"),
    "pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "missing": (lambda path: None, "cannot be opened"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.wav"
    make, message = BAD[kind]
    make(path)
    for read in (read_audio, lambda path: load_waveform(path, 4000)):
        with pytest.raises(AudioError) as caught:
            read(path)
        assert isinstance(caught.value, UserError)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_flac_without_its_end_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    _flac_without_end(path)
    with pytest.raises(AudioError, match=r"bad\.wav"):
        read_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_silence_is_decoded(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.zeros(4000 * 600), 4000, subtype=subtype)
    samples, rate = read_audio(path)
    assert samples.shape == (1, 600 * rate)
    assert not samples.any()


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")]
)
def test_damaged_bytes_are_read_or_named(tmp_path: Path, suffix: str, subtype: str) -> None:
    """Whatever the header claims after a few wrong bytes, memory and time stay small."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 2000), 4000, subtype=subtype)
    whole = path.read_bytes()
    draw = random.Random(subtype)  # noqa: S311  # no secret
    named = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(draw.choice((60, len(data))))] = draw.randrange(256)
        path.write_bytes(bytes(data))
        for read in (read_sound, read_audio):
            try:
                read(path)
            except AudioError as error:
                named += 1
                assert "\n" not in str(error)  # noqa: PT017
    assert 0 < named < 600


def test_wav_without_its_end_is_used_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3000])
    sound = read_sound(path)
    assert sound.samples.shape == (3000,)
    assert sound.remarks == (("cut off", "6000 of 8000 announced bytes"),)


def test_wav_written_into_a_pipe_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert (len(read_sound(path).samples), read_sound(path).remarks) == (4000, ())


def test_originals_of_every_format() -> None:
    folder = originals() / "audio_and_txt_files"
    seen = set()
    for path in sorted(folder.glob("*.wav")):
        info = soundfile.info(path)
        seen.add((info.samplerate, info.subtype))
        samples, rate = read_audio(path)
        sound = read_sound(path)
        assert (sound.samples.shape, sound.channel, sound.remarks) == (samples.shape[1:], 0, ())
        assert 0.01 < np.abs(samples).max() <= 1
        resampled = load_waveform(path, 4000)
        assert abs(len(resampled) - samples.shape[1] / rate * 4000) <= 1
    assert {rate for rate, _ in seen} == {44_100, 10_000, 4000}
    assert {subtype for _, subtype in seen} == {"PCM_16", "PCM_24", "PCM_32"}
