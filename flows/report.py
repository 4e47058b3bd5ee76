"""Results as text for people."""

from math import ceil

from flows.console import table


def retraining(result: dict) -> str:
    """A retraining's summary."""
    rows = [[s["stage"] + (f" ({s['origin']})" if s["origin"] else ""), s["how"], s["steps"], *(f"{s['last'][k]:.3f}" if k in s["last"] else "" for k in ("ce", "mse", "vae"))] for s in result["stages"]]
    baseline, champion = result["baseline"], result["champion"] or {}
    scores = [[name, f"{score:.3f}", *(f"{other[name]:.3f}" if name in other else "" for other in (baseline, champion))] for name, score in result["scores"].items()]
    lines = [f"release {result['release']['tag']} ({result['release']['how']}), {result['release']['samples']} samples", ""]
    lines += [table(["stage", "", "steps", "ce", "mse", "vae"], rows), "", table(["benchmark", "candidate", "prior", "champion"], scores), ""]
    lines += [f"candidate {result['candidate']}: gate says {result['verdict']}" + ("" if result["promoted"] else "; not champion")]
    lines += [f"{result['endpoint']['version']} served at {result['endpoint']['url']}/v1 ({result['endpoint']['how']})"] if result["endpoint"] else []
    return "\n".join([*lines, f"run {result['flow_run']}"])


def evaluation(report: dict) -> str:
    """Benchmarks and slices."""
    rows = []
    for b in report["benchmarks"]:
        rows.append([b["name"], "", f"{b['score']:.3f}", f"{b['ci'][0]:.3f} to {b['ci'][1]:.3f}", b["n"]])
        rows += [["", s["name"], f"{s['score']:.3f}", f"{s['ci'][0]:.3f} to {s['ci'][1]:.3f}", s["n"]] for s in b["slices"]]
    probe = report["probe"]
    head = f"{report['subject']} on {report['release']} ({report['protocol']})\n\n"
    return head + table(["benchmark", "slice", "score", "95 % interval", "n"], rows) + f"\n\nprobe of drawings: {probe['accuracy']:.1%} on {probe['held_out']} held-out pictures"


def plans(found: list, begun: list[str], hardware, training) -> str:
    """The stages' plans side by side, and what each begins with."""
    gib, streams = 1024**3, hardware.gpus * ceil(training.streams / hardware.gpus)
    parts = [[part, f"{count:,}"] for part, count in found[0].parameters.items()]
    lines = [f"{found[0].profile} on {hardware.gpus} GPUs of {hardware.memory_gb:g} GB, {hardware.peak_tflops:g} TFLOP/s at an MFU of {hardware.mfu:.0%}", found[0].how]
    if (hardware.gpus, streams) != (training.workers, training.streams):
        lines += [f"its training has workers: {training.workers} and streams: {training.streams}; for so many GPUs, set them to {hardware.gpus} and {streams}"]
    lines += [""]
    lines += [table(["parameters", ""], [*parts, ["all", f"{sum(found[0].parameters.values()):,}"]]), ""]
    names = list(found[0].memory)
    rows = [[name, *(f"{p.memory[name] / gib:.1f}" for p in found)] for name in names]
    rows += [["all", *(f"{p.total_memory / gib:.1f}" for p in found)], [f"fits {hardware.memory_gb:g} GB", *("yes" if p.fits else "NO" for p in found)]]
    rows += [["trainable parameters", *(f"{p.trainable / 1e9:.2f} B" for p in found)], ["tokens a GPU and step", *(f"{p.tokens_per_gpu:,}" for p in found)]]
    rows += [["seconds a step", *(f"{p.step_seconds:.1f}" for p in found)], ["days of the stage", *(f"{p.stage_days:.1f}" for p in found)]]
    lines += [table(["stage", "begins with"], [[p.stage, start] for p, start in zip(found, begun)]), ""]
    return "\n".join([*lines, table(["GiB a GPU", *(p.stage for p in found)], rows)])


def release(record: dict) -> str:
    """A release in a few lines."""
    card = record["card"]
    lines = [f"{record['tag']}: {record['how']}, {card['samples']} samples of {card['patients']} patients; changed: {record['changed'] or 'nothing'}"]
    return "\n".join([*lines, f"kept aside: {card['quarantined']}" + (f" {card['reasons']}" if card["reasons"] else "")])


def find_release(tag: str | None) -> dict:
    """A release by tag, or the newest.

    Raises:
        LookupError: there is none.
    """
    from flows.releases import all_releases
    from infra.store import corpus_store

    wanted = None if tag is None else f"corpus/{tag.removeprefix('corpus/')}"
    found = [r for r in all_releases(corpus_store()) if wanted in (None, r["tag"])]
    if not found:
        raise LookupError(f"no release {'yet' if tag is None else tag or 'of an empty name'}; `unimed data list` shows what there is, `unimed data release` makes one")
    return found[-1]


def kept_aside(name: str | None) -> dict:
    """A source or release with its quarantine: {kind, record, quarantine, text}."""
    from corpus import shards, taken_in
    from infra.store import corpus_store

    store = corpus_store()
    source = next((s for s in taken_in.sources(store) if s["name"] == name), None)
    record = source or find_release(name)
    aside = [vars(r) for r in shards.read_quarantine(store.get(record["quarantine" if source else "quarantine_key"]))]
    rows = [[entry["source"], entry["where"], entry["reason"], entry["detail"]] for entry in aside]
    if source:
        head = f"{name}: {source['records']['seen']} records seen, {source['samples']['kept']} samples kept"
    else:
        card = record["card"]
        counts = [[task, modality, *(n.get(s, 0) for s in ("train", "val", "test"))] for task, found in card["counts"].items() for modality, n in found.items()]
        docs = f": {store.url(record['data_docs_key'])}" if "data_docs_key" in record else ""
        checks = f"{card['expectations']['held']} of {card['expectations']['of']} expectations hold{docs}"
        gone = f"; purged on {record['purged']['at']}, {len(record['purged']['files'])} of its shards are gone" if "purged" in record else ""
        head = f"{record['tag']}: {card['samples']} samples, licences {card['licenses']}{gone}\n{checks}\n\n" + table(["task", "modality", "train", "val", "test"], counts)
    listed = table(["source", "where", "reason", "detail"], rows) if rows else "nothing"
    return {"kind": "source" if source else "release", "record": record, "quarantine": aside, "text": f"{head}\n\nkept aside ({len(aside)}):\n{listed}"}


def cases(rows: list[dict]) -> str:
    """What waits for a person."""
    named = [[r["record"], r["modality"], "kept" if r["kept"] else "kept aside", r["reason"], r["detail"], *([r["picture"]] if "picture" in r else [])] for r in rows]
    return table(["record", "modality", "", "reason", "detail", *(["picture"] if rows and "picture" in rows[0] else [])], named) if rows else "nothing waits for a person"


def changes(result: dict) -> str:
    """Two releases compared, in words."""
    told = [
        f"{result['before']} to {result['after']}: {result['added']} samples added, {result['removed']} removed, {result['edited']} edited, {result['unchanged']} unchanged",
        f"pictures: {result['bytes_added']:,} bytes more, {result['bytes_removed']:,} less; patients: {result['patients_added']} more, {result['patients_removed']} less",
    ]
    told += [f"edited: {', '.join(f'{what} of {count}' for what, count in result['edits'].items())}"] if result["edits"] else []
    told += [f"moved between splits: {', '.join(f'{how} {count}' for how, count in result['moved'].items())}"] if result["moved"] else []
    rows = [[kind, group, count] for kind, found in result["groups"].items() for group, count in found.items()]
    told += [table(["", "source / task / modality / split", "samples"], rows)] if rows else []
    told += [f"{kind}, e.g. {', '.join(ids)}" for kind, ids in result["examples"].items() if ids]
    return "\n".join(told)


def trace(result: dict) -> str:
    """Who saw it, as tables."""
    releases = [[r["tag"], len(r["samples"]), ", ".join(r["splits"]), ", ".join(r["patients"])] for r in result["releases"]]
    checkpoints = [[c["stage"], c["checkpoint"], c["release"], _saw(c)] for c in result["checkpoints"]]
    models = [[m["version"], m["release"], _saw(m)] for m in result["models"]]
    parts = [table(["release", "samples", "split", "patient key"], releases)]
    parts += [table(["stage", "checkpoint", "release", ""], checkpoints)] if checkpoints else ["no stage checkpoint saw it"]
    parts += [table(["model", "release", ""], models)] if models else ["no model saw it"]
    return "\n\n".join(parts)


def _saw(found: dict) -> str:
    return "trained on it" if found["trained"] else "was scored on it"


def forgotten(result: dict) -> str:
    """What was done, and what still knows."""
    told = f"{len(result['purged'])} objects deleted from S3" if result["purged"] else f"{len(result['left'])} objects on S3 still hold the patient (--purge deletes them)" if result["left"] else "no object on S3 holds the patient"
    done = f"{result['release']} is without patient {result['patient']}; {told}"
    return f"{done}. What saw the patient:\n\n{trace(result)}" if result["releases"] else f"{done}; no release held the patient"
