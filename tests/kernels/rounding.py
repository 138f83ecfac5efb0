"""Running error analysis: float64 values that carry a bound on the rounding error of float32 arithmetic.

Each operation of `Rounded` adds what it can lose (Higham, Accuracy and Stability of Numerical Algorithms, sections
3.1-3.3). With u the unit roundoff of the arithmetic (2^-24 for float32) and |x| the true magnitude:

    x + y       u |x + y|                         one rounding
    x * y       u |x y| + tiny                    tiny = 2^-126: a subnormal product may be flushed to zero
    sum of K    (K-1) u / (1 - (K-1) u)  sum |x|  any order: sequential, pairwise, per thread, by vector
    exp(x)      exp(x + 2u |x|) (1 - exp(-2u |x|) + EXP u) + tiny
    cast        u_out |x| + half the smallest step of the storage dtype

An fma loses less than its product and its sum, so code that uses it stays inside.

The constants, in units of u, hold for every backend: each is that of the least accurate one. PTX allows ex2.approx an
error of 2 units in the last place, which are up to 4 u, and rcp.approx one of 1, up to 2 u.

EXP = 4. exp(d A) is exp2(d (A log2 e)). Three roundings reach the exponent: log2 e itself, A log2 e, and the product by
d. `Rounded` counts the product d A; the other two are the 2u |x| above. On the CPU exp2 is then one of
(i) a 32-entry table and a polynomial of degree 2 on |r| <= 1/64: truncation 0.90, table entry 1, r and its product
0.03, last fma 1: 2.93; (ii) degree 5 on |r| <= 1/2: truncation 1.54, Horner's last step 1, the earlier ones, which
reach the result through |r| ln 2 < 0.35 and its powers, 0.35 / (1 - 0.35) = 0.54: 3.08; (iii) the C library's exp, at
most one unit in the last place = 2. Arguments below -126 may be clamped there: an absolute error of 2^-126. On a GPU it
is (iv) ex2.approx: 4.

EXP_OF_X = 5. The same where x is one number: on a GPU an fma, which loses 1, may put back the roundings of x log2 e.

LOG1P = 6. On the CPU a polynomial of degree 10 on [0, 1] times its argument: truncation 0.12, the product 1, Horner's
last step 1; the earlier steps lose at most half of sum |c_k| e^k / log(2) < 1.8, as the coefficients alternate: 0.9. In
all 3.02. In CUDA 2 artanh(s) of s = e / (2 + e) <= 1/3 as a series: the sum 1, rcp.approx 2 and the product 1 reach the
result times s / ((1 - s^2) artanh(s)) <= 1.09: 4.36; Horner's last step 1, s^2 and the earlier steps, which reach it
through s^2 / 3 and its powers, 0.2; truncation 0.26. In all 5.82.

RECIPROCAL = 2. A division (1), an estimate good to 2^-14 and one Newton step: 2^-28 and one rounding (1.1), or
rcp.approx (2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .truth import softplus

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float64: 2.0**-1022, torch.float32: 2.0**-126}
SMALLEST_STEP = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126}
EXP, EXP_OF_X, LOG1P, RECIPROCAL = 4, 5, 6, 2


@dataclass(frozen=True)
class Rounded:
    """A true value and a bound on the error with which arithmetic of unit roundoff `unit` knows it."""

    value: Tensor
    error: Tensor
    unit: float
    tiny: float
    terms: Tensor | None = None  # the sum of magnitudes of what `total` added up to this number

    def of(self, value: Tensor, error: Tensor | None = None, terms: Tensor | None = None) -> Rounded:
        """A number in the same arithmetic; exact unless an error is given."""
        return Rounded(value, torch.zeros_like(value) if error is None else error, self.unit, self.tiny, terms)

    def magnitude(self) -> Tensor:
        """The largest magnitude that the computed value can have."""
        return self.value.abs() + self.error

    def spread(self) -> Tensor:
        """What an error of one unit in each term would come to, in units: one of A reaches every term alike."""
        return self.value.abs() if self.terms is None else self.terms

    def __add__(self, other: Rounded) -> Rounded:
        result, error = self.value + other.value, self.error + other.error
        return self.of(result, error + self.unit * (result.abs() + error))

    def __mul__(self, other: Rounded) -> Rounded:
        product = self.value * other.value
        error = self.value.abs() * other.error + other.value.abs() * self.error + self.error * other.error
        return self.of(product, error + self.unit * (product.abs() + error) + self.tiny)

    def __getitem__(self, index) -> Rounded:
        return self.of(self.value[index], self.error[index])

    def scaled(self, power_of_two: float) -> Rounded:
        """Times a power of two: exact."""
        return self.of(self.value * power_of_two, self.error * abs(power_of_two))

    def loses(self, units: float) -> Rounded:
        """A further relative error of this many units."""
        return self.of(self.value, self.error + self.unit * units * self.magnitude())

    def map(self, function) -> Rounded:
        """Move elements without computing: reshape, index, expand."""
        terms = None if self.terms is None else function(self.terms)
        return self.of(function(self.value), function(self.error), terms)

    def exp(self, loses: float = EXP) -> Rounded:
        """exp, by exp2 of the argument times log2 e; two roundings of that product are counted here."""
        value = self.value.exp()
        away = self.error + 2 * self.unit * self.magnitude()
        largest = torch.exp(self.value + away)
        return self.of(value, largest * (loses * self.unit - torch.expm1(-away)) + self.tiny)

    def sigmoid(self) -> Rounded:
        """With e = exp(-|x|): 1 / (1 + e), or e times that where x < 0."""
        e = self.of(-self.value.abs()).exp(EXP_OF_X)
        inverse, value = 1 / (1 + e.value), torch.sigmoid(self.value)
        error = inverse * inverse * e.error + (2 + RECIPROCAL) * self.unit * value + self.tiny
        return self.of(value, error + value * (1 - value) * self.error)

    def softplus(self) -> Rounded:
        """max(x, 0) + log1p(exp(-|x|)); an error of x arrives multiplied by sigmoid(x)."""
        e = self.of(-self.value.abs()).exp(EXP_OF_X)
        value = softplus(self.value)
        error = e.error / (1 + e.value) + LOG1P * self.unit * torch.log1p(e.value) + self.unit * value + self.tiny
        return self.of(value, error + torch.sigmoid(self.value) * self.error)

    def stored(self, dtype: torch.dtype) -> Rounded:
        """After the cast to the output's dtype; nothing is lost where that is the dtype of the arithmetic."""
        if dtype in TINY:
            return self
        return self.of(self.value, self.error + UNIT[dtype] * self.magnitude() + SMALLEST_STEP[dtype], self.terms)


def stack(parts: list[Rounded], dim: int) -> Rounded:
    """torch.stack for numbers with errors."""
    return parts[0].of(torch.stack([p.value for p in parts], dim), torch.stack([p.error for p in parts], dim))


def cat(parts: list[Rounded], dim: int) -> Rounded:
    """torch.cat for numbers with errors."""
    return parts[0].of(torch.cat([p.value for p in parts], dim), torch.cat([p.error for p in parts], dim))


def total(*parts: tuple[Rounded, tuple[int, ...]]) -> Rounded:
    """The sum of all parts, each first summed over its own axes; one bound for any order of all the additions."""
    count = sum(math.prod(number.value.shape[dim] for dim in dims) for number, dims in parts)
    first = parts[0][0]
    gamma = (count - 1) * first.unit / (1 - (count - 1) * first.unit)
    value = sum(number.value.sum(dims) if dims else number.value for number, dims in parts)
    error = sum(
        number.error.sum(dims) + gamma * number.magnitude().sum(dims)
        if dims
        else number.error + gamma * number.magnitude()
        for number, dims in parts
    )
    terms = sum(number.value.abs().sum(dims) if dims else number.value.abs() for number, dims in parts)
    return first.of(value, error, terms)
