"""exp and log that give the same bits on any IEEE machine.

NumPy's own differ in the last bit between its SIMD paths, and that bit can change a generated id.
Here every step is one correctly rounded addition, multiplication or division. Error: about 1e-15.
"""

import math

import numpy as np
import numpy.typing as npt

__all__ = ["exp", "expm1_over_x", "log", "log1p_over_x"]

Float64s = npt.NDArray[np.float64]

# ln 2 in two parts (fdlibm's): multiples of the first up to 2**20 are exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.44269504088896338700
_SERIES_BELOW = 0.1


def _polynomial(x: Float64s, coefficients: list[float]) -> Float64s:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


_EXP = [1.0 / math.factorial(i) for i in range(15)]
_LOG = [2.0 / (2 * i + 1) for i in range(12)]
_EXPM1_OVER_X = [1.0 / math.factorial(i + 1) for i in range(12)]
_LOG1P_OVER_X = [(-1.0) ** i / (i + 1) for i in range(17)]


def exp(x: Float64s) -> Float64s:
    """Return e**x for float64 |x| < 700, by reduction to |r| <= ln 2 / 2 and its Taylor series."""
    k = np.rint(x * _LOG2_E)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    return np.ldexp(_polynomial(r, _EXP), k.astype(np.int32))


def log(x: Float64s) -> Float64s:
    """Return ln x for positive normal float64 x, by the series of artanh((m - 1) / (m + 1))."""
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, m * 2.0, m), (e - low).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    return e * _LN2_HIGH + (e * _LN2_LOW + s * _polynomial(s * s, _LOG))


def expm1_over_x(x: Float64s) -> Float64s:
    """Return (e**x - 1) / x, 1 at x = 0."""
    small = np.abs(x) < _SERIES_BELOW
    safe = np.where(small, 1.0, x)
    return np.where(small, _polynomial(x, _EXPM1_OVER_X), (exp(safe) - 1.0) / safe)


def log1p_over_x(x: Float64s) -> Float64s:
    """Return ln(1 + x) / x for x > -1, 1 at x = 0."""
    small = np.abs(x) < _SERIES_BELOW
    safe = np.where(small, 1.0, x)
    series = _polynomial(np.where(small, x, 0.0), _LOG1P_OVER_X)
    return np.where(small, series, log(1.0 + safe) / safe)
