"""Smooth functions of one number: what a layer `Smooth` may apply elementwise.

Everything that bounds need to know of a function is stated here: its value, its derivative, where its curvature changes
and where its minima lie. Between two *breaks* a function is convex or concave, so its derivative is monotone; every
rule in `bounds.smooth` is derived from that. Functions that are written in terms of these (softmax, norms, gates) are
composed by the readers (`network.curved`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_ROOT_2 = math.sqrt(2.0)


@dataclass(frozen=True, eq=False)
class Function:
    """A continuous function of one number, made of convex and concave pieces.

    Attributes:
        value: computes the function elementwise, to a few units in the last place.
        derivative: computes the derivative to a few units in the last place; at a kink, one of the one-sided
            derivatives or a number between them.
        breaks: where pieces meet, ascending.
        curvature: +1 for a convex and -1 for a concave piece, one more than there are breaks; a line is both.
        kinks: the least and the largest one-sided derivative at every break; empty for a function without kinks.
        minima: `(start, stop, value)`: a minimum lies between start and stop, and `value` is not above it. No function
            here has an inner maximum.
        domain: the function is defined on the open interval between these.
        by_argument: terms may cancel, so values are accurate relative to the argument, and derivatives relative to 1.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    breaks: tuple[float, ...] = ()
    curvature: tuple[int, ...] = (1,)
    kinks: tuple[tuple[float, float], ...] = ()
    minima: tuple[tuple[float, float, float], ...] = ()
    domain: tuple[float, float] = (-math.inf, math.inf)
    by_argument: bool = False

    @cached_property
    def slopes_at_breaks(self) -> tuple[tuple[float, float], ...]:
        """The least and the largest one-sided derivative at every break."""
        if self.kinks:
            return self.kinks
        slopes = self.derivative(torch.tensor(self.breaks, dtype=torch.float64)).tolist()
        return tuple((slope, slope) for slope in slopes)

    def __reduce__(self) -> tuple[Callable[[str], Function], tuple[str]]:
        return named, (self.name,)


def named(name: str) -> Function:
    """Returns the function of this name.

    Raises:
        KeyError: there is none.
    """
    return FUNCTIONS[name]


def _sigmoid_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * torch.sigmoid(-x)


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _below(x: Tensor) -> Tensor:
    """The normal distribution function."""
    share: Tensor = torch.special.erfc(-x / _ROOT_2)
    return share / 2


_GELU_A, _GELU_B = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: Tensor) -> Tensor:
    # (1 + tanh v) / 2 is the sigmoid of 2 v
    inner: Tensor = 2 * _GELU_A * (x + _GELU_B * x**3)
    return x * torch.sigmoid(inner)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    inner = 2 * _GELU_A * (x + _GELU_B * x**3)
    s = torch.sigmoid(inner)
    return s + x * s * torch.sigmoid(-inner) * 2 * _GELU_A * (1 + 3 * _GELU_B * x * x)


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _mish_slope(x: Tensor) -> Tensor:
    t = torch.tanh(_softplus(x))
    return t + x * (1 - t * t) * torch.sigmoid(x)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x <= -3, torch.zeros_like(x), torch.where(x >= 3, torch.ones_like(x), (2 * x + 3) / 6))


_POSITIVE = (0.0, math.inf)

# The breaks of SiLU and of GELU by tanh, and the minima, are roots computed to 16 digits; values at minima are rounded
# down in the 14th digit.
_LIST = (
    Function("sigmoid", torch.sigmoid, _sigmoid_slope, (0.0,), (1, -1)),
    Function("erf", torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x), (0.0,), (1, -1)),
    Function("tanh", torch.tanh, lambda x: 1 / torch.cosh(x.clamp(-350, 350)) ** 2, (0.0,), (1, -1)),
    Function("exp", torch.exp, torch.exp),
    Function("square", lambda x: x * x, lambda x: 2 * x, minima=((0.0, 0.0, 0.0),)),
    Function("reciprocal", torch.reciprocal, lambda x: -1 / (x * x), domain=_POSITIVE),
    Function("rsqrt", torch.rsqrt, lambda x: -0.5 * torch.rsqrt(x) / x, domain=_POSITIVE),
    Function("sqrt", torch.sqrt, lambda x: 0.5 * torch.rsqrt(x), curvature=(-1,), domain=_POSITIVE),
    Function("log", torch.log, torch.reciprocal, curvature=(-1,), domain=_POSITIVE),
    Function("softplus", _softplus, torch.sigmoid),
    Function("elu", _elu, lambda x: torch.exp(x.clamp(max=0))),
    Function(
        "silu",
        lambda x: x * torch.sigmoid(x),
        _silu_slope,
        (-2.3993572805154677, 2.3993572805154677),
        (-1, 1, -1),
        minima=((-1.2784645427610740, -1.2784645427610735, -0.27846454276108),),
        by_argument=True,
    ),
    Function(
        "gelu",
        lambda x: x * _below(x),
        lambda x: _below(x) + x * _density(x),
        (-_ROOT_2, _ROOT_2),
        (-1, 1, -1),
        minima=((-0.75179153, -0.75179152, -0.16997120747992),),
        by_argument=True,
    ),
    Function(
        "gelu_tanh",
        _gelu_tanh,
        _gelu_tanh_slope,
        (-1.4185040087908284, 1.4185040087908284),
        (-1, 1, -1),
        minima=((-0.7524615, -0.7524614, -0.17004075057128),),
        by_argument=True,
    ),
    Function(
        "mish",
        _mish,
        _mish_slope,
        (-2.2563763963607931, 1.4905711794854285),
        (-1, 1, -1),
        minima=((-1.1924313, -1.1924312, -0.30884341301726),),
        by_argument=True,
    ),
    Function(
        "hardswish",
        _hardswish,
        _hardswish_slope,
        (-3.0, 3.0),
        (1, 1, 1),
        kinks=((-0.5, 0.0), (1.0, 1.5)),
        minima=((-1.5, -1.5, -0.375),),
        by_argument=True,
    ),
)
FUNCTIONS = {function.name: function for function in _LIST}
