"""Random numbers of clients: functions of a client's id and an address, with no generator between them."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    """uint64: a bijection in which every bit depends on every bit (the finalizer of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def uniforms(ids: np.ndarray, *address: int) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 `[n]` in [0, 1) of each client, a function of its id and the address alone."""
    state = np.zeros(1, np.uint64)
    for part in address:
        state = _mixed(state + _GOLDEN + np.uint64(part))
    first = _mixed(state + _GOLDEN * (2 * np.asarray(ids, np.uint64) + np.uint64(1)))
    second = _mixed(first + _GOLDEN)
    u, v = ((x >> np.uint64(11)).astype(float) * 2.0**-53 for x in (first, second))  # 53 bits each
    return u, v


def normals(ids: np.ndarray, *address: int) -> np.ndarray:
    """float64 `[n]`: a standard normal number of each client, likewise (Box and Muller 1958)."""
    u, v = uniforms(ids, *address)
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))


def slowness(seed: int, run_seed: int, round_number: int, ids: np.ndarray, spread: float, jitter: float) -> np.ndarray:
    """float64 `[n]`: factors on the seconds of a step, log-normal with median 1.

    exp(spread u_i + jitter u_ir), u standard normal: u_i of the device for good, from `seed`; u_ir of one round.
    """
    exponent = spread * normals(ids, seed) if spread else np.zeros(len(ids))
    if jitter:
        exponent = exponent + jitter * normals(ids, seed, run_seed, round_number + 1)
    return np.asarray(np.exp(exponent))
