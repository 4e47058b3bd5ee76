"""The gate: may this candidate become champion? A policy in params, a verdict with evidence for every rule."""

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["pass", "fail", "insufficient"]
# A benchmark too small to tell is skipped where its rule has others that can.
RowVerdict = Literal["pass", "fail", "insufficient", "skipped"]


class Rule(BaseModel):
    """For benchmarks whose name matches `benchmark` (with * and ?)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    benchmark: str
    floor: float | None = Field(None, description="least score")
    margin: float | None = Field(None, ge=0, description="how much worse than the champion is still not worse")
    min_n: int = Field(20, ge=1, description="items below which there is no evidence")


class GatePolicy(BaseModel):
    """What a candidate must show."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rules: tuple[Rule, ...] = (
        Rule(benchmark="vqa/*", margin=0.03),
        Rule(benchmark="vqa/unimed-mini", floor=0.6),
        Rule(benchmark="generation/modality-agreement", floor=0.5, margin=0.15),
        Rule(benchmark="interleaved/*-psnr", floor=8.0, margin=4.0, min_n=4),
    )
    slice_margin: float = Field(0.15, ge=0, description="for slices of vqa benchmarks, against the champion")
    max_latency_p95_ms: float = Field(2000, gt=0)
    human_approval: bool = False


@dataclass(frozen=True)
class RuleResult:
    """One rule on one benchmark or slice."""

    rule: str
    benchmark: str
    verdict: RowVerdict
    value: float
    threshold: float
    evidence: str


@dataclass(frozen=True)
class GateDecision:
    """The verdict and everything it rests on."""

    verdict: Verdict
    candidate: str
    champion: str | None
    rules: list[RuleResult] = field(default_factory=list)

    def to_json(self) -> dict:
        return asdict(self)

    def to_markdown(self) -> str:
        """A table for people."""
        head = f"# Gate: **{self.verdict}**\n\ncandidate `{self.candidate}` · champion `{self.champion or 'none yet'}`\n\n"
        head += "| rule | benchmark | value | threshold | verdict | evidence |\n| --- | --- | --- | --- | --- | --- |\n"
        return head + "".join(f"| {r.rule} | {r.benchmark} | {r.value:.3f} | {r.threshold:.3f} | {r.verdict} | {r.evidence} |\n" for r in self.rules)


def decide(policy: GatePolicy, candidate: dict, champion: dict | None = None) -> GateDecision:
    """Judge a candidate's evaluation report, beside the champion's on the same release where there is one."""
    results = [r for rule in policy.rules for r in _apply(rule, candidate, champion)]
    results += _slices(policy, candidate, champion) + [_latency(policy, candidate)]
    verdicts = {r.verdict for r in results}
    verdict = "fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass"
    return GateDecision(verdict, candidate["subject"], champion["subject"] if champion else None, results)


def _apply(rule: Rule, candidate: dict, champion: dict | None) -> list[RuleResult]:
    found = [b for b in candidate["benchmarks"] if fnmatch(b["name"], rule.benchmark)]
    if not found and rule.floor is not None:
        return [RuleResult("present", rule.benchmark, "insufficient", 0, 1, "the candidate was not evaluated on it")]
    before = {b["name"]: b for b in champion["benchmarks"]} if champion else {}
    judged = [entry for entry in found if entry["n"] >= rule.min_n] or found
    results = [RuleResult("enough items", e["name"], "skipped", e["n"], rule.min_n, "too few items to tell") for e in found if e not in judged]
    for entry in judged:
        results += [_floor(rule, entry)] if rule.floor is not None else []
        results += [_not_worse(rule.margin, rule.min_n, entry["name"], entry, before[entry["name"]])] if rule.margin is not None and entry["name"] in before else []
    missing = [name for name in before if fnmatch(name, rule.benchmark) and name not in {b["name"] for b in candidate["benchmarks"]}]
    return results + [RuleResult("present", name, "insufficient", 0, 1, "the champion has it, the candidate does not") for name in missing]


def _floor(rule: Rule, entry: dict) -> RuleResult:
    if entry["n"] < rule.min_n:
        return RuleResult("floor", entry["name"], "insufficient", entry["score"], rule.floor, f"n = {entry['n']} < {rule.min_n}")
    verdict = "pass" if entry["score"] >= rule.floor else "fail"
    return RuleResult("floor", entry["name"], verdict, entry["score"], rule.floor, f"95 % interval {entry['ci'][0]:.3f} to {entry['ci'][1]:.3f}, n = {entry['n']}")


def _not_worse(margin: float, min_n: int, name: str, entry: dict, before: dict) -> RuleResult:
    """Fails only where the candidate is worse by more than the margin; both scores are over the same items."""
    threshold = before["score"] - margin
    if min(entry["n"], before["n"]) < min_n:
        return RuleResult("not worse than champion", name, "insufficient", entry["score"], threshold, f"n = {min(entry['n'], before['n'])} < {min_n}")
    verdict = "pass" if entry["score"] >= threshold else "fail"
    return RuleResult("not worse than champion", name, verdict, entry["score"], threshold, f"champion {before['score']:.3f}, margin {margin:.3f}, n = {entry['n']}")


def _slices(policy: GatePolicy, candidate: dict, champion: dict | None) -> list[RuleResult]:
    results = []
    for entry in candidate["benchmarks"]:
        before = next((b for b in champion["benchmarks"] if b["name"] == entry["name"]), None) if champion else None
        if before and entry["name"].startswith("vqa/"):
            held = {s["name"]: s for s in before["slices"]}
            shared = [s for s in entry["slices"] if s["name"] in held]
            results += [_not_worse(policy.slice_margin, 1, f"{entry['name']} [{s['name']}]", s, held[s["name"]]) for s in shared]
    return results


def _latency(policy: GatePolicy, candidate: dict) -> RuleResult:
    found, limit = candidate["latency"]["p95_ms"], policy.max_latency_p95_ms
    return RuleResult("latency budget", "answer p95 (ms)", "pass" if found <= limit else "fail", found, limit, f"n = {candidate['latency']['n']}")
