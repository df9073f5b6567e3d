"""When a view is made and told: at once for one change, together for many, and never again for nothing new."""

from __future__ import annotations

import asyncio

from cluster.view import View
from cluster.vitals.told import NewView, Told
from cluster.vitals.views import VIEW_MIN_S, Views
from tests.waiting import wait_until_async

LIMIT_S = 5.0


class Belief:
    """What is believed, and how often it was asked for."""

    def __init__(self) -> None:
        self.epoch = 1
        self.made = 0
        self.told: list[Told] = []
        self.views = Views(self.view(0), self.make, self.told.append)

    def view(self, epoch: int) -> View:
        return View("n1", "n1/018bcfe5680-00000001", (), None, epoch, True, True)

    def make(self) -> View:
        self.made += 1
        return self.view(self.epoch)


async def test_a_view_with_nothing_new_in_it_is_kept_and_not_told() -> None:
    belief = Belief()
    assert belief.views.latest.epoch == 0
    belief.views.now()
    belief.views.now()
    assert belief.views.latest.epoch == 1
    assert belief.told == [NewView(belief.view(1))]
    belief.epoch = 2
    belief.views.now()
    assert belief.told == [NewView(belief.view(1)), NewView(belief.view(2))]


async def test_many_changes_at_once_share_a_view() -> None:
    belief = Belief()
    for _ in range(5):
        belief.views.soon()
    await wait_until_async(lambda: belief.told, LIMIT_S, "a view")
    belief.epoch = 2
    belief.views.soon()
    belief.views.soon()
    assert belief.made == 1, "never from inside the call"
    await wait_until_async(lambda: belief.made == 2, LIMIT_S, "the next view")
    assert belief.told == [NewView(belief.view(1)), NewView(belief.view(2))]


async def test_after_the_end_no_view_is_made() -> None:
    belief = Belief()
    belief.views.soon()
    belief.views.close()
    await asyncio.sleep(2 * VIEW_MIN_S)
    assert belief.made == 0
