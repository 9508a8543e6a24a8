from itertools import pairwise

import pytest

from gateway.admission import Admission, DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    """Jobs of one second on 4 slots: four a second, as far as is known."""
    admission = Admission(max_queue=8, clock=clock)
    admission.ended("m", 1.0)
    return admission


def refuse(admission: Admission, body: int, jobs: int = 1, *, came_back: bool = False) -> float:
    return admission.refuse("m", body, jobs, slots=4, came_back=came_back)


def test_each_refused_request_is_told_a_later_time_spaced_by_the_rate(admission: Admission) -> None:
    told = [refuse(admission, body) for body in range(10)]
    gaps = [later - earlier for earlier, later in pairwise(told)]
    assert gaps == pytest.approx([admission.SLACK / 4] * 9)
    assert refuse(admission, 11, jobs=5) - told[-1] == pytest.approx(5 * admission.SLACK / 4)


def test_before_anything_has_ended_the_slots_turn_over_once_in_five_seconds(clock: Clock) -> None:
    admission = Admission(max_queue=8, clock=clock)
    first, second = refuse(admission, 1), refuse(admission, 2)
    assert second - first == pytest.approx(admission.SLACK * 5 / 4)


def test_what_ends_while_the_queue_is_full_sets_the_rate(clock: Clock) -> None:
    drain = DrainRate(clock)
    drain.ended(1.0)
    assert drain.while_full(4)[0] == pytest.approx(4)
    for _ in range(30):  # one a second, though the slots could do four: others share them
        clock.now += 0.5
        drain.while_full(4)
        clock.now += 0.5
        drain.ended(1.0)
    rate, within = drain.while_full(4)
    assert 1 <= rate < 1.4
    assert 1 <= within < 1.5


def test_room_is_kept_for_who_comes_back_in_time_and_for_nobody_else(admission: Admission, clock: Clock) -> None:
    assert admission.room("m", 1) == (8, False)
    clock.now += refuse(admission, 1)
    assert admission.room("m", 2) == (7, False)
    assert admission.room("m", None) == (7, False)
    assert admission.room("m", 1) == (8, True)
    assert admission.room("m", 1) == (8, False)


def test_who_comes_too_early_is_not_let_in_and_keeps_its_promise(admission: Admission, clock: Clock) -> None:
    told = refuse(admission, 1)
    clock.now += told / 2
    assert not admission.room("m", 1)[1]
    clock.now += told / 2
    assert admission.room("m", 1)[1]


def test_equal_bodies_of_several_clients_count_separately(admission: Admission, clock: Clock) -> None:
    clock.now += max(refuse(admission, 1) for _ in range(3))
    assert [admission.room("m", 1)[1] for _ in range(4)] == [True, True, True, False]


def test_one_who_knows_whole_seconds_only_is_in_time_and_later_ones_are_forgotten(
    admission: Admission, clock: Clock
) -> None:
    told = refuse(admission, 1)
    refuse(admission, 2)
    start = clock.now
    clock.now = start + -(-told // 1) + admission.GRACE_S - 0.01
    assert admission.room("m", 1)[1]
    clock.now = start + 60 + admission.GRACE_S + 1
    assert admission.room("m", 2) == (8, False)
    (promises,) = admission._models.values()
    assert not [*promises.coming, *promises.held, *promises.by_body]
    assert promises.reserved == 0


def test_one_whom_a_promise_failed_is_next(admission: Admission, clock: Clock) -> None:
    told = [refuse(admission, body) for body in range(20)]
    clock.now += told[0]
    assert admission.room("m", 0)[1]
    again = refuse(admission, 0, came_back=True)
    assert again < refuse(admission, 99) - 3


def test_promises_are_bounded_in_time_and_number(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [refuse(admission, body) for body in range(1000)]
    assert all(0 < seconds <= 60 for seconds in told)
    (promises,) = admission._models.values()
    made = len(promises.coming)
    assert made < 60 * 4
    monkeypatch.setattr(Admission, "MOST", made - 1)
    assert refuse(admission, 1) >= 30
    assert len(promises.coming) == made
