"""What a file's sound says: codecs, unfinished headers, channels, levels, and silence."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.bundles import save_networks
from support.small_sets import write_set

from resp_tune import predict
from resp_tune.cli import run
from resp_tune.config import TrialConfig
from resp_tune.data.dataset import load_dataset
from resp_tune.data.sounds.audio_files import AudioError, repair_container
from resp_tune.data.sounds.waveforms import find_sound, read_sound
from resp_tune.training.networks.network_registry import build_network

RATE = 8000
NOISE = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
SILENCE = np.zeros_like(NOISE)


def encoded(
    samples: np.ndarray, container: str = "WAV", subtype: str = "PCM_16", **options: object
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=container, subtype=subtype, **options)
    return file.getvalue()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation at any shift of up to 0.2 s, which encoders add."""
    length = min(len(one), len(other))
    spectra = (np.fft.rfft(x[:length], 2 * length) for x in (one, other))
    first, second = spectra
    by_lag = np.fft.irfft(first * second.conj())
    reach = RATE // 5
    return float(np.concatenate([by_lag[:reach], by_lag[-reach:]]).max()) / float(
        np.linalg.norm(one[:length]) * np.linalg.norm(other[:length])
    )


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "GSM610"), ("WAV", "MS_ADPCM"), ("WAV", "ULAW"), ("WAV", "PCM_24"), ("WAV", "DOUBLE"),
     ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_24"),
     ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_every_codec_is_read_whole(container: str, subtype: str) -> None:
    low = np.convolve(NOISE, np.ones(8) / 8, mode="same").astype(np.float32)
    sound = find_sound("a.wav", encoded(low, container, subtype))
    assert (sound.sample_rate, sound.remarks) == (RATE, ())
    assert len(low) <= len(sound.samples) < len(low) + 2000
    assert correlation(sound.samples, low) > 0.9


def test_flac_of_unknown_length_is_read_whole() -> None:
    content = bytearray(encoded(NOISE, "FLAC"))
    content[21] &= 0xF0  # the 36 bits that hold the number of samples
    content[22:26] = bytes(4)
    assert len(find_sound("a.flac", bytes(content)).samples) == len(NOISE)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
def test_mp3_without_a_tag_is_read_whole(mode: str) -> None:
    louder = np.repeat(NOISE[None], 8, axis=0).ravel() * np.linspace(0, 1, 8 * len(NOISE))
    content = encoded(louder, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5)
    tagged = repair_container(content)[0]
    assert tagged == content
    at = max(content.find(b"Xing"), content.find(b"Info"))
    untagged = content[content.index(content[:2], at) :]  # without its first frame
    tags = b"ID3\3\0\0\0\0\0\x0a" + bytes(10)
    for start in (b"", tags, 2 * tags):
        samples = find_sound("a.mp3", start + untagged).samples
        assert abs(len(samples) - len(louder)) < 2000


def headed(content: bytes, riff: int, data: int) -> bytes:
    """A wav of the standard layout with other sizes in its header."""
    sizes = struct.pack("<I", riff), struct.pack("<I", data)
    return content[:4] + sizes[0] + content[8:40] + sizes[1] + content[44:]


@pytest.mark.parametrize(("riff", "data"), [(0, 0), (36, 0), (8036, 8000), (32_036, 8001)])
def test_wav_with_an_unfinished_header_is_read_to_its_end(riff: int, data: int) -> None:
    sound = find_sound("a.wav", headed(encoded(NOISE), riff, data))
    assert len(sound.samples) == len(NOISE)
    assert sound.remarks == (("unfinished", f"{data} of 32000 bytes announced"),)


@pytest.mark.parametrize(
    "tail", [b"LIST\4\0\0\0INFO" * 200, b"LIST\1\0\0\0I" * 300, bytes(5000), b"TAG" + bytes(125)]
)
def test_tags_and_padding_after_the_sound_are_no_sound(tail: bytes) -> None:
    sound = find_sound("a.wav", encoded(NOISE) + tail)
    assert (len(sound.samples), sound.remarks) == (len(NOISE), ())


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"),
     ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_what_is_cut_off_is_used_and_named(container: str, subtype: str) -> None:
    content = encoded(np.tile(NOISE, 4), container, subtype)
    sound = find_sound("a.wav", content[: len(content) // 2])
    assert RATE < len(sound.samples) < 5 * RATE
    assert [remark.kind for remark in sound.remarks] == ["cut off"]


def clicks() -> np.ndarray:
    samples = SILENCE.copy()
    samples[5000:5004] = 0.9
    return samples


def dither(level: float) -> np.ndarray:
    return (level + np.random.default_rng(1).integers(-1, 2, len(NOISE)) / 32768).astype(np.float32)


SILENT = {
    "zeros": SILENCE,
    "constant": SILENCE + np.float32(0.25),
    "dithered": dither(0.0),
    "dithered constant": dither(-0.25),
    "one click": clicks(),
    "two channels": np.stack([SILENCE, dither(0.1)], axis=1),
}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_what_is_silent_is_no_recording(kind: str, subtype: str) -> None:
    with pytest.raises(AudioError, match=r"^'a\.wav' is silent: ") as caught:
        find_sound("a.wav", encoded(SILENT[kind], subtype=subtype))
    assert "\n" not in str(caught.value)


def test_what_is_shorter_than_a_breath_is_no_recording() -> None:
    with pytest.raises(AudioError, match=r"is 0\.05 s long; at least 0\.1 s"):
        find_sound("a.wav", encoded(NOISE[:400]))


@pytest.mark.parametrize("gain", [10, 50, 1000])
def test_what_is_clipped_throughout_is_no_recording(gain: float) -> None:
    clipped = np.clip(gain * NOISE, -1, 1) * 0.5
    with pytest.raises(AudioError, match="is clipped throughout"):
        find_sound("a.wav", encoded(clipped))


def half(samples: np.ndarray, *, first: bool) -> np.ndarray:
    cut = samples.copy()
    cut[slice(len(cut) // 2, None) if first else slice(0, len(cut) // 2)] = 0
    return cut


OPEN_INPUT = np.random.default_rng(2).normal(0, 2 / 32768, len(NOISE)).astype(np.float32)
CHANNELS: dict[str, tuple[list[np.ndarray], int]] = {
    "all have sound": ([NOISE, -NOISE], 0),
    "first is dead": ([SILENCE, NOISE], 1),
    "two are dead": ([SILENCE, dither(0.1), NOISE], 2),
    "first is half dead": ([half(NOISE, first=True), NOISE], 1),
    "each is half dead": ([half(NOISE, first=True), half(NOISE, first=False)], 0),
    "first is clipped": ([np.clip(50 * NOISE, -1, 1), NOISE], 1),
    "first is an open input": ([OPEN_INPUT, NOISE], 1),
    "second is dead": ([NOISE, SILENCE], 0),
    "quiet but whole": ([NOISE / 300, NOISE], 0),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_channel_that_has_sound_is_used(kind: str) -> None:
    channels, used = CHANNELS[kind]
    sound = find_sound("a.wav", encoded(np.stack(channels, axis=1), subtype="PCM_24"))
    assert (sound.channel, sound.channels) == (used, len(channels))
    np.testing.assert_allclose(sound.samples, channels[used], atol=1e-6)
    assert [remark.kind for remark in sound.remarks] == ["channel"] * bool(used)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_integers_stored_as_floats_are_scaled(bits: int, subtype: str) -> None:
    full = 2.0 ** (bits - 1)
    sound = find_sound("a.wav", encoded(np.rint(NOISE * full), subtype=subtype))
    np.testing.assert_allclose(sound.samples, NOISE, atol=1e-4)
    assert [remark.kind for remark in sound.remarks] == ["integers"]


def test_levels_beyond_one_are_kept_or_refused() -> None:
    resampled = find_sound("a.wav", encoded(NOISE * 20_000.3, subtype="FLOAT"))
    assert float(np.abs(resampled.samples).max()) < 1
    loud = find_sound("a.wav", encoded(NOISE * 30, subtype="FLOAT"))
    np.testing.assert_allclose(loud.samples, NOISE * 30, rtol=1e-5)
    assert [remark.kind for remark in loud.remarks] == ["above 1"]
    with pytest.raises(AudioError, match="no known scale"):
        find_sound("a.wav", encoded(NOISE * 1e12, subtype="FLOAT"))


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(AudioError, match="is a git-lfs pointer, not audio: run git lfs pull"):
        read_sound(path)


def test_an_error_of_any_kind_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("of soundfile")

    content = encoded(NOISE)
    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioError, match=r"'a\.wav' cannot be read as wav or FLAC: of soundfile"):
        find_sound("a.wav", content)


def test_an_error_passes_between_processes() -> None:
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "is silent")))  # noqa: S301  # our own
    assert (type(error), str(error), error.defect) == (AudioError, "'a.wav' is silent", "is silent")


STEMS = [f"{100 + n}_1b1_Al_sc_Meditron" for n in range(6)]
Alter = Callable[[Path], None]


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def silent(path: Path) -> None:
    soundfile.write(path, SILENCE, RATE)


def other_channel(path: Path) -> None:
    samples = np.random.default_rng(path.stem.encode()[2]).normal(0, 0.1, RATE)
    soundfile.write(path, np.stack([0 * samples, samples], axis=1), RATE)


@pytest.mark.parametrize(
    ("alter", "words", "used"),
    [(lfs, "git-lfs pointer", 2), (silent, "is silent", 2), (other_channel, "another channel", 6)],
)
def test_a_set_has_one_line_for_each_kind(
    alter: Alter, words: str, used: int, tmp_path: Path
) -> None:
    root = write_set(tmp_path, dict.fromkeys(STEMS, "COPD"))
    paths = sorted(root.glob("*/*.wav"))
    for path in paths[:4]:
        alter(path)
    dataset = load_dataset(root)
    assert len(dataset.recordings) == used
    (line,) = (line for line in dataset.problems if words in line)
    assert paths[0].name in line
    assert "3 more" in line or "4 recordings" in line


def test_a_folder_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    root = write_set(tmp_path / "plain", dict.fromkeys(STEMS, "COPD"))
    root = root.rename(tmp_path / "donn\udce9es")
    assert len(load_dataset(root).recordings) == len(STEMS)


def test_predict_names_silence_and_answers_for_the_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrialConfig().replace({"clip_seconds": 1.0, "n_mels": 16, "width": 4})
    save_networks(tmp_path / "w", config, ("COPD", "Healthy"), [build_network(config, 2)], {})
    folder = tmp_path / "donn\udce9es"
    folder.mkdir()
    contents = {
        "silent": encoded(SILENCE), "clipped": encoded(np.clip(99 * NOISE, -1, 1)),
        "pointer": b"version https://git-lfs", "gsm": encoded(NOISE, subtype="GSM610"),
        "right": encoded(np.stack([SILENCE, NOISE], axis=1)),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.wav").write_bytes(content)
    files = [str(folder / f"{name}.wav") for name in contents]
    assert run(predict.main, [*files, "--winner", str(tmp_path / "w"), "--json"]) == 1
    out, err = capsys.readouterr()
    rows = {Path(row["file"]).stem: row for row in json.loads(out)}
    assert rows.keys() == {"gsm", "right"}
    assert rows["gsm"]["warnings"] == []
    assert "another channel is used" in rows["right"]["warnings"][0]
    for words in ("silent.wav' is silent", "clipped.wav' is clipped", "is a git-lfs pointer"):
        assert sum(words in line for line in err.splitlines()) == 1
    assert run(predict.main, [*files, "--winner", str(tmp_path / "w")]) == 1
    (folder / "too.wav").write_bytes(contents["right"])
    both = [str(folder / "right.wav"), str(folder / "too.wav")]
    capsys.readouterr()
    assert run(predict.main, [*both, "--winner", str(tmp_path / "w")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 2 recordings have too little sound on their first channel")
    assert run(predict.main, [files[0], "--winner", str(tmp_path / "w")]) == 2
    assert "no file could be predicted" in capsys.readouterr().err
