"""The benchmark of leases: a small simulation of workers that die and stall, whose work is all done in the end."""

from benchmarks import leases
from ldlm.features.shares import Share, in_turn


def test_few_workers_that_die_and_stall_often_lose_no_shard(monkeypatch):
    for name in ("BETWEEN_DEATHS", "BETWEEN_STALLS"):
        monkeypatch.setattr(leases, name, 0.5)
    found = leases.Simulation(workers=5, hours=0.5).run()
    assert found["shards"] == 150 and found["lost"] == 0
    assert found["deaths"] and found["stalls"] and found["taken"]
    assert found["twice"] < 30 and found["ratio"] > 1


def test_the_benchmark_measures_and_reports(monkeypatch, tmp_path):
    for name, value in {"WORKERS": 5, "HOURS": 0.1, "CLAIMS": 10}.items():
        monkeypatch.setattr(leases, name, value)
    found = leases.run(tmp_path)
    assert found["simulation"]["shards"] == 30 and found["simulation"]["lost"] == 0
    assert "shards lost" in leases.report(found)


def test_simulated_workers_take_shards_in_the_order_of_real_ones_to_the_other_side():
    simulation = leases.Simulation(workers=4, hours=0.1)
    shards = list(range(simulation.shards))
    for number in range(4):
        own, others = shards[6 * number : 6 * number + 6], [*shards[: 6 * number], *shards[6 * number + 6 :]]
        real = in_turn(shards, Share(number, 4))
        assert list(simulation.order(number))[:6] == real[:6] == own
        stretches = [real[start] // 6 for start in range(6, 24, 6)]
        assert real[6:] == [shard for one in stretches for shard in range(6 * one + 5, 6 * one - 1, -1)]
        assert list(simulation.order(number))[6:] == [
            shard for one in stretches[::-1] for shard in range(6 * one + 5, 6 * one - 1, -1)
        ]
        assert sorted(real[6:]) == others
