"""What an object keeps alive: how many instances of each class of the product it can be reached from."""

from __future__ import annotations

import gc
from collections import Counter
from types import FunctionType, ModuleType

CACHES = frozenset({"ClientMemory", "Content", "Route", "_Memory"})
"""What may be more afterwards than before, up to its bound: resend memories and what was understood before."""


def reachable(root: object) -> Counter[str]:
    """Count what ``root`` keeps alive, by class, but for the caches."""
    seen: set[int] = set()
    found: Counter[str] = Counter()
    todo: list[object] = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen.add(id(one))
        kind = type(one)
        if kind.__name__ in CACHES:
            continue
        if kind.__module__.startswith("waybill."):
            found[kind.__name__] += 1
        todo += (one.__closure__ or ()) if isinstance(one, FunctionType) else gc.get_referents(one)
    return found
