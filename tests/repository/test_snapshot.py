"""What changed between two looks, over any history of looks."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from farthing.config.model import ModelConfig
from farthing.repository import Changes, FoundModel, Problem, Snapshot, changes, settled

ROOT = Path("/models")


def model(name: str, fingerprint: str = "1") -> FoundModel:
    return FoundModel(
        name=name, folder=ROOT / name, config=ModelConfig(), has_config=False, versions=(), fingerprint=fingerprint
    )


def looks(*, unread: bool = False, **states: str) -> Snapshot:
    """`a="1"` is a model with that fingerprint, `a="!"` one with a problem."""
    return Snapshot(
        models={name: model(name, state) for name, state in states.items() if state != "!"},
        problems={name: Problem(name, "broken", ROOT / name) for name, state in states.items() if state == "!"},
        unread=(ROOT,) if unread else (),
    )


def test_models_come_change_and_go() -> None:
    difference = changes(looks(a="1", b="1", c="1"), looks(b="1", c="2", d="1"))
    assert difference == Changes(added=("d",), removed=("a",), changed=("c",))
    assert not changes(looks(a="1"), looks(a="1"))


def test_a_model_that_breaks_keeps_serving_until_it_is_gone() -> None:
    before = looks(a="1")
    broken = looks(a="!")
    assert not changes(before, broken)
    kept = settled(before, broken)
    assert changes(kept, looks(a="1")) == Changes()
    assert changes(kept, looks(a="2")) == Changes(changed=("a",))
    assert changes(kept, looks()) == Changes(removed=("a",))


def test_a_problem_that_goes_away_is_forgotten() -> None:
    assert changes(looks(a="!"), looks()) == Changes(removed=("a",))
    assert changes(looks(a="!"), looks(a="1")) == Changes(added=("a",))


def test_a_disk_that_is_away_takes_no_model_down() -> None:
    before = looks(a="1", b="1")
    away = looks(unread=True)
    assert not changes(before, away)
    kept = settled(before, away)
    assert changes(kept, looks(a="1")) == Changes(removed=("b",))
    kept = settled(looks(a="!"), away)
    assert changes(kept, looks()) == Changes(removed=("a",))


STATES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("123!"))


@given(st.lists(st.tuples(STATES, st.booleans()), max_size=8))
def test_following_the_changes_ends_where_a_fresh_start_would(history: list[tuple[dict[str, str], bool]]) -> None:
    served: dict[str, str] = {}
    seen = Snapshot()
    for states, unread in history:
        look = looks(unread=True) if unread else looks(**states)
        difference = changes(seen, look)
        for name in difference.removed:
            served.pop(name, None)
        for name in (*difference.added, *difference.changed):
            assert (name in difference.added) == (name not in served)
            served[name] = look.models[name].fingerprint
        seen = settled(seen, look)
        assert served == {name: found.fingerprint for name, found in seen.models.items()}
        if not unread:
            healthy = {name: state for name, state in states.items() if state != "!"}
            assert healthy.items() <= served.items()
            assert served.keys() <= states.keys()
