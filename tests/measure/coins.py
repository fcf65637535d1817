"""Fair coins that are looked at after each toss, as the tests of intervals that are looked at often take them."""

from __future__ import annotations

from collections.abc import Callable


def chance_of_heads(looks: int, says: Callable[[int, int], int]) -> float:
    """How likely so many looks ever settle on heads before tails: exact, path by path.

    Args:
        looks: How often at most a coin is tossed.
        says: From the heads and tails so far, a number above 0 for heads, below 0 for tails, 0 to toss again.
    """
    alive, settled = {0: 1.0}, 0.0
    for count in range(1, looks + 1):
        tossed: dict[int, float] = {}
        for heads, chance in alive.items():
            for more in (0, 1):
                tossed[heads + more] = tossed.get(heads + more, 0.0) + chance / 2
        alive = {}
        for heads, chance in tossed.items():
            side = says(heads, count - heads)
            if side > 0:
                settled += chance
            elif side == 0:
                alive[heads] = chance
    return settled
