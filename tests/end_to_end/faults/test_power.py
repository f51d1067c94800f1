import math

import pytest

from tests.end_to_end.faults.power import CERTAIN, RISK, Effect, least_found, most_expected, wilson


def binomial(n: int, p: float, k: int) -> float:
    """Probability of fewer than ``k`` of ``n``."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k))


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("sigmas", [-1.0, 0.0, 1.0, 2.0, 3.5])
def test_as_many_must_be_found_as_the_binomial_distribution_allows(n: int, sigmas: float) -> None:
    p = 0.5 * (1 + math.erf(sigmas / math.sqrt(2)))
    k = least_found([sigmas] * n)
    assert binomial(n, p, k) <= RISK
    assert k == n or binomial(n, p, k + 1) > RISK


def test_trainings_of_unequal_strength_count_each_with_its_own() -> None:
    assert least_found([9.0, 9.0, -9.0]) == 2
    assert least_found([-9.0] * 3) == 0
    assert least_found([]) == 0


def test_what_has_no_noise_must_be_found_each_time() -> None:
    assert least_found([CERTAIN.sigmas] * 5) == 5


def test_an_effect_of_logs_is_relative() -> None:
    assert Effect.of_logs(8.0, 2.0, math.log(2)).sigmas == pytest.approx(2.0)


def test_the_interval_of_a_share_is_the_one_of_the_textbooks() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = wilson(6, 6)
    assert low == pytest.approx(0.6097, abs=1e-4)
    assert high == pytest.approx(1.0)
    assert wilson(0, 6) == pytest.approx((0.0, 1 - low))
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "most"), [(0, 2.9957), (1, 4.7439), (2, 6.2958), (10, 16.9622)])
def test_as_many_alarms_must_be_expected_as_the_exact_interval_says(count: int, most: float) -> None:
    assert most_expected(count) == pytest.approx(most, abs=1e-3)
