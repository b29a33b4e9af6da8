"""Built-in sample images and sounds, computed for cpuc, on which graphs are traced and verified.

They are the same wherever they are computed, up to the last bits of sines and Fourier transforms.
"""

from __future__ import annotations

import numpy as np

# (height, width): landscape, portrait, square, small and long ones.
_SIZES = ((480, 640), (500, 333), (256, 256), (96, 128), (240, 720), (64, 48))
_SECONDS = (0.5, 1.0, 1.7, 2.5, 4.0, 6.0)
SAMPLING_RATE = 16_000


def images() -> list[np.ndarray]:
    """Six images: uint8 of shape [height, width, 3], natural textures with shapes on them."""
    return [_make_image(np.random.default_rng(seed), *size) for seed, size in enumerate(_SIZES)]


def sounds() -> list[np.ndarray]:
    """Six sounds of 0.5 to 6 seconds: float32 of shape [samples] at 16 kHz, full scale ±1, like speech without words."""
    return [_make_sound(np.random.default_rng(seed), seconds) for seed, seconds in enumerate(_SECONDS)]


def _make_image(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    # Amplitudes fall as 1/f, as they do in photographs.
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    texture = np.fft.irfft2(spectrum, (height, width))
    # One texture for brightness, and a little of each for colour.
    texture = texture[:1] + 0.4 * texture
    image = 128 + 45 * (texture - texture.mean()) / texture.std()
    rows, columns = np.mgrid[:height, :width]
    for _ in range(5):
        y, x = random.uniform(0, height), random.uniform(0, width)
        radius = random.uniform(0.08, 0.25) * min(height, width)
        far = np.hypot if random.random() < 0.5 else lambda a, b: np.maximum(abs(a), abs(b))
        opacity = 0.85 * np.clip(radius - far(rows - y, columns - x), 0, 1)
        image += opacity * (random.uniform(0, 255, (3, 1, 1)) - image)
    return np.ascontiguousarray(np.clip(np.round(image), 0, 255).transpose(1, 2, 0), np.uint8)


def _make_sound(random: np.random.Generator, seconds: float) -> np.ndarray:
    count = int(seconds * SAMPLING_RATE)
    time = np.arange(count) / SAMPLING_RATE
    # A new syllable every fifth of a second, each with formants of its own, into which the last one's glide.
    beats = np.arange(int(seconds * 5) + 2) / 5
    pitch = np.interp(time, beats, random.uniform(90, 220, len(beats)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    formants = [np.interp(time, beats, random.uniform(low, high, len(beats))) for low, high in ((300, 900), (900, 2500))]
    voice = np.zeros(count)
    for harmonic in range(1, 21):
        gain = sum(np.exp(-(((harmonic * pitch - formant) / 180) ** 2)) for formant in formants)
        voice += (gain + 0.05) / harmonic**0.5 * np.sin(harmonic * phase)
    loudness = np.sin(np.pi * 5 * time) ** 2 * np.interp(time, beats, random.uniform(0.2, 1, len(beats)))
    hiss = random.standard_normal(count) * np.interp(time, beats, random.uniform(0, 0.2, len(beats)))
    sound = loudness * voice + hiss + 0.003 * random.standard_normal(count)
    return np.asarray(0.5 * sound / abs(sound).max(), np.float32)
