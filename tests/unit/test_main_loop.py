"""A main loop is judged only for time in which its process ran."""

from __future__ import annotations

from cluster.vitals.main_loop import MainLoop

EVERY_S = 0.25


def look_until(main: MainLoop, ticked_s: float, start_s: float, end_s: float) -> float:
    quiet_s, now_s = 0.0, start_s
    while now_s <= end_s:
        quiet_s = main.look(ticked_s, now_s)
        now_s += EVERY_S
    return quiet_s


def test_a_main_loop_that_has_not_begun_is_not_quiet() -> None:
    main = MainLoop(EVERY_S, 0.0)
    assert main.look(None, 100.0) == 0.0


def test_a_main_loop_that_does_not_tick_is_quiet() -> None:
    main = MainLoop(EVERY_S, 0.0)
    assert look_until(main, 1.0, 0.25, 9.0) == 8.0


def test_a_pause_of_the_whole_process_does_not_count() -> None:
    main = MainLoop(EVERY_S, 0.0)
    look_until(main, 1.0, 0.25, 1.0)
    # Stopped for a minute; the vitals thread is served first when it goes on.
    assert main.look(1.0, 61.0) <= EVERY_S
    assert look_until(main, 1.0, 61.25, 63.0) <= 2.0 + EVERY_S


def test_a_tick_ends_the_quiet() -> None:
    main = MainLoop(EVERY_S, 0.0)
    look_until(main, 1.0, 0.25, 9.0)
    assert main.look(9.1, 9.25) < 0.2
