"""Who may claim: sessions over one engine share its slots, and all sessions of a process make way for a suspect."""

import asyncio
from typing import Protocol


class Guest(Protocol):
    """A session, as far as the others know it."""

    @property
    def occupied(self) -> int:
        """Slots."""

    @property
    def is_idle(self) -> bool:
        """It runs nothing, and nothing may come to it: it waits for no job."""

    @property
    def has_suspect(self) -> bool:
        """One that waits, or runs: it is to be alone in the process."""

    def wake(self) -> None:
        """A slot came free, perhaps."""


class House:
    """The sessions of a process: what kills it kills the jobs of all."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []

    @property
    def is_empty(self) -> bool:
        return all(guest.is_idle for guest in self.guests)

    @property
    def has_suspect(self) -> bool:
        return any(guest.has_suspect for guest in self.guests)


class Room:
    """One engine's slots, for the sessions of its model and of the model's adapters."""

    def __init__(self, slots: int, house: House) -> None:
        self.slots = slots
        self._house = house
        self._guests: list[Guest] = []  # who claimed last is the last
        self.turn = asyncio.Lock()  # held while somebody claims: what others take meanwhile would be counted by nobody

    def enter(self, guest: Guest) -> None:
        self._guests.append(guest)
        self._house.guests.append(guest)

    def leave(self, guest: Guest) -> None:
        self._guests.remove(guest)
        self._house.guests.remove(guest)
        self.changed()

    @property
    def is_shared(self) -> bool:
        return len(self._house.guests) > 1

    def is_free_for_suspect(self) -> bool:
        return self._house.is_empty

    def free(self) -> int:
        """None beside a suspect. Guests that wait for a job each may be given one when another has taken the last
        slot: the engine lets it wait."""
        if self._house.has_suspect:
            return 0
        return max(0, self.slots - sum(guest.occupied for guest in self._guests))

    def claimed(self, guest: Guest) -> None:
        """The others come first now."""
        self._guests.remove(guest)
        self._guests.append(guest)

    def changed(self) -> None:
        for guest in list(self._guests):
            guest.wake()
        if self._house.has_suspect:
            for guest in self._house.guests:
                guest.wake()
