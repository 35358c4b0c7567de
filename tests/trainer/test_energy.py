"""CO2 and water as section 6.5 of the report counts them."""

import pytest

from trainer.config import EnergyConfig
from trainer.energy import footprint, totals

# Table 19: MWh of the GPUs, PUE, kg CO2 a kWh, litres a kWh -> tonnes of CO2, kilolitres of water.
TABLE_19 = {
    "OLMo 7B": (104, 1.1, 0.610, 4.26, 70, 487),
    "OLMo 2 7B": (131, 1.2, 0.332, 1.29, 52, 202),
    "OLMo 2 13B": (257, 1.12, 0.351, 3.10, 101, 892),
}


@pytest.mark.parametrize("model", TABLE_19)
def test_a_row_of_table_19(model: str) -> None:
    mwh, pue, carbon, water, co2_tonnes, water_kilolitres = TABLE_19[model]
    found = footprint(1000 * mwh, EnergyConfig(pue, carbon, water))
    # The energy is printed in whole MWh, and so is what follows from it: the 7B's water is rounded down or comes from 130.5 MWh.
    for value, printed in ((found.co2_tonnes, co2_tonnes), (found.water_kilolitres, water_kilolitres)):
        assert value == pytest.approx(printed, abs=0.5 + 0.5 * printed / mwh)


def test_water_on_site_counts_too_and_joules_become_kilowatt_hours() -> None:
    centre = EnergyConfig(2.0, 0.5, 3.0, water_onsite_litres_per_kwh=1.0)
    assert totals(3.6e9, centre) == pytest.approx({"gpu_kwh": 1000, "co2_tonnes": 1.0, "water_kilolitres": 8.0})
    assert totals(0.0, centre) == {}
