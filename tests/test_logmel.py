"""The front end against torchaudio's, and the two facts that let clips be cut from frames."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.front_ends import SMALL, torchaudios

from resp_tune.config import FrontEnd, TrialConfig, preset
from resp_tune.errors import UserError
from resp_tune.features import logmel
from resp_tune.features.logmel import SILENCE_DB, check_filters, log_mels, mel_bank, silence

NOTEBOOK = preset("notebook").front_end


def breath(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise that swells and fades over 80 dB, with a stretch of digital silence."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    swell = 10 ** (-4 * torch.linspace(0, 6 * torch.pi, samples).sin().square())
    wave = 0.3 * noise * swell
    wave[samples // 3 : samples // 2] = 0
    return wave


@pytest.mark.parametrize(
    "front_end",
    [
        SMALL,
        NOTEBOOK,
        FrontEnd(16_000, 1024, 160, 128, 100.0, 4000.0),
        FrontEnd(4000, 255, 100, 20, 0.0, 1999.0),  # an odd window
    ],
)
def test_equals_torchaudio(front_end: FrontEnd) -> None:
    waveform = breath(front_end.sample_rate * 3 + 17)
    (ours,) = log_mels(waveform, [front_end])
    theirs = torchaudios(waveform, front_end)
    assert ours.shape == (front_end.frames(len(waveform)), front_end.n_mels)
    assert ours.dtype == torch.float32
    assert ours.min() == SILENCE_DB
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)
    assert (ours.half().float() - theirs).abs().max() <= 0.05


def test_many_mel_banks_share_one_stft(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    spectrogram = logmel._power_spectrogram

    def counted(*args: Any) -> torch.Tensor:
        calls.append(args)
        return spectrogram(*args)

    waveform = breath(9000)
    sizes = [FrontEnd(4000, 256, 128, n, low, 2000.0) for n in (16, 32, 48) for low in (0.0, 50.0)]
    expected = [torchaudios(waveform, f) for f in sizes]
    monkeypatch.setattr(logmel, "_power_spectrogram", counted)
    found = log_mels(waveform, sizes)
    assert len(calls) == 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_every_field_of_the_config_reaches_the_frames() -> None:
    """A new field of the front end needs a value here: it must differ, and be used.

    But for `resampling`, which was used before there is a waveform.
    """
    other = TrialConfig(
        sample_rate=8000,
        n_fft=512,
        hop_length=64,
        n_mels=32,
        f_min=100.0,
        f_max=1500.0,
        normalise="pcen",
    )
    (frames,) = log_mels(breath(4000), [SMALL])
    fields = dataclasses.asdict(other.front_end)
    del fields["resampling"]
    for name, value in fields.items():
        (changed,) = log_mels(breath(4000), [dataclasses.replace(SMALL, **{name: value})])
        assert not torch.equal(changed, frames), name


@pytest.mark.parametrize("samples", [1, 127, 128, 129, 256, 257])
def test_very_short_waveforms(samples: int) -> None:
    """Reflection needs more than half a window: what is shorter is followed by zeros."""
    waveform = breath(10_000)[:samples]
    (ours,) = log_mels(waveform, [SMALL])
    padded = torch.nn.functional.pad(waveform, (0, max(0, 129 - samples)))
    torch.testing.assert_close(ours, torchaudios(padded, SMALL), atol=0.01, rtol=0)


def test_zeros_are_silence() -> None:
    (ours,) = log_mels(torch.zeros(1000), [SMALL])
    assert (ours == SILENCE_DB).all()


def plain_pcen(power: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """The formula of arXiv:1607.05666, one frame after the other."""
    energy, out = power.double() * 2**31, []
    t = 0.4 * frame_rate
    b = ((1 + 4 * t**2) ** 0.5 - 1) / (2 * t**2)
    smooth = energy[0]
    for now in energy:
        smooth = (1 - b) * smooth + b * now
        out.append((now / (1e-6 + smooth) ** 0.98 + 2) ** 0.5 - 2**0.5)
    return torch.stack(out).float()


def test_pcen_is_its_formula() -> None:
    front_end = dataclasses.replace(SMALL, compression="pcen")
    waveform = torch.cat([breath(9000), torch.zeros(3000), breath(5000)])
    decibels, ours = log_mels(waveform, [SMALL, front_end])
    power = 10 ** (decibels / 10)
    power[decibels == SILENCE_DB] = 0  # the floor is the logarithm's, not PCEN's
    theirs = plain_pcen(power, front_end.sample_rate / front_end.hop_length)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert ours.half().isfinite().all()
    assert (ours[75:90] == silence(front_end)).all()  # well inside the zeros


def test_pcen_takes_away_what_a_stethoscope_adds() -> None:
    """A gain that is steady in a band all but vanishes; in dB it stays in full."""
    front_end = dataclasses.replace(SMALL, compression="pcen")
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    sound = 0.01 * noise * (2 + torch.linspace(0, 40, 20_000).sin())
    decibels, ours = log_mels(sound, [SMALL, front_end])
    louder_db, louder = log_mels(10 * sound, [SMALL, front_end])
    torch.testing.assert_close(louder_db - decibels, torch.full_like(ours, 20.0), atol=0.1, rtol=0)
    assert (louder / ours).max() < 100**0.02 + 0.02  # the power to what the gain of 0.98 leaves


def test_pcen_of_sudden_sound_fits_float16() -> None:
    front_end = dataclasses.replace(SMALL, compression="pcen", hop_length=4)
    (ours,) = log_mels(torch.cat([torch.zeros(4000), torch.ones(10), torch.zeros(99)]), [front_end])
    assert ours.half().isfinite().all()


@pytest.mark.parametrize("front_end", [SMALL, NOTEBOOK])
def test_a_roll_of_frames_is_a_roll_of_the_waveform(front_end: FrontEnd) -> None:
    """Away from the seam and the edge, when the clip is a whole number of hops."""
    frames, hop, shift = 300, front_end.hop_length, 77
    waveform = torch.randn(frames * hop, generator=torch.Generator().manual_seed(1))
    (still,) = log_mels(waveform, [front_end])
    (rolled,) = log_mels(waveform.roll(shift * hop), [front_end])
    difference = (still[:frames].roll(shift, 0) - rolled[:frames]).abs().amax(1)
    differing = set(difference.gt(0.1).nonzero().flatten().tolist())
    assert differing <= {0, shift}  # the edge, which reflects, and the seam, which no longer does
    assert differing  # white noise does not reflect into itself


@pytest.mark.parametrize(
    ("front_end", "empty"),
    [
        (FrontEnd(16_000, 1024, 512, 256, 50.0, 2000.0), 43),
        (FrontEnd(44_100, 1024, 512, 128, 0.0, 22_050.0), 1),
        (NOTEBOOK, 0),
        (SMALL, 0),
    ],
)
def test_empty_filters(front_end: FrontEnd, empty: int) -> None:
    """The counts that were measured with torchaudio's own bank."""
    assert (mel_bank(front_end).amax(0) == 0).sum() == empty
    assert mel_bank(front_end).shape == (front_end.n_fft // 2 + 1, front_end.n_mels)
    if not empty:
        check_filters(front_end)
        return
    with pytest.raises(UserError) as caught:
        check_filters(front_end)
    filters = f"{empty} empty mel filter{'s' if empty > 1 else ''} at {front_end.sample_rate} Hz"
    assert f"n_mels {front_end.n_mels} leaves {filters}" in str(caught.value)
    assert "use fewer mels or a larger n_fft" in str(caught.value)
