"""The benchmark of leases: a small simulation of workers that die and stall, whose work is all done in the end."""

from benchmarks import leases


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
