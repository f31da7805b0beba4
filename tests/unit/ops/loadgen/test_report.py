from array import array

from paywarden.ops.loadgen.report import quantiles_ms


def test_a_quantile_is_the_latency_that_its_share_does_not_exceed() -> None:
    seconds = array("d", (number / 1000 for number in range(1000, 0, -1)))
    assert quantiles_ms(seconds, (0.5, 0.999, 1.0)) == [500.0, 999.0, 1000.0]
    assert quantiles_ms(array("d"), (0.5, 1.0)) == [0.0, 0.0]
