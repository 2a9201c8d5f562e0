"""Callbacks on recorded streams: what each adapter writes, and that a diverged run never wins."""

import io
import itertools
import struct
import sys
import types

import numpy as np
import pytest

from bnrate.sweep import callbacks, progress

RATES = np.array([0.1, 0.1, 10.0, 10.0])
SEEDS = np.array([0, 1, 0, 1])
NAN = np.nan
# The loss of the four runs at the two records of each chunk; a run whose loss is NaN is dead.
CHUNKS = {
    "all well": [[[4, 3], [4, 2], [4, 1], [4, 5]], [[3, 3], [2, 2], [1, 0.5], [5, 4]]],
    "best dies": [[[4, 3], [4, 2], [4, 1], [4, 5]], [[3, 3], [2, 2], [0.125, NAN], [5, NAN]]],
    "all die": [[[4, NAN]] * 4, [[NAN, NAN]] * 4],
    "infinite": [[[4, 3], [4, 2], [4, 1], [4, 5]], [[3, 3], [2, 2], [1, -np.inf], [5, np.inf]]],
}


def told(chunk, loss, *, combination=("sgd",), before=0, total=8, alive=None, **trace):
    """What is told after one of the chunks of two records, of stride 2."""
    loss = np.asarray(loss, np.float32)
    return progress.Progress(
        dict(zip(("rule", "norm"), combination, strict=False)),
        {"rate": RATES, "seed": SEEDS},
        np.arange(0, 4, 2) + 4 * chunk,
        {"angle": np.full((*loss.shape, 3), 7.0), "loss": loss, **trace},
        np.isfinite(loss[:, -1]) if alive is None else alive,
        before + 4 * (chunk + 1),
        total,
        4,
        1234.5,
        61.0,
    )


def start(done=0, total=8):
    nothing = np.zeros(0, int)
    alive = np.ones(4, bool)
    points = {"rate": RATES, "seed": SEEDS}
    return progress.Progress({"rule": "sgd"}, points, nothing, {}, alive, done, total, 4, NAN, NAN)


def play(callback, name, done=0):
    """One sweep of one combination, recorded beforehand."""
    members = callbacks.check([callback])
    total = done + 8
    callbacks.call(members, "on_start", start(done, total))
    for chunk, loss in enumerate(CHUNKS[name]):
        callbacks.call(members, "on_chunk", told(chunk, loss, before=done, total=total))
    callbacks.call(members, "on_end", None)


class Screen(io.StringIO):
    def isatty(self):
        return True

    def shown(self):
        """What a terminal that knows the few sequences we use would show, without colours."""
        lines, at = [], 0
        text = self.getvalue()
        for style in ("\x1b[1m", "\x1b[31m", "\x1b[0m"):
            text = text.replace(style, "")
        while text:
            if text.startswith("\x1b["):
                end = next(i for i, c in enumerate(text) if c.isalpha())
                count, kind, text = text[2:end], text[end], text[end + 1 :]
                if kind == "A":
                    at -= int(count)
                    assert at >= 0
                elif kind == "K":
                    assert count == ""
                else:
                    assert (kind, count) == ("J", "")
                    del lines[at:]
            elif text[0] == "\r":
                text = text[1:]
            else:
                line, _, text = text.partition("\x1b[K\n")
                lines[at : at + 1] = [line]
                at += 1
        return lines


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


# What is told


def test_names_and_coordinates():
    chunk = told(0, CHUNKS["all well"][0])
    assert chunk.names()[1] == "rule=sgd,rate=0.1,seed=1"
    assert chunk.names(static=False)[2] == "rate=10,seed=0"
    assert chunk.coordinates()[2] == {"rule": "sgd", "rate": 10.0, "seed": 0}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (np.array([0.1, 10], np.float32), ["0.1", "10"]),
        (np.logspace(-2.5, 0.5, 2), ["0.00316228", "3.16228"]),
        (np.array([1.0, 1.0, 1 + 1e-9]), ["1", "1", "1.000000001"]),
        (np.array([1234567, 1234568]), ["1234567", "1234568"]),
        (np.array(["a", "b"]), ["a", "b"]),
    ],
)
def test_numbers_are_short_and_differ(values, texts):
    chunk = start()._replace(points={"x": values})
    assert chunk.names(static=False) == [f"x={text}" for text in texts]


@pytest.mark.parametrize(
    ("name", "latest"),
    [
        ("all well", [3, 2, 0.5, 4]),
        ("best dies", [3, 2, NAN, NAN]),
        ("all die", [NAN] * 4),
        ("infinite", [3, 2, NAN, NAN]),
    ],
)
def test_a_diverged_run_is_nan(name, latest):
    chunk = told(1, CHUNKS[name][1])
    np.testing.assert_array_equal(chunk.latest(), latest)
    np.testing.assert_array_equal(chunk.diverged(), np.isnan(latest))


def test_a_dead_run_with_a_finite_record_is_diverged():
    alive = np.array([True, True, False, True])
    chunk = told(1, CHUNKS["all well"][1], alive=alive)
    np.testing.assert_array_equal(chunk.diverged(), ~alive)
    assert callbacks._row(chunk, "loss", "lowest").numbers["best loss"] == "2"


def test_a_stopped_run_is_out_but_has_not_diverged():
    stopped = np.array([False, True, True, False])
    chunk = told(1, [[3, 3], [1, NAN], [1, 1], [5, NAN]], alive=np.ones(4, bool))
    chunk = chunk._replace(stopped=stopped)
    np.testing.assert_array_equal(chunk.latest(), [3, NAN, NAN, NAN])
    np.testing.assert_array_equal(chunk.diverged(), [False, False, False, True])
    stream = io.StringIO()
    callbacks.Terminal(stream).on_chunk(chunk)
    text = "diverged 1/4, stopped 2/4, median loss stopped, best loss 3 at rate=0.1,seed=0"
    assert text in stream.getvalue()


def test_the_variable_shown():
    chunk = told(0, CHUNKS["all well"][0], empty=np.zeros((4, 2, 0)))
    assert chunk.variable() == "loss"
    np.testing.assert_array_equal(chunk.latest("angle"), [7.0] * 4)
    assert chunk._replace(trace={"angle": chunk.trace["angle"]}).variable() == "angle"
    assert chunk._replace(trace={}).variable() is None
    assert not chunk._replace(trace={}).diverged().any()
    with pytest.raises(ValueError, match="no 'empty'; choose one of angle, loss"):
        chunk.variable("empty")
    with pytest.raises(ValueError, match="no 'loss'; they record nothing"):
        chunk._replace(trace={}).variable("loss")


def test_records_tell_once_that_a_value_is_not_finite():
    loss = [[1, NAN, NAN, 2, NAN], [NAN] * 5, [1] * 5]
    chunk = start()._replace(
        steps=np.arange(0, 10, 2),
        trace={"loss": np.array(loss), "none": np.zeros((3, 5, 0))},
        runs=3,
    )
    steps = [[step for step, _ in run] for run in chunk.records()]
    assert steps == [[0, 2, 6, 8], [0], [0, 2, 4, 6, 8]]
    assert next([step for step, _ in run] for run in chunk.records(every=2)) == [0, 4]


def test_a_mean_of_opposite_infinities_is_no_warning():
    wild = np.zeros((4, 2, 2)) + np.array([np.inf, -np.inf])
    assert np.isnan(told(0, CHUNKS["all well"][0], wild=wild).latest("wild")).all()


def test_pace():
    assert progress.pace(10, 4, 2.0, 30) == (20.0, 6.0)
    assert np.isnan(progress.pace(0, 4, 2.0, 30)).all()


# The list of callbacks


class Typo:
    def on_chunks(self, progress): ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([object()], "must have on_start, on_chunk or on_end"),
        ([Typo()], "did you mean on_chunk"),
        ([types.SimpleNamespace(on_finish=1, onStart=2)], "has onStart: did you mean on_start"),
        ([types.SimpleNamespace(on_chunk="text")], "must have"),
        ([callbacks.Terminal], r"make an object of it, Terminal\(...\)"),
        ([print], "SimpleNamespace"),
        ([None], "NoneType|None"),
        (callbacks.Terminal(), "must be a list"),
        ("Terminal", "must be a list"),
    ],
)
def test_what_cannot_be_called_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        callbacks.check(given)


def test_those_that_listen_are_called_in_order():
    heard = []
    members = [
        types.SimpleNamespace(on_chunk=lambda p: heard.append(("first", p))),
        types.SimpleNamespace(on_end=lambda p: heard.append(("end", p))),
        types.SimpleNamespace(on_chunk=lambda p: heard.append(("second", p))),
    ]
    for event in callbacks.EVENTS:
        callbacks.call(callbacks.check(members), event, event)
    assert heard == [("first", "on_chunk"), ("second", "on_chunk"), ("end", "on_end")]


def test_what_a_callback_raises_is_not_swallowed():
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callbacks.call([types.SimpleNamespace(on_chunk=stop)], "on_chunk", None)


# Lines and tables


LINES = {
    "all well": "diverged 0/4, median loss 3, best loss 0.5 at rate=10,seed=0",
    "best dies": "diverged 2/4, median loss diverged, best loss 2 at rate=0.1,seed=1",
    "all die": "diverged 4/4, median loss diverged, best loss diverged",
    "infinite": "diverged 2/4, median loss diverged, best loss 2 at rate=0.1,seed=1",
}


@pytest.mark.parametrize("name", CHUNKS)
def test_without_a_terminal_a_line_per_chunk(name):
    stream = io.StringIO()
    play(callbacks.Terminal(stream), name)
    first, last = stream.getvalue().splitlines()
    assert last == f"100%, rule=sgd, step 6, {LINES[name]}, 1.23k run-steps/s, ETA 1:01"
    assert first.startswith("50%, rule=sgd, step 2, ")
    assert stream.getvalue().replace("\n", "").isprintable()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen()
    play(callbacks.Terminal(screen), "best dies")
    assert "\x1b" not in screen.getvalue()
    assert screen.getvalue().count("\n") == 2


def test_a_resumed_sweep_says_so():
    stream = io.StringIO()
    play(callbacks.Terminal(stream), "all well", done=8)
    assert stream.getvalue().splitlines()[0] == "50% done before"


def test_standard_error_is_the_default(capsys):
    play(callbacks.Terminal(), "all well")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("best", "told_best"), [("lowest", "2 at rate=0.1,seed=1"), ("highest", "3 at rate=0.1,seed=0")]
)
def test_the_best_may_be_the_highest(best, told_best):
    stream = io.StringIO()
    play(callbacks.Terminal(stream, best=best), "best dies")
    assert f"best loss {told_best}," in stream.getvalue().splitlines()[1]


def test_what_terminal_refuses():
    with pytest.raises(ValueError, match="'lowest' or 'highest', got 'min'"):
        callbacks.Terminal(best="min")
    with pytest.raises(ValueError, match="no 'acc'; choose one of angle, loss"):
        play(callbacks.Terminal(io.StringIO(), variable="acc"), "all well")


def combinations(callback, n=3, name="best dies"):
    callback.on_start(start(total=8 * n))
    for i, (chunk, loss) in itertools.product(range(n), enumerate(CHUNKS[name])):
        rule = (f"rule{i}", "batch")
        callback.on_chunk(told(chunk, loss, combination=rule, before=8 * i, total=8 * n))


def test_a_table_is_drawn_in_place():
    screen = Screen()
    combinations(callbacks.Terminal(screen))
    assert screen.shown() == [
        "rule   norm   step  diverged  median loss  best loss  best at",
        "rule0  batch     6       2/4     diverged          2  rate=0.1,seed=1",
        "rule1  batch     6       2/4     diverged          2  rate=0.1,seed=1",
        "rule2  batch     6       2/4     diverged          2  rate=0.1,seed=1",
        "[####################] 100%, 1.23k run-steps/s, ETA 1:01",
    ]


def test_before_the_first_chunk_a_terminal_says_what_it_waits_for():
    screen = Screen()
    callbacks.Terminal(screen).on_start(start(done=2))
    assert screen.shown() == ["[#####---------------] 25%, the first chunk also compiles"]


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("height", [1, 5, 24])
def test_a_table_keeps_to_the_screen(monkeypatch, width, height):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    screen = Screen()
    combinations(callbacks.Terminal(screen), n=4)
    shown = screen.shown()
    assert max(map(len, shown)) < width
    assert len(shown) == max(3, min(6, height - 1))
    assert shown[-2].startswith("rule3")
    if width >= 80:
        assert ("rows hidden" in shown[-1]) == (height < 7)


def test_colours_only_where_wanted(monkeypatch):
    coloured, plain = Screen(), Screen()
    play(callbacks.Terminal(coloured), "all die")
    monkeypatch.setenv("NO_COLOR", "1")
    play(callbacks.Terminal(plain), "all die")
    assert "\x1b[31msgd" in coloured.getvalue()
    assert "m" not in {part[:3].strip("0123456789")[:1] for part in plain.getvalue().split("\x1b[")}
    assert plain.shown() == coloured.shown()


def test_a_name_cannot_move_the_cursor():
    screen = Screen()
    callbacks.Terminal(screen).on_chunk(
        told(0, CHUNKS["all well"][0], combination=("a\x1b[9A\nb",))
    )
    assert screen.shown()[1].startswith("a?[9A?b  ")


def test_nothing_recorded_is_no_column():
    screen = Screen()
    chunk = told(0, CHUNKS["all well"][0])._replace(trace={}, steps=np.zeros(0, int))
    callbacks.Terminal(screen).on_chunk(chunk)
    assert screen.shown()[:2] == ["rule  diverged", "sgd        0/4"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NAN, "?"),
        (0.0, "0:00"),
        (59.6, "1:00"),
        (3661.0, "1:01:01"),
        (90000.0, "1d 01h"),
        (np.inf, "?"),
    ],
)
def test_durations(seconds, text):
    assert callbacks._duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(NAN, "?"), (0.5, "0.5"), (999.0, "999"), (12345.0, "12.3k"), (2e9, "2G")]
)
def test_speeds(value, text):
    assert callbacks._short(value) == text


# tqdm


@pytest.mark.parametrize("name", CHUNKS)
def test_a_bar(name):
    stream = io.StringIO()
    bar = callbacks.Bar(file=stream, ncols=100, mininterval=0)
    play(bar, name, done=8)
    frames = stream.getvalue().strip().split("\r")
    lost = int(np.isnan(told(1, CHUNKS[name][1]).latest()).sum())
    assert "50%|" in frames[0]
    assert "8.00/16.0" in frames[0]
    assert "100%|" in frames[-1]
    assert f"1.23k run-steps/s, {lost} diverged" in frames[-1]
    assert frames[-1].startswith("rule=sgd:")


def test_a_bar_serves_a_second_sweep_after_one_that_was_stopped():
    stream = io.StringIO()
    bar = callbacks.Bar(file=stream, ncols=100, mininterval=0)
    bar.on_start(start())
    bar.on_chunk(told(0, CHUNKS["all die"][0], combination=("other",)))
    play(bar, "all well")
    assert "0 diverged" in stream.getvalue().strip().split("\r")[-1]


# Trackers


class Recorded:
    """A stand-in for wandb: keeps what it was told."""

    def __init__(self):
        self.runs = []

    def init(self, **options):
        logged = []
        run = types.SimpleNamespace(
            options=options,
            logged=logged,
            summary={},
            finished=False,
            log=lambda values, step: logged.append((step, values)),
        )
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    fake = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize("name", CHUNKS)
def test_wandb_has_a_run_for_each_run(wandb, name):
    play(callbacks.WandB("project", tags=["x"]), name)
    assert [run.options["name"] for run in wandb.runs] == told(0, CHUNKS[name][0]).names()
    assert {run.options["mode"] for run in wandb.runs} == {"offline"}
    assert len({run.options["group"] for run in wandb.runs}) == 1
    first = wandb.runs[0]
    assert first.options["config"] == {"rule": "sgd", "rate": 0.1, "seed": 0}
    assert first.options["tags"] == ["x"]
    assert first.finished
    lost = told(1, CHUNKS[name][1]).diverged().tolist()
    assert [run.summary["diverged"] for run in wandb.runs] == lost
    for run, diverged in zip(wandb.runs, lost, strict=True):
        assert [step for step, _ in run.logged] == [0, 2, 4, 6]
        last = [values["loss"] for _, values in run.logged if "loss" in values][-1]
        assert np.isfinite(last) != diverged
        assert all(values["angle"] == 7.0 for _, values in run.logged)


def test_options_of_wandb_have_the_last_word(wandb):
    play(callbacks.WandB("project", every=2, mode="online", group="mine"), "all well")
    run = wandb.runs[0]
    assert run.options["mode"] == "online"
    assert run.options["group"] == "mine"
    assert [step for step, _ in run.logged] == [0, 4]


def test_runs_are_closed_before_the_next_combination_and_sweep(wandb):
    tracker = callbacks.WandB("project")
    combinations(tracker, n=2)
    assert [run.finished for run in wandb.runs] == [True] * 4 + [False] * 4
    tracker.on_start(start())
    assert all(run.finished for run in wandb.runs)
    assert len({run.options["name"] for run in wandb.runs}) == 8


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboardX")


def scalars(folder):
    """All (tag, step, value) in the event files of a folder, in order."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


@pytest.mark.parametrize("name", CHUNKS)
def test_tensorboard_has_a_folder_for_each_run(tensorboard, tmp_path, name):
    play(callbacks.TensorBoard(tmp_path), name)
    assert {path.name for path in tmp_path.iterdir()} == set(told(0, CHUNKS[name][0]).names())
    found = scalars(tmp_path / "rule=sgd,rate=10,seed=0")
    assert [found for found in found if found[0] == "angle"] == [
        ("angle", step, 7.0) for step in (0, 2, 4, 6)
    ]
    losses = [(step, value) for tag, step, value in found if tag == "loss"]
    every = list(zip((0, 2, 4, 6), np.ravel([chunk[2] for chunk in CHUNKS[name]]), strict=True))
    np.testing.assert_array_equal(losses, every[:3] if name == "all die" else every)


def test_a_resumed_sweep_adds_to_tensorboard(tensorboard, tmp_path):
    for chunk, loss in enumerate(CHUNKS["all well"]):
        board = callbacks.TensorBoard(str(tmp_path))
        board.on_start(start(done=4 * chunk))
        board.on_chunk(told(chunk, loss, combination=("a/b",)))
        board.on_end()
    losses = [
        found for found in scalars(tmp_path / "rule=a_b,rate=0.1,seed=0") if found[0] == "loss"
    ]
    assert losses == [("loss", 0, 4), ("loss", 2, 3), ("loss", 4, 3), ("loss", 6, 3)]


def test_tensorboard_is_on_disk_after_each_chunk(tensorboard, tmp_path):
    board = callbacks.TensorBoard(tmp_path)
    board.on_chunk(told(0, CHUNKS["all well"][0]))
    assert len(scalars(tmp_path / "rule=sgd,rate=0.1,seed=0")) == 4
    board.on_end()


@pytest.mark.parametrize(
    ("package", "make", "advice"),
    [
        ("tqdm", callbacks.Bar, r"'bnrate\[cli\]'"),
        ("tensorboardX", lambda: callbacks.TensorBoard("folder"), r"'bnrate\[tb\]'"),
        ("wandb", lambda: callbacks.WandB("project"), "'wandb>=0.20'"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, make, advice):
    for loaded in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ModuleNotFoundError, match=f"{package} is not installed; pip install {advice}"
    ):
        make()


def test_a_package_that_is_broken_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        callbacks.WandB("project")


def test_every_is_positive(wandb):
    with pytest.raises(ValueError, match="every must be a positive number of records, got 0"):
        callbacks.WandB("project", every=0)
