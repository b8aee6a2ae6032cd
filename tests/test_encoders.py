"""Frozen encoders: what opens, what is refused in one line, and what they are given to hear."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from onnx import TensorProto
from support.encoders import (
    BANDS,
    CHANNELS,
    FRAMES,
    WINDOW,
    real_encoder,
    save_encoder,
    save_mel_encoder,
    save_with_external_weights,
)

from resp_tune.encoders import litert_runtime
from resp_tune.encoders.encode import encode, frame_centres, nearest_frames, seconds_a_window
from resp_tune.encoders.encoder_file import Encoder, open_encoder
from resp_tune.encoders.encoder_input import at_level, played_at, time_frames, window_starts
from resp_tune.encoders.encoder_settings import EncoderSettings, MelSettings
from resp_tune.encoders.layers import Graph, Layer, find_layer
from resp_tune.errors import RunError, UserError

RATE = 16_000


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


def loudest(sound: np.ndarray) -> float:
    """The frequency with most power, in Hz at `RATE`."""
    return float(np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound))


def test_a_layer_is_found_by_name_index_and_last(tmp_path: Path) -> None:
    path = save_encoder(tmp_path / "tiny.onnx")
    encoder = open_encoder(str(path), ("last", "map", "5", "embedding", "3"))
    names = {text: kept.layer.name for text, kept in encoder.kept}
    assert names == {
        "last": "hidden", "map": "map", "5": "hidden", "embedding": "embedding", "3": "map",
    }  # fmt: skip
    shapes = {k.layer.name: (k.frames, k.bands, k.channels) for _, k in encoder.kept}
    assert shapes == {
        "map": (FRAMES, BANDS, CHANNELS), "hidden": (FRAMES, 1, 6), "embedding": (1, 1, 6),
    }  # fmt: skip
    assert encoder.settings.window == WINDOW
    assert encoder.settings.hop == WINDOW // 2
    assert (encoder.name, encoder.licence) == ("tiny", "not stated")
    assert open_encoder(str(path)) is open_encoder(str(path))


def test_the_yaml_beside_the_file_goes_before_its_metadata(tmp_path: Path) -> None:
    facts = {"name": "From metadata", "license": "MIT", "rate": "8000", "hop": "0.1"}
    path = save_encoder(tmp_path / "tiny.onnx", metadata=facts)
    assert open_encoder(str(path)).line.startswith("From metadata, SHA-256 ")
    path.with_suffix(".yaml").write_text(
        "name: Tiny\nlicence: Apache-2.0\nhop: 0.05\nlevel: -20\nlast: map\nlayout: NCFT"
    )
    encoder = open_encoder(str(path))
    assert encoder.line == f"Tiny, SHA-256 {encoder.sha256[:12]}…, licence: Apache-2.0"
    assert encoder.settings == EncoderSettings(
        8000, WINDOW, 400, level=-20.0, layout=("NCFT", "NTC")
    )
    kept = encoder.layer("last")
    assert (kept.layer.name, kept.frames, kept.bands) == ("map", BANDS, FRAMES)


def broken(make: Callable[[Path], object], name: str = "e.onnx") -> Callable[[Path], str]:
    def at(folder: Path) -> str:
        make(folder / name)
        return str(folder / name)

    return at


def sidecar(text: str, **options: object) -> Callable[[Path], str]:
    def make(path: Path) -> None:
        save_encoder(path, **options)  # type: ignore[arg-type]
        path.with_suffix(".yaml").write_text(text)

    return broken(make)


def misnamed(name: str) -> Callable[[Path], str]:
    return broken(lambda path: save_encoder(path).with_name(name).write_text("rate: 8000"))


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda folder: str(folder / "no.onnx"), "is not there: give the path of a"),
    "a folder": (str, "is a folder: give the path"),
    "another kind": (
        broken(lambda p: p.write_bytes(b"\x80\x04"), "e.pt"),
        "not a .tflite or .onnx",
    ),
    "empty": (broken(lambda p: p.write_bytes(b"")), "it is empty"),
    "garbage": (broken(lambda p: p.write_bytes(b"\xff" * 99)), "damaged, or no ONNX file"),
    "no ONNX": (broken(lambda p: p.write_bytes(b"\x08\x07")), "damaged, or no ONNX file"),
    "no TFLite": (
        broken(lambda p: p.write_bytes(b"\0" * 999), "e.tflite"),
        "LiteRT cannot read it (The model is not a valid Flatbuffer",
    ),
    "cut off": (
        broken(lambda p: p.write_bytes(save_encoder(p).read_bytes()[:-900])),
        "damaged, or no ONNX file",
    ),
    "two inputs": (broken(lambda p: save_encoder(p, inputs=2)), "it has 2 inputs, an encoder has"),
    "whole numbers": (
        broken(lambda p: save_encoder(p, kind=TensorProto.INT32)),
        "its input is not float32",
    ),
    "weights elsewhere": (broken(save_with_external_weights), "its weights are in other files"),
    "a free length": (
        broken(lambda p: save_encoder(p, length="n")),
        "its input may have any length: set window",
    ),
    "a length that does not fit": (
        sidecar("window: 0.2", length="n"),
        "it fails on a window of 3200 values",
    ),
    "mels": (broken(lambda p: save_mel_encoder(p, 9, 8)), "no waveform: if it takes log-mel"),
    "YAML: a list": (sidecar("[1]"), "encoder settings 'e.yaml' is not a mapping"),
    "YAML: an empty list": (sidecar("[]"), "encoder settings 'e.yaml' is not a mapping"),
    "YAML: a folder": (
        broken(lambda p: save_encoder(p).with_suffix(".yaml").mkdir()),
        "encoder settings 'e.yaml' cannot be read",
    ),
    "YAML: .yml": (misnamed("e.yml"), "'e.yml' have the wrong name and are not read: rename the"),
    "YAML: its whole name": (misnamed("e.onnx.yaml"), "rename the file to 'e.yaml'"),
    "YAML: mels of a waveform": (
        sidecar("input: log-mel\nmel: {n_mels: 64}"),
        "its input has 1×1600 values, which are no 64 mel bands",
    ),
    "YAML: a typo": (sidecar("rte: 8000"), "'e.yaml': unknown setting 'rte': did you mean 'rate'?"),
    "YAML: a bound": (sidecar("rate: 10"), "'e.yaml': rate: 10 is outside 1000 to 192000"),
    "YAML: a type": (sidecar("licence: 3"), "'e.yaml': licence: 3 is not text or null"),
    "YAML: gaps": (sidecar("hop: 1"), "hop 1 s leaves gaps between windows of 0.1 s"),
    "YAML: layout of a mapping": (sidecar("layout: {a: 1}"), "is no list: give [NTFC, NTC]"),
    "YAML: layout of a number": (sidecar("layout: 3"), "is no list: give [NTFC, NTC]"),
    "YAML: mel alone": (sidecar("mel: {n_mels: 8}"), "'input: log-mel' and 'mel: {…}' are given"),
    "YAML: layout": (sidecar("layout: NTCX"), "layout: 'NTCX' is not N followed by"),
    "YAML: last": (sidecar("last: nothing"), "encoder_layer 'nothing' is not one of its"),
    "metadata": (
        broken(lambda p: save_encoder(p, metadata={"rate": "fast"})),
        "its metadata has rate 'fast', which is not a number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    make, message = REFUSED[case]
    given = make(tmp_path)
    with pytest.raises(UserError) as caught:
        open_encoder(given)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_is_not_there_shows_those_that_are(tmp_path: Path) -> None:
    path = save_encoder(tmp_path / "tiny.onnx")
    with pytest.raises(UserError) as caught:
        open_encoder(str(path), ("hiden",))
    assert str(caught.value).endswith(
        "encoder_layer 'hiden' is not one of its 7 layers: 0 floats 1×1600, 1 louder 1×1600, "
        "2 framed 1×4×2×200, 3 map 1×200×4×2, 4 frames 1×4×400, 5 hidden 1×4×6, 6 embedding 1×6"
    )


def test_a_name_goes_before_an_index() -> None:
    layers = (Layer(0, "a", (1, 4)), Layer(1, "0", (1, 5)), Layer(2, "1", (1, 6)))
    graph = Graph((1, 4), layers, "1", ("NTC",))
    assert [find_layer(graph, text).index for text in ("0", "1", "2", "a")] == [1, 2, 2, 0]


def test_an_axis_that_is_no_frames_is_refused(tmp_path: Path) -> None:
    path = save_mel_encoder(tmp_path / "e.onnx", 9, 8)
    path.with_suffix(".yaml").write_text(
        "input: log-mel\nmel: {n_mels: 8, n_fft: 64, hop_length: 32}\nlayout: NTC"
    )
    assert open_encoder(str(path)).layer("last").axes == "NCTF"
    wide = save_encoder(tmp_path / "wide.onnx", gain=2)
    assert open_encoder(str(wide), ("floats",)).layer("floats").frames == 1


@pytest.mark.parametrize(
    ("name", "library"), [("e.onnx", "onnxruntime"), ("e.tflite", "ai_edge_litert")]
)
def test_a_missing_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    save_encoder(tmp_path / name)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n.startswith(library) else found(n)
    )
    with pytest.raises(
        UserError, match=rf"needs {library}, not installed here: pip install 'resp-"
    ):
        open_encoder(str(tmp_path / name))


def test_the_identity_changes_with_all_that_the_frames_depend_on(tmp_path: Path) -> None:
    found = set()
    for number, (seed, settings, layer) in enumerate(
        [(0, "", "map"), (1, "", "map"), (0, "level: -26\n", "map"), (0, "", "hidden")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = save_encoder(folder / "tiny.onnx", seed=seed)
        if settings:
            path.with_suffix(".yaml").write_text(settings)
        found.add(open_encoder(str(path), (layer,)).identity)
    assert len(found) == 4
    (tmp_path / "copy").mkdir()
    copy = save_encoder(tmp_path / "copy" / "renamed.onnx")
    assert open_encoder(str(copy), ("map",)).identity in found, "the path has no part in it"


@pytest.mark.parametrize(
    ("shape", "frames"), [((1, 64, 0), 0), ((1, 0, 64), 0), ((1, 96, 64), 96), ((1, 64, 96), 96)]
)
def test_the_time_axis_is_the_one_that_is_not_the_bands(shape: list[int], frames: int) -> None:
    mel = MelSettings(n_fft=400, hop_length=160, n_mels=64)
    assert time_frames(shape, mel) == frames


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = save_encoder(tmp_path / "e.onnx")
    first = open_encoder(str(path))
    save_encoder(path, seed=1)
    os.utime(path, ns=(1, 1))
    assert open_encoder(str(path)).sha256 != first.sha256
    with pytest.raises(RunError, match="has changed since this command began"):
        first.read()
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        first.read()


def test_a_tone_is_heard_at_a_higher_pitch() -> None:
    sound = tone(440)
    assert played_at(sound, RATE, 1, None) is not None
    for speed in (1, 2, 4):
        played = played_at(sound, RATE, speed, None)
        assert len(played) == math.ceil(len(sound) / speed)
        assert abs(loudest(played) - 440 * speed) <= RATE / len(played)
        middle = played[len(played) // 4 : -len(played) // 4]
        assert np.sqrt((middle**2).mean()) == pytest.approx(math.sqrt(0.5), abs=1e-3)


@pytest.mark.parametrize("speed", [1, 2, 4])
def test_nothing_above_f_max_is_heard(speed: int) -> None:
    """What is below 0.95 of it stays as it is, what is above is gone."""
    for hertz, kept in ((300, 1.0), (940, 1.0), (1050, 0.0), (1700, 0.0)):
        played = played_at(tone(hertz), RATE, speed, 1000.0)
        middle = played[len(played) // 4 : -len(played) // 4]
        power = float((middle**2).mean())
        assert power == pytest.approx(0.5 * kept, abs=1e-3 if kept else 1e-6), hertz
    # Half of a speed's own rate is a limit too: what would fold back is gone.
    folded = played_at(tone(RATE / (2 * speed) + 100), RATE, speed, None)
    assert speed == 1 or float((folded[2000:-2000] ** 2).mean()) < 1e-6


def test_a_level_is_an_rms() -> None:
    sound = played_at(tone(100), RATE, 1, None)
    assert np.sqrt((at_level(sound, -20.0) ** 2).mean()) == pytest.approx(0.1, rel=1e-4)
    assert at_level(sound, None) is sound
    silent = np.zeros(99, np.float32)
    assert at_level(silent, -20.0) is silent


@pytest.mark.parametrize("samples", [1, 99, 1600, 1601, 2400, 2500, 4000, 5000])
@pytest.mark.parametrize("hop", [1600, 800, 500])
@pytest.mark.parametrize("frames", [1, 4, 6])
def test_each_part_of_a_sound_is_counted_once(samples: int, hop: int, frames: int) -> None:
    settings = EncoderSettings(RATE, WINDOW, hop)
    starts = window_starts(samples, settings)
    assert starts[0] == 0
    assert starts[-1] == max(0, samples - WINDOW)
    assert (np.diff(starts) <= hop).all()
    centre = frame_centres(starts, frames, WINDOW)
    kept = nearest_frames(starts, centre, WINDOW, samples)
    times = centre[kept]
    assert len(times) >= 1
    if samples <= WINDOW / (2 * frames):
        assert len(times) == 1
        return
    assert (np.diff(times) > 0).all()
    assert times[-1] < samples
    gap = max(WINDOW / frames, hop if frames == 1 else 0)
    # Where the last window is off the grid, a part may be one frame wider.
    assert np.diff(times, prepend=-gap / 2).max() <= 2 * gap
    if len(starts) > 1 and not (samples - WINDOW) % hop and WINDOW % (2 * frames) == 0:
        steps = np.unique(np.diff(times).round(6))
        assert frames > 1 or steps.tolist() == [float(hop)]


def tiny(folder: Path, hop: float | None = None, *layers: str) -> Encoder:
    path = save_encoder(folder / "tiny.onnx")
    if hop is not None:
        path.with_suffix(".yaml").write_text(f"hop: {hop}")
    return open_encoder(str(path), layers or ("map",))


@pytest.mark.parametrize("hop", [0.1, 0.05])
def test_frames_are_what_the_layer_gives(tmp_path: Path, hop: float) -> None:
    """`map` holds the samples, so its frames show which of them an encoder was given."""
    encoder = tiny(tmp_path, hop)
    sound = (torch.arange(5 * WINDOW) % 2048) / 4096
    layer = encoder.layer("map")
    frames = encode(encoder, sound, {1: [layer]}, None)[1, layer]
    assert frames.values.dtype == np.float16
    assert frames.values.shape == (5 * FRAMES, BANDS * CHANNELS)
    assert np.array_equal(frames.values.ravel(), sound.numpy())
    assert frames.centre == pytest.approx((np.arange(5 * FRAMES) + 0.5) * 0.1 / FRAMES)


def test_all_layers_and_speeds_come_from_one_run_a_window(tmp_path: Path) -> None:
    encoder = tiny(tmp_path, 0.1, "map", "hidden")
    both = [encoder.layer("map"), encoder.layer("hidden")]
    sound = tone(300, 0.8)
    found = encode(encoder, sound, {1: both, 4: both}, None)
    counts = {(speed, layer.layer.name): len(x.centre) for (speed, layer), x in found.items()}
    assert counts == {(1, "map"): 32, (1, "hidden"): 32, (4, "map"): 8, (4, "hidden"): 8}
    # A frame at speed 4 stands for four times as much of the recording.
    slow, fast = found[1, both[0]].centre, found[4, both[0]].centre
    assert fast == pytest.approx((np.arange(8) + 0.5) * 0.1)
    assert slow[-1] < 0.8 > fast[-1]
    alone = encode(encoder, sound, {4: both[:1]}, None)[4, both[0]]
    assert np.array_equal(alone.values, found[4, both[0]].values)
    assert seconds_a_window(encoder, 2) >= 0


def test_a_sound_shorter_than_a_window_is_repeated(tmp_path: Path) -> None:
    encoder = tiny(tmp_path)
    sound, layer = (torch.arange(WINDOW // 2) % 2048) / 4096, encoder.layer("map")
    frames = encode(encoder, sound, {1: [layer]}, None)[1, layer]
    assert np.array_equal(frames.values.ravel(), sound.numpy())  # the repetition is not counted
    (one,) = encode(encoder, sound[:3], {1: [layer]}, None).values()
    assert np.array_equal(one.values[0, :6], [*sound[:3], *sound[:3]])


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    path = save_encoder(tmp_path / "nan.onnx", gain=float("nan"))
    with pytest.raises(UserError, match="encoder_layer 3 'map' gives values that are not finite"):
        open_encoder(str(path), ("map",))
    path = save_encoder(tmp_path / "e.onnx", gain=3e38)
    encoder = open_encoder(str(path), ("map",))
    with pytest.raises(RunError, match="layer 3 gives values that are not finite"):
        encode(encoder, 10 * tone(100), {1: [encoder.layer("map")]}, None)
    path = save_encoder(tmp_path / "loud.onnx", gain=1e6)
    encoder = open_encoder(str(path), ("map",))
    layer = encoder.layer("map")
    loud = encode(encoder, tone(100), {1: [layer]}, None)[1, layer]
    assert np.abs(loud.values).max() == 65_504  # the largest that float16 holds


@pytest.mark.parametrize("centre", [False, True])
def test_log_mel_frames_are_torchaudios(tmp_path: Path, centre: bool) -> None:
    """Of an encoder that takes `[1, 1, n_mels, frames]`."""
    path = save_mel_encoder(tmp_path / "mel.onnx", frames=9, n_mels=8)
    path.with_suffix(".yaml").write_text(
        "input: log-mel\nhop: 0.01\nlayout: NCFT\nmel: {n_mels: 8, n_fft: 256, hop_length: 80, "
        f"f_max: 4000, log: log10, floor: 1.0e-6, mean: -2, sd: 4, centre: {str(centre).lower()}}}"
    )
    encoder = open_encoder(str(path))
    window = encoder.settings.window
    assert window == 8 * 80 + (1 if centre else 256)
    layer, sound = encoder.layer("last"), tone(700)[:window]
    frames = encode(encoder, sound, {1: [layer]}, None)[1, layer]
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=256, hop_length=80, n_mels=8, f_max=4000, center=centre
    )(sound)
    theirs = 2 * (mel.clamp(min=1e-6).log10() + 2) / 4
    assert pytest.approx(theirs, abs=2e-3) == torch.from_numpy(frames.values).float().T


def test_yamnet(capfd: pytest.CaptureFixture[str]) -> None:
    """Its layers as the issue names them; its values with LiteRT's delegate and without."""
    path = real_encoder()
    encoder = open_encoder(str(path), ("last", "108", "123"))
    shapes = {text: (k.layer.index, k.frames, k.bands, k.channels) for text, k in encoder.kept}
    assert shapes == {
        "last": (120, 3, 2, 1024), "108": (108, 6, 4, 512), "123": (123, 1, 1, 521),
    }  # fmt: skip
    assert (encoder.settings.rate, encoder.settings.window) == (16_000, 15_600)
    layers = [kept for _, kept in encoder.kept]
    sound = 0.1 * torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    found = encode(encoder, sound, {1: layers, 2: layers}, 1900.0)
    assert all(np.isfinite(x.values).all() and x.values.std() > 0 for x in found.values())
    with pytest.raises(UserError, match=r"encoder_layer '108\.5' is not one of its 49 layers"):
        open_encoder(str(path), ("108.5",))
    assert capfd.readouterr() == ("", "")


def test_yamnet_with_and_without_the_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delegate's values are used, as they are those of the layers."""
    content = real_encoder().read_bytes()
    graph = litert_runtime.read_graph(content)
    layers = [find_layer(graph, text) for text in ("94", "108", "120")]
    sound = np.random.default_rng(1).normal(0, 0.1, (1, 15_600)).astype(np.float32)
    fast = litert_runtime.session(content, layers, (1, 15_600))(sound)
    monkeypatch.setattr(litert_runtime, "SAME", 1.0)  # which no rounding can reach
    plain = litert_runtime.session(content, layers, (1, 15_600))(sound)
    for one, other in zip(fast, plain, strict=True):
        assert not np.array_equal(one, other)
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_a_layer_is_the_same_whatever_others_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the delegate does not give leaves the others to it."""
    content = real_encoder().read_bytes()
    graph = litert_runtime.read_graph(content)
    layers = [find_layer(graph, text) for text in ("94", "108", "120")]
    sound = np.random.default_rng(1).normal(0, 0.1, (1, 15_600)).astype(np.float32)
    monkeypatch.setattr(litert_runtime, "SAME", 0.95)  # which layer 120 does not reach
    together = litert_runtime.session(content, layers, (1, 15_600))(sound)
    for layer, values in zip(layers, together, strict=True):
        (alone,) = litert_runtime.session(content, [layer], (1, 15_600))(sound)
        np.testing.assert_array_equal(values, alone)
