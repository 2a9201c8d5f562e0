"""What is measured and chosen, on a clock of our own."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_sweep import GRID, HALF, Quadratic, work_of

from bnrate import sweep
from bnrate.sweep import caching, programs, tuning
from bnrate.sweep.programs import Way

FLAG = ("xla_cpu_prefer_vector_width", "256")  # an option that every compiler knows


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Seconds of each way, as a table says; compiling takes none; nothing is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_BUDGET", np.inf)
    monkeypatch.setattr(tuning, "_MEMORY", np.inf)
    monkeypatch.setitem(tuning._OPTIONS, "cpu", (FLAG,))
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 8)

    def set_to(table):
        def seconds(self, one, records=None):
            return table(one.way)

        monkeypatch.setattr(tuning._Search, "_seconds", seconds)

    return set_to


TABLES = {
    "one at a time": (lambda way: 1.0 * way.width, Way(1)),
    "more together": (lambda way: 1 / way.width, Way(8)),
    "some together": (lambda way: {1: 1.0, 4: 0.5}.get(way.width, 0.7), Way(4)),
    "an option": (lambda way: 1.0 if not way.options else 0.5 * way.width, Way(1, (FLAG,))),
    "both": (lambda way: (1.0 if not way.options else 0.9) / way.width, Way(8, (FLAG,))),
    "no gain to speak of": (lambda way: 1.0 if way == Way(1) else 0.99, Way(1)),
}


@pytest.mark.parametrize(("table", "expected"), TABLES.values(), ids=TABLES)
def test_the_fastest_way_is_found(table, expected, clock):
    clock(table)
    chosen = tuning.fastest(work_of(HALF, 1))
    assert chosen.way == expected
    assert chosen.place.width == expected.width
    assert "the fastest measured, against" in chosen.how


def test_a_choice_is_remembered_for_the_same_problem_only(clock):
    clock(TABLES["more together"][0])
    assert tuning.fastest(work_of(HALF, 1)).way == Way(8)
    clock(TABLES["one at a time"][0])
    again = tuning.fastest(work_of(HALF, 1))
    assert again.way == Way(8)
    assert again.how == "the fastest when measured before"
    assert tuning.fastest(work_of(HALF, 2)).way == Way(1)
    caching._file().write_text("{ damaged")
    assert tuning.fastest(work_of(HALF, 1)).way == Way(1)


def test_a_short_sweep_is_not_delayed(clock, monkeypatch):
    clock(TABLES["more together"][0])
    monkeypatch.setattr(tuning, "_BUDGET", 0.0)
    chosen = tuning.fastest(work_of(HALF, 1))
    assert chosen.way == Way(1)
    assert chosen.how == "the usual; measuring would cost more"
    assert caching.ways() == {}


def test_an_option_that_the_compiler_does_not_know_is_left_out(clock, monkeypatch):
    monkeypatch.setitem(tuning._OPTIONS, "cpu", (("xla_no_such_option", "1"),))
    clock(lambda way: 1.0 if not way.options else 0.1)
    assert tuning.fastest(work_of(GRID, 1)).way.options == ()


def test_devices_that_are_one_core_each_try_no_option(clock, monkeypatch):
    clock(TABLES["an option"][0])
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 2)
    assert tuning.fastest(work_of(HALF, 1)).way == Way(1, (FLAG,))
    assert tuning.fastest(work_of(HALF, 2)).way == Way(1)


def test_a_width_that_does_not_fit_is_left_out(clock, monkeypatch):
    clock(TABLES["more together"][0])
    needed = programs.needed_bytes(tuning.compiled(work_of(HALF, 1), Way(4)).advance)
    monkeypatch.setattr(programs, "free_bytes", lambda device: needed)
    assert tuning.fastest(work_of(HALF, 1)).way == Way(4)


def test_far_more_memory_is_not_even_tried(clock, monkeypatch):
    clock(TABLES["more together"][0])
    monkeypatch.setattr(tuning, "_MEMORY", 1.01)
    assert tuning.fastest(work_of(HALF, 1)).way == Way(8)  # all fits the cache
    monkeypatch.setattr(tuning, "_CACHE", 0)
    chosen = tuning.fastest(work_of(HALF, 2))
    assert chosen.way == Way(1)
    assert "4 at a time" not in chosen.how


def test_where_there_is_nothing_to_compare_with_it_says_so(clock, monkeypatch):
    clock(TABLES["more together"][0])
    monkeypatch.setattr(tuning, "_MEMORY", 1.01)
    monkeypatch.setattr(tuning, "_CACHE", 0)
    monkeypatch.setitem(tuning._OPTIONS, "cpu", ())
    chosen = tuning.fastest(work_of(HALF, 1))
    assert chosen.way == Way(1)
    assert chosen.how == "the usual; no other promises more"
    assert caching.ways() == {}


def test_a_way_that_was_remembered_but_fits_no_more_is_measured_anew(clock, monkeypatch):
    clock(TABLES["more together"][0])
    assert tuning.fastest(work_of(HALF, 1)).way == Way(8)
    needed = programs.needed_bytes(tuning.compiled(work_of(HALF, 1), Way(4)).advance)
    monkeypatch.setattr(programs, "free_bytes", lambda device: needed)
    assert tuning.fastest(work_of(HALF, 1)).way == Way(4)


def test_the_real_clock(monkeypatch, tmp_path):
    """What is measured on the runs themselves leaves them as they were."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_BUDGET", np.inf)
    tuned = sweep.run(Quadratic, HALF, steps=50)
    plain = sweep.run(Quadratic, HALF, steps=50, executor="map")
    np.testing.assert_allclose(tuned["w"], plain["w"], rtol=1e-5)
    (known,) = json.loads((tmp_path / "bnrate" / "ways.json").read_text()).values()
    assert str(Way.from_json(known)) in tuned.attrs["executed"][0]


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(caching.Path, "home", home)
    caching.remember_way("problem", {"width": 1})
    assert caching.ways() == {}
    caching.cache_compilations()


def test_no_folder_to_remember_in(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    caching.remember_way("problem", {"width": 1})
    assert caching.ways() == {}


def test_compilations_are_cached_where_asked(monkeypatch, tmp_path):
    set_to = {}
    config = SimpleNamespace(jax_compilation_cache_dir=None, update=set_to.__setitem__)
    monkeypatch.setattr(caching.jax, "config", config)
    caching.cache_compilations(tmp_path / "mine")
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caching.cache_compilations()
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "bnrate" / "programs")
