"""Simulated speech providers that speak the real wire protocols over real sockets, with real speech.

Nothing here is a real provider and nothing is billed. ``app`` has the way in; ``behaviours`` lists how it misbehaves.
"""

from .app import run_simulator, running_simulator
from .behaviours import AT_ONCE, ENGINE_411, TO_MANY, TOO_MANY, Pace, Planned
from .ledger import Call
from .state import API_KEY, Simulator

__all__ = [
    "API_KEY",
    "AT_ONCE",
    "ENGINE_411",
    "TOO_MANY",
    "TO_MANY",
    "Call",
    "Pace",
    "Planned",
    "Simulator",
    "run_simulator",
    "running_simulator",
]
