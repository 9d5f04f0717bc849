"""Features of speech against SciPy, a direct sum for the Fourier transform, and what physics says."""

import tracemalloc

import numpy as np
import pytest
import scipy.fft
import scipy.signal

from fedjax8.data.features import (
    PRESETS,
    FeatureSettings,
    compute_features,
    dct_matrix,
    feature_shape,
    hertz_to_mel,
    log_mel,
    mel_filters,
    mfcc,
    preset,
)
from fedjax8.errors import UserError

NOISE = (np.random.default_rng(0).standard_normal((3, 16_000)) * 3000).astype(np.int16)
# Energies are float32 sums of hundreds of terms: their logarithms are good to some 1e-5, sums of 80 to 1e-4.
TOLERANCE = 2e-4


def reference(clip, settings):
    """[frames, mels] log-mel energies in float64: SciPy's window and spectrogram, triangles by interpolation."""
    _, _, spectrum = scipy.signal.spectrogram(
        clip / 32768,
        settings.sample_rate,
        window=scipy.signal.get_window("hann", settings.window_samples),
        nperseg=settings.window_samples,
        noverlap=settings.window_samples - settings.hop_samples,
        nfft=settings.fft_size,
        detrend=False,
        scaling="spectrum",
        mode="complex",
    )
    power = np.abs(spectrum * scipy.signal.get_window("hann", settings.window_samples).sum()) ** 2
    mel = 1127 * np.log(1 + np.fft.rfftfreq(settings.fft_size, 1 / settings.sample_rate) / 700)  # HTK's other constant
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (settings.low_hz, settings.high_hz))
    edges = np.linspace(low, high, settings.num_mels + 2)
    energies = [np.interp(mel, edges[m : m + 3], [0, 1, 0]) @ power for m in range(settings.num_mels)]
    return np.log(np.maximum(np.array(energies).T, settings.floor))


@pytest.mark.parametrize("name", PRESETS)
def test_log_mel_energies_are_those_of_scipy(name):
    made = log_mel(NOISE, PRESETS[name])
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [reference(clip, PRESETS[name]) for clip in NOISE], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["kwt", "matchboxnet"])
def test_cepstral_coefficients_are_the_first_of_scipys_orthonormal_dct(name):
    expected = scipy.fft.dct([reference(clip, PRESETS[name]) for clip in NOISE], type=2, norm="ortho", axis=-1)
    made = mfcc(NOISE, PRESETS[name])
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected[..., : PRESETS[name].num_coefficients], atol=5 * TOLERANCE)


def test_a_tiny_case_agrees_with_the_sums_written_out():
    settings = FeatureSettings(
        sample_rate=80, window_samples=6, hop_samples=3, fft_size=8, num_mels=2, low_hz=0.0, high_hz=40.0,
        num_coefficients=2,
    )  # fmt: skip
    clip = np.array([0.5, -0.25, 0.125, 0.75, -0.5, 0.25, 0.0, -0.75, 0.5, 0.9])
    energies = np.zeros((2, 2))  # 1 + (10 - 6) // 3 frames
    edges = [700 * (10 ** (position * np.log10(1 + 40 / 700) / 3) - 1) for position in range(4)]  # hertz
    for frame in range(2):
        for k in range(5):
            value = 0j
            for n in range(6):
                hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 6)
                value += hann * clip[3 * frame + n] * np.exp(-2j * np.pi * k * n / 8)
            for band in range(2):
                mel = [np.log(1 + hertz / 700) for hertz in (*edges[band : band + 3], 10 * k)]
                weight = min((mel[3] - mel[0]) / (mel[1] - mel[0]), (mel[2] - mel[3]) / (mel[2] - mel[1]))
                energies[frame, band] += max(weight, 0) * abs(value) ** 2
    logs = np.log(energies)
    np.testing.assert_allclose(log_mel(clip[None], settings)[0], logs, rtol=1e-5)
    cepstra = np.stack([logs.sum(axis=1) / np.sqrt(2), (logs[:, 0] - logs[:, 1]) / np.sqrt(2)], axis=1)
    np.testing.assert_allclose(mfcc(clip[None], settings)[0], cepstra, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hertz", [300.0, 440.0, 1000.0, 2345.0, 4000.0, 7000.0])
@pytest.mark.parametrize("name", PRESETS)
def test_a_pure_tone_is_loudest_in_the_band_whose_center_is_nearest(name, hertz):
    settings = PRESETS[name]
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000)
    centers = np.linspace(*hertz_to_mel([settings.low_hz, settings.high_hz]), settings.num_mels + 2)[1:-1]
    distances = np.abs(centers - hertz_to_mel(hertz))
    loudest = log_mel(tone[None], settings)[0].argmax(axis=-1)
    # Low bands are narrower than the main lobe of the window (4 / 30 ms = 133 Hz): there, the nearest or its neighbor.
    width = 700 * (10 ** ((centers[1] - centers[0]) / 2595) - 1) * (1 + hertz / 700)
    slack = 0 if width > 133 else 1
    assert np.abs(loudest - distances.argmin()).max() <= slack


@pytest.mark.parametrize("name", PRESETS)
def test_twice_the_amplitude_adds_log_4_to_every_energy(name):
    quiet = NOISE / np.float32(65536)
    np.testing.assert_allclose(
        log_mel(2 * quiet, PRESETS[name]) - log_mel(quiet, PRESETS[name]), np.log(4.0), atol=1e-5
    )


def test_integers_are_read_as_fractions_of_32768():
    np.testing.assert_allclose(log_mel(NOISE), log_mel(NOISE / 32768), atol=TOLERANCE)
    np.testing.assert_allclose(mfcc(NOISE), mfcc((NOISE / 32768).astype(np.float32)), atol=5 * TOLERANCE)


def test_silence_is_at_the_floor_and_rounding_noise_about_there():
    assert log_mel(np.zeros((1, 16_000), np.int16)) == pytest.approx(np.log(1e-8), abs=1e-6)
    last_bit = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16_000)) / 32768
    assert np.log(1e-8) <= np.median(log_mel(last_bit, PRESETS["kwt"])) < np.log(1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_filters_are_triangles_of_height_1_that_overlap_their_neighbors_only(name):
    settings = PRESETS[name]
    filters = mel_filters(settings)
    assert filters.shape == (257, settings.num_mels) and filters.min() == 0 and filters.max() <= 1
    assert (filters.max(axis=0) > 0).all()
    assert ((filters > 0).sum(axis=1) <= 2).all()
    for band in filters.T:  # contiguous, up and then down
        inside = np.flatnonzero(band)
        assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
        steps = np.sign(np.diff(band[inside]))
        assert (np.diff(steps) <= 0).all()
    # Between the outermost centers, the two triangles at a frequency add up to 1.
    centers = np.linspace(*hertz_to_mel([settings.low_hz, settings.high_hz]), settings.num_mels + 2)[1:-1]
    position = hertz_to_mel(np.arange(257) * 31.25)
    between = (position >= centers[0]) & (position <= centers[-1])
    np.testing.assert_allclose(filters[between].sum(axis=1), 1.0, atol=1e-12)
    outside = (np.arange(257) * 31.25 <= settings.low_hz) | (np.arange(257) * 31.25 >= settings.high_hz)
    assert not filters[outside].any()


@pytest.mark.parametrize("size", [1, 2, 40, 80])
def test_the_cosine_transform_keeps_lengths_and_angles(size):
    matrix = dct_matrix(size, size)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-13)
    values = np.random.default_rng(1).standard_normal(size)
    assert np.square(values @ matrix).sum() == pytest.approx(np.square(values).sum(), rel=1e-12)  # Parseval
    np.testing.assert_array_equal(dct_matrix(size, 1), matrix[:, :1])


def test_presets_have_the_shapes_that_their_models_take():
    shapes = {"kwt": (98, 40), "matchboxnet": (128, 64), "log_mel": (98, 40)}
    for name, shape in shapes.items():
        assert compute_features(NOISE, preset(name)).shape == (3, *shape)
        assert feature_shape(16_000, preset(name)) == shape
    kwt, matchboxnet = preset("kwt"), preset("matchboxnet")
    assert (kwt.window_samples, kwt.hop_samples, kwt.num_mels, kwt.low_hz, kwt.high_hz) == (480, 160, 80, 20, 7600)
    assert (matchboxnet.window_samples, matchboxnet.hop_samples) == (400, 160)  # 25 and 10 ms


@pytest.mark.parametrize(("num_frames", "before", "after"), [(128, 15, 15), (99, 0, 1), (101, 1, 2), (98, 0, 0)])
def test_short_features_stand_in_the_middle_of_zeros(num_frames, before, after):
    settings = PRESETS["kwt"]._replace(num_frames=num_frames)
    made = compute_features(NOISE, settings)
    assert made.shape == (3, num_frames, 40)
    np.testing.assert_array_equal(made[:, before : num_frames - after], mfcc(NOISE))
    assert not made[:, :before].any() and not made[:, num_frames - after :].any()


def test_of_long_features_the_middle_is_kept():
    made = compute_features(NOISE, PRESETS["kwt"]._replace(num_frames=95))
    np.testing.assert_array_equal(made, mfcc(NOISE)[:, 1:96])


@pytest.mark.parametrize(("samples", "frames"), [(480, 1), (639, 1), (640, 2), (16_000, 98), (15_999, 97)])
def test_only_whole_windows_make_frames(samples, frames):
    assert mfcc(NOISE[:, :samples]).shape == (3, frames, 40)
    assert feature_shape(samples, PRESETS["kwt"]) == (frames, 40)


def test_a_clip_has_the_same_features_in_any_company():
    many = np.tile(NOISE, (12, 1))  # more than one block, the last one not full
    one_by_one = np.concatenate([mfcc(clip[None]) for clip in NOISE])
    # Matrix products of other sizes may add in another order.
    np.testing.assert_allclose(mfcc(many), np.tile(one_by_one, (12, 1, 1)), atol=TOLERANCE)
    assert mfcc(many[:0]).shape == (0, 98, 40)


def test_working_memory_does_not_grow_with_the_number_of_clips():
    clips = np.zeros((400, 16_000), np.int16)
    mfcc(clips[:1])
    tracemalloc.start()
    made = mfcc(clips)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - made.nbytes < 40e6  # all frames at once would be 400 * 98 * 480 * 4 = 75 MB, spectra twice that


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"window_samples": 0}, "window_samples is 0"),
        ({"hop_samples": 0}, "hop_samples is 0"),
        ({"num_mels": 0}, "num_mels is 0"),
        ({"fft_size": 479}, "fft_size is 479; it must hold the window of 480"),
        ({"low_hz": -1.0}, "low_hz is -1"),
        ({"low_hz": 7600.0}, "low_hz is 7600.0 and high_hz 7600"),
        ({"high_hz": 8001.0}, "8000.0, half the sample rate"),
        ({"num_coefficients": 81}, "num_coefficients is 81; it must be 1 to 80"),
        ({"num_coefficients": 0}, "num_coefficients is 0"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"floor": 0.0}, "floor is 0"),
        ({"num_mels": 200}, "of 200 holds no FFT bin; take fewer num_mels"),
        ({"window_samples": 16_001, "fft_size": 16_384}, "clips have 16000 samples; one window needs 16001"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, says):
    with pytest.raises(UserError, match=says):
        compute_features(NOISE, PRESETS["kwt"]._replace(**changes))


def test_clips_of_another_kind_are_named():
    for clips in (NOISE.astype(np.int32), NOISE[0], NOISE.astype(np.complex64)):
        with pytest.raises(UserError, match=r"must be \[N, samples\], int16 or floating"):
            mfcc(clips)
    with pytest.raises(UserError, match="asks for log_mel"):
        mfcc(NOISE, PRESETS["log_mel"])
    with pytest.raises(UserError, match=r"no features 'kwtt': allowed are kwt.*did you mean 'kwt'"):
        preset("kwtt")
