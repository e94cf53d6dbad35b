"""What is shown of a run."""

import pytest

from konomi.cli.countdown import Countdown
from konomi.cli.progress import LINE_SHARE, LiveBar, Pace, PlainLines, follow, sentence
from konomi.training.events import Finished, Prepared, Previewed, Started, Step, Validated, Warned


def step(number, *, loss=1.0, seconds=0.5, samples=None):
    return Step(number, 0, loss, 1e-4, seconds, number if samples is None else samples, 2048.0)


def started(total, first=0):
    return Started(first, total, 10, 1000, "cpu", "float32")


def test_smoothed_loss_starts_at_the_first_loss_and_follows_slowly():
    pace = Pace()
    pace.add(step(1, loss=4.0))
    assert pace.loss == pytest.approx(4.0)
    pace.add(step(2, loss=2.0))
    # Weighted mean with weights 0.98 and 1.
    assert pace.loss == pytest.approx((0.98 * 4 + 2) / 1.98)


def test_speed_and_time_left_come_from_the_steps():
    pace = Pace()
    pace.begin(started(100))
    assert pace.seconds_left is None
    for number in range(1, 11):
        pace.add(step(number, seconds=0.5, samples=4 * number))
    assert pace.samples_per_second == pytest.approx(8.0)
    assert pace.seconds_left == pytest.approx(45.0)


def test_a_resumed_run_counts_only_its_own_samples():
    pace = Pace()
    pace.begin(started(1000, first=900))
    pace.add(step(901, samples=3604))
    pace.add(step(902, samples=3608))
    assert pace.samples_per_second == pytest.approx(8.0)


def test_plain_lines_are_few(capsys):
    now = [0.0]
    with PlainLines(clock=lambda: now[0]) as lines:
        lines.show(started(10_000))
        for number in range(1, 10_001):
            now[0] += 0.001
            lines.show(step(number))
    text = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(text) == round(1 / LINE_SHARE)
    assert text[-1].startswith("step 10000/10000  loss 1.0000")


def test_slow_runs_are_heard_of_every_ten_seconds(capsys):
    now = [0.0]
    with PlainLines(clock=lambda: now[0]) as lines:
        lines.show(started(1000))
        for number in range(1, 31):
            now[0] += 2.0
            lines.show(step(number))
    assert capsys.readouterr().out.count("\nstep ") == 6


def test_preparation_always_tells_its_end(capsys):
    with PlainLines(clock=lambda: 0.0) as lines:
        for done in range(6):
            lines.show(Prepared("images", done, 5))
    assert capsys.readouterr().out == "preparing images: 5/5\n"


def test_time_left_is_of_the_piece_of_work_at_hand():
    now = [0.0]
    countdown = Countdown(clock=lambda: now[0])
    told = []
    for begun in (0, 1000):
        for done in range(3):
            now[0] = begun + 5.0 * done
            told.append(countdown.text(Prepared("pictures", done, 4)))
    assert told == ["", "15 s left", "10 s left"] * 2


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Validated(5, 0.1, 0.2), "step 5: validation loss 0.1000 (base 0.2000)"),
        (Previewed(5, ("a.png", "b.png")), "step 5: preview b.png"),
        (Warned("careful"), "note: careful"),
        (started(9, first=3), "continuing after step 3 of 9, cpu, float32"),
        (step(1), ""),
    ],
)
def test_sentences(event, text):
    assert sentence(event) == text


def test_live_bar_takes_every_event(capsys):
    with LiveBar() as bar:
        bar.show(Prepared("images", 1, 2))
        bar.show(started(2))
        bar.show(step(1))
        bar.show(Previewed(1, ("[bold]p.png",)))
        bar.show(Warned("[red]careful"))
        bar.show(step(2))
    text = capsys.readouterr().out
    assert "[red]careful" in text and "2/2" in text and "[bold]p.png" in text


def test_events_are_closed_when_showing_them_fails():
    closed = []

    def events():
        try:
            yield started(3)
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        follow(events(), resume_command=str)
    assert closed == [True]


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert follow(iter([started(1), Finished(1, "", interrupted=True)]), resume_command=str) == 130
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_shows_step_speed_and_time_left(monkeypatch):
    from io import StringIO

    from rich.console import Console

    written = StringIO()
    monkeypatch.setattr(
        "konomi.cli.screen.screen",
        lambda: Console(file=written, width=60, force_terminal=True, color_system=None),
    )
    with LiveBar() as bar:
        bar.show(Started(0, 200, 10, 1000, "cpu", "float32"))
        bar.show(
            Step(
                step=20,
                epoch=2,
                loss=0.1234,
                learning_rate=1e-4,
                seconds=0.5,
                samples_seen=20,
                memory=494.0,
            )
        )
        bar.show(
            Step(
                step=21,
                epoch=2,
                loss=0.1234,
                learning_rate=1e-4,
                seconds=0.5,
                samples_seen=21,
                memory=494.0,
            )
        )
        bar.progress.refresh()
    for shown in (
        "training",
        "21/200",
        "loss 0.1234",
        "lr 0.0001",
        "2 images/s",
        "494 MiB",
        "90 s left",
    ):
        assert shown in written.getvalue()
