"""Some seeds of the campaign; ``make fuzz`` runs any number."""

import pytest

from fuzz.models import case
from fuzz.oracles import ORACLES, OracleError, SkippedError, settled
from fuzz.reduce import reduced

SEEDS = {"exact": 200, "twice": 15, "lowered": 20, "dead": 25, "cut": 40, "passes": 20}
"""How many each oracle sees here: together as many seconds as a test may take."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("oracle", ORACLES)
def test_oracle(oracle):
    failed = {}
    for seed in range(SEEDS[oracle]):
        try:
            ORACLES[oracle](settled(case(seed)))
        except SkippedError:
            continue
        except OracleError as error:
            failed[seed] = str(error)
    assert failed == {}


def test_what_the_runtime_refuses_is_no_failure():
    whole = next(case(seed) for seed in range(99) if case(seed).units)
    whole.model.graph.node[0].op_type = "Nothing"
    with pytest.raises(SkippedError, match="refused by the runtime"):
        settled(whole)


def test_a_failure_is_reduced():
    def oracle(case):
        if any(node.op_type == "Softmax" for node in case.model.graph.node):
            raise OracleError("mismatch: there is a Softmax")

    whole = next(case(seed) for seed in range(99) if len(case(seed).units) > 1)
    small = reduced(whole, oracle)
    assert any(node.op_type == "Softmax" for node in small.model.graph.node)
    assert len(small.model.graph.node) < len(whole.model.graph.node) / 3
