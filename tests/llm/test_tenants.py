"""Who was served how much."""

from farthing.llm import tenants
from farthing.llm.tenants import GENERATED_COST, Tenants


def test_who_comes_back_after_a_pause_has_saved_up_nothing() -> None:
    counters = Tenants()
    counters.came("busy")
    counters.charge("busy", 100.0)
    counters.came("late")
    assert counters.served["late"] == 100.0


def test_who_left_in_debt_comes_back_in_debt() -> None:
    counters = Tenants()
    counters.came("modest")
    counters.came("greedy")
    counters.charge("greedy", 500.0)
    counters.left("greedy")
    counters.came("greedy")
    assert counters.served["greedy"] == 500.0


def test_a_generated_token_costs_less_who_weighs_more() -> None:
    counters = Tenants({"b": 4.0})
    for name in "ab":
        counters.came(name)
    for name in "ab":
        counters.charge_generated(name)
    assert counters.served == {"a": GENERATED_COST, "b": GENERATED_COST / 4}


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    counters = Tenants()
    counters.came("here")
    for number in range(tenants.TENANTS_MAX + 500):
        counters.came(str(number))
        counters.left(str(number))
    assert len(counters.served) <= tenants.TENANTS_MAX + 1
    assert "here" in counters.served
