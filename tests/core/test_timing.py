from ivideogpt.core.timing import Every, Stopwatch, Until


def test_every_is_true_at_multiples_and_never_at_the_start():
    assert [step for step in range(10) if Every(3)(step)] == [3, 6, 9]


def test_every_zero_steps_is_never():
    assert not any(Every(0)(step) for step in range(10))


def test_until_stops_after_as_many_steps():
    step = 0
    while Until(5)(step):
        step += 1
    assert step == 5


def test_stopwatch_continues_from_earlier_seconds_and_forgets_counts_at_a_lap():
    watch = Stopwatch(seconds=100.0)
    watch.count(7)
    assert watch.seconds >= 100.0
    assert watch.rate > 0
    watch.lap()
    assert watch.rate == 0
