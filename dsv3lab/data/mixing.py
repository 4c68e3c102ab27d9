"""Which window comes when: weighted mixing of the domains, and the order of windows inside each."""

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dsv3lab.config import ConfigError

_LONGEST_PERIOD = 100_000


@dataclass(frozen=True, eq=False)
class Mixture:
    """A periodic sequence of domains. In every prefix of n, domain i stands fewer than one time from weight_i * n."""

    domains: tuple[str, ...]
    order: np.ndarray
    """int64[period]: the index of the domain at each place."""
    rank: np.ndarray
    """int64[period]: how often that domain stands earlier in the period."""
    quota: np.ndarray
    """int64[domains]: how often each domain stands in one period."""

    def assign(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each place (int64, from 0) in the endless sequence: the domain's index, and its running number there."""
        period, inside = np.divmod(places, len(self.order))
        domain = self.order[inside]
        return domain, period * self.quota[domain] + self.rank[inside]

    def counts(self, n: int) -> dict[str, int]:
        """How often each domain stands in the first `n` places."""
        period, inside = divmod(n, len(self.order))
        part = np.bincount(self.order[:inside], minlength=len(self.domains))
        return {name: int(period * self.quota[i] + part[i]) for i, name in enumerate(self.domains)}


def make_mixture(weights: Mapping[str, float]) -> Mixture:
    """Spread the domains by the quota method of apportionment (Balinski and Young, 1975).

    At place n the next one goes to the domain with the smallest (count + 1) / weight among those with
    count < weight * n: this keeps every prefix within quota, below and above. A greedy choice of the largest deficit
    does not, from four domains on.

    Raises:
        ConfigError: if the weights have no small common denominator, so that the period would be too long.
    """
    shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
    total = sum(shares.values())
    if total <= 0:
        raise ConfigError("domains: at least one domain needs a positive weight")
    shares = {name: share / total for name, share in shares.items()}
    period = math.lcm(*(share.denominator for share in shares.values()))
    if period > _LONGEST_PERIOD:
        raise ConfigError(
            f"domains: the weights {dict(weights)} repeat only after {period} windows; "
            "use rounder numbers, such as percents that add up to 100"
        )
    quota = [int(share * period) for share in shares.values()]
    count = [0] * len(quota)
    order, rank = np.zeros(period, np.int64), np.zeros(period, np.int64)
    for place in range(period):
        allowed = [i for i, q in enumerate(quota) if count[i] * period < q * (place + 1)]
        chosen = min(allowed, key=lambda i: (Fraction(count[i] + 1, quota[i]), i))
        order[place], rank[place] = chosen, count[chosen]
        count[chosen] += 1
    return Mixture(tuple(shares), order, rank, np.array(quota, np.int64))


@functools.lru_cache(maxsize=32)
def shuffled_order(n: int, *, seed: int, domain: str, epoch: int) -> np.ndarray:
    """A permutation of `n` windows (int64), other for each seed, domain and epoch.

    Windows are sorted by a hash of their number, written out here because the streams of `numpy.random.Generator` may
    change between NumPy versions, and an order of training must not.
    """
    salt = hashlib.sha256(f"{seed}/{domain}/{epoch}".encode()).digest()[:8]
    order = np.argsort(_splitmix64(np.arange(n, dtype=np.uint64) + np.frombuffer(salt, "<u8")), kind="stable")
    order.setflags(write=False)
    return order


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): a bijection of 64-bit integers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
