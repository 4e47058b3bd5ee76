"""The gate: every rule tells its evidence, and no evidence is not a pass."""

from ray_jobs.gate import GatePolicy, Rule, decide


def report(subject="c", n=100, latency=50.0, **scores):
    entries = [{"name": name.replace("__", "/"), "score": score, "ci": [score - 0.05, score + 0.05], "n": n, "slices": []} for name, score in scores.items()]
    return {"subject": subject, "benchmarks": entries, "latency": {"p95_ms": latency, "n": 20}}


POLICY = GatePolicy(rules=(Rule(benchmark="vqa/*", floor=0.6, margin=0.05),), max_latency_p95_ms=100)


def test_good_enough_passes():
    assert decide(POLICY, report(vqa__a=0.8)).verdict == "pass"


def test_below_the_floor_fails_and_says_so():
    decision = decide(POLICY, report(vqa__a=0.5))
    assert decision.verdict == "fail"
    assert decision.rules[0].rule == "floor" and "n = 100" in decision.rules[0].evidence


def test_worse_than_the_champion_by_more_than_the_margin_fails():
    champion = report("old", vqa__a=0.9)
    assert decide(POLICY, report(vqa__a=0.86), champion).verdict == "pass"
    assert decide(POLICY, report(vqa__a=0.80), champion).verdict == "fail"


def test_few_items_are_not_enough():
    assert decide(POLICY, report(vqa__a=0.9, n=5)).verdict == "insufficient"


def test_a_source_too_small_to_tell_does_not_stop_the_others():
    candidate = report(vqa__a=0.9, vqa__small=0.1)
    candidate["benchmarks"][1]["n"] = 3
    decision = decide(POLICY, candidate)
    assert decision.verdict == "pass"
    assert [r.benchmark for r in decision.rules if r.verdict == "skipped"] == ["vqa/small"]


def test_a_benchmark_the_candidate_lacks_is_not_enough():
    assert decide(POLICY, report(vqa__a=0.9), report("old", vqa__a=0.9, vqa__b=0.9)).verdict == "insufficient"
    assert decide(POLICY, report()).verdict == "insufficient"


def test_a_benchmark_the_champion_lacks_needs_only_its_floor():
    assert decide(POLICY, report(vqa__a=0.9, vqa__new=0.7), report("old", vqa__a=0.9)).verdict == "pass"


def test_a_slice_that_falls_fails():
    candidate, champion = report(vqa__a=0.9), report("old", vqa__a=0.9)
    candidate["benchmarks"][0]["slices"] = [{"name": "modality=CT", "score": 0.5, "ci": [0.4, 0.6], "n": 40}]
    champion["benchmarks"][0]["slices"] = [{"name": "modality=CT", "score": 0.9, "ci": [0.8, 1.0], "n": 40}]
    decision = decide(POLICY, candidate, champion)
    assert decision.verdict == "fail" and "modality=CT" in decision.to_markdown()


def test_slow_answers_fail():
    assert decide(POLICY, report(vqa__a=0.9, latency=500)).verdict == "fail"
