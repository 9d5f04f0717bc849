"""Spectral features of speech: log-mel energies and mel-frequency cepstral coefficients (MFCC).

    frames   = 1 + (samples - window) // hop           no padding; frame t starts at sample t * hop
    P[t, k]  = | sum_n hann[n] x[t * hop + n] exp(-2 pi i k n / fft_size) |^2      k = 0 ... fft_size / 2
    L[t, m]  = log(max(sum_k P[t, k] F[k, m], floor))                              natural logarithm
    C[t, c]  = sum_m L[t, m] D[m, c]                   DCT-II, orthonormal; c = 0 is the loudness

x is in [-1, 1): int16 samples are divided by 32768. hann[n] = 0.5 - 0.5 cos(2 pi n / window), the periodic form.
F are triangles of height 1, linear in mel = 2595 log10(1 + hertz / 700), each from the center of the band below
to that of the band above, `num_mels` centers equally spaced in mel between `low_hz` and `high_hz` (Young et al.,
The HTK book, section 5.4). No pre-emphasis, no dither, no liftering, no deltas.

Where the presets come from:

- `kwt`: 98 x 40. 80 bands of 20-7600 Hz, 40 coefficients, 30 ms window, 10 ms hop as the run flags of
  ARM-software/keyword-transformer say [related source]; those take the log of magnitudes instead of powers,
  about half of ours, with a floor of 1e-12.
- `matchboxnet`: 128 x 64. 64 coefficients, 25 ms window, 10 ms hop, zeros on both sides up to 128 frames (the
  middle of longer ones) as NVIDIA NeMo's configuration says [related source]; that has 64 bands up to half the
  sample rate too, but mirrors the signal at its ends (101 frames before padding) and takes decibels.
- `log_mel`: 98 x 40 log-mel energies with window, hop and range of `kwt`, the shape of `kwt` [project choice].

Power spectrum, natural logarithm, FFT size 512 and floor are project choices.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.lookup import suggest

_CLIPS_AT_ONCE = 16  # 16 s of speech at a time keep the work arrays near 5 MB, in reach of a core's cache


class FeatureSettings(NamedTuple):
    """Settings of the features; `check` has their limits."""

    sample_rate: int = 16_000  # Hz
    window_samples: int = 480
    hop_samples: int = 160
    fft_size: int = 512  # the windowed frame is followed by zeros up to this length
    num_mels: int = 80
    low_hz: float = 20.0
    high_hz: float = 7600.0
    num_coefficients: int | None = 40  # cepstral; None for the log-mel energies themselves
    num_frames: int | None = None  # cropped or padded with zeros on both sides to this many; None for as they come
    floor: float = 1e-8  # about the energy that rounding to 16 bits puts into a band: silence is not minus infinity

    def check(self) -> "FeatureSettings":
        """The settings themselves, or a `UserError` that names the bad value."""
        for name in ("sample_rate", "window_samples", "hop_samples", "num_mels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.fft_size < self.window_samples:
            raise UserError(f"fft_size is {self.fft_size}; it must hold the window of {self.window_samples} samples")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise UserError(
                f"low_hz is {self.low_hz} and high_hz {self.high_hz}; they must ascend within 0 to "
                f"{self.sample_rate / 2}, half the sample rate"
            )
        if self.num_coefficients is not None and not 1 <= self.num_coefficients <= self.num_mels:
            raise UserError(f"num_coefficients is {self.num_coefficients}; it must be 1 to {self.num_mels} (num_mels)")
        if self.num_frames is not None and self.num_frames < 1:
            raise UserError(f"num_frames is {self.num_frames}; it must be at least 1, or None")
        if not (self.floor > 0 and math.isfinite(self.floor)):
            raise UserError(f"floor is {self.floor}; it must be a positive number")
        return self


PRESETS = {
    "kwt": FeatureSettings(),
    "matchboxnet": FeatureSettings(
        window_samples=400, num_mels=64, low_hz=0.0, high_hz=8000.0, num_coefficients=64, num_frames=128
    ),
    "log_mel": FeatureSettings(num_mels=40, num_coefficients=None),
}


def preset(name: str) -> FeatureSettings:
    """The settings called `name`; `UserError` with the nearest match where there are none."""
    if name not in PRESETS:
        raise UserError(f"no features {name!r}: allowed are {', '.join(PRESETS)}{suggest(name, PRESETS)}")
    return PRESETS[name]


def compute_features(clips: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """[N, frames, values] float32: `mfcc`, or `log_mel` where `num_coefficients` is None, of `num_frames` frames.

    Args:
        clips: [N, samples] int16, or floating in [-1, 1).
        settings: such as `PRESETS["kwt"]`.
    """
    made = (log_mel if settings.num_coefficients is None else mfcc)(clips, settings)
    return made if settings.num_frames is None else _fit_frames(made, settings.num_frames)


def feature_shape(samples: int, settings: FeatureSettings) -> tuple[int, int]:
    """(frames, values) that `compute_features` gives for clips of so many samples."""
    frames = _count_frames(samples, settings.check())
    return settings.num_frames or frames, settings.num_coefficients or settings.num_mels


def log_mel(clips: np.ndarray, settings: FeatureSettings = PRESETS["log_mel"]) -> np.ndarray:
    """[N, frames, num_mels] float32: L above, for clips [N, samples]; `num_frames` plays no part."""
    return _in_blocks(clips, settings, settings.num_mels, lambda energies: energies)


def mfcc(clips: np.ndarray, settings: FeatureSettings = PRESETS["kwt"]) -> np.ndarray:
    """[N, frames, num_coefficients] float32: C above, for clips [N, samples]; `num_frames` plays no part."""
    if settings.num_coefficients is None:
        raise UserError("num_coefficients is None, which asks for log_mel; mfcc needs their number")
    matrix = dct_matrix(settings.check().num_mels, settings.num_coefficients).astype(np.float32)
    return _in_blocks(clips, settings, settings.num_coefficients, lambda energies: energies @ matrix)


def mel_filters(settings: FeatureSettings) -> np.ndarray:
    """[fft_size // 2 + 1, num_mels] float64: F above; `UserError` where a band is too narrow to hold an FFT bin."""
    settings.check()
    low, high = hertz_to_mel(np.array([settings.low_hz, settings.high_hz]))
    edges = np.linspace(low, high, settings.num_mels + 2)
    bins = np.arange(settings.fft_size // 2 + 1) * (settings.sample_rate / settings.fft_size)
    position = hertz_to_mel(bins)[:, None]
    rising = (position - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - position) / (edges[2:] - edges[1:-1])
    filters = np.maximum(np.minimum(rising, falling), 0.0)
    if not filters.any(axis=0).all():
        band = int(np.flatnonzero(~filters.any(axis=0))[0])
        raise UserError(
            f"band {band} of {settings.num_mels} holds no FFT bin; take fewer num_mels or a larger fft_size"
        )
    return filters


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """2595 log10(1 + hertz / 700), the form of HTK."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz, np.float64) / 700.0)


def dct_matrix(size: int, num_coefficients: int) -> np.ndarray:
    """[size, num_coefficients] float64: D[m, c] = sqrt(2 / size) cos(pi c (m + 1/2) / size), column 0 over sqrt(2)."""
    matrix = np.cos(np.pi / size * np.outer(np.arange(size) + 0.5, np.arange(num_coefficients)))
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix * math.sqrt(2.0 / size)


def _in_blocks(
    clips: np.ndarray, settings: FeatureSettings, width: int, finish: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """[N, frames, width] float32: `finish` of the log-mel energies of a few clips at a time."""
    if clips.ndim != 2 or not (clips.dtype == np.int16 or clips.dtype.kind == "f"):
        raise UserError(f"clips are {clips.dtype} {clips.shape}; they must be [N, samples], int16 or floating")
    filters = mel_filters(settings).astype(np.float32)
    length = settings.window_samples
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
    if clips.dtype == np.int16:
        window /= 32768.0  # the scale of the samples, for free; a power of two changes no rounding
    made = np.empty((len(clips), _count_frames(clips.shape[1], settings), width), np.float32)
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        rows = slice(start, start + _CLIPS_AT_ONCE)
        samples = clips[rows].astype(np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(samples, length, axis=1)[:, :: settings.hop_samples]
        spectrum = np.fft.rfft(frames * window, settings.fft_size)
        power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32, copy=False)
        made[rows] = finish(np.log(np.maximum(power @ filters, np.float32(settings.floor))))
    return made


def _count_frames(samples: int, settings: FeatureSettings) -> int:
    if samples < settings.window_samples:
        raise UserError(f"clips have {samples} samples; one window needs {settings.window_samples}")
    return 1 + (samples - settings.window_samples) // settings.hop_samples


def _fit_frames(made: np.ndarray, num_frames: int) -> np.ndarray:
    """The middle `num_frames` frames, or all with zeros on both sides; an odd one out is at the end."""
    surplus = made.shape[1] - num_frames
    if surplus >= 0:
        return made[:, surplus // 2 : surplus // 2 + num_frames]
    before = -surplus // 2
    return np.pad(made, ((0, 0), (before, -surplus - before), (0, 0)))
