"""Which heads carried an edge and why they looked there, in words, from tables made by hand."""

from typing import Any

import pyarrow as pa
import pytest

from graphs.attention_tables import COLUMNS
from graphs.attention_words import Names, carried, named, unexplained
from tests.graph_samples import dallas


def rows(*given: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"node": node, "weight": weight} for node, weight in given]


def table(name: str, given: list[dict[str, Any]]) -> pa.Table:
    kinds = COLUMNS[name].items()
    return pa.table(
        {column: pa.array([row.get(column) for row in given], kind) for column, kind in kinds}
    )


def test_features_that_speak_for_a_place_are_named_strongest_first():
    given = rows(("E_5_1", 9.0), ("1_7_3", 1.0), ("0_2_3", 2.0), ("1_-1_3", 5.0), ("2_9_3", -8.0))
    assert named(given) == [("0_2_3", 2.0), ("1_7_3", 1.0)]
    assert named(rows(("0_2_3", 2.0), ("1_7_3", 0.9))) == [("0_2_3", 2.0)]
    assert len(named(rows(*((f"0_{at}_3", 1.0) for at in range(4))))) == 2


def test_where_no_feature_does_the_strongest_other_node_is_named_and_never_a_constant():
    given = rows(("constant.biases", 9.0), ("sink", 8.0), ("rest", 7.0), ("E_5_1", 0.1))
    assert named(given) == [("E_5_1", 0.1)]
    assert named(rows(("1_7_3", -1.0), ("constant.biases", 3.0))) == []


def told() -> tuple[dict[str, pa.Table], Names, list[list[str]]]:
    """An edge of 4 of which head 3.1 carries 3, one of 2 that several heads carry."""
    graph = dallas()
    logit = next(row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "logit")
    first, second = f"E_37_7__{logit}", f"E_35_5__{logit}"
    heads = [
        {"edge": first, "layer": 3, "head": 1, "loading": 3.0},
        {"edge": first, "layer": 3, "head": 2, "loading": -0.5},
        {"edge": first, "layer": 3, "head": -1, "loading": 1.5},
        {"edge": first, "layer": 3, "head": 1, "query": 8, "key": 7, "loading": 3.0},
        {"edge": second, "layer": 3, "head": 1, "loading": -0.8},
        {"edge": second, "layer": 3, "head": 2, "loading": 0.4},
        {"edge": second, "layer": 3, "head": -1, "loading": 2.4},
        {"edge": second, "layer": 3, "head": 2, "query": 8, "key": 5, "loading": 0.4},
    ]
    why = {"explanation": 0, "layer": 3, "head": 1, "query": 8, "key": 7, "contrast": "odds",
           "log_odds": 4.5, "cancellation": 2.0}  # fmt: skip
    sides = [
        {"explanation": 0, "side": "q", "node": "2_1019_8", "weight": 2.0},
        {"explanation": 0, "side": "q", "node": "constant.biases", "weight": 9.0},
        {"explanation": 0, "side": "k", "node": "1_44_7", "weight": 1.0},
        {"explanation": 0, "side": "k", "node": "0_45_7", "weight": 0.8},
    ]
    tables = {
        "heads": table("heads", heads),
        "attention": table("attention", [why]),
        "attention_marginals": table("attention_marginals", sides),
    }
    names = Names(graph.nodes, graph.metadata["tokens"])
    return tables, names, [["E_37_7", logit], ["E_35_5", logit], ["E_37_7", logit]]


def test_a_line_says_the_head_its_part_where_it_looked_and_why():
    tables, names, routes = told()
    first, second = carried(tables, names, routes)
    assert "head 3.1 carries 3 of 4 (beside it 3.2 -0.5), looking from “is” at “Dallas”" in first
    assert first.endswith(
        "because of feature 1019 (L2, at “is”) where it looks from and feature 44 (L1, at “Dallas”)"
        " and feature 45 (L0, at “Dallas”) (log-odds 4.5 against other keys)"
    )
    assert "head 3.2 carries 0.4 of 2 (beside it 3.1 -0.8), no head half of it" in second
    assert second.endswith("looking from “is” at “state”")
    assert unexplained(tables, names, routes) == [(3, 2, 8, 5)]


def test_a_reason_is_given_once():
    tables, names, routes = told()
    heads = tables["heads"].to_pylist()
    other = routes[1]
    heads[-1] |= {"head": 1, "key": 7}
    heads[4] |= {"loading": 1.5}
    tables["heads"] = table("heads", heads)
    first, second = carried(tables, names, [routes[0], other])
    assert "because of" in first
    assert second.endswith("looking from “is” at “Dallas”, as above")
    assert unexplained(tables, names, [routes[0], other]) == []


@pytest.mark.parametrize("missing", ["heads", "attention"])
def test_what_is_not_known_is_left_out(missing: str):
    tables, names, routes = told()
    del tables[missing]
    lines = carried(tables, names, routes)
    assert len(lines) == (0 if missing == "heads" else 2)
    assert not any("because" in line for line in lines)


def test_a_token_that_the_prompt_has_twice_is_told_with_its_position():
    graph = dallas()
    tokens = [*graph.metadata["tokens"][:8], " Dallas"]
    names = Names(graph.nodes, tokens)
    assert names.at(7) == "“Dallas” (7)"
    assert names.token(7) == "“Dallas”"
    assert names.at(2) == "“capital”"
    assert names("E_37_7") == "“Dallas” (7)"
    assert names("3_9999_8") == "feature 9999 (L3, at “Dallas” (8))"
    row = next(row for row in graph.nodes.to_pylist() if row["label"] == "Texas, TX, Lone · Dallas")
    assert names(row["id"]) == "Texas, TX, Lone (L0, at “Dallas” (7))"
    logit = next(row for row in graph.nodes.to_pylist() if row["kind"] == "logit")
    assert "(8)" not in names(logit["id"])
