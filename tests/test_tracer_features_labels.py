"""Labels against features that were planted, by hand and by law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests import planted
from tests.planted import FRUIT, condition, on, predicate, word
from tracer import TraceError
from tracer.features.labels.choosing import Label, Side, how_mixed, label
from tracer.features.labels.kinds_of_context import Contexts, effective
from tracer.features.labels.observed import Observed
from tracer.features.labels.predicates import (
    KINDS,
    Clause,
    Condition,
    Predicate,
    Text,
)
from tracer.features.labels.scoring import always, covered, false, score
from tracer.features.labels.search import Search

ROW = Text(
    np.array([[5, 1, 2, 3, 4, 9, 1, -1]]),
    np.array([[1, 2, 3, 4, 9, 1, 7, -1]]),
    np.array([[False, True, True, True, True, True, True, False]]),
)


@pytest.mark.parametrize(
    ("tested", "where", "said"),
    [
        (on(1), [1, 6], "on “w1”"),
        (condition("after", 1, 9), [2, 6, 7], "after “w1” or “w9”"),
        (condition("near", 5), [1, 2, 3, 4], "near “w5”"),
        (condition("with", 2), [3, 4, 5, 6, 7], "with “w2”"),
        (condition("says", 9, 7), [4, 6], "says “w9” or “w7”"),
        (condition("promotes", 9), [4], "promotes “w9”"),
        (Condition("repeated"), [6], "repeated"),
        (Condition("on", (FRUIT, word(1))), [0, 1, 3, 4, 5, 6], "on a fruit or “w1”"),
    ],
)
def test_a_condition_holds_where_it_says(tested: Condition, where: list[int], said: str):
    assert np.flatnonzero(tested.holds(ROW)[0]).tolist() == where
    assert str(tested) == said


def test_clauses_join_conditions_and_predicates_clauses():
    made = predicate((on(1, 2), condition("with", 5)), (condition("says", 7),))
    assert np.flatnonzero(made.holds(ROW)[0]).tolist() == [1, 2, 6]
    assert str(made) == "on “w1” or “w2”, with “w5”; or says “w7”"
    assert made.size == 3
    assert [str(one) for one in made.narrowed()] == [
        "on “w1”, with “w5”",
        "on “w2”, with “w5”",
        "on “w1” or “w2”, with “w5”",
        "says “w7”",
    ]


def test_more_than_five_alternatives_are_refused():
    assert predicate((on(1, 2, 3, 4, 5),)).size == 5
    with pytest.raises(TraceError, match="6 alternatives, at most 5"):
        predicate((on(1, 2, 3, 4, 5, 6),))
    with pytest.raises(TraceError, match="6 alternatives, at most 5"):
        predicate((on(1, 2, 3, 4),), (on(5, 6),))


def test_only_lists_of_what_it_fires_on_are_plain():
    assert predicate((on(1, 2),)).plain_list
    assert predicate((Condition("on", (FRUIT,)),)).plain_list
    assert not predicate((condition("says", 1),)).plain_list
    assert not predicate((on(1), condition("with", 2))).plain_list


lists = st.lists(st.integers(0, planted.WORDS - 1), min_size=1, max_size=2, unique=True)
conditions = st.builds(
    lambda kind, tokens: Condition(kind) if kind == "repeated" else condition(kind, *tokens),
    st.sampled_from(KINDS),
    lists,
)
clauses = st.lists(conditions, min_size=1, max_size=2).map(tuple)
predicates = st.lists(clauses, min_size=1, max_size=2).map(lambda found: predicate(*found))
NOTHING = planted.sides([predicate((on(0),))]).pick


@given(predicates)
@settings(max_examples=40, deadline=None)
def test_what_is_counted_is_where_a_predicate_holds(tested: Predicate):
    found = covered(tested, NOTHING.families, NOTHING.names)
    text = NOTHING.observed.text
    assert found.tolist() == np.flatnonzero(tested.holds(text)[text.counts]).tolist()


@given(predicates)
@settings(max_examples=40, deadline=None)
def test_a_predicate_survives_json(tested: Predicate):
    assert Predicate.from_json(tested.as_json(), {}) == tested


def test_a_class_that_is_not_given_is_refused():
    made = Predicate((Clause((Condition("on", (FRUIT,)),)),))
    assert Predicate.from_json(made.as_json(), {FRUIT.name: FRUIT.ids}) == made
    with pytest.raises(TraceError, match="class 'a fruit', which is not given"):
        Predicate.from_json(made.as_json(), {})


def test_scores_by_hand():
    found = score(np.array([1, 2, 3, 4]), np.array([3, 4, 5]))
    assert found is not None
    assert (found.precision, found.recall, found.fires, found.holds) == (0.5, 2 / 3, 3, 4)
    assert found.f1 == pytest.approx(4 / 7)
    assert score(np.array([1]), np.array([], dtype=int)) is None
    assert always(10, 100) == pytest.approx(20 / 110)
    assert always(0, 100) == 0


PLANTED = {
    "a word": predicate((on(20),)),
    "three words": predicate((on(12, 25, 33),)),
    "a class": Predicate((Clause((Condition("on", (FRUIT,)),)),)),
    "after": predicate((condition("after", 14, 18),)),
    "said": predicate((condition("says", 30, 31),)),
    "near": predicate((condition("near", 40),)),
    "with": predicate((condition("with", 45),)),
    "a word with": predicate((on(1, 2), condition("with", 20))),
    "a word after": predicate((on(3), condition("after", 1, 2))),
    "said near": predicate((condition("near", 22), condition("says", 12, 13, 14))),
    "two": predicate((on(28),), (condition("after", 16),)),
}


@pytest.fixture(scope="module")
def recovered() -> dict[str, Label]:
    found = planted.sides([*PLANTED.values()])
    return {name: label(found, 0, at, 1.0) for at, name in enumerate(PLANTED)}


def agreement(found: Label, name: str) -> float:
    """F1 of the recovered predicate with the planted one, noise apart."""
    text = planted.text(4)
    mine = found.predicate.holds(text) if found.predicate else np.zeros(text.tokens.shape, bool)
    true = PLANTED[name].holds(text)
    return 2 * float((mine & true).sum()) / float(mine.sum() + true.sum())


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_recovered(recovered: dict[str, Label], name: str):
    found = recovered[name]
    assert agreement(found, name) > 0.99, found.predicate
    assert found.shown
    assert found.held_out is not None
    truth = held_out_truth(name)
    assert found.held_out.f1 >= truth - 0.02
    assert found.held_out.f1 > found.always
    assert found.contradicted == ()


def held_out_truth(name: str) -> float:
    """F1 of the planted predicate itself, which the noise keeps below 1."""
    at = [*PLANTED].index(name)
    side = planted.sides([*PLANTED.values()]).held_out
    found = side.score(PLANTED[name], side.observed.firing(0, at))
    assert found is not None
    return found.f1


def test_labels_recover_the_very_predicates(recovered: dict[str, Label]):
    same = [name for name, found in recovered.items() if found.predicate == PLANTED[name]]
    alike = {
        name
        for name, found in recovered.items()
        if found.predicate
        and {str(one) for one in found.predicate.narrowed()}
        == {str(one) for one in PLANTED[name].narrowed()}
    }
    assert len({*same} | alike) >= 8, {
        name: str(found.predicate) for name, found in recovered.items()
    }


def test_the_word_that_is_right_comes_before_the_one_that_is_often_right():
    """Word 20 always and word 10, more often in all, two times of three: F1 .64 against .58."""
    known = planted.text(1)
    here, chance = known.tokens[known.counts], np.random.default_rng(0).random(known.counts.sum())
    fires = (here == 20) | ((here == 10) & (chance < 0.65))
    assert (here[fires] == 10).sum() > (here[fires] == 20).sum()
    made = Observed(known, {0: sparse.csr_array(fires[None].astype(np.float32))}, "1")
    side = Side(made, planted.names())
    search = Search(side.families, side.names, {})
    for most, words in ((1, [20]), (2, [20, 10])):
        found = search.clauses(np.flatnonzero(fires), most=most)
        [listed] = [one for one in found if [c.kind for c in one.clause.conditions] == ["on"]]
        assert listed.clause.conditions[0].alternatives == tuple(word(one) for one in words)
        assert listed.hits == fires[np.isin(here, words)].sum()


def test_noise_is_not_named():
    """A feature that fires at random has no true label, and one that fires rarely none at all."""
    rare = predicate((on(59), condition("after", 58)))
    found = planted.sides([rare, predicate((on(20),))], planted.Noise(missed=1.0, wrong=0.02))
    assert not label(found, 0, 0, 1.0).shown
    silent = planted.sides([rare], planted.Noise(missed=1.0, wrong=0.0))
    nothing = label(silent, 0, 0, 1.0)
    assert (nothing.predicate, nothing.held_out, nothing.shown) == (None, None, False)
    assert (nothing.fires, nothing.always, nothing.token_list) == (0, 0.0, 0.0)
    assert (nothing.contradicted, nothing.mixed, nothing.polysemantic) == ((), None, False)


def test_a_label_that_the_text_held_out_contradicts_is_not_shown():
    """Chosen where two words fire, scored where one of them no longer does."""
    both, one = predicate((on(10, 11),)), predicate((on(10),))
    quiet = planted.Noise(0.0, 0.0)
    early, late = planted.sides([both], quiet), planted.sides([one], quiet)
    found = label(type(early)(early.pick, early.check, late.held_out), 0, 0, 1.0)
    assert str(found.predicate) == "on “w10” or “w11”"
    assert found.contradicted == ("on “w11”",)
    assert found.held_out is not None
    assert found.held_out.f1 > 0.5
    assert not found.shown


def test_what_the_second_text_contradicts_is_taken_out():
    both, one = predicate((on(10, 11),)), predicate((on(10),))
    quiet = planted.Noise(0.0, 0.0)
    early, late = planted.sides([both], quiet), planted.sides([one], quiet)
    found = label(type(early)(early.pick, late.check, late.held_out), 0, 0, 1.0)
    assert str(found.predicate) == "on “w10”"
    assert found.shown
    there = late.held_out.observed.firing(0, 0)
    wrong = Clause((on(11),))
    assert false(wrong, there, late.held_out.families, late.held_out.names)


def test_weak_activations_are_left_out_of_what_cannot_be_said_of_them():
    """It fires anywhere a little, and much on one word: the label says above which activation."""
    strong = planted.sides([predicate((on(20),))], planted.Noise(0.0, 0.0))
    loud = planted.sides([predicate((on(20),))], planted.Noise(0.0, 0.1))
    for side, clean in zip(
        (loud.pick, loud.check, loud.held_out),
        (strong.pick, strong.check, strong.held_out),
        strict=True,
    ):
        fires, true = side.observed.fires[0], clean.observed.fires[0]
        fires.data[:] = np.where(np.isin(fires.indices, true.indices), 1.0, 0.1)
    found = label(loud, 0, 0, 1.0)
    assert str(found.predicate) == "on “w20”"
    assert found.above == 0.25
    assert found.held_out is not None
    assert found.held_out.f1 == 1


def spoken(phrases: list[tuple[int, ...]], rows: int = 90) -> Side:
    """Rows of other words in which phrases stand in turns; their last words are fired on."""
    drawn = np.random.default_rng(0)
    tokens = drawn.integers(30, 60, (rows, 10)).astype(np.int32)
    for row in range(rows):
        phrase = phrases[row % len(phrases)]
        tokens[row, 5 : 5 + len(phrase)] = phrase
    text = Text(tokens, np.full_like(tokens, -1), np.ones(tokens.shape, dtype=bool))
    words = predicate((on(*{phrase[-1] for phrase in phrases}),))
    fires = words.holds(text)[text.counts][None].astype(np.float32)
    seen = Observed(text, {0: sparse.csr_array(fires)}, "")
    return Side(seen, planted.names())


def test_unrelated_alternatives_make_a_feature_polysemantic():
    """Words in the same phrase are of one kind, words in different phrases of two."""
    alike = spoken([(20, 21, 10), (20, 21, 11)])
    apart = spoken([(20, 21, 10), (22, 23, 11)])
    single = spoken([(20, 21, 10), (22, 23, 10)])
    made = predicate((on(10, 11),))
    assert how_mixed(alike, made, alike.observed.firing(0, 0)) == (1.0, False)
    assert how_mixed(apart, made, apart.observed.firing(0, 0)) == (pytest.approx(2.0), True)
    only = predicate((on(10),))
    assert how_mixed(single, only, single.observed.firing(0, 0)) == (1.0, False)


def test_without_a_true_label_the_contexts_of_firings_say_how_mixed_a_feature_is():
    apart = spoken([(20, 21, 10), (22, 23, 11)])
    mixed, polysemantic = how_mixed(apart, None, apart.observed.firing(0, 0))
    assert mixed is not None
    assert 2 <= mixed < 3  # what stands around the phrases is never the same
    assert polysemantic
    assert effective(np.array([0.5, 0.25, 0.25])) == pytest.approx(2 * 2**0.5)


def test_contexts_of_a_token_weigh_as_much_as_any_others():
    """What stands near and what is said next count one each, however rare their words."""
    side = Side(
        planted.observed([planted.predicate((planted.on(3),))], 1, planted.Noise()), planted.names()
    )
    squares = Contexts(side.families, side.names).matrix.power(2).sum(1)
    assert squares == pytest.approx(np.round(squares))
    assert set(np.round(squares)) <= {1.0, 2.0}
